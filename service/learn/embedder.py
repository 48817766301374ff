"""Has the embeddings of one loop trained when its log has grown, each training in a process of its own.

A training is seconds to minutes of pure computing, and PyTorch's memory; in the learner's own process it would hold up
learning (decision record 0050 says the same of evaluations). What it publishes is written in one atomic step, and only
if no other version was published since it began. So nothing but a lease keeps two learners from doing it twice.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from hashlib import blake2b
from typing import Any

import numpy as np
import structlog
from redis.asyncio import Redis

from service.errors import NotFound, StoreUnavailable
from service.learn.bell import Bell, rest
from service.learn.child import have_done
from service.learn.towers import examples_of, train
from service.records import Event, order
from service.retrieve.towers import Towers, bags_of, hashes_of, recall
from service.settings import Settings
from service.store import embedding_store, event_log, item_store, loop_store
from service.store.codec import pack, unpack
from service.store.connection import end
from service.store.embedding_store import LEASE
from service.store.keys import Keys
from service.store.policy_store import Lease

LEASE_MS = 5000
POLL_S = 2.0
RETRY_S, MOST_RETRY_S = 30.0, 3600.0  # after a process that died
FIRST = 500  # events of the log before the first training
GROWTH = 1.25  # of the log, from one training to the next
MOST_EVENTS = 200_000  # the newest of the log that are read
MOST_REWARDED = 100_000  # the newest of them that are trained on
JUDGED, LEAST_JUDGED = 2000, 20  # rewarded events that judge the version before
NOTHING = 3  # exit code: there is nothing to learn from, or somebody else has published

log = structlog.get_logger()


class Embedder:
    """Trains for one loop, as long as its funnel has a source that needs it."""

    def __init__(self, redis: Redis, keys: Keys, settings: Settings) -> None:
        self._redis, self._keys, self._settings = redis, keys, settings
        self._lease = Lease(redis, keys, LEASE, ttl_ms=LEASE_MS)
        self._tried = 0  # events of the log at the last training that published nothing
        self._pause = RETRY_S

    async def run(self, stop: asyncio.Event, bell: Bell) -> None:
        """Train until `stop`, or until the loop is gone or does not want it."""
        while not stop.is_set():
            rung, pause = bell.next, POLL_S
            try:
                loop = await loop_store.read_loop(self._redis, self._keys.loop)
                if loop.id != self._keys.id or not loop.settings.funnel.embeds:
                    return
                if not await self.step(stop):
                    pause, self._pause = self._pause, min(2 * self._pause, MOST_RETRY_S)
                elif not bell.awake:
                    await rest(stop, rung)
                    continue
            except NotFound:
                return
            except StoreUnavailable:
                pass
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause)

    async def step(self, stop: asyncio.Event) -> bool:
        """Have a training done if it is time; False when it died.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        events = await self._due()
        if events is None or not await self._lease.acquire():
            return True
        keeper = asyncio.create_task(self._lease.keep())
        try:
            code = await have_done(self._settings, ("embed", self._keys.loop, self._keys.id), stop)
        finally:
            await end(keeper)
            await self._lease.release()
        if code == NOTHING:
            self._tried = events
        elif code != 0 and not stop.is_set():
            log.error("a training of embeddings died", loop=self._keys.loop, code=code)
            return False
        self._pause = RETRY_S
        return True

    async def _due(self) -> int | None:
        """Return how many events the log has had, if it is time for a training."""
        found = await embedding_store.read_summary(self._redis, self._keys)
        stats = await event_log.read_stats(self._redis, self._keys)
        events = stats.get("events", 0)
        trained = max(self._tried, 0 if found is None else found.events)
        return events if events >= max(FIRST, GROWTH * trained) else None


async def train_embedding(redis: Redis, keys: Keys) -> bool:
    """Judge the version before on what came after it, train the next, publish it; False: nothing was published.

    Raises:
        NotFound: the loop is gone.
        StoreUnavailable: Redis does not answer.
    """
    loop = await loop_store.read_loop(redis, keys.loop)
    if loop.id != keys.id:
        return False
    try:
        former = await embedding_store.read_embedding(redis, keys)
        seen, towers = former.version, None if former.state is None else Towers.load(unpack(former.state))
    except ValueError as error:  # garbled
        log.warning("embeddings are trained without those of before", loop=keys.loop, why=str(error))
        summary, towers = await embedding_store.read_summary(redis, keys), None
        seen = 0 if summary is None else summary.version
    stats = await event_log.read_stats(redis, keys)
    rewarded, position = await _rewarded(redis, keys, loop.settings.default_reward)
    if not rewarded:
        return False
    _, catalogue = await item_store.read_items(redis, keys)
    judged = None
    if towers is not None:
        later = [one for one in rewarded if order(one.position) > order(former.position)]
        if (found := judge(towers, later[-JUDGED:], catalogue)) is not None:
            judged = {"version": former.version, **found}
    seed = int.from_bytes(blake2b(keys.id.encode(), digest_size=4).digest(), "big")
    brought = [
        (one.user, one.context, one.item, one.reward - loop.settings.default_reward, one.features) for one in rewarded
    ]
    made = train(examples_of(brought, catalogue), seed=seed)
    return await embedding_store.save_embedding(
        redis,
        keys,
        seen=seen,
        position=position,
        events=stats.get("events", 0),
        rewarded=len(rewarded),
        state=pack(made.state()),
        judged=judged,
    )


async def _rewarded(redis: Redis, keys: Keys, default: float) -> tuple[list[Event], str]:
    """Return the newest events that brought more than the default reward, and the last position of the log."""
    found: list[Event] = []
    [position] = await event_log.ends(redis, [keys])
    async for entries in event_log.scan(redis, keys, until=position, newest=MOST_EVENTS):
        found += [entry for entry in entries if isinstance(entry, Event) and entry.reward > default]
    return found[-MOST_REWARDED:], position


def judge(towers: Towers, events: list[Event], catalogue: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Return how well embeddings find what was rewarded after their training: recall of the 100 nearest.

    Returns:
        events, recall, and `popular`, that of the 100 items that brought most before; None: too few events.
    """
    row_of = {item: row for row, item in enumerate(catalogue)}
    there = [one for one in events if one.item in row_of]
    if len(there) < LEAST_JUDGED:
        return None
    columns = len(towers.item.of_tokens)
    ids = hashes_of(catalogue)
    vectors, _ = towers.item.vectors(ids, bags_of(catalogue.values(), "item", columns))
    users = np.where([one.user is not None for one in there], hashes_of(one.user or "" for one in there), np.uint64(0))
    asked, _ = towers.user.vectors(users, bags_of((one.context for one in there), "context", columns))
    found, popular = recall(towers, asked, np.array([row_of[one.item] for one in there]), ids, vectors)
    return {"events": len(there), "recall": found, "popular": popular}
