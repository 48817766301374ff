"""Users of whom nothing is known but their ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.world._base import Array, Catalogue, Item
from simulator.world.shapes._base import Arrival, Shape, ShapedWorld, levels


@dataclass(frozen=True, kw_only=True)
class Users(Shape):
    """Constants of a world in which the reward depends on the user's id and the item's id.

    Args:
        items: on offer, without features.
        hidden_kinds: kinds of users, each with one item of probability `best`, one of `second`, and `else_` for all
            others, and no item is a favourite of two kinds while there are others; each user is of one kind,
            uniformly. None: each user is by himself, with probabilities
            σ(N(mean, sd²)) for each item.
    """

    users: int = 200
    items: int = 8
    hidden_kinds: int | None = None
    mean: float = -1.2
    sd: float = 1.5
    best: float = 0.65
    second: float = 0.45
    else_: float = 0.15


@dataclass(frozen=True, eq=False)
class Tastes:
    """The hidden state."""

    p: Array  # (users, n)
    catalogue: Catalogue


class UsersWorld(ShapedWorld[Tastes, Users]):
    """The context is empty. In the declared reference it names the user."""

    def initial(self) -> Tastes:
        shape, generator = self.shape, self.generator()
        if shape.hidden_kinds is None:
            p = 1 / (1 + np.exp(-generator.normal(shape.mean, shape.sd, (shape.users, shape.items))))
        else:
            of_kind = np.full((shape.hidden_kinds, shape.items), shape.else_)
            rounds = -(-2 * shape.hidden_kinds // shape.items)
            favourites = np.concatenate([generator.permutation(shape.items) for _ in range(rounds)])
            for kind, row in enumerate(of_kind):
                row[favourites[2 * kind : 2 * kind + 2]] = shape.best, shape.second
            p = of_kind[generator.integers(shape.hidden_kinds, size=shape.users)]
        items = (Item(f"i{slot}", slot, {"name": f"i{slot}"} if self.declared else {}) for slot in range(shape.items))
        return Tastes(p, Catalogue(tuple(items)))

    def catalogue(self, step: int) -> Catalogue:
        return self.state(step).catalogue

    def reference(self) -> Mapping[str, Any]:
        return {
            "context": {"user": levels(f"u{user}" for user in range(self.shape.users))},
            "item": {"name": levels(f"i{slot}" for slot in range(self.shape.items))},
            "crosses": [["user", "name"]],
        }

    def arrive(self, state: Tastes, catalogue: Catalogue, step: int, user: int, drawn: Array) -> Arrival:
        context = {"user": f"u{user}"} if self.declared else {}
        return Arrival(context, state.p[user], np.ones(self.shape.items))


WORLDS: Mapping[str, Users] = {
    "users-alone": Users(about="200 users, each with tastes of his own", inline=True),
    "users-alone-50": Users(about="50 users, 12 items", near="users-alone", users=50, items=12),
    "users-alone-10": Users(about="ten users, 8 items", near="users-alone", users=10),
    "users-alone-100": Users(about="100 users, 8 items", near="users-alone", users=100),
    "users-alone-400": Users(about="400 users, 5 items", near="users-alone", users=400, items=5),
    "users-alone-1000": Users(
        about="1 000 users, 8 items, 15 000 decisions", near="users-alone", users=1000, steps=15_000
    ),
    "users-alone-10000": Users(
        about="10 000 users, 8 items, 30 000 decisions", near="users-alone", users=10_000, steps=30_000
    ),
    "users-of-kinds": Users(about="200 users of four hidden kinds", hidden_kinds=4, inline=True),
    "users-of-6-kinds": Users(
        about="200 users of six hidden kinds, 12 items", near="users-of-kinds", hidden_kinds=6, items=12, steps=6000
    ),
    "users-of-2-kinds": Users(about="500 users of two hidden kinds", near="users-of-kinds", users=500, hidden_kinds=2),
    "users-of-kinds-weak": Users(
        about="100 users of three hidden kinds who differ less",
        near="users-of-kinds",
        users=100,
        hidden_kinds=3,
        best=0.5,
        second=0.35,
    ),
}
