"""The shared reader of a loop's log on a real Redis: what it reads is what `event_log` reads, decoded once."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Sequence
from dataclasses import fields

import numpy as np
import pytest
from redis.asyncio import Redis

from service.learn import learner, tail
from service.learn.historian import Historian
from service.learn.indexer import Indexer
from service.learn.profiler import Profiler
from service.learn.runner import PolicyRunner
from service.learn.tail import Tail
from service.records import START, Entry, Erasure, Event
from service.represent.encoder import Encoder
from service.represent.schema import FeatureSchema
from service.settings import Settings
from service.store import (
    codec,
    encoders,
    event_log,
    history_store,
    loop_store,
    policy_store,
    profile_store,
    users,
    workers,
)
from service.store.codec import NewerFormat
from service.store.keys import Keys
from tests.builders import event_of, fields_of, import_of, loop_of, policy_of
from tests.learn.running import running
from tests.waiting import until_async

pytestmark = pytest.mark.anyio


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the positions of entries that tails decode."""
    found: list[str] = []

    def read(position: str, said: dict[bytes, bytes]) -> Entry:
        found.append(position)
        return codec.read_entry(position, said)

    monkeypatch.setattr(tail, "read_entry", read)
    return found


async def append(redis: Redis, keys: Keys, count: int, *, first: int = 0) -> None:
    events = [
        event_of(number, user=f"u{number % 4}", context={"page": {"kind": number % 3}}, features={"price": number % 7})
        for number in range(first, first + count)
    ]
    await event_log.append_imported(redis, keys, import_of(events), remember=10_000)


def whole(entry: Entry) -> str:
    """Return all that an entry holds. Of a row its bytes: NumPy takes long to spell it."""
    if not isinstance(entry, Event):
        return repr(entry)
    return repr([entry.x.tobytes() if one.name == "x" else getattr(entry, one.name) for one in fields(entry)])


async def outcome(reading: Awaitable[Sequence[Entry]]) -> list[str]:
    """Await a read; return all that its entries hold."""
    try:
        return [whole(entry) for entry in await reading]
    except NewerFormat as error:
        return [f"refused: {error}"]


# ---- the same as without it


class Log:
    """Does to a loop's log whatever may happen to it."""

    def __init__(self, redis: Redis, keys: Keys, rng: np.random.Generator) -> None:
        self._redis, self._keys, self._rng = redis, keys, rng
        self._events = keys.partition().events
        self._number = 0
        self.positions = [START]  # that there ever were

    async def happen(self) -> None:
        await self._rng.choice([self._grow, self._grow, self._grow, self._trim, self._erase, self._lose])()  # type: ignore[arg-type]

    async def _grow(self) -> None:
        last = int((await event_log.ends(self._redis, [self._keys]))[0].split("-")[0])
        async with self._redis.pipeline(transaction=False) as pipe:
            for after in range(int(self._rng.integers(1, 12))):
                position = f"{last + 1 + after}-0"
                pipe.xadd(self._events, self._fields(), id=position)
                self.positions.append(position)
            await pipe.execute()

    def _fields(self) -> dict[bytes, bytes]:
        self._number += 1
        said = fields_of(event_of(self._number, user=f"u{self._number % 3}"))
        sort = self._rng.random()
        if sort < 0.1:
            return {b"e": b"{"}
        if sort < 0.15:
            return {b"c": codec.training_body("p", "id")}
        if sort < 0.17:
            said[b"e"] = said[b"e"].replace(b'"v":%d' % codec.FORMAT, b'"v":%d' % (codec.FORMAT + 1))
        return said

    async def _trim(self) -> None:
        await self._redis.xtrim(self._events, maxlen=int(self._rng.integers(5, 40)), approximate=False)

    async def _erase(self) -> None:
        assert await users.erase_events(self._redis, self._keys, f"e{self._number}", f"u{self._rng.integers(3)}")
        self.positions += await event_log.ends(self._redis, [self._keys])

    async def _lose(self) -> None:
        """Go back to an older copy; positions are taken once more, by other entries."""
        kept = await self._redis.xrange(self._events)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.delete(self._events)
            for position, said in kept[: int(self._rng.integers(0, len(kept) + 1))]:
                pipe.xadd(self._events, said, id=position)
            await pipe.execute()


@pytest.mark.parametrize("seed", range(2))
async def test_whatever_happens_to_the_log_it_reads_the_same(
    redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch, decoded: list[str], seed: int
) -> None:
    monkeypatch.setattr(tail, "MOST_ENTRIES", 40)
    rng = np.random.default_rng(seed)
    log, shared, read = Log(redis, keys, rng), Tail(redis, keys), 0
    for _ in range(20):
        await log.happen()
        for _ in range(2):
            after, until = rng.choice(log.positions), rng.choice([*log.positions, *["+"] * len(log.positions)])
            most = int(rng.integers(1, 50))
            expected = await outcome(event_log.read(redis, keys, after, most=most, until=until))
            both = (shared.read(after, most=most, until=until) for _ in range(2))
            assert await asyncio.gather(*map(outcome, both)) == [expected, expected]
            read += 2 * len(expected)
            expected = await outcome(event_log.wait(redis, keys, after, within_ms=1, most=most))
            assert await outcome(shared.wait(after, within_ms=1, most=most)) == expected
            read += len(expected)
        if rng.random() < 0.1:
            shared.forget()
    assert len(decoded) < read / 2, "most was in memory"


