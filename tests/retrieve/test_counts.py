"""Counts of items: decayed by the events' own times, the same in whatever batches, bounded, and checked when loaded."""

from __future__ import annotations

import numpy as np
import pytest

from service.records import Event, ItemChange
from service.retrieve import counts as module
from service.retrieve.counts import HALF_LIFE_S, MOST_HALVINGS, Counts
from tests.builders import event_of


def shown(item: str, reward: float = 0.0, *, at: float) -> Event:
    return event_of(item=item, reward=reward, at=at, position="9000000000000-0", x=[0.0])


def counted(*events: Event) -> Counts:
    counts = Counts()
    counts.add(events)
    return counts


def test_an_impression_has_half_the_weight_a_day_later() -> None:
    old, new = 1e9, 1e9 + HALF_LIFE_S
    found = counted(shown("a", 1.0, at=old), shown("b", 1.0, at=new), shown("b", 0.5, at=new)).standing(["b", "x", "a"])
    assert found.looks.tolist() == [2, 0, 1]
    assert found.shown[0] == pytest.approx(4 * found.shown[2])
    assert found.reward[0] == pytest.approx(3 * found.reward[2])
    assert (found.shown[1], found.reward[1], found.born[1]) == (0.0, 0.0, 0)


def test_counts_do_not_depend_on_batches_nor_overflow() -> None:
    step = HALF_LIFE_S * MOST_HALVINGS / 3
    events = [shown("ab"[n % 2], n % 3, at=1e9 + n * step) for n in range(40)]
    whole, parts = counted(*events), Counts()
    for start in range(0, 40, 7):
        parts.add(events[start : start + 7])
    for one, other in zip(whole.standing(["a", "b"]), parts.standing(["a", "b"]), strict=True):
        assert np.array_equal(one, other)
        assert np.isfinite(one).all()
    assert whole.events == parts.events == 40


def test_an_import_from_the_future_counts_as_of_now() -> None:
    now = event_of(item="a", reward=1, position=f"{10**12}-0", x=[0.0])
    found = counted(now, event_of(item="b", reward=1, at=9e15, position=f"{10**12}-1", x=[0.0])).standing(["a", "b"])
    assert found.shown[0] == found.shown[1] > 0


def test_items_come_and_go() -> None:
    counts = counted(shown("a", at=1e9), shown("b", at=1e9))
    counts.follow([ItemChange(3, "c", was=False, now=True), ItemChange(4, "a", was=True, now=True)])
    counts.follow([ItemChange(5, "b", was=True, now=False)])
    assert counts.standing(["a", "b", "c"]).born.tolist() == [0, 0, 3]
    assert counts.standing(["a", "b", "c"]).looks.tolist() == [1, 0, 0]
    assert (counts.catalogue, len(counts)) == (5, 2)
    counts.follow([ItemChange(6, "a", was=True, now=False), ItemChange(7, "a", was=False, now=True)])
    assert [array[0] for array in counts.standing(["a"])] == [7, 0, 0, 0]


def test_the_lightest_items_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ITEMS", 10)
    counts = counted(*(shown(f"p{n}", at=1e9) for n in (*range(11), *range(4, 11))))
    assert len(counts) == 9
    assert counts.standing([f"p{n}" for n in range(11)]).looks.tolist() == [1, 1, 0, 0, *[2] * 7]


def test_a_state_comes_back_and_a_garbled_one_is_refused() -> None:
    counts = counted(shown("a", 1.0, at=1e9), shown("b", at=1e9))
    counts.follow([ItemChange(3, "c", was=False, now=True)])
    again = Counts.load(counts.state())
    for one in (counts, again):
        one.add([shown("b", 1.0, at=1e9 + 5)])
    assert again.state().keys() == counts.state().keys()
    assert all(np.array_equal(array, counts.state()[name]) for name, array in again.state().items())
    for name in counts.state():
        state = counts.state()
        del state[name]
        with pytest.raises(ValueError, match="counts of items"):
            Counts.load(state)
    with pytest.raises(ValueError, match="shown"):
        Counts.load({**counts.state(), "shown": np.array([1.0, np.nan, 1.0])})
