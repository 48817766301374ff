"""Learned embeddings on a real Redis: trained, judged, served, withdrawn; what is garbled or killed harms nothing."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from redis.asyncio import Redis

from service.funnel import Funnel
from service.learn import child, embedder, towers
from service.learn.embedder import Embedder, train_embedding
from service.records import LoopRecord
from service.retrieve.source import Query
from service.serve.follower import Follower
from service.settings import Settings
from service.store import embedding_store, event_log, item_store
from service.store.codec import loop_fields
from service.store.keys import Keys
from tests.builders import event_of, import_of

pytestmark = pytest.mark.anyio

FUNNEL = Funnel.model_validate({"sources": [{"source": "learned", "quota": 12}], "cut": 20})
KINDS = "abcde"


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(towers, "MOST_STEPS", 60)


@pytest.fixture
async def shop(redis: Redis, keys: Keys, loop: LoopRecord) -> Keys:
    """A loop with a hundred items of five kinds, and users of whom each likes one."""
    narrowed = replace(loop, settings=loop.settings.model_copy(update={"funnel": FUNNEL}))
    await redis.hset(keys.record, mapping=loop_fields(narrowed))
    await item_store.change_items(redis, keys, {f"p{n:02}": {"kind": KINDS[n % 5]} for n in range(100)})
    return keys


async def append(redis: Redis, keys: Keys, first: int, n: int) -> None:
    """Append events of ten users; each second one was rewarded, of the kind that its user likes."""
    rng = np.random.default_rng(first)
    events = [
        event_of(
            number,
            user=f"u{number % 10}",
            item=f"p{5 * rng.integers(20) + (number % 5 if number % 2 else rng.integers(5)):02}",
            at=1e9 + number,
            context={"hour": int(rng.integers(24))},
        )
        for number in range(first, first + n)
    ]
    assert await event_log.append_imported(redis, keys, import_of(events), remember=10_000) == n


async def test_a_version_is_trained_judged_served_and_withdrawn(redis: Redis, shop: Keys) -> None:
    assert not await train_embedding(redis, shop)  # nothing was rewarded
    assert await embedding_store.read_summary(redis, shop) is None
    follower = Follower(redis, "embeds")
    await follower.refresh(shop.loop)

    def found(user: str) -> list[str]:
        active = follower.loop(shop.loop)
        assert active.retriever is not None
        query = Query({"hour": 3}, "seed", user)
        return [active.catalogue.ids[row] for row in active.retriever.retrieve(query)]

    assert found("u1") == []
    await append(redis, shop, 0, 600)
    assert await train_embedding(redis, shop)
    await follower.refresh(shop.loop)
    for user in range(1, 10, 2):
        kinds = [KINDS[int(item[1:]) % 5] for item in found(f"u{user}")]
        assert kinds.count(KINDS[user % 5]) >= 9, (user, kinds)

    # A new item has a vector at once, and one that is deleted is gone.
    there = follower.loop(shop.loop).retriever
    gone = found("u1")[0]
    await item_store.change_items(redis, shop, {gone: None, "new": {"kind": "b"}})
    await follower.refresh(shop.loop)
    assert follower.loop(shop.loop).retriever is not there
    assert gone not in found("u1")
    await item_store.change_items(redis, shop, {f"p{n:02}": None for n in range(1, 100, 5) if f"p{n:02}" != gone})
    await follower.refresh(shop.loop)
    assert "new" in found("u1")  # the only one of the kind that is left

    await append(redis, shop, 600, 100)
    assert await train_embedding(redis, shop)
    summary = await embedding_store.read_summary(redis, shop)
    assert summary is not None
    assert (summary.version, summary.events, summary.rewarded) == (2, 700, 350)
    assert summary.judged is not None
    assert (summary.judged["version"], summary.judged["events"]) == (1, 40)  # ten items are gone
    assert 0 < summary.judged["recall"] <= 1

    # A training that began before the erasure publishes nothing after it; workers find nothing by what was withdrawn.
    await embedding_store.withdraw(redis, shop)
    assert not await embedding_store.save_embedding(
        redis, shop, seen=2, position="1-1", events=9, rewarded=9, state=b"x"
    )
    await follower.refresh(shop.loop)
    assert found("u1") == []
    assert await train_embedding(redis, shop)
    await follower.refresh(shop.loop)
    assert len(found("u1")) == 12


async def test_what_is_garbled_is_refused_and_the_old_one_serves_on(redis: Redis, shop: Keys) -> None:
    await append(redis, shop, 0, 600)
    assert await train_embedding(redis, shop)
    follower = Follower(redis, "embeds")
    await follower.refresh(shop.loop)
    before = follower.loop(shop.loop).retriever
    assert before is not None
    assert before.embedding == 1
    state = await redis.hget(shop.embedding, "state")
    assert state is not None
    # Cut off in the middle; then whole bytes that are no towers, with their digest.
    await redis.hset(shop.embedding, mapping={"version": 2, "state": state[: len(state) // 2]})
    await follower.refresh(shop.loop)
    assert await embedding_store.save_embedding(
        redis, shop, seen=2, position="1-1", events=1, rewarded=1, state=b"none"
    )
    await follower.refresh(shop.loop)
    assert follower.refused == 2
    assert follower.loop(shop.loop).retriever is before
    assert await train_embedding(redis, shop)
    await follower.refresh(shop.loop)
    after = follower.loop(shop.loop).retriever
    assert after is not None
    assert after.embedding == 4


async def test_a_killed_training_publishes_nothing_and_another_is_done(
    redis: Redis, shop: Keys, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await append(redis, shop, 0, embedder.FIRST - 1)
    task, stop = Embedder(redis, shop, settings), asyncio.Event()
    begun: list[int] = []

    async def have_done(*_: object) -> int:
        begun.append(1)
        return -9 if len(begun) == 1 else 0 if await train_embedding(redis, shop) else embedder.NOTHING

    monkeypatch.setattr("service.learn.embedder.have_done", have_done)
    assert await task.step(stop)
    assert not begun  # it is not time
    await append(redis, shop, embedder.FIRST, 1)
    assert not await task.step(stop)
    assert await embedding_store.read_summary(redis, shop) is None
    assert await task.step(stop)
    assert (await embedding_store.read_embedding(redis, shop)).version == 1
    assert await task.step(stop)
    assert len(begun) == 2  # the log has not grown
    stop.set()
    ended = await child.have_done(settings, ("embed", shop.loop, shop.id), stop)
    assert ended < 0, "a real process, which is ended with the learner"
    assert (await embedding_store.read_embedding(redis, shop)).version == 1
