"""Budgets of items, as one worker knows them; and who fetches portions of them.

A budget is spent where decisions are stored, by the script that stores them. So what a worker knows may be old, and it
may die at any moment: nothing is shown that the partition has no portion for, and no portion is lost.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from redis.asyncio import Redis

from service.decide.active import ActiveLoop
from service.errors import NotFound, StoreUnavailable
from service.serve.follower import Follower
from service.store.keys import Keys
from service.store.limits import AT_ONCE, forget_budgets, grant_budgets, hold_budgets

LOOK_S = 1.0
PAUSE_S = 0.02  # at least, from one look to the next
FORGET_S = 60.0  # from one look for budgets that were taken away to the next


@dataclass
class _Known:
    """What a worker knows of the budgets of one loop."""

    left: dict[str, int] = field(default_factory=dict)  # of each item that was looked at, on the partition
    met: set[str] = field(default_factory=set)  # items that decisions found spent, since the last look
    turn: int = 0  # of the other items, from where on they are looked at next
    asked: bool = True  # since the last look
    named: frozenset[str] = frozenset()  # items that had a budget when those that were taken away were looked for,
    named_at: float = -math.inf  # and when that was, on the monotonic clock

    def next(self, items: list[str]) -> list[str]:
        """Return the items that are to be looked at now: those that were met, and others in their turn."""
        met = [item for item in items if item in self.met][:AT_ONCE]
        self.met.difference_update(met)
        self.met.intersection_update(items)
        others = max(1, AT_ONCE - len(met))
        start = self.turn % len(items)
        self.turn = start + others
        in_turn = (items + items)[start : start + min(others, len(items))]
        return list(dict.fromkeys(met + in_turn))


@dataclass
class BudgetKeeper:
    """Keeps portions of budgets where decisions are stored, for the loops that this worker serves."""

    follower: Follower
    redis: Redis
    _known: dict[str, _Known] = field(default_factory=dict)  # by the loop's id
    _soon: asyncio.Event = field(default_factory=asyncio.Event)

    def spent(self, active: ActiveLoop) -> Iterable[str]:
        """Return the items of a loop that have no budget left, as far as is known, sorted."""
        known = self._known.get(active.id)
        if known is None:
            known = self._known[active.id] = _Known()
        known.asked = True
        return sorted(item for item in active.settings.budgets if known.left.get(item, 1) <= 0)

    def met(self, active: ActiveLoop, items: Iterable[str]) -> None:
        """Take it that these items have no budget left, and look whether there is more."""
        known = self._known.setdefault(active.id, _Known())
        known.met |= set(items)
        known.left.update(dict.fromkeys(items, 0))
        self._soon.set()

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._soon.wait(), LOOK_S)
            self._soon.clear()
            with suppress(StoreUnavailable):
                await self.look()
            await asyncio.sleep(PAUSE_S)

    async def look(self) -> None:
        """Fetch portions for the loops that are asked, and give back what the others do not use.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        served: set[str] = set()
        for name in self.follower.names:
            with suppress(NotFound):  # deleted this very moment
                active = self.follower.loop(name)
                if active.settings.budgets:
                    served.add(active.id)
                    await self._look_at(active)
        for gone in self._known.keys() - served:
            del self._known[gone]

    async def _look_at(self, active: ActiveLoop) -> None:
        known = self._known.setdefault(active.id, _Known())
        lent = any(left > 0 for left in known.left.values())
        if not (known.asked or lent) or not self.follower.store_usable():
            return
        asked, known.asked = known.asked, False
        keys, budgets = Keys(active.name, active.id), active.settings.budgets
        names = known.next(list(budgets))
        some = {item: budgets[item] for item in names}
        try:
            held = await hold_budgets(self.redis, keys, some)
            grants = await grant_budgets(self.redis, keys, some, held, wanted=asked)
            if any(grants[item].granted > held[item].granted or grants[item].back for item in some):
                held = await hold_budgets(self.redis, keys, some, grants)
            if known.named != budgets.keys() or time.monotonic() - known.named_at > FORGET_S:
                await forget_budgets(self.redis, keys, budgets)
                known.named, known.named_at = frozenset(budgets), time.monotonic()
        except StoreUnavailable:
            known.asked |= asked
            known.met |= set(names)
            raise
        known.left = {item: left for item, left in known.left.items() if item in budgets}
        known.left.update({item: one.left for item, one in held.items()})
