"""Shapley values of a request's fields, by sampled permutations.

A *way* leads from a logged request to the one that is to be explained: field after field, in random order, takes the
value that it has there. What the score changes at a field's step, on average over many ways and logged requests, is the
field's Shapley value (Štrumbelj & Kononenko 2014, "Explaining prediction models and individual predictions with feature
contributions", algorithm 1). The values and the mean score of the logged requests add up to the score.

Every second way is the one before in the opposite order, from another logged request: that takes noise out.

Letters: **M** ways, **P** players: fields of the context, fields of the item, the item's id, the user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from service.policies import Array

MOST_PLAYERS = 40  # fields beyond are one player together
SEED = 20_260_101  # of the permutations: the same request is explained the same way

Features = Mapping[str, Any]
Side = Literal["context", "item"]


class Logged(NamedTuple):
    """A request for one item."""

    decision_id: str
    item: str
    user: str | None
    context: Features
    features: Features  # of the item


class Sample(NamedTuple):
    """Shapley values, each with its standard error. score = bias + their sum."""

    score: float
    bias: float
    fields: Mapping[tuple[str | None, str | None], tuple[float, float]]  # (context field, item field) -> value, error
    item: tuple[float, float]
    user: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Player:
    """Fields that change together, of one side; without a side, the item's id or the user."""

    kind: Literal["context", "item", "id", "user"]
    name: str | None = None  # None of a field: all that are not players of their own


class Ways:
    """M > 3 ways from logged requests to one request, each of P steps."""

    def __init__(self, starts: Sequence[Logged], end: Logged) -> None:
        self._starts, self._end = starts, end
        self.players = players_of(end)
        rng, players = np.random.default_rng(SEED), len(self.players)
        self._order = np.empty((len(starts), players), dtype=np.intp)  # (M, P)
        for way in range(len(starts)):
            self._order[way] = self._order[way - 1][::-1] if way % 2 else rng.permutation(players)

        moves = np.array([[self._moves(player, start) for player in self.players] for start in starts])
        # Where a player has the same value at both ends, its step leads nowhere.
        self._is_new = np.ones((len(starts), players + 1), dtype=np.bool_)
        self._is_new[:, 1:] = np.take_along_axis(moves, self._order, axis=1)
        self._new = np.flatnonzero(self._is_new)

    def _moves(self, player: Player, start: Logged) -> bool:
        """Return whether the score may change where a player takes the end's values."""
        end = self._end
        if player.kind == "id":
            return start.item != end.item
        if player.kind == "user":
            return start.user != end.user
        one, other = (start.context, end.context) if player.kind == "context" else (start.features, end.features)
        if player.name is None:
            own = {player.name for player in self.players}
            return any(name not in own for name in (*one, *other))
        return player.name not in one or bool(one[player.name] != other[player.name])

    def __len__(self) -> int:
        """Return the number of requests on all ways, their starts among them, that differ from the one before."""
        return len(self._new)

    def steps(self, start: int, stop: int) -> list[Logged]:
        """Return requests `start` … `stop` of these, one way after the other."""
        length = len(self.players) + 1
        return [self._step(*divmod(at, length)) for at in self._new[start:stop].tolist()]

    def _step(self, way: int, done: int) -> Logged:
        """Return the request after `done` players took the end's values."""
        start, end = self._starts[way], self._end
        there = [self.players[at] for at in self._order[way, :done].tolist()]
        kinds = {player.kind for player in there}
        return Logged(
            end.decision_id,
            end.item if "id" in kinds else start.item,
            end.user if "user" in kinds else start.user,
            self._mixed("context", start.context, end.context, there),
            self._mixed("item", start.features, end.features, there),
        )

    def _mixed(self, side: Side, start: Features, end: Features, there: Sequence[Player]) -> Features:
        names = {player.name for player in there if player.kind == side}
        own = {player.name for player in self.players if player.kind == side}
        mixed = {}
        for name in (*end, *(name for name in start if name not in end)):
            source = end if (name if name in own else None) in names else start
            if name in source:
                mixed[name] = source[name]
        return mixed

    def values(self, scores: Array) -> Sample:
        """Return the Shapley values from the scores (len(self),) of `steps`."""
        along = scores[np.cumsum(self._is_new) - 1].reshape(self._is_new.shape)
        gains = np.empty(self._order.shape)
        np.put_along_axis(gains, self._order, np.diff(along, axis=1), axis=1)
        value, error = gains.mean(axis=0), _error(gains)
        found = {player: (float(value[at]), float(error[at])) for at, player in enumerate(self.players)}
        fields: dict[tuple[str | None, str | None], tuple[float, float]] = {}
        for player, (one, its) in found.items():
            if player.kind in ("context", "item"):
                pair = (player.name, None) if player.kind == "context" else (None, player.name)
                before, other = fields.get(pair, (0.0, 0.0))  # the rest of both sides is one part
                fields[pair] = (before + one, float(np.hypot(other, its)))
        bias = float(along[:, 0].mean())
        return Sample(bias + float(value.sum()), bias, fields, found[Player("id")], found[Player("user")])


def _error(gains: Array) -> Array:
    """Return the standard error (P,) of the means of gains (M, P): of pairs of ways, which depend on each other."""
    pairs = gains[: len(gains) // 2 * 2].reshape(-1, 2, gains.shape[1]).mean(axis=1)
    found: Array = pairs.std(axis=0, ddof=1) / np.sqrt(len(pairs))
    return found


def players_of(end: Logged) -> list[Player]:
    """Return the P players: the fields of the request, of each side those that it lacks as one, the id, the user."""
    context = [Player("context", name) for name in [*end.context][: MOST_PLAYERS // 2]]
    item = [Player("item", name) for name in [*end.features][: MOST_PLAYERS // 2]]
    return [*context, Player("context"), *item, Player("item"), Player("id"), Player("user")]
