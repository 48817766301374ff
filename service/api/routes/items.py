"""The catalogue, and the import of a historical log."""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query

from service.admin.imports import import_events as append_events
from service.admin.items import budget_of, change_items
from service.admin.items import delete_item as remove_item
from service.api.problems import OF_BODIES, documented
from service.api.routes._depends import (
    FollowerDep,
    IdInPath,
    KeyDep,
    LoopParam,
    MisfitsDep,
    RedisDep,
    StrictRoute,
    changed,
)
from service.api.schemas import (
    BATCH,
    BudgetReply,
    Changed,
    EventBatch,
    ImportReply,
    Item,
    ItemBatch,
    ItemFeatures,
    ItemPage,
    OneItem,
)
from service.errors import Conflict, NotFound, StoreUnavailable
from service.records import PastEvent

router = APIRouter(tags=["items"], route_class=StrictRoute)
WRITES = documented(*OF_BODIES, NotFound, Conflict, StoreUnavailable)


@router.get("/items", responses=documented(NotFound))
async def list_items(
    follower: FollowerDep,
    loop: LoopParam = "default",
    limit: Annotated[int, Query(ge=1, le=BATCH)] = 100,
    after: Annotated[str, Query(description="`next` of the page before")] = "",
) -> ItemPage:
    """List the catalogue, in the order of the ids: that of their code points.

    What changes meanwhile may be missing or be there. An item that stays is listed once.
    """
    catalogue = follower.loop(loop).catalogue
    ids = catalogue.page(after, limit + 1)
    items = [Item(id=item, features=dict(catalogue.features[item])) for item in ids[:limit]]
    return ItemPage(
        items=items,
        count=len(catalogue.features),
        version=catalogue.version,
        next=ids[limit - 1] if len(ids) > limit else None,
    )


@router.post("/items", responses=WRITES)
async def put_items(
    body: ItemBatch,
    redis: RedisDep,
    follower: FollowerDep,
    misfits: MisfitsDep,
    key: KeyDep,
    loop: LoopParam = "default",
) -> Changed:
    """Add or replace up to 1000 items, all or nothing."""
    changes = {item.id: item.features for item in body.items}
    return changed(await change_items(redis, follower, misfits, loop, changes, by=key.name))


@router.get("/items/{item_id:any}", responses=documented(NotFound, StoreUnavailable), response_model_exclude_unset=True)
async def get_item(item_id: IdInPath, redis: RedisDep, follower: FollowerDep, loop: LoopParam = "default") -> OneItem:
    """Return one item, and how much is left of its budget."""
    active = follower.loop(loop)
    catalogue = active.catalogue
    if item_id not in catalogue.features:
        raise NotFound(f"there is no item {item_id!r} in loop {loop!r}", code="unknown_item")
    found = await budget_of(redis, active, item_id)
    budget = {} if found is None else {"budget": BudgetReply(**asdict(found))}
    return OneItem(id=item_id, features=dict(catalogue.features[item_id]), **budget)


@router.put("/items/{item_id:any}", responses=WRITES)
async def put_item(
    item_id: IdInPath,
    body: ItemFeatures,
    redis: RedisDep,
    follower: FollowerDep,
    misfits: MisfitsDep,
    key: KeyDep,
    loop: LoopParam = "default",
) -> Changed:
    """Add or replace one item."""
    return changed(await change_items(redis, follower, misfits, loop, {item_id: body.features}, by=key.name))


@router.delete("/items/{item_id:any}", status_code=204, responses=documented(NotFound, Conflict, StoreUnavailable))
async def delete_item(
    item_id: IdInPath, redis: RedisDep, follower: FollowerDep, key: KeyDep, loop: LoopParam = "default"
) -> None:
    """Delete one item. It is no longer recommended; the policies keep what they have learned about it."""
    await remove_item(redis, follower, loop, item_id, by=key.name)


@router.post("/events", responses=documented(*OF_BODIES, NotFound, Conflict, StoreUnavailable))
async def import_events(
    body: EventBatch,
    redis: RedisDep,
    follower: FollowerDep,
    misfits: MisfitsDep,
    key: KeyDep,
    loop: LoopParam = "default",
) -> ImportReply:
    """Append up to 1000 rows of a historical log, all or nothing: every policy of the loop learns from them."""
    events = [
        PastEvent(
            event_id=event.event_id,
            user_id=event.user_id,
            context=event.context,
            item_id=event.item_id,
            features=event.features,
            reward=event.reward,
            propensity=event.propensity,
            at=None if event.at is None else event.at.timestamp(),
        )
        for event in body.events
    ]
    imported = await append_events(redis, follower, misfits, loop, events, by=key.name)
    return ImportReply(imported=imported, duplicates=len(events) - imported)
