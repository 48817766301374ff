"""Change detection and forgetting, as parts that any policy can take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.learn.change.cusum import ARMED_EVENTS, Cusum
from service.learn.change.drift import BLOCK, FADE, REMEMBERED, Drift, Reaction
from service.policies import KINDS, Array, Arrays, Batch, Policy, part

D = 3
ADAPTIVE = ("mean", "matrices", "waiting", "intercept", "variance", "events")  # what an `adaptive` knows


def drift(kind: str, **params: float | bool) -> Drift:
    return Drift(KINDS[kind](D, KINDS[kind].Params.model_validate(params)))


def events(rate: float, size: int, *, seed: int = 0) -> Batch:
    """`size` clicks at this rate, on one item with one row."""
    clicks = (np.random.default_rng(seed).random(size) < rate).astype(np.float64)
    return Batch(np.full((size, D), 0.5, np.float32), ["a"] * size, [None] * size, clicks, np.full(size, 0.5))


def learn(drift: Drift, batch: Batch, *, at: float = 0.0, step: int = 1000) -> list[Reaction]:
    """In batches of `step`; what was done about the alarms."""
    reactions: list[Reaction] = []
    for start in range(0, len(batch.item), step):
        some = part(batch, slice(start, start + step))
        found = [drift.update(part(some, rows), at) for rows in drift.parts(len(some.item))]
        reactions += [reaction for reaction in found if reaction is not None]
    return reactions


def precision(state: Arrays, prefix: str = "") -> NDArray[np.float64]:
    """Of an `adaptive` of which no event waits."""
    assert state[prefix + "waiting"].shape[1] == 0
    found: NDArray[np.float64] = state[prefix + "matrices"][0]
    return found


def observe(cusum: Cusum, expected: float, rewards: NDArray[np.float64]) -> int | None:
    """The number of rewards up to the alarm."""
    for number, reward in enumerate(rewards.tolist(), start=1):
        cusum.observe(expected, reward)
        if cusum.alarm is not None:
            return number
    return None


def clicks(rate: float, size: int, seed: int = 0) -> NDArray[np.float64]:
    return (np.random.default_rng(seed).random(size) < rate).astype(np.float64)


@pytest.mark.parametrize("rate", [0.5, 0.1, 0.02])
def test_a_decline_is_noticed_and_a_rise_is_not(rate: float) -> None:
    cusum = Cusum(0)
    assert observe(cusum, rate, clicks(rate, 5000)) is None
    assert observe(cusum, rate, clicks(min(1.0, 1.5 * rate), 2000)) is None
    noticed = observe(cusum, rate, clicks(0.4 * rate, 100_000))
    assert noticed is not None
    assert noticed * rate < 120  # after so many clicks were expected


@pytest.mark.parametrize("bias", [0.5, 0.8, 1.25, 1.9])
def test_expectations_that_are_always_off_by_a_factor_are_no_change(bias: float) -> None:
    assert observe(Cusum(0), 0.5 * bias, clicks(0.5, 20_000)) is None


def test_nothing_is_known_at_the_start() -> None:
    assert observe(Cusum(0), 1.0, np.zeros(ARMED_EVENTS)) is None


def test_rewards_between_0_and_1_count_as_shares() -> None:
    cusum = Cusum(0)
    assert observe(cusum, 0.5, np.random.default_rng(0).beta(2, 2, 5000)) is None
    assert observe(cusum, 0.5, np.random.default_rng(1).beta(2, 8, 1000)) is not None


@pytest.mark.parametrize("kind", ["adaptive", "linucb", "popularity"])  # linucb expects nothing by itself
def test_an_alarm_resets_the_policy(kind: str) -> None:
    one = drift(kind, detect_change=True)
    assert learn(one, events(0.6, 3000)) == []
    assert learn(one, events(0.1, 400, seed=1)) == ["reset"]
    assert learn(one, events(0.1, 3000, seed=2)) == []  # the new world is no change


def test_without_being_asked_nothing_is_detected() -> None:
    one = drift("adaptive", detect_change=False)
    assert learn(one, events(0.6, 3000)) + learn(one, events(0.05, 2000)) == []


@pytest.mark.parametrize(("kind", "reaction"), [("adaptive", "succession"), ("linucb", "reset")])
def test_a_rise_brings_on_who_forgets(kind: str, reaction: Reaction) -> None:
    """No reward falls short, so no detector says a word; but a model that forgets soon predicts better."""
    one = drift(kind, detect_change=True)
    assert learn(one, events(0.2, 8000)) == []
    assert learn(one, events(0.5, 1000, seed=1)) == [reaction]
    assert learn(one, events(0.5, 5000, seed=2)) == []


def test_the_successor_takes_over_with_all_that_it_knows() -> None:
    one = drift("adaptive", detect_change=True)
    learn(one, events(0.2, 20_000))
    batch = events(0.5, 1000, seed=1)
    for rows in one.parts(len(batch.item)):
        before = one.state()
        if one.update(part(batch, rows), 0.0) is not None:
            break
    after = one.state()
    assert (precision(before, "drift.successor.") <= precision(after)).all()  # it has learned one part more
    assert (precision(after) < precision(before)).all()
    for name in ADAPTIVE:
        assert (after[f"drift.successor.{name}"] == after[name]).all(), name  # it starts anew, from what is known
    assert after["events"] == before["events"] + BLOCK


@pytest.mark.parametrize("outage", [0.1, 0.0])
def test_when_the_old_world_comes_back_the_old_model_is_recalled(outage: float) -> None:
    """After a season of .1, or an outage of feedback. What was learned before is there again, with its certainty."""
    one = drift("adaptive", detect_change=True)
    learn(one, events(0.6, 5000))
    assert learn(one, events(outage, 1500, seed=1)) == ["reset"]
    former = {name: array for name, array in one.state().items() if name.startswith("drift.former.0.")}
    batch = events(0.6, 400, seed=2)
    for rows in one.parts(len(batch.item)):
        if one.update(part(batch, rows), 0.0) is not None:
            break
    else:
        pytest.fail("nobody came back")
    state = one.state()
    for name in ADAPTIVE:
        assert (state[name] == former[f"drift.former.0.{name}"]).all(), name
    assert (state["drift.former.0.mean"] != state["mean"]).any()  # what ended took its place
    assert learn(one, events(0.6, 5000, seed=3)) == []


def test_a_world_that_was_never_there_recalls_nobody() -> None:
    one = drift("adaptive", detect_change=True)
    learn(one, events(0.6, 4000))
    assert learn(one, events(0.1, 3000, seed=1)) == ["reset"]
    assert learn(one, events(0.22, 3000, seed=2)) == ["succession"]
    assert learn(one, events(0.03, 3000, seed=3)) == ["reset"]


def test_only_the_newest_models_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.learn.change.drift.REMEMBERED", 2)
    one = drift("adaptive", detect_change=True)
    reactions: list[Reaction] = []
    for number in range(5):
        reactions += learn(one, events(0.9 / 2**number, 1000 * 2**number, seed=number))
    former = {name for name in one.state() if name.startswith("drift.former.")}
    assert len(reactions) > 2
    assert {name.split(".")[2] for name in former} == {"0", "1"}


def test_four_models_are_remembered() -> None:
    assert REMEMBERED == 4


def test_a_policy_that_is_watched_through_a_reference_remembers_nothing() -> None:
    """Its states may be of any size."""
    one = drift("linucb", detect_change=True)
    reactions = learn(one, events(0.6, 5000)) + learn(one, events(0.1, 1500, seed=1)) + learn(one, events(0.6, 1500))
    assert reactions == ["reset", "reset"]
    assert not any(name.startswith("drift.former.") for name in one.state())


def test_a_slow_swap_of_tastes_is_noticed() -> None:
    """Two rows trade their rates over 8000 events: what is earned on average stays the same."""
    one, rng, size = drift("adaptive", detect_change=True), np.random.default_rng(0), 16_000
    mix = np.clip((np.arange(size) - 5000) / 8000, 0, 1)
    first = rng.random(size) < 0.5
    rate = np.where(first, 0.7 - 0.4 * mix, 0.3 + 0.4 * mix)
    x = np.where(first[:, None], [1.0, 0.0, 1.0], [0.0, 1.0, 1.0]).astype(np.float32)
    clicks = (rng.random(size) < rate).astype(np.float64)
    reactions = learn(one, Batch(x, ["a"] * size, [None] * size, clicks, np.full(size, 0.5)))
    assert reactions
    assert set(reactions) == {"succession"}


def as_they_come(rates: NDArray[np.float64], *, silence: int, outage: range = range(0)) -> tuple[Batch, list[int]]:
    """Decisions with these click rates on two rows that take turns for 700 at a time. Clicks come at once, silence is
    told `silence` decisions later, but not during the `outage`. The events as they come, and their places."""
    rng, size = np.random.default_rng(0), len(rates)
    row = np.arange(size) // 700 % 2
    x = np.where(row[:, None] == 0, [1.0, 0.0, 1.0], [0.0, 1.0, 1.0]).astype(np.float32)
    clicks = (rng.random(size) < rates).astype(np.float64)
    arrival = np.where(clicks == 1, np.arange(size), np.arange(size) + silence)
    arrival = np.where((clicks == 0) & (arrival >= outage.start) & (arrival < outage.stop), outage.stop, arrival)
    places = np.argsort(arrival, kind="stable")
    batch = Batch(x[places], ["ab"[i] for i in row[places]], [None] * size, clicks[places], np.full(size, 0.5))
    return batch, places.tolist()


def alarms(kind: str, batch: Batch, places: list[int] | None) -> list[tuple[int, Reaction]]:
    """(Events learned until then, what was done) of each alarm."""
    one = drift(kind, detect_change=True)
    found = [
        (rows.stop, one.update(part(batch, rows), 0.0, places and places[rows])) for rows in one.parts(len(batch.item))
    ]
    return [(events, reaction) for events, reaction in found if reaction is not None]


@pytest.mark.parametrize("kind", ["adaptive", "linucb"])
@pytest.mark.parametrize(("silence", "outage"), [(2000, range(0)), (20, range(6000, 8000))])
def test_clicks_that_come_before_silence_are_no_change(kind: str, silence: int, outage: range) -> None:
    """A wait of 2000 decisions; and a sweeper that was down for 2000 and then tells of all the silence at once."""
    batch, places = as_they_come(np.full(12_000, 0.4), silence=silence, outage=outage)
    assert alarms(kind, batch, None), "in the order of the log it looks like one"
    assert alarms(kind, batch, places) == []


def test_a_decline_is_noticed_though_silence_is_told_late() -> None:
    rates = np.where(np.arange(16_000) < 10_000, 0.6, 0.2)
    batch, places = as_they_come(rates, silence=2000)
    [(events, reaction), *others] = alarms("adaptive", batch, places)
    assert reaction == "reset"
    assert others == []
    newest = max(places[:events])
    assert 10_000 + 2000 < newest < 10_000 + 2000 + 400  # as soon as the wait allows


def test_the_same_state_though_silence_is_told_late_and_a_restart_comes_between() -> None:
    batch, places = as_they_come(np.full(6000, 0.4), silence=2000)
    one, other = drift("adaptive", detect_change=True), drift("adaptive", detect_change=True)
    most = 0
    for number, rows in enumerate(one.parts(len(batch.item))):
        one.update(part(batch, rows), 0.0, places[rows])
        other.update(part(batch, rows), 0.0, places[rows])
        if number % 50 == 0:
            restarted = drift("adaptive", detect_change=True)
            restarted.load(other.state())
            other = restarted
        most = max(most, len(one.state()["drift.order"]) if number % 50 == 0 else 0)
    assert most > 10  # clicks waited there
    state, again = one.state(), other.state()
    assert {name: array.tobytes() for name, array in state.items()} == {k: v.tobytes() for k, v in again.items()}


@pytest.mark.parametrize("rate", [0.5, 0.01])
def test_in_a_world_that_stands_still_nobody_takes_over(rate: float) -> None:
    assert learn(drift("adaptive", detect_change=True), events(rate, 20_000)) == []


def test_a_state_from_before_there_were_successors_is_taken_up() -> None:
    one, other = drift("adaptive", detect_change=True), drift("adaptive", detect_change=True)
    learn(one, events(0.5, 3000))
    old = {name: array for name, array in one.state().items() if not name.startswith("drift.successor.")}
    other.load(old)
    assert learn(other, events(0.5, 3000, seed=1)) == []
    assert (other.state()["drift.successor.events"] == other.state()["events"]).all()


def test_what_the_successor_knows_is_learned_twice_only_once_it_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[object] = []
    update = KINDS["adaptive"].update

    def counted(policy: Policy[Any], batch: Batch) -> Array | None:
        learned.append(policy)
        return update(policy, batch)

    monkeypatch.setattr(KINDS["adaptive"], "update", counted)
    one = drift("adaptive", detect_change=True)
    learn(one, events(0.5, FADE))
    assert {id(policy) for policy in learned} == {id(one.policy)}
    learned.clear()
    learn(one, events(0.5, FADE, seed=1))
    assert len({id(policy) for policy in learned}) == 2


@pytest.mark.parametrize("kind", ["adaptive", "linucb", "popularity"])
@pytest.mark.parametrize(
    "params", [{"detect_change": True}, {"half_life": 50.0}, {"detect_change": True, "half_life": 500}]
)
def test_the_same_state_in_whatever_batches_and_through_a_restart(kind: str, params: dict[str, float]) -> None:
    together, apart = drift(kind, **params), drift(kind, **params)
    reactions: list[Reaction] = []
    worlds = ((0.2, 4000), (0.6, 800), (0.05, 800), (0.6, 800))
    for batch in (events(rate, size, seed=seed) for seed, (rate, size) in enumerate(worlds)):
        found = learn(together, batch)
        assert learn(apart, batch, step=7) == found
        reactions += found
        restarted = drift(kind, **params)
        restarted.load(apart.state())
        apart = restarted
    if params == {"detect_change": True}:
        assert (
            reactions
            == {
                "adaptive": ["succession", "reset", "recall"],
                "linucb": ["reset", "reset", "reset"],
                "popularity": ["reset", "reset"],
            }[kind]
        )
    state, other = together.state(), apart.state()
    assert state.keys() == other.keys()
    for name in state:
        assert state[name].tobytes() == other[name].tobytes(), name


def rate_of(one: Drift) -> float:
    kind = type(one.policy)
    return float(
        kind.scorer(one.policy.snapshot(), d=D, params=one.policy.params).summary()["items"]["a"]["discounted_rate"]
    )


def test_after_a_half_life_an_event_counts_half() -> None:
    one = drift("popularity", half_life=10 * BLOCK, prior_clicks=0, prior_impressions=1e-9)
    ones, zeros = events(1.0, 1000 * BLOCK), events(0.0, 10 * BLOCK)
    learn(one, ones)
    assert rate_of(one) == pytest.approx(1.0)
    learn(one, zeros)  # one half-life of zeros: the ones are worth half of all
    assert rate_of(one) == pytest.approx(0.5, abs=1e-6)


def test_half_lives_in_seconds() -> None:
    one = drift("popularity", half_life=1e12, half_life_s=3600, prior_clicks=0, prior_impressions=1e-9)
    learn(one, events(1.0, 10 * BLOCK), at=1000.0)
    learn(one, events(0.0, 5 * BLOCK), at=1000.0 + 3600)  # an hour after the ones, 5 blocks at once
    assert rate_of(one) == pytest.approx(10 / 2 / (10 / 2 + 4.5), abs=1e-6)  # the hour falls at the first block's end


def test_a_policy_that_never_expects_anything_stops_nothing() -> None:
    cusum = Cusum(0)
    assert observe(cusum, 0.0, clicks(0.5, 2000)) is None
