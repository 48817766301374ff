"""The history as a pure fold: exact in whatever parts it is done, and honest about what it does not know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from service.evaluate import history
from service.evaluate.history import KEPT, MOST_POLICIES, OTHER, Bin, BinId, Sums
from service.policies import Array
from service.records import Event
from tests.builders import event_of

START_S = 1_700_000_000


def shown(number: int = 0, *, at: float = 0.0, after: float = 0.0, **changes: object) -> Event:
    """Build the event of a decision made `at` seconds after the start, which settled `after` seconds later."""
    came = round(1000 * (START_S + at + after))
    event = event_of(number, position=f"{came}-{number}")
    made = {"source": "feedback", "policy": "p", "decided": START_S + at, "propensity": 0.3, "reward": number * 0.1}
    return replace(event, **{**made, **changes})  # type: ignore[arg-type]


def fold(events: Sequence[Event], into: dict[BinId, Bin] | None = None) -> dict[BinId, Bin]:
    found = {} if into is None else into
    for event in events:
        if bins := history.bins_of(event):
            history.add(event, [found.setdefault(bin, {}) for bin in bins])
    return found


def some(count: int) -> list[Event]:
    rng = np.random.default_rng(3)
    times = np.sort(rng.random(count)) * 7200
    return [
        shown(
            number, at=float(at), after=float(rng.exponential(60)), policy="pq"[number % 2], reward=float(rng.random())
        )
        for number, at in enumerate(times)
    ]


def test_parts_give_the_same_bits_as_the_whole() -> None:
    events = some(60)
    whole = fold(events)
    parts: dict[BinId, bytes] = {}
    for cut in range(0, 60, 7):  # each part is written down, and read again
        loaded = {bin: history.load(content) for bin, content in parts.items()}
        parts = {bin: history.dump(sums) for bin, sums in fold(events[cut : cut + 7], loaded).items()}
    assert parts == {bin: history.dump(sums) for bin, sums in whole.items()}


def test_totals_are_the_same_at_every_level() -> None:
    found = fold([replace(event, position=shown(at=0).position) for event in some(300)])
    levels = [[sums for bin, sums in found.items() if bin.step == step] for step in KEPT]
    totals = [history.whole(history.by_policy(level).values()) for level in levels]
    for total in totals:
        assert total.decisions == total.items == 300
        assert total.wwrr == pytest.approx(totals[0].wwrr, rel=1e-12)
    hourly = history.merged({bin: sums for bin, sums in found.items() if bin.step == 60}, 3600)
    assert {start: history.by_policy([sums])["p"].decisions for start, sums in hourly.items()} == {
        bin.start: history.by_policy([sums])["p"].decisions for bin, sums in found.items() if bin.step == 3600
    }


def test_an_event_counts_when_its_decision_was_made() -> None:
    assert [bin.start for bin in history.bins_of(shown(at=5, after=100))] == [START_S + 5, START_S - 20, START_S - 800]
    late = [bin.step for bin in history.bins_of(shown(after=601))]
    assert late == [60, 3600], "bins of that second were given up a second ago"
    assert [bin.step for bin in history.bins_of(shown(after=600 * 86_400))] == []
    ahead = shown(decided=START_S + 1e6)
    assert history.bins_of(ahead) == history.bins_of(shown()), "no clock is ahead of the log's"
    old = shown(decided=None, after=50)
    assert history.bins_of(old) == history.bins_of(shown(at=50)), "an older version did not say when"


def test_what_was_not_drawn_here_does_not_count() -> None:
    for changes in ({"source": "import"}, {"n": None}, {"propensity": None}, {"policy": None}):
        assert history.bins_of(shown(**changes)) == []


def test_the_bins_that_expire_are_those_that_were_alive() -> None:
    since = shown().position
    newest = {step: START_S // step for step in KEPT}
    near = [BinId(step, newest[step] - back) for step, kept in KEPT.items() for back in range(kept + 3)]
    alive = [bin for bin in near if history.alive(bin, since)]
    assert len(alive) == sum(KEPT.values())
    for later in (0, 0.4, 61, 700, 4000, 400 * 86_400):
        until = shown(at=later).position
        left = {bin for bin in alive if not history.alive(bin, until)}
        assert set(history.expired(since, until)) == left, later


def test_a_slate_is_one_decision_and_a_rung_is_kept_apart() -> None:
    found = fold([shown(place=place, rung="store_down") for place in range(3)] + [shown()])
    for bin in found.values():
        assert {place: (sums.decisions, sums.items) for place, sums in bin.items()} == {
            ("p", "store_down"): (1, 3),
            ("p", "ok"): (1, 1),
        }


def test_a_bin_names_eight_policies_and_sums_up_the_rest() -> None:
    events = [shown(number, policy=f"p{number % 12}") for number in range(36)]
    [bin] = [sums for bin, sums in fold(events).items() if bin.step == 60]
    found = history.by_policy([bin])
    assert len(found) == MOST_POLICIES + 1
    assert {sums.decisions for policy, sums in found.items() if policy != OTHER} == {3}
    assert found[OTHER].decisions == 12


# ---- estimates


def sums_of(w: Array, r: Array) -> Sums:
    ww = w * w
    sums = (r, r * r, w, ww, w * r, ww * r, ww * r * r)
    return Sums(len(w), len(w), *(float(one.sum()) for one in sums))


def test_the_interval_of_a_rate_is_that_of_agresti_and_coull() -> None:
    found = history.reward(sums_of(np.ones(10), np.zeros(10)), 0.0, 1.0)
    assert found is not None
    assert (found.estimate, found.low) == (0.0, 0.0)
    p = 2 / 14
    assert found.high == pytest.approx(p + 1.96 * np.sqrt(p * (1 - p) / 14), abs=1e-4)
    scaled = history.reward(sums_of(np.ones(10), np.full(10, -3.0)), -3.0, 7.0)
    assert scaled == pytest.approx([10 * end - 3 for end in found])
    assert history.reward(Sums(), 0.0, 1.0) is None


def logs(runs: int, size: int, *, explore: float, n: int = 10) -> Iterator[tuple[Array, Array]]:
    """Yield (w, r) of a policy that shows the best of n items but for a share of draws at random."""
    rng = np.random.default_rng(7)
    p = np.full(n, explore / n)
    p[0] += 1 - explore
    rate = np.array([0.5] + [0.1] * (n - 1))  # uniform: 0.14
    for _ in range(runs):
        item = rng.choice(n, p=p, size=size)
        yield 1 / (n * p[item]), (rng.random(size) < rate[item]).astype(float)


def test_the_lift_holds_as_often_as_it_says() -> None:
    told = [history.lift(sums_of(w, r), 0.0, 1.0, floor=0.1) for w, r in logs(200, 2000, explore=0.1)]
    found = [one for one in told if one.uniform and one.lift]
    assert len(found) >= 190
    uniform, lift = 0.14, (0.9 * 0.5 + 0.1 * 0.14) - 0.14
    assert np.mean([one.uniform.low <= uniform <= one.uniform.high for one in found if one.uniform]) >= 0.93
    assert np.mean([one.lift.low <= lift <= one.lift.high for one in found if one.lift]) >= 0.95
    assert np.mean([one.lift.low > 0 for one in found if one.lift]) == 1.0


def test_nothing_is_told_where_too_little_was_tried() -> None:
    [(w, r)] = logs(1, 300, explore=0.1)
    few = history.lift(sums_of(w, r), 0.0, 1.0, floor=0.1)
    assert few.uniform is few.lift is None
    assert few.more is not None
    assert 300 <= few.more <= 1500
    greedy = sums_of(np.full(5000, 1 / (10 * 0.99)), np.ones(5000))  # not once did it explore
    found = history.lift(greedy, 0.0, 1.0, floor=0.01)
    assert (found.size, found.uniform, found.more) == (0.0, None, 5000)
    assert history.lift(greedy, 0.0, 1.0, floor=0.0).more is None
    assert history.lift(Sums(), 0.0, 1.0, floor=0.01).more == 10_000


def test_a_uniform_policy_has_no_lift() -> None:
    rng = np.random.default_rng(1)
    found = history.lift(sums_of(np.ones(500), rng.random(500)), 0.0, 1.0, floor=0.01)
    assert found.lift is not None
    assert found.lift.estimate == pytest.approx(0.0, abs=1e-12)
    assert found.size == 500
