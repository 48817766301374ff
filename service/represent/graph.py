"""Whom a user knows: a pure function of his neighbourhood, which becomes fields of the context.

    {"@graph": {"friends": 4, "triangles": 1, "clustering": 0.1667, "took": {"category": ["leash", "dog toy"]},
                "circle": {"category": ["dog toy"]}, "items": ["sku-9", "sku-3"], "version": 812}}

A friend of a user is whom one of his edges names. Two friends know each other where an edge leads from either to the
other: they and the user are a triangle. `circle` sees what `took` does, from friends in triangles alone: the walk
user → friend → other friend → user, which no sum over the friends' own features can tell from a walk that does not
close ("Beyond Message Passing: Neural Graph Pattern Machine", arXiv:2501.18739).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from service.represent.user_state import OF_OTHER_TYPES, WEIGHTS, Activity, ItemFields, heaviest

GRAPH = "@graph"  # the name in the context, which is not for clients

NEWEST = 5  # takes of a friend that count
HALF_LIFE_MS = 86_400_000  # of a take's weight
MOST_FIELDS = 8  # of the items, in `took` and `circle`
MOST_ITEMS = 10  # in `items`


class Tie(NamedTuple):
    """An edge of a user, as it is kept."""

    to: str
    kind: str
    weight: float  # > 0
    at: int  # unix milliseconds


class Take(NamedTuple):
    """That somebody took an item."""

    at: int  # unix milliseconds
    item: str
    weight: float  # > 0; a buy has 8


def takes_of(done: Sequence[Activity], rewarded: Iterable[tuple[int, str, float]]) -> list[Take]:
    """Return a user's newest takes, oldest first: activities of any type, and items that he rewarded.

    Args:
        done: his activity, in the order of its acceptance.
        rewarded: (unix milliseconds, item, share of the largest reward in (0, 1]). A whole one weighs what a buy does.
    """
    takes = [Take(one.at, one.item, WEIGHTS.get(one.type, OF_OTHER_TYPES)) for one in done]
    takes += [Take(at, item, share * WEIGHTS["buy"]) for at, item, share in rewarded]
    return sorted(takes)[-NEWEST:]


def graph_fields(
    ties: Sequence[Tie], known: Mapping[str, Collection[str]], takes: Mapping[str, Sequence[Take]], items: ItemFields
) -> dict[str, Any]:
    """Describe a user's neighbourhood.

    `triangles` counts the pairs of friends who know each other, `clustering` is their share of all pairs of friends. In
    `took`, a take of a friend weighs w(friend) w(take) 2^(-age / 1 day), where w(friend) sums the weights of the edges
    to him, and the age counts from the newest take of all. So time alone changes nothing. In `circle` it weighs that
    times the number of triangles that the friend is in. Both name the levels that weigh most, as the states of users
    do, of the eight fields that weigh most; `items` names the items that weigh most in `took`, the heaviest first.

    Args:
        ties: the user's edges.
        known: friend -> whom his edges name.
        takes: friend -> his newest takes.
        items: of the catalogue. An item that it lacks counts by its id.

    Returns:
        The fields, without a version; {} where there is no tie.
    """
    weights: dict[str, float] = {}
    for tie in ties:
        weights[tie.to] = weights.get(tie.to, 0.0) + tie.weight
    if not weights:
        return {}
    friends = sorted(weights)
    triangles = _triangles(friends, known)
    newest = max((take.at for friend in friends for take in takes.get(friend, ())), default=0)
    took: dict[tuple[str, str], float] = {}
    circle: dict[tuple[str, str], float] = {}
    of_items: dict[str, float] = {}
    for friend in friends:
        for take in takes.get(friend, ()):
            weight = weights[friend] * take.weight * 2.0 ** ((take.at - newest) / HALF_LIFE_MS)
            of_items[take.item] = of_items.get(take.item, 0.0) + weight
            for pair in items[take.item][1]:
                took[pair] = took.get(pair, 0.0) + weight
                if triangles[friend]:
                    circle[pair] = circle.get(pair, 0.0) + weight * triangles[friend]
    n, closed = len(friends), sum(triangles.values()) // 2
    fields: dict[str, Any] = {
        "friends": n,
        "triangles": closed,
        "clustering": round(2 * closed / (n * (n - 1)), 4) if n > 1 else 0.0,
        "took": _heaviest_fields(took),
        "circle": _heaviest_fields(circle),
        "items": sorted(of_items, key=lambda item: (-of_items[item], item))[:MOST_ITEMS],
    }
    return {name: value for name, value in fields.items() if value not in ({}, [])}


def _triangles(friends: Sequence[str], known: Mapping[str, Collection[str]]) -> dict[str, int]:
    """Return friend -> in how many triangles with the user he is."""
    among = set(friends)
    other_friends: dict[str, set[str]] = {friend: set() for friend in friends}
    for friend in friends:
        for other in among.intersection(known.get(friend, ())) - {friend}:
            other_friends[friend].add(other)
            other_friends[other].add(friend)
    return {friend: len(others) for friend, others in other_friends.items()}


def _heaviest_fields(weights: Mapping[tuple[str, str], float]) -> dict[str, list[str]]:
    """Return the fields that weigh most, each with its levels that weigh most."""
    of_fields: dict[str, float] = {}
    for (path, _), weight in weights.items():
        of_fields[path] = of_fields.get(path, 0.0) + weight
    kept = sorted(of_fields, key=lambda path: (-of_fields[path], path))[:MOST_FIELDS]
    found = heaviest(weights)
    return {path: found[path] for path in kept}
