"""The state that a decision was served with equals the fold over the log from its start, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from service.evaluate.states import ServedState, same_state
from service.records import LoggedActivity
from service.represent.user_state import Activity, ItemFields, user_state

CATALOGUE: dict[str, dict[str, Any]] = {f"p{i}": {"category": "abc"[i % 3], "price": 0.1 * i} for i in range(6)}
ITEMS = ItemFields(CATALOGUE)
NOW = 2_000_000_000_000
KEPT = 4
KEPT_MS = 1000_000_000


class Store:
    """What Redis does with activity (`take_activity.lua`): leaves out repeats, keeps the newest, writes the log."""

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self.kept: list[Activity] = []
        self.log: list[LoggedActivity] = []

    def take(self, item: str, kind: str, at: int, name: str) -> None:
        if name in self.ids:
            return
        self.ids.add(name)
        number, position = len(self.log) + 1, f"{NOW + len(self.log) // 3}-{len(self.log) % 3}"
        self.kept = [*self.kept, Activity(number, at, item, kind)][-KEPT:]
        self.log.append(LoggedActivity(position, "u", number, at, item, kind, KEPT_MS))

    def decide(self, at: int) -> ServedState:
        """Serve the state, through JSON as the record holds it."""
        seen = self.log[-1].position if self.log else "0-0"
        state = orjson.loads(orjson.dumps(user_state(self.kept, ITEMS, at=at)))
        return ServedState(f"d{at}", "u", seen, 1, at, state)


# Items that the catalogue lacks, ids that come again, times in any order.
ACT = st.tuples(
    st.sampled_from([f"p{i}" for i in range(8)]),
    st.sampled_from(["view", "buy", "own"]),
    st.integers(0, 10**9),
    st.sampled_from([f"a{i}" for i in range(12)]),
)


@settings(max_examples=50)
@given(st.lists(st.lists(ACT, max_size=4), min_size=1, max_size=12))
def test_what_was_folded_as_it_came_is_what_the_log_folds_to(sent: list[list[tuple[str, str, int, str]]]) -> None:
    store, served = Store(), []
    for number, batch in enumerate(sent):
        for item, kind, ago, name in batch:
            store.take(item, kind, NOW - ago, name)
        served.append(store.decide(NOW + number))
    for one in served:
        assert same_state(one, store.log, ITEMS, whole=True) is True
    # Whoever saw more than there was by then, or less, is found.
    states = [one.state for one in served]
    for one in served:
        for other in states:
            if other.get("count") != one.state.get("count"):
                assert same_state(replace(one, state=other), store.log, ITEMS, whole=True) is False


def browsed() -> Store:
    store = Store()
    for number in range(8):
        store.take(f"p{number % 6}", "view", NOW - 1000 * number, f"a{number}")
    return store


def test_a_state_that_saw_what_came_after_the_decision_is_a_leak() -> None:
    store = browsed()
    decision = store.decide(NOW)
    store.take("p5", "buy", NOW, "after")
    leaked = replace(decision, state=store.decide(NOW).state)
    assert same_state(decision, store.log, ITEMS, whole=True) is True
    assert same_state(leaked, store.log, ITEMS, whole=True) is False


def test_another_item_time_or_place_is_found() -> None:
    store = browsed()
    decision = store.decide(NOW)
    for change in ({"item": "p0"}, {"at": NOW}, {"type": "buy"}, {"number": 20}):
        forged = [*store.log[:-1], replace(store.log[-1], **change)]
        assert same_state(decision, forged, ITEMS, whole=True) is False, change
    assert same_state(replace(decision, state={**decision.state, "kept": "4"}), store.log, ITEMS, whole=True) is False


def test_what_the_log_no_longer_holds_is_past_checking_and_what_it_should_hold_is_missed() -> None:
    store = browsed()
    decision = store.decide(NOW)
    for left in (store.log[-KEPT + 1 :], []):
        assert same_state(decision, left, ITEMS, whole=False) is None
        assert same_state(decision, left, ITEMS, whole=True) is False
    assert same_state(decision, store.log[-KEPT:], ITEMS, whole=False) is True


def test_without_a_state_the_user_had_done_nothing_or_was_forgotten() -> None:
    store = browsed()
    empty = replace(store.decide(NOW), state={})
    assert same_state(empty, [], ITEMS, whole=True) is True
    assert same_state(empty, store.log, ITEMS, whole=True) is False
    assert same_state(replace(empty, at=NOW + KEPT_MS), store.log, ITEMS, whole=True) is True
    # He came again, and his numbers begin anew.
    again = [*store.log, LoggedActivity(f"{NOW + KEPT_MS}-0", "u", 1, NOW, "p1", "view", KEPT_MS)]
    state = user_state([Activity(1, NOW, "p1", "view")], ITEMS, at=NOW + KEPT_MS)
    served = ServedState("d", "u", again[-1].position, 1, NOW + KEPT_MS, state)
    assert same_state(served, again, ITEMS, whole=True) is True
