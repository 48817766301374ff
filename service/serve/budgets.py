"""Budgets of items, as one worker knows them; and who fetches portions of them.

A budget is spent where decisions are stored, by the script that stores them. So what a worker knows may be old, and it
may die at any moment: nothing is shown that the partition has no portion for, and no portion is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from redis.asyncio import Redis

from service.decide.active import ActiveLoop
from service.errors import NotFound, StoreUnavailable
from service.serve.follower import Follower
from service.store.keys import Keys
from service.store.limits import grant_budgets, hold_budgets

LOOK_S = 1.0
PAUSE_S = 0.02  # at least, from one look to the next


@dataclass
class _Known:
    """What a worker knows of the budgets of one loop."""

    spent: frozenset[str] = frozenset()  # items that the partition has nothing left of
    asked: bool = True  # since the last look
    lent: bool = True  # the partition may hold what it does not use


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
        return sorted(known.spent & active.settings.budgets.keys())

    def met(self, active: ActiveLoop, items: Iterable[str]) -> None:
        """Take it that these items have no budget left, and look whether there is more."""
        known = self._known.setdefault(active.id, _Known())
        known.spent |= set(items)
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
        if not (known.asked or known.lent) or not self.follower.store_usable():
            return
        asked, known.asked = known.asked, False
        keys, budgets = Keys(active.name, active.id), active.settings.budgets
        try:
            held = await hold_budgets(self.redis, keys, budgets)
            grants = await grant_budgets(self.redis, keys, budgets, held, wanted=asked)
            if any(grants[item].granted > held[item].granted or grants[item].back for item in budgets):
                held = await hold_budgets(self.redis, keys, budgets, grants)
        except StoreUnavailable:
            known.asked |= asked
            raise
        known.spent = frozenset(item for item, one in held.items() if one.left <= 0)
        known.lent = len(known.spent) < len(budgets)
