"""The fields of a neighbourhood: a triangle counts however its edges point, and structure alone can decide."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from service.represent.graph import HALF_LIFE_MS, MOST_FIELDS, MOST_ITEMS, Take, Tie, graph_fields, takes_of
from service.represent.user_state import Activity, ItemFields

ITEMS = ItemFields({"ball": {"kind": "toy", "price": 3}, "bone": {"kind": "food"}, "bed": {"kind": "home"}})
AT = 1_700_000_000_000


def ties(*friends: str, weight: float = 1.0) -> list[Tie]:
    return [Tie(friend, "friend", weight, AT) for friend in friends]


@pytest.mark.parametrize("known", [{"a": ["b"]}, {"b": ["a"]}, {"a": ["b"], "b": ["a"]}])
def test_two_users_of_equal_degree_and_equal_friends_differ_by_the_triangle(known: dict[str, list[str]]) -> None:
    takes = {name: [Take(AT, item, 1.0)] for name, item in zip("abcd", ["ball", "ball", "bone", "bone"], strict=True)}
    closed = graph_fields(ties(*"abcd"), known, takes, ITEMS)
    other = graph_fields(ties(*"abcd"), {"c": ["d"]}, takes, ITEMS)
    for name in ("friends", "triangles", "clustering", "took", "items"):
        assert closed[name] == other[name], name
    assert (closed["friends"], closed["triangles"], closed["clustering"]) == (4, 1, 0.1667)
    assert (closed["circle"], other["circle"]) == ({"kind": ["toy"]}, {"kind": ["food"]})


def test_triangles_are_those_that_counting_every_pair_finds() -> None:
    draws = random.Random(1)
    names = [f"u{i}" for i in range(12)]
    edges = {(a, b) for a in names for b in names if a != b and draws.random() < 0.3}
    known = {name: [to for one, to in edges if one == name] for name in names}
    for user in names:
        friends = known[user]
        found = graph_fields(ties(*friends), {f: known[f] for f in friends}, {}, ITEMS)
        closed = sum((a, b) in edges or (b, a) in edges for a, b in combinations(friends, 2))
        assert found.get("triangles", 0) == closed
        assert found.get("friends", 0) == len(friends)


def test_a_heavier_friend_and_a_newer_take_count_more() -> None:
    heavy = [*ties("a", weight=3.0), *ties("b", weight=2.0)]
    fields = graph_fields(heavy, {}, {"a": [Take(AT, "ball", 1.0)], "b": [Take(AT, "bone", 1.0)]}, ITEMS)
    assert (fields["took"], fields["items"]) == ({"kind": ["toy", "food"]}, ["ball", "bone"])
    old = [Take(AT - HALF_LIFE_MS, "ball", 1.0)]  # 3 × ½ < 2 × 1
    fields = graph_fields(heavy, {}, {"a": old, "b": [Take(AT, "bone", 1.0)]}, ITEMS)
    assert fields["items"] == ["bone", "ball"]
    later = graph_fields(heavy, {}, {name: [Take(AT + 10**9, item, 1.0)] for name, item in (("a", "ball"),)}, ITEMS)
    assert later["items"] == ["ball"]
    twice = [Tie("a", "friend", 1.0, AT), Tie("a", "colleague", 2.0, AT), *ties("b", weight=2.0)]
    assert graph_fields(twice, {}, {"a": [Take(AT, "ball", 1.0)], "b": [Take(AT, "bone", 1.0)]}, ITEMS)["items"][0] == (
        "ball"
    )


def test_a_reward_counts_as_a_buy_and_the_newest_takes_of_both_kinds_are_kept() -> None:
    done = [Activity(n, AT + n, "ball", "view") for n in range(4)]
    rewarded = [(AT + 10 + n, "bone", 0.5) for n in range(3)]
    assert [(take.item, take.weight) for take in takes_of(done, rewarded)] == [("ball", 1.0)] * 2 + [("bone", 4.0)] * 3


def test_who_knows_nobody_has_no_fields_and_all_is_bounded() -> None:
    assert graph_fields([], {}, {}, ITEMS) == {}
    assert graph_fields(ties("a"), {}, {}, ITEMS) == {"friends": 1, "triangles": 0, "clustering": 0.0}
    many = {f"i{n}": {f"f{n}": "x"} for n in range(30)}
    takes = {f"u{n}": [Take(AT, f"i{n}", 1.0 + n)] for n in range(30)}
    fields = graph_fields(ties(*takes), {}, takes, ItemFields(many))
    assert len(fields["took"]) == MOST_FIELDS
    assert fields["items"] == [f"i{n}" for n in range(29, 29 - MOST_ITEMS, -1)]
    unknown = graph_fields(ties("a"), {}, {"a": [Take(AT, "gone", 1.0)]}, ITEMS)
    assert (unknown["items"], "took" in unknown) == (["gone"], False)