# ---- once


async def test_what_several_read_is_decoded_once(redis: Redis, keys: Keys, decoded: list[str]) -> None:
    shared = Tail(redis, keys)
    waiting = [asyncio.create_task(shared.wait(START, within_ms=20_000)) for _ in range(3)]
    await asyncio.sleep(0)
    await append(redis, keys, 20)
    await asyncio.gather(*waiting)
    first, second = await asyncio.gather(shared.read(START), shared.read(START))
    assert len(first) == 20
    assert all(one is other for one, other in zip(first, second, strict=True))
    assert decoded == [entry.position for entry in first]


@pytest.mark.parametrize("bound", ["MOST_ENTRIES", "MOST_BYTES"])
async def test_what_it_keeps_is_bounded(
    redis: Redis, keys: Keys, decoded: list[str], monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    await append(redis, keys, 40)
    shared = Tail(redis, keys)
    entries = await shared.read(START)
    whole = shared.size
    monkeypatch.setattr(tail, bound, 20 if bound == "MOST_ENTRIES" else whole // 2)
    shared.forget()
    assert shared.size == 0
    await shared.read(START)
    assert whole / 3 < shared.size < whole / 1.9
    decoded.clear()
    await shared.read(entries[20].position)
    assert decoded == [], "the newest are kept"
    monkeypatch.setattr(tail, bound, 1)
    await shared.read(START)
    assert shared.size < whole / 20


async def test_after_an_erasure_nothing_from_before_is_kept(redis: Redis, keys: Keys, decoded: list[str]) -> None:
    await append(redis, keys, 12)
    shared = Tail(redis, keys)
    rows = [weakref.ref(entry.x) for entry in await shared.read(START) if isinstance(entry, Event)]
    assert len(rows) == 12
    assert all(row() is not None for row in rows)
    await users.erase_events(redis, keys, "e", "u1")
    [erasure] = await shared.read(decoded[-1])
    assert isinstance(erasure, Erasure)
    assert all(row() is None for row in rows)
    assert await outcome(shared.read(START)) == await outcome(event_log.read(redis, keys, START))


# ---- those who share it


async def test_nobody_changes_what_others_read_too(
    redis: Redis, keys: Keys, settings: Settings, decoded: list[str]
) -> None:
    shared = Tail(redis, keys)
    await append(redis, keys, 60)
    schema = FeatureSchema.model_validate(
        {"item": {"price": {"type": "categorical", "levels": ["1", "2"]}}, "hash_dims": 0}
    )
    said = schema.model_dump(mode="json")
    await encoders.append_successor(redis, keys, said, encoder=Encoder(schema).version, events=60, why="a test")
    await append(redis, keys, 60, first=60)
    for kind in ("adaptive", "linucb_hybrid", "popularity"):
        await policy_store.create_policy(redis, keys, policy_of(kind))
    tasks = [
        *(PolicyRunner(redis, keys, kind, settings, shared) for kind in ("adaptive", "linucb_hybrid", "popularity")),
        *(fold(redis, keys, shared) for fold in (Profiler, Historian, Indexer)),
    ]
    for one in tasks:
        assert await one.open()
        assert await one.drain() == 121
    assert len(decoded) == 121
    assert await outcome(shared.read(START)) == await outcome(event_log.read(redis, keys, START))
    assert len(decoded) == 121


async def test_a_learner_s_tasks_share_one_and_each_look_at_all_loops_gives_its_memory_back(
    quiet_redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch, decoded: list[str]
) -> None:
    made: list[Tail] = []

    class Noted(Tail):
        def __init__(self, redis: Redis, keys: Keys) -> None:
            super().__init__(redis, keys)
            made.append(self)

    monkeypatch.setattr(learner, "Tail", Noted)
    monkeypatch.setattr(learner, "LOOK_S", 1000.0)
    monkeypatch.setattr(learner, "PERIOD_S", 0.05)
    await workers.store_identity(quiet_redis)
    loop = loop_of()
    keys = Keys(loop.name, loop.id)
    await loop_store.create_loop(quiet_redis, loop)
    for kind in ("linucb", "popularity"):
        await policy_store.create_policy(quiet_redis, keys, policy_of(kind))

    async def known() -> bool:
        return bool(made)

    async def learned() -> bool:
        policies = [await policy_store.read_policy(quiet_redis, keys, kind) for kind in ("linucb", "popularity")]
        folded = [
            await profile_store.read_position(quiet_redis, keys),
            await history_store.read_position(quiet_redis, keys),
        ]
        return [policy.events for policy in policies] == [10, 10] and START not in folded

    async with running(quiet_redis, settings) as found:
        await until_async(known, "the loop is known")
        await append(quiet_redis, keys, 10)
        await until_async(learned, "all is learned and counted")
        [shared] = made
        assert len(decoded) <= 20, "four tasks read them; a look at all loops may come in between"
        await found.follow(asyncio.Event())
        assert shared.size == 0
