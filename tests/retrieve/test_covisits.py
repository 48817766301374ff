"""Pairs of items that users take one after the other: counted in bounded memory, and gone on with from a state."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.policies.item_index import ItemIndex
from service.records import LoggedActivity
from service.retrieve import covisits as module
from service.retrieve.counts import Counts
from service.retrieve.covisits import HALF_LIFE_MS, NEIGHBOURS, NOBODY, WITH, Covisits
from service.store.codec import pack, unpack
from tests.retrieve.builders import taken

AT = 10**12


def of_one(number: int, items: str) -> list[LoggedActivity]:
    """A user of this number takes items."""
    return [
        LoggedActivity(f"{number}-{n}", f"u{number}", 1, AT, item, "view", 9) for n, item in enumerate(items.split())
    ]


def pairs_of(covisits: Covisits) -> dict[tuple[str, str], float]:
    """Return (item, neighbour) -> weight."""
    state = covisits.state()
    ids = list(ItemIndex.from_array(state["ids"]))
    return {
        (ids[row], ids[near]): float(weight)
        for row in range(len(ids))
        for near, weight in zip(state["neighbours"][row].tolist(), state["weights"][row].tolist(), strict=True)
        if near != NOBODY
    }


def plain(acts: list[LoggedActivity]) -> Counter[tuple[str, str]]:
    """Count pairs as the docstring says it, without bounds and without decay."""
    last: dict[str, list[str]] = {}
    pairs: Counter[tuple[str, str]] = Counter()
    for one in acts:
        others = [item for item in last.get(one.user, []) if item != one.item]
        for other in others:
            pairs[one.item, other] += 1
            pairs[other, one.item] += 1
        last[one.user] = [*others, one.item][-WITH:]
    return pairs


ACTS = st.lists(st.tuples(st.sampled_from("uvw"), st.sampled_from("abcdefgh")), max_size=60)


@settings(max_examples=50)
@given(ACTS, st.integers(1, 59))
def test_pairs_are_counted_alike_in_whatever_batches_and_from_a_state(acts: list[tuple[str, str]], cut: int) -> None:
    logged = [LoggedActivity(f"1-{n}", user, 1, AT, item, "view", 9) for n, (user, item) in enumerate(acts)]
    whole = Covisits()
    whole.add(logged, "9-9")
    assert pairs_of(whole) == plain(logged)
    first = Covisits()
    first.add(logged[:cut], "5-3")
    second = Covisits.load(unpack(pack(first.state())))
    assert second.position == "5-3"
    second.add(logged[cut:], "9-9")
    assert {name: array.tobytes() for name, array in second.state().items()} == {
        name: array.tobytes() for name, array in whole.state().items()
    }


def test_a_pair_weighs_half_a_week_later_and_late_ones_weigh_as_of_then() -> None:
    covisits, week = Covisits(), int(HALF_LIFE_MS)
    for at, users in ((AT, {"u": "a b"}), (AT + week, {"v": "a c"}), (AT - week, {"w": "a d"})):
        covisits.add(taken(at=at, **users), "1-0")
    pairs = pairs_of(covisits)
    assert (pairs["a", "c"] / pairs["a", "b"], pairs["a", "d"] / pairs["a", "b"]) == (2, 0.5)
    covisits.add(taken(at=AT + 100 * week, x="a e"), "1-0")  # all weights are scaled
    pairs = pairs_of(covisits)
    assert pairs["a", "e"] == 1
    assert pairs["a", "c"] == 2 * pairs["a", "b"] == pytest.approx(2.0**-99)


def test_an_item_keeps_its_heaviest_neighbours() -> None:
    covisits, draws = Covisits(), np.random.default_rng(1)
    heavy = {f"h{n}": 200 for n in range(4)}
    light = [f"l{n}" for n in range(400)]
    line = draws.permutation([*light, *(item for item, count in heavy.items() for _ in range(count))])
    for number, item in enumerate(line):
        covisits.add(of_one(number, f"a {item}"), "1-0")
    near = {other: weight for (item, other), weight in pairs_of(covisits).items() if item == "a"}
    assert len(near) == NEIGHBOURS
    assert set(sorted(near, key=near.__getitem__, reverse=True)[:4]) == set(heavy)
    assert all(200 <= near[item] <= 200 + 1200 / NEIGHBOURS for item in heavy), "an estimate is never too small"


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ITEMS", 40)
    monkeypatch.setattr(module, "MOST_USERS", 30)
    covisits = Covisits()
    for number in range(300):
        often = f"p{number % 5} p{(number + 1) % 5}"
        covisits.add(of_one(number, f"{often} rare{number}"), f"{number}-0")
    state = covisits.state()
    assert len(covisits) <= 40
    assert len(state["users"]) <= 30
    assert state["neighbours"].shape == state["weights"].shape == (len(covisits), NEIGHBOURS)
    known = {item for pair in pairs_of(covisits) for item in pair}
    assert {f"p{n}" for n in range(5)} <= known
    assert all(left != right for left, right in pairwise(sorted(known)))


def test_a_user_stands_there_by_a_digest() -> None:
    counts = Counts()
    counts.covisits.add(taken(somebody="a b"), "1-0")
    packed = pack(counts.state())
    assert b"somebody" not in packed
    assert pairs_of(Counts.load(unpack(packed)).covisits) == {("a", "b"): 1, ("b", "a"): 1}


@pytest.mark.parametrize("name", ["neighbours", "last", "weights", "numbers"])
def test_what_does_not_fit_is_refused(name: str) -> None:
    covisits = Covisits()
    covisits.add(taken(u="a b"), "1-0")
    state = covisits.state()
    for wrong in ({**state, name: state[name] + 7 if name != "weights" else state[name] * np.nan}, {}):
        if name == "numbers" and wrong:
            wrong = {**state, name: state[name][:2]}
        with pytest.raises(ValueError, match=r"taken together|unpack"):
            Covisits.load(wrong)
