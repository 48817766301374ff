"""Takes the steps of a loop's release: looks at the log again and again, and goes on or back when that is shown.

Each step is one write of the traffic and of the release, which goes through only where both are as this look saw them.
The sums are written with their position in the log. So whatever crashes, and however many learners are at work, each
event counts once and each step is taken once; a lease keeps them from doing the work twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import structlog
from redis.asyncio import Redis

from service.errors import NotFound, StaleEpoch, StoreUnavailable
from service.evaluate.comparison import together
from service.evaluate.release import (
    Guard,
    ReleaseSums,
    Serving,
    Verdict,
    described,
    look,
    split,
    steps_with_others,
)
from service.learn.bell import Bell, rest
from service.learn.tail import Tail
from service.records import Change, LoopRecord
from service.store import event_log, loop_store, policy_store, release_store, workers
from service.store.codec import NewerFormat, pack, unpack
from service.store.connection import now
from service.store.keys import Keys
from service.store.policy_store import Lease
from service.store.release_store import LEASE, MOST_LOOKS, ReleaseRecord, StoredRelease
from service.store.settled import settled_places

LEASE_MS = 5000
GROWN = 1.1  # looks are two a second: kept are those that saw so many times the events of the one before
PERIOD_S = 0.5  # from one look to the next while the loop is used
IDLE_S = 10.0  # the same of a loop that nobody uses: the wait of its last decisions may end
MOST_RETRY_S = 30.0

log = structlog.get_logger()


class Releaser:
    """Takes the steps of one loop's release. `step` is one look; `run` looks until the release has ended."""

    def __init__(self, redis: Redis, keys: Keys, tail: Tail | None = None) -> None:
        self._redis, self._keys, self._tail = redis, keys, tail or Tail(redis, keys)
        self._lease = Lease(redis, keys, LEASE, ttl_ms=LEASE_MS)

    async def step(self) -> bool:
        """Look once; False where no release runs.

        Raises:
            NotFound: the loop is gone.
            StaleEpoch: somebody else changed the loop or the release meanwhile; nothing was written.
            NewerFormat: a newer version wrote the release, or the next entry of the log.
        """
        loop = await loop_store.read_loop(self._redis, self._keys.loop)
        if loop.id != self._keys.id:
            raise NotFound(f"the loop {loop.name!r} of then is gone", code="unknown_loop")
        if loop.release is None:
            return False
        found = await release_store.read_release(self._redis, self._keys, loop.release["policy"])
        if found is None:
            raise LookupError(f"loop {loop.name!r} names a release of {loop.release['policy']!r} that is not there")
        if loop.traffic != split(found.record.before, found.record.policy, found.record.steps[found.record.step]):
            await self._give_way(loop, found)
        elif found.record.start is None:
            await self._begin(loop, found)
        elif found.record.wait_ms != loop.settings.wait_ms:  # decisions are no longer settled in the order of display
            why = "the loop's wait time was changed: the step begins anew"
            anew = replace(found.record, start=None, epoch=loop.epoch, begun=await now(self._redis), why=why)
            await self._write(loop, found, anew, sums=b"")
        else:
            await self._look(loop, found)
        return True

    async def _give_way(self, loop: LoopRecord, found: StoredRelease) -> None:
        """End the release: a process of an older version, which knows of none, has changed the traffic."""
        why = "somebody changed the traffic, which stays as it was changed"
        noted = Change(f"release of {found.record.policy}", "cancel release", loop.traffic, loop.traffic)
        share = loop.traffic.get(found.record.policy, 0.0)
        await release_store.cancel_release(self._redis, loop, found, {}, noted, share=share, why=why)

    async def _begin(self, loop: LoopRecord, found: StoredRelease) -> None:
        """Let decisions count from here on, once every worker that lives has adopted the step."""
        _, missing = await workers.adopted(self._redis, self._keys, found.record.epoch, within_s=0.0)
        if missing:
            return
        (position,) = await event_log.ends(self._redis, [self._keys])  # before the place: what it shows comes after
        start, _ = await settled_places(self._redis, self._keys, since=0)
        begun = replace(found.record, start=start, position=position, wait_ms=loop.settings.wait_ms)
        await self._write(loop, found, begun, sums=pack(_sums(begun).state()))

    async def _look(self, loop: LoopRecord, found: StoredRelease) -> None:
        record, sums = found.record, _sums(found.record)
        stored = await release_store.read_sums(self._redis, self._keys, record.policy)
        if not stored:
            raise StaleEpoch(f"the step of the release of {record.policy!r} has just ended")
        sums.load(unpack(stored))
        guard = Guard(**record.guard)
        shown, settled = await settled_places(self._redis, self._keys, since=record.start or 0)
        sums.begin(shown)
        position = record.position
        while entries := await self._tail.read(position):
            await asyncio.to_thread(sums.add, entries)
            position = entries[-1].position
        sums.settle(settled)
        serving = await self._serving(record)
        error = 1 - together(record.confidence, steps_with_others(record.steps))
        verdict = look(sums, guard, serving, error=error)
        at = await now(self._redis)
        looked = replace(
            record,
            position=position,
            why=verdict.why,
            looks=_kept(record.looks, _told(record, verdict, serving, at)),
        )
        if verdict.course == "go back":
            await self._take(loop, found, looked, "rolled_back", record.before, at)
        elif verdict.course == "go on":
            await self._go_on(loop, found, looked, at)
        elif position != record.position or verdict.why != record.why:
            await self._write(loop, found, looked, sums=pack(sums.state()))

    async def _serving(self, record: ReleaseRecord) -> Serving:
        policy = await policy_store.read_policy(self._redis, self._keys, record.policy)
        stats = await event_log.read_stats(self._redis, self._keys)
        counts = await release_store.read_served(self._redis, self._keys, record.policy, record.id)
        return Serving(lag=event_log.lag(stats, policy), **counts)

    async def _go_on(self, loop: LoopRecord, found: StoredRelease, record: ReleaseRecord, at: float) -> None:
        """Take the next step. The release is done at the end of the last, or where it leaves nobody to compare with."""
        if record.step + 1 == len(record.steps):
            await self._take(loop, found, record, "done", loop.traffic, at)
            return
        record = replace(record, step=record.step + 1)
        share = record.steps[record.step]
        traffic = split(record.before, record.policy, share)
        await self._take(loop, found, record, "done" if share == 1 else "running", traffic, at)

    async def _take(
        self,
        loop: LoopRecord,
        found: StoredRelease,
        record: ReleaseRecord,
        state: str,
        traffic: Mapping[str, float],
        at: float,
    ) -> None:
        """Write a step, or the end, with its traffic."""
        what = {"running": "take step of release", "done": "end release", "rolled_back": "roll back release"}[state]
        record = replace(
            record,
            state=state,
            epoch=loop.epoch + 1,
            begun=at,
            start=None,
            ended=None if state == "running" else at,
            taken=[*record.taken, {"at": at, "share": traffic.get(record.policy, 0.0), "why": record.why}],
        )
        noted = Change(f"release of {record.policy}", what, loop.traffic, traffic)
        changes: dict[str, Any] = {"traffic": traffic}
        if state != "running":
            changes["release"] = None
        await release_store.write_release(
            self._redis, loop, found.revision, record, sums=b"", changes=changes, change=noted
        )
        log.info(what, loop=loop.name, policy=record.policy, traffic=traffic, why=record.why)

    async def _write(self, loop: LoopRecord, found: StoredRelease, record: ReleaseRecord, *, sums: bytes) -> None:
        await release_store.write_release(self._redis, loop, found.revision, record, sums=sums)

    async def run(self, stop: asyncio.Event, bell: Bell) -> None:
        """Look until `stop`, or until the release has ended or the loop is gone."""
        while not stop.is_set():
            rung, pause = bell.next, PERIOD_S
            try:
                if (await self._lease.renew() or await self._lease.acquire()) and not await self.step():
                    break
            except NotFound:
                break
            except StaleEpoch:
                pass  # somebody changed something: look again
            except StoreUnavailable:
                pass  # the sums and the step are in Redis
            except NewerFormat as error:
                log.error("this release is not carried on", loop=self._keys.loop, why=str(error))
                pause = MOST_RETRY_S
            except Exception:
                log.exception("a release failed; going on from what was written", loop=self._keys.loop)
                pause = MOST_RETRY_S
            if bell.awake or pause > PERIOD_S:
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), pause)
            else:
                await rest(stop, rung, within_s=IDLE_S)
        with suppress(StoreUnavailable):
            await self._lease.release()


def _sums(record: ReleaseRecord) -> ReleaseSums:
    others = [name for name in record.before if name != record.policy]
    return ReleaseSums(record.policy, others, start=record.start or 0)


def _kept(looks: Sequence[Mapping[str, Any]], new: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Append a look. One that waited stays where the policy's events had grown by a tenth since the one before."""
    if len(looks) > 1:
        before, last = looks[-2:]
        if last["course"] == "wait" and last["share"] == before["share"]:
            grown = last["policy"]["events"] > GROWN * before["policy"]["events"]
            looks = looks if grown else looks[:-1]
    return [*looks, new][-MOST_LOOKS:]


def _told(record: ReleaseRecord, verdict: Verdict, serving: Serving, at: float) -> dict[str, Any]:
    """Write a look as JSON."""
    served = {"lag": serving.lag, "decisions": serving.decisions, "slow": serving.slow, "degraded": serving.degraded}
    return {"at": at, "share": record.steps[record.step], **described(verdict), **served}
