"""Evidence by the order of decisions, in whatever order the events come."""

from __future__ import annotations

import numpy as np
import pytest

from service.learn.change import decision_order
from service.learn.change.decision_order import FAR, GROUP, RECENT, DecisionOrder


def judged(order: DecisionOrder, places: list[int], says: list[float] | None = None) -> list[float]:
    """What was judged, group by group."""
    told = says or [1.0] * len(places)
    return [float(group[0, 1]) for place, said in zip(places, told, strict=True) for group in order.add(place, (said,))]


def waiting(order: DecisionOrder) -> float:
    """The number of events that wait to be judged."""
    return sum(float(group[0, 0]) for group in order.waiting)


def test_in_order_every_event_counts_and_what_waits_can_be_seen() -> None:
    order = DecisionOrder(1)
    assert judged(order, list(range(10 * GROUP))) == [GROUP] * 9
    assert waiting(order) == GROUP
    assert order.orderly


def test_an_event_without_a_place_is_judged_at_once() -> None:
    order = DecisionOrder(2)
    assert [group.tolist() for group in order.add(None, (2.0, -3.0))] == [[[1, 2, -3], [1, 2, 0]]]
    assert order.waiting == []


def test_clicks_wait_for_the_silence_of_their_neighbours() -> None:
    """Even places click at once, odd ones are silent until 1000 decisions later: each group is judged whole."""
    order, wait = DecisionOrder(1), 1000
    events = sorted((place if place % 2 == 0 else place + wait, place) for place in range(5000))
    clicks = [float(place % 2 == 0) for _, place in events]
    found = judged(order, [place for _, place in events], clicks)
    assert len(found) > (5000 - wait) / GROUP - 4
    assert set(found) <= {GROUP / 2}
    assert not order.orderly


def test_the_last_of_a_group_may_be_a_long_time_coming() -> None:
    """One event in eight comes at the end: nobody waits for it, and then it is left out."""
    order = DecisionOrder(1)
    soon = [place for place in range(20 * GROUP) if place % 8]
    assert judged(order, soon) == [GROUP * 7 / 8] * 19
    assert judged(order, [place for place in range(18 * GROUP) if place % 8 == 0]) == []


def test_neighbours_that_change_places_are_in_order() -> None:
    order, rng = DecisionOrder(1), np.random.default_rng(0)
    places = np.argsort(np.arange(100 * GROUP) + rng.uniform(0, GROUP, 100 * GROUP)).tolist()
    found = judged(order, places)
    assert order.orderly
    assert sum(found) + waiting(order) == len(places)


def test_decisions_that_were_lost_do_not_hold_up_the_others_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_order, "MOST_HELD", most_held := 256)
    order = DecisionOrder(1)
    judged(order, list(range(GROUP)))
    after = range(3 * GROUP, (2 + most_held) * GROUP)
    assert judged(order, list(after)) == []
    assert not order.orderly
    found = judged(order, list(range(after.stop, after.stop + 10 * GROUP)))
    assert len(found) > most_held
    assert sum(found) + waiting(order) == len(after) + 11 * GROUP
    assert order.orderly


def test_events_that_say_nothing_here_hold_nobody_up() -> None:
    order = DecisionOrder(1)
    found: list[float] = []
    for place in range(5 * GROUP):
        silent = place % 2 or GROUP <= place < 2 * GROUP  # the second group says nothing at all
        groups = order.pass_over(place) if silent else order.add(place, (1.0,))
        found += [group[0, 1] for group in groups]
        again = DecisionOrder(1)
        again.load(order.state())
        assert again.state().tolist() == order.state().tolist()
        order = again
    # A group is judged when ENOUGH of it and of the next are there.
    assert found[0] == GROUP / 2
    assert len(found) == 3
    order.restart()
    assert len(order.state()) == 1


def test_after_a_restart_no_group_counts_that_had_begun() -> None:
    order = DecisionOrder(1)
    judged(order, list(range(5 * GROUP + 10)))
    order.restart()
    assert waiting(order) == 0
    assert judged(order, list(range(5 * GROUP + 10, 8 * GROUP))) == [GROUP]  # the sixth group was left out
    assert waiting(order) == GROUP


def test_disorder_is_forgotten() -> None:
    order = DecisionOrder(1)
    late = range((FAR + 1) * GROUP)
    judged(order, [late.stop + GROUP, *late])
    assert not order.orderly
    assert sum(judged(order, list(range(late.stop, late.stop + 4 * RECENT)))) > 3 * RECENT
    assert order.orderly


@pytest.mark.parametrize("cut", [0, 1, 700, 2500])
def test_state_goes_on_where_it_stopped(cut: int) -> None:
    events = sorted((place if place % 3 else place + 700, place) for place in range(3000))
    places = [place for _, place in events]
    one, other = DecisionOrder(1), DecisionOrder(1)
    judged(one, places[:cut])
    other.load(one.state())
    assert judged(one, places[cut:]) == judged(other, places[cut:])
    assert one.state().tobytes() == other.state().tobytes()
