"""The pure part of releases: shares, sums over settled decisions, and what a look says."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.evaluate import release
from service.evaluate.release import (
    BUCKETS,
    FEWEST,
    OPEN,
    Group,
    Guard,
    ReleaseSums,
    Serving,
    bucket_of,
    difference_of,
    look,
    split,
)
from service.records import Event
from tests.builders import event_of
from tests.decide.builders import active_of

Array = np.ndarray[Any, Any]
WELL = Serving()
GUARD = Guard(reward_drop=0.05, lag=100, latency_ms=50, degraded=0.1)


# ---- shares


def test_the_others_keep_their_proportions_and_the_way_back_is_exact() -> None:
    before = {"a": 0.6, "b": 0.2, "new": 0.2}
    assert split(before, "new", 0.5) == pytest.approx({"a": 0.375, "b": 0.125, "new": 0.5})
    assert split(before, "new", 1) == {"new": 1}
    assert sum(split({"a": 0.1, "b": 0.9}, "new", 0.01).values()) == pytest.approx(1, abs=1e-12)


@settings(max_examples=20)
@given(st.dictionaries(st.sampled_from("abxyz"), st.floats(0.01, 1), min_size=1), st.floats(0.01, 0.98))
def test_who_was_given_the_policy_keeps_it_as_its_share_grows(given_to: dict[str, float], share: float) -> None:
    before = {name: part / sum(given_to.values()) for name, part in given_to.items()}

    def served(share: float) -> set[int]:
        traffic = split(before, "m", share)
        active = active_of(2, traffic={name: traffic[name] for name in sorted(traffic)})  # as a worker orders them
        return {user for user in range(60) if active.policy_for(f"u{user}").policy == "m"}

    assert served(share) <= served(min(0.99, 1.3 * share))


# ---- sums


def events_of(rng: np.random.Generator, size: int, *, first: int = 0) -> list[Event]:
    """Build events of two policies and of one that does not count, each with the next place."""
    return [
        dataclasses.replace(
            event_of(first + number, reward=float(rng.random() < 0.5), slate_position=first + number),
            user=None if rng.random() < 0.1 else f"u{rng.integers(20)}",
            policy=str(rng.choice(["new", "old", "another"])),
        )
        for number in range(size)
    ]


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_what_counts_is_what_is_settled_however_looks_and_generations_fall(seed: int) -> None:
    """Rewards come in any order; what the sums hold equals a count by hand of a prefix that was all settled."""
    rng = np.random.default_rng(seed)
    sums, start = ReleaseSums("new", ["old"], start=5), 5
    waiting: dict[int, Event] = {}
    seen, shown, counted = list[Event](), 0, 0
    for _ in range(12):
        fresh = events_of(rng, int(rng.integers(0, 8)), first=shown)
        shown += len(fresh)
        waiting |= {number: event for event in fresh if (number := event.slate_position) is not None}
        sums.begin(shown)
        settled = [place for place in waiting if rng.random() < 0.5]
        rng.shuffle(settled)
        come = [waiting.pop(place) for place in settled]
        sums.add([*come, dataclasses.replace(event_of(0), policy="new")])  # an import has no place
        seen += come
        sums.settle(min(waiting, default=shown))
        copy = ReleaseSums("new", ["old"], start=5)
        copy.load(sums.state())
        sums = copy
        groups = sums.groups()
        by_place = {event.slate_position: event for event in seen}
        prefix = [p for p in range(start, shown) if p in by_place and p < min(waiting, default=shown)]
        of_ours = [by_place[place] for place in prefix if by_place[place].policy != "another"]
        # It lags behind by whole generations, so what it counted is a beginning of what could be counted.
        number = sum(group.events for group in groups)
        assert counted <= number <= len(of_ours)
        counted = number
        for group, name in zip(groups, ("new", "old"), strict=True):
            mine = [event.reward for event in of_ours[:number] if event.policy == name]
            assert group.events == len(mine)
            assert group.reward == (pytest.approx(np.mean(mine)) if mine else None)
        assert len(sums.state()["open"]) <= OPEN
    sums.begin(shown)
    sums.add(waiting.values())
    sums.settle(shown)
    assert sum(group.events for group in sums.groups()) == sum(
        event.policy != "another" for event in [*seen, *waiting.values()] if (event.slate_position or 0) >= start
    )


def test_a_click_does_not_count_before_those_who_did_not_click() -> None:
    sums = ReleaseSums("new", ["old"], start=0)
    events = [dataclasses.replace(event_of(n, reward=float(n == 2), slate_position=n), policy="new") for n in range(4)]
    sums.begin(4)
    sums.add(events[2:3])  # the click is in the log at once
    sums.settle(0)  # while the decision before it still waits
    assert sums.groups()[0].events == 0
    sums.add([*events[:2], events[3]])
    sums.settle(4)
    assert sums.groups()[0][::2] == (4, 0.25)


def test_users_are_the_unit_of_variance() -> None:
    """The variance of a mean of many decisions of few users is that of a mean of few, as by the delta method."""
    rng = np.random.default_rng(0)
    cell = np.repeat(np.arange(50), 40)
    reward = np.repeat(rng.random(50), 40)
    sums = ReleaseSums("new", ["old"], start=0)
    sums.count(np.arange(2000), np.zeros(2000, int), cell, reward)
    sums.begin(2000)
    sums.settle(2000)
    group, _ = sums.groups()
    assert group.users == pytest.approx(50)
    assert group.spread / group.events == pytest.approx(reward[::40].var(ddof=1) / 50)


def test_users_are_spread_over_the_cells_whatever_share_the_policy_has() -> None:
    counts = np.bincount([bucket_of(f"u{n}") for n in range(20 * BUCKETS)], minlength=BUCKETS)
    chi = float(((counts - 20) ** 2 / 20).sum())
    assert abs(chi - (BUCKETS - 1)) < 4 * np.sqrt(2 * BUCKETS)


# ---- verdicts


def group(events: int, reward: float, *, users: float = 500, spread: float = 0.25) -> Group:
    return Group(events, users, reward, spread)


def course(policy: Group, others: Group, serving: Serving = WELL) -> tuple[str, str]:
    sums = ReleaseSums("new", ["old"], start=0)
    sums.groups = lambda: (policy, others)  # type: ignore[method-assign]
    found = look(sums, GUARD, serving, error=0.05)
    return found.course, found.why


def test_it_goes_on_goes_back_or_waits_for_what_is_shown() -> None:
    many, few = group(20_000, 0.5), group(300, 0.5)
    assert course(many, many)[0] == "go on"
    assert course(group(20_000, 0.4), many)[0] == "go back"
    assert course(group(20_000, 0.48), many)[0] == "go on", "a drop that is allowed"
    assert course(few, many)[0] == "wait"
    assert course(group(300, 0.1), many)[0] == "go back", "great harm shows early"
    for nobody in (group(20_000, 0.5, users=FEWEST - 1), Group(0, 0.0, None, 0.0)):
        assert course(nobody, many) == course(many, nobody) or nobody.events == 0
        assert course(nobody, many)[0] == "wait"
        assert f"{FEWEST} are the fewest" in course(nobody, many)[1]


@pytest.mark.parametrize(
    ("serving", "why"),
    [
        (Serving(lag=101), "has still to learn 101 events"),
        (Serving(decisions=200, slow=11), "6% of 200 decisions took longer than 50 ms"),
        (Serving(decisions=200, degraded=21), "10.5% of 200 decisions were degraded"),
    ],
)
def test_it_goes_back_at_once_when_the_service_says_so(serving: Serving, why: str) -> None:
    good = group(20_000, 0.9), group(20_000, 0.5)
    found, said = course(*good, serving)
    assert found == "go back"
    assert why in said
    within = Serving(lag=100, decisions=200, slow=10, degraded=20)
    assert course(*good, within)[0] == "go on"
    assert course(*good, Serving(decisions=99, slow=99, degraded=99))[0] == "go on", "too few to tell"


@settings(max_examples=30)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(10, 10**6), st.integers(10, 10**6), st.floats(1e-4, 1))
def test_bounds_enclose_the_estimate_and_narrow_with_more_events(
    reward: float, other: float, events: int, others: int, scale: float
) -> None:
    found = difference_of(group(events, reward), group(others, other), error=0.05, scale=scale)
    more = difference_of(group(2 * events, reward), group(2 * others, other), error=0.05, scale=scale)
    surer = difference_of(group(events, reward), group(others, other), error=0.01, scale=scale)
    assert found is not None
    assert more is not None
    assert surer is not None
    assert found.low < found.estimate < found.high
    assert more.half_width < found.half_width < surer.half_width


def test_a_policy_that_never_earned_anything_is_not_taken_for_certain() -> None:
    """Without a reward its own variance is 0; after a handful of decisions that says nothing."""
    none, others = group(60, 0.0, users=60, spread=0.0), group(6000, 0.05, spread=0.0475)
    found = difference_of(none, others, error=0.05, scale=0.05)
    assert found is not None
    assert found.high > 0
    assert course(group(3000, 0.0, spread=0.0), others)[0] == "go back", "but after thousands it does"


def test_the_boundary_is_that_of_robbins() -> None:
    """Of a sum with variance V: sqrt((V + rho) log((V + rho) / (rho error²))), in the units of the mean."""
    variance, scale, error = 0.25 * 2 / 1000, 0.05, 0.02
    found = difference_of(group(1000, 0.5), group(1000, 0.5), error=error, scale=scale)
    V, rho = 1 / variance, 1 / scale**2
    assert found is not None
    assert found.half_width == pytest.approx(variance * np.sqrt((V + rho) * np.log((V + rho) / (rho * error**2))))


def played(seed: int, effect: float) -> str:
    """Play one step of a share of a half among users who differ, with a look after each 100 decisions."""
    rng = np.random.default_rng(seed)
    rate, new = rng.beta(1, 2, 400), rng.random(400) < 0.5
    sums = ReleaseSums("new", ["old"], start=0)
    for number in range(0, 3000, 100):
        user = rng.integers(400, size=100)
        reward = (rng.random(100) < rate[user] + effect * new[user]).astype(float)
        sums.count(number + np.arange(100), (~new[user]).astype(int), user, reward)
        sums.begin(number + 100)
        sums.settle(number + 100)
        found = look(sums, release.Guard(reward_drop=0.1, lag=0), Serving(), error=0.05)
        if found.course != "wait":
            return found.course
    return "wait"


def test_equal_policies_seldom_go_back_and_harmful_ones_do() -> None:
    equal, harmful, good = ([played(seed, effect) for seed in range(60)] for effect in (0.0, -0.25, 0.2))
    found: dict[str, int] = defaultdict(int)
    for said in equal:
        found[said] += 1
    assert found["go back"] <= 4
    assert harmful.count("go back") >= 55
    assert harmful.count("go on") == 0
    assert good.count("go on") >= 58
