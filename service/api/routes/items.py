"""The catalogue, and the import of a historical log."""

from typing import Annotated

from fastapi import APIRouter, Query

from service.api.problems import documented
from service.api.routes._depends import ControlDep, LiveDep, LoopParam, StrictRoute, changed
from service.api.schemas import BATCH, Changed, EventBatch, ImportReply, Item, ItemBatch, ItemFeatures, ItemPage
from service.decide.control import Past
from service.errors import MalformedJson, NotFound, PayloadTooLarge, StoreUnavailable

router = APIRouter(tags=["items"], route_class=StrictRoute)
WRITES = documented(MalformedJson, NotFound, PayloadTooLarge, StoreUnavailable)


@router.get("/items", responses=documented(NotFound))
async def list_items(
    live: LiveDep,
    loop: LoopParam = "default",
    limit: Annotated[int, Query(ge=1, le=BATCH)] = 100,
    after: Annotated[str, Query(description="`next` of the page before")] = "",
) -> ItemPage:
    """The catalogue, by id."""
    catalogue = live.loop(loop).catalogue
    ids = [item for item in catalogue.ids if item.encode() > after.encode("utf-8", "replace")][: limit + 1]
    items = [Item(id=item, features=dict(catalogue.features[item])) for item in ids[:limit]]
    return ItemPage(items=items, version=catalogue.version, next=ids[limit - 1] if len(ids) > limit else None)


@router.post("/items", responses=WRITES)
async def put_items(body: ItemBatch, control: ControlDep, loop: LoopParam = "default") -> Changed:
    """Add or replace up to 1000 items, all or nothing."""
    return changed(await control.change_items(loop, {item.id: item.features for item in body.items}))


@router.get("/items/{item_id}", responses=documented(NotFound))
async def get_item(item_id: str, live: LiveDep, loop: LoopParam = "default") -> Item:
    catalogue = live.loop(loop).catalogue
    if item_id not in catalogue.index:
        raise NotFound(f"there is no item {item_id!r} in loop {loop!r}", code="unknown_item")
    return Item(id=item_id, features=dict(catalogue.features[item_id]))


@router.put("/items/{item_id}", responses=WRITES)
async def put_item(item_id: str, body: ItemFeatures, control: ControlDep, loop: LoopParam = "default") -> Changed:
    """Add or replace one item."""
    item = Item(id=item_id, features=body.features)
    return changed(await control.change_items(loop, {item.id: item.features}))


@router.delete("/items/{item_id}", status_code=204, responses=documented(NotFound, StoreUnavailable))
async def delete_item(item_id: str, control: ControlDep, loop: LoopParam = "default") -> None:
    """It is no longer recommended; what was learned about it stays."""
    await control.delete_item(loop, item_id)


@router.post("/events", responses=WRITES)
async def import_events(body: EventBatch, control: ControlDep, loop: LoopParam = "default") -> ImportReply:
    """Append up to 1000 rows of a historical log, all or nothing: every policy of the loop learns from them."""
    rows = [
        Past(
            event_id=event.event_id,
            user_id=event.user_id,
            context=event.context,
            item_id=event.item_id,
            features=event.features,
            reward=event.reward,
            propensity=event.propensity,
        )
        for event in body.events
    ]
    imported = await control.import_events(loop, rows)
    return ImportReply(imported=imported, duplicates=len(rows) - imported)
