"""The indexer on a real Redis: each event counts once, whatever crashes; what is garbled is made again."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from service.funnel import Funnel
from service.learn import log_fold
from service.learn.bell import Bell
from service.learn.indexer import Indexer
from service.learn.log_fold import CountedElsewhere
from service.records import START, LoopRecord
from service.retrieve.counts import Counts
from service.store import event_log, item_store, loop_store, retrieval_store
from service.store.activity import Sent, take_activity
from service.store.activity_log import erase_of
from service.store.codec import loop_fields, unpack
from service.store.group_commit import GroupCommit
from service.store.keys import Keys
from service.store.retrieval_store import LEASE
from tests.builders import event_of, import_of
from tests.waiting import until_async

pytestmark = pytest.mark.anyio

FUNNEL = Funnel.model_validate({"sources": [{"source": "popular", "quota": 5}], "cut": 5})


async def append(redis: Redis, keys: Keys, first: int, n: int) -> None:
    events = [event_of(number, item=f"p{number % 5}", at=1e9 + number) for number in range(first, first + n)]
    assert await event_log.append_imported(redis, keys, import_of(events), remember=10_000) == n


async def opened(redis: Redis, keys: Keys) -> Indexer:
    """Open an indexer, as if the one before had died."""
    await redis.delete(keys.lease(LEASE))
    found = Indexer(redis, keys)
    assert await found.open()
    return found


async def published(redis: Redis, keys: Keys) -> tuple[int, Counts]:
    record = await retrieval_store.read_retrieval(redis, keys)
    assert record.state is not None
    return record.version, Counts.load(unpack(record.state))


async def test_each_event_counts_once_though_learners_die(redis: Redis, keys: Keys) -> None:
    await append(redis, keys, 0, 30)
    await item_store.change_items(redis, keys, {"new": {}, "p1": {}})
    first = await opened(redis, keys)
    await first.drain()
    await append(redis, keys, 30, 10)
    assert await first.step() == 10  # and dies before it has published
    assert (await published(redis, keys))[1].events == 30
    await (second := await opened(redis, keys)).drain()
    version, counts = await published(redis, keys)
    assert (version, counts.events, counts.catalogue) == (2, 40, 1)
    found = counts.standing(["p0", "p1", "new", "other"])
    assert found.looks.tolist() == [8, 8, 0, 0]
    assert found.born.tolist() == [0, 1, 1, 0]
    with pytest.raises(CountedElsewhere):
        await first.save()  # it was only frozen
    await append(redis, keys, 40, 5)
    await second.drain()
    assert (await published(redis, keys))[1].events == 45
    assert await Indexer(redis, keys).open() is False  # the lease is held


async def test_garbled_counts_are_made_again_from_the_log(redis: Redis, keys: Keys) -> None:
    await append(redis, keys, 0, 10)
    await (await opened(redis, keys)).drain()
    await redis.hset(keys.retrieval, "state", b"garbled")
    record = await retrieval_store.read_retrieval(redis, keys)
    assert (record.version, record.state) == (1, None)
    await (await opened(redis, keys)).drain()
    version, counts = await published(redis, keys)
    assert (version, counts.events) == (2, 10)


async def test_it_counts_while_the_loop_has_a_funnel_and_rests_while_nothing_happens(
    redis: Redis, keys: Keys, loop: LoopRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_fold, "POLL_S", 0.01)
    monkeypatch.setattr(log_fold, "LEASE_MS", 40)
    narrowed = replace(loop, settings=loop.settings.model_copy(update={"funnel": FUNNEL}))
    await redis.hset(keys.record, mapping=loop_fields(narrowed))
    bell, stop = Bell(awake=False), asyncio.Event()
    looks = 0
    read_loop = loop_store.read_loop

    async def counted(*args: object) -> LoopRecord:
        nonlocal looks
        looks += 1
        return await read_loop(*args)  # type: ignore[arg-type]  # passed on as they are

    monkeypatch.setattr(loop_store, "read_loop", counted)
    running = asyncio.create_task(Indexer(redis, keys).run(stop, bell))
    await append(redis, keys, 0, 10)
    bell.ring()
    monkeypatch.setattr(bell, "_until", 0.0)

    async def reached() -> bool:
        return await retrieval_store.read_reach(redis, keys) == ((await event_log.ends(redis, [keys]))[0], 0, START)

    await until_async(reached, "the events are counted")

    async def asleep() -> bool:
        before = looks
        await asyncio.sleep(0.05)
        return looks == before

    await until_async(asleep, "it rests")
    await redis.hset(keys.record, mapping=loop_fields(loop))
    bell.ring()
    await asyncio.wait_for(running, 5)  # no funnel: it ends by itself


async def test_what_the_log_of_changes_no_longer_holds_is_not_waited_for(
    redis: Redis, keys: Keys, loop: LoopRecord
) -> None:
    await redis.hset(keys.record, mapping=loop_fields(replace(loop, catalogue=7)))
    await (await opened(redis, keys)).drain()
    assert (await retrieval_store.read_reach(redis, keys))[1] == 7


async def test_changes_of_items_are_read_by_whole_versions(redis: Redis, keys: Keys) -> None:
    await item_store.change_items(redis, keys, {f"p{n}": {"n": n} for n in range(5)})
    await item_store.change_items(redis, keys, {"p0": None, "p1": {}})
    found = await item_store.read_turnover(redis, keys, 0, most=2)
    assert [(one.version, one.item) for one in found] == [(1, f"p{n}") for n in range(5)]
    later = await item_store.read_turnover(redis, keys, 1)
    assert [(one.item, one.was, one.now) for one in later] == [("p0", True, False), ("p1", True, True)]


async def test_activity_counts_once_though_learners_die_and_is_counted_anew_after_an_erasure(
    redis: Redis, keys: Keys, loop: LoopRecord
) -> None:
    funnel = Funnel.model_validate({"sources": [{"source": "covisited", "quota": 5}], "cut": 5})
    settings = loop.settings.model_copy(update={"funnel": funnel})
    await redis.hset(keys.record, mapping=loop_fields(replace(loop, settings=settings)))
    commit = GroupCommit(redis)

    async def browse(user: str, *items: str) -> None:
        await take_activity(commit, keys, settings, {user: [Sent(user, item, "view", 10**12) for item in items]})

    async def weight(counts: Counts, item: str, other: str) -> float:
        row, near = counts.covisits.find([item, other]).tolist()
        neighbours, weights = counts.covisits.arrays()
        return float(weights[row][neighbours[row] == near].sum())

    await browse("u1", "a", "b")
    await browse("u2", "a", "b", "c")
    first = await opened(redis, keys)
    assert await first._behind()
    await first.drain()
    assert not await first._behind()
    await browse("u3", "b", "a")
    await first._at_rest()  # and dies before it has published
    assert await weight((await published(redis, keys))[1], "a", "b") == 2
    await (second := await opened(redis, keys)).drain()
    version, counts = await published(redis, keys)
    assert (version, await weight(counts, "a", "b"), await weight(counts, "a", "c")) == (2, 3, 1)
    summary = await retrieval_store.read_summary(redis, keys)
    assert summary is not None
    assert summary.together == 3
    await second.drain()
    assert counts.covisits.position == (await retrieval_store.read_reach(redis, keys))[2]

    await erase_of(redis, keys, "u2", counted="e/activity")
    await second.drain()
    counts = (await published(redis, keys))[1]
    assert (await weight(counts, "a", "b"), len(counts.covisits)) == (2, 2)
    await redis.hset(keys.record, mapping=loop_fields(loop))  # no source asks for it any more
    await (await opened(redis, keys)).drain()
    assert len((await published(redis, keys))[1].covisits) == 0
