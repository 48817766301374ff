"""The keeper of the graph on a real Redis: whoever dies, the fields end as those of all that is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from redis.asyncio import Redis

from service.learn.graph_keeper import GraphKeeper
from service.learn.log_fold import CountedElsewhere
from service.loop import LoopSettings
from service.records import LoopRecord
from service.represent.graph import NEWEST, Tie, graph_fields, takes_of
from service.represent.user_state import Activity, ItemFields
from service.store import edges, event_log, graph_store, item_store
from service.store.activity import Sent, activity_of, take_activity
from service.store.edges import SentEdge, edges_of, take_edges
from service.store.graph_store import LEASE, TAKES_KEPT, fields_of, rewarded_by
from service.store.group_commit import GroupCommit
from service.store.keys import Keys
from tests.builders import event_of, import_of

pytestmark = pytest.mark.anyio

SETTINGS = LoopSettings()
USERS = ["u", "a", "b", "c"]


async def opened(redis: Redis, keys: Keys) -> GraphKeeper:
    """Open a keeper, as if the one before had died."""
    await redis.delete(keys.lease(LEASE))
    found = GraphKeeper(redis, keys)
    assert await found.open()
    return found


async def name(redis: Redis, keys: Keys, *pairs: str) -> None:
    """Write edges, such as `ub` from u to b."""
    for pair in pairs:
        user, to = pair[0], pair[1]
        await take_edges(GroupCommit(redis), keys, SETTINGS, {user: [SentEdge(user, to, "friend", 1.0)]})


async def act(redis: Redis, keys: Keys, user: str, *items: str) -> None:
    done = [Sent(user, item, "click") for item in items]
    await take_activity(GroupCommit(redis), keys, SETTINGS, {user: done}, edges=True)


async def reward(redis: Redis, keys: Keys, *rewards: tuple[int, str, str, float]) -> None:
    events = [
        event_of(number, user=user, item=item, reward=reward, at=1.7e9 + number)
        for number, user, item, reward in rewards
    ]
    assert await event_log.append_imported(redis, keys, import_of(events), remember=10_000) == len(events)


async def from_scratch(redis: Redis, keys: Keys, users: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Compute the fields of users from all that is kept."""
    ties = {user: [Tie(*one) for one in kept] for user, kept in (await edges_of(redis, keys, USERS)).items()}
    known = {user: [tie.to for tie in of_his] for user, of_his in ties.items()}
    done, rewarded = await activity_of(redis, keys, USERS), await rewarded_by(redis, keys, USERS)
    takes = {user: takes_of([Activity(*one) for one in done[user]][-NEWEST:], rewarded[user]) for user in USERS}
    items = ItemFields(await item_store.read_some(redis, keys, {"ball", "bone", "bed"}))
    return {user: graph_fields(ties[user], known, takes, items) for user in users}


async def served(redis: Redis, keys: Keys) -> dict[str, dict[str, Any]]:
    """Return the fields that decisions read, without their versions."""
    found = await fields_of(redis, keys, USERS)
    return {user: {name: fields[name] for name in fields if name != "version"} for user, fields in found.items()}


async def test_fields_follow_edges_activity_and_rewards_though_learners_die(
    redis: Redis, keys: Keys, loop: LoopRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    await item_store.change_items(redis, keys, {item: {"kind": item} for item in ("ball", "bone", "bed")})
    await name(redis, keys, "ua", "ub", "uc", "ab")
    await reward(redis, keys, (0, "a", "ball", 1.0), (1, "a", "bone", 0.0), (2, "c", "bed", 0.5))
    first = await opened(redis, keys)
    await first.drain()
    found = await served(redis, keys)
    assert found == await from_scratch(redis, keys, USERS)
    assert (found["u"]["triangles"], found["u"]["circle"], found["u"]["items"]) == (
        1,
        {"kind": ["ball"]},
        ["ball", "bed"],
    )
    assert found["b"] == found["c"] == {}

    # Dies after it has kept what was rewarded, and before it has written down how far it read.
    await reward(redis, keys, (3, "b", "bone", 1.0))
    assert await first.step() == 1
    assert await graph_store.read_position(redis, keys) != first.position
    await act(redis, keys, "c", "bed", "bed")
    await name(redis, keys, "bc")
    second = await opened(redis, keys)
    await second.drain()
    assert len((await rewarded_by(redis, keys, ["b"]))["b"]) == 1, "each reward counts once"
    found = await served(redis, keys)
    assert found == await from_scratch(redis, keys, USERS)
    assert (found["u"]["triangles"], found["u"]["items"]) == (2, ["bed", "ball", "bone"])
    with pytest.raises(CountedElsewhere):
        await first.save()  # it was only frozen

    # Another one is cut off between two steps of its work.
    await act(redis, keys, "b", "ball")
    await name(redis, keys, "ba")
    third = await opened(redis, keys)

    async def dies(*_: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as broken:
        broken.setattr(third, "_compute", dies)
        await third.step()
        with pytest.raises(RuntimeError, match="killed"):
            await third._at_rest()
    assert await third._behind(), "the marks are still there"
    await (await opened(redis, keys)).drain()
    assert await served(redis, keys) == await from_scratch(redis, keys, USERS)
    assert not await third._behind()


async def test_only_whose_neighbourhood_changed_is_computed_again(redis: Redis, keys: Keys, loop: LoopRecord) -> None:
    await item_store.change_items(redis, keys, {"ball": {"kind": "ball"}})
    await name(redis, keys, "ua", "bc")
    keeper = await opened(redis, keys)
    await keeper.drain()
    before = await fields_of(redis, keys, USERS)
    computed: list[str] = []
    compute = keeper._compute

    async def counted(stale: Sequence[tuple[str, int]]) -> None:
        computed.extend(user for user, _ in stale)
        await compute(stale)

    keeper._compute = counted  # type: ignore[method-assign]  # it is counted
    await act(redis, keys, "a", "ball")
    await act(redis, keys, "u", "ball")  # nobody knows him
    await keeper.drain()
    after = await fields_of(redis, keys, USERS)
    assert computed == ["u"]
    assert after["u"]["version"] > before["u"]["version"]
    assert after["b"] == before["b"]
    await edges.mark_stale(redis, keys, ["u"])
    await keeper.drain()
    assert (await fields_of(redis, keys, ["u"]))["u"] == after["u"], "fields that did not change keep their version"


async def test_a_reward_of_the_future_counts_as_one_of_now(redis: Redis, keys: Keys, loop: LoopRecord) -> None:
    await name(redis, keys, "ua")
    events = [event_of(0, user="a", item="ball", reward=1.0, at=9e9)]
    await event_log.append_imported(redis, keys, import_of(events), remember=10_000)
    await (await opened(redis, keys)).drain()
    [(at, item, share)] = (await rewarded_by(redis, keys, ["a"]))["a"]
    assert (item, share) == ("ball", 1.0)
    assert 1.7e12 < at < 9e12


async def test_what_a_user_took_is_bounded(redis: Redis, keys: Keys, loop: LoopRecord) -> None:
    await name(redis, keys, "ua")
    await reward(redis, keys, *((n, "a", f"i{n}", 1.0) for n in range(TAKES_KEPT + 3)))
    await (await opened(redis, keys)).drain()
    took = (await rewarded_by(redis, keys, ["a"]))["a"]
    assert [item for _, item, _ in took] == [f"i{n}" for n in range(3, TAKES_KEPT + 3)]
    assert 0 < await redis.pttl(keys.partition().took("a")) <= SETTINGS.activity_ms
