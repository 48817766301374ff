"""Change the catalogue of a loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from redis.asyncio import Redis

from service.admin.adoption import Adoption, adoption
from service.decide.active import ActiveLoop
from service.records import Change, Features
from service.serve.follower import Follower
from service.serve.misfit_counter import MisfitCounter
from service.store import item_store, limits, loop_store
from service.store.keys import Keys


async def change_items(
    redis: Redis,
    follower: Follower,
    misfits: MisfitCounter,
    loop: str,
    changes: Mapping[str, Features | None],
    *,
    by: str,
) -> Adoption:
    """Upsert items (None: delete), all or nothing. Values that the encoder cannot use are counted.

    Raises:
        NotFound: there is no such loop.
    """
    active = follower.loop(loop)
    keys = Keys(loop, active.id)
    active.encoder.items([features for features in changes.values() if features is not None], misfits=misfits.of(keys))
    change = Change(by, "change items", None, changes)
    return await adoption(redis, follower, keys, await item_store.change_items(redis, keys, changes, change=change))


async def delete_item(redis: Redis, follower: Follower, loop: str, item: str, *, by: str) -> Adoption:
    """Delete one item.

    Raises:
        NotFound: there is no such loop or item.
    """
    record = await loop_store.read_loop(redis, loop)
    keys = Keys(loop, record.id)
    change = Change(by, "delete item", None, {item: None})
    epoch = await item_store.change_items(redis, keys, {item: None}, must_exist=True, change=change)
    return await adoption(redis, follower, keys, epoch)


@dataclass(frozen=True)
class ItemBudget:
    """A budget, and how much of it there is."""

    impressions: int
    per: str
    used: int  # a day: today
    left: int


async def budget_of(redis: Redis, active: ActiveLoop, item: str) -> ItemBudget | None:
    """Return the budget of an item; None: it has none.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    budget = active.settings.budgets.get(item)
    if budget is None:
        return None
    used = (await limits.used_of(redis, Keys(active.name, active.id), {item: budget}))[item]
    return ItemBudget(budget.impressions, budget.per, used, max(0, budget.impressions - used))
