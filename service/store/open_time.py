"""Open time: the clock of deadlines. It stands still while feedback could not be taken.

Each API worker beats in Redis four times a second. While no heartbeat arrives, no feedback does: Redis is away, or
takes no writes, or no worker lives. A gap of more than `LIMIT_MS` between two heartbeats, of whichever workers, is an
outage of ours. Open time is the time of Redis less all outages. So each outage moves every deadline, and no key is
touched for that. Nothing is settled beyond the newest heartbeat, for an outage that goes on is not counted yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from service.store.connection import answering, exchange, packed, script
from service.store.keys import OPEN, OUTAGES, STORE, WORKERS

LIMIT_MS = 1000
MOST_WAIT_MS = 86_400_000  # outages of so long before a decision's ledger time may have moved its deadline


@dataclass(frozen=True)
class Outage:
    """A time in which feedback could not be taken."""

    since: float  # unix seconds, as `until`
    until: float


@dataclass(frozen=True)
class Opening:
    """Open time as Redis tells it."""

    now_ms: int  # open time, unless an outage goes on
    known_ms: int  # open time at the newest heartbeat: up to here feedback was taken
    closed_ms: int  # for which deadlines stood still, ever
    outages: int  # ever
    last: Outage | None


class OpenTime:
    """What one process knows of open time.

    Args:
        worker: it takes feedback, and says so with each look at open time; None: it only looks.
    """

    def __init__(self, redis: Redis, worker: str | None = None) -> None:
        self._redis, self._worker = redis, worker
        self._known: tuple[int, int | str] | None = None

    async def refresh(self) -> None:
        """Ask Redis, and beat.

        Raises:
            StoreUnavailable: Redis does not answer, or takes no writes.
        """
        if self._worker is None:
            self._known = ((await read_opening(self._redis)).closed_ms, "")
        else:
            await self.beat()

    async def beat(self) -> str | None:
        """Beat, and return the identity of the data in Redis (`workers.read_identity`), in one round trip.

        Raises:
            StoreUnavailable: Redis does not answer, or takes no writes.
        """
        assert self._worker is not None, "it only looks"
        beat, keys, args = script("beat"), (WORKERS, OPEN, OUTAGES), (self._worker, LIMIT_MS)
        commands = [packed("GET", STORE), packed("EVALSHA", beat.sha, len(keys), *keys, *args)]
        async with answering():
            identity, found = await exchange(self._redis, commands)
            for answer in (identity, found):
                if isinstance(answer, Exception) and not isinstance(answer, NoScriptError):
                    raise answer
        if isinstance(found, NoScriptError):
            found = await beat(self._redis, keys, args)
        self._known = (int(found[0]), int(found[1]))
        return identity.decode() if identity else None

    @property
    def stale(self) -> bool:
        """Whether `refresh` is due before the next script: always, for a process that does not beat."""
        return self._known is None or self._worker is None

    @property
    def args(self) -> tuple[int, int | str, int]:
        """The last arguments of a script that includes `open_time.lua`. It refuses them once they are old."""
        assert self._known is not None, "refresh first"
        return (*self._known, LIMIT_MS)


async def read_opening(redis: Redis) -> Opening:
    """Read open time.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    async with answering(), redis.pipeline(transaction=False) as pipe:
        pipe.hmget(OPEN, "beat", "closed", "outages")
        pipe.lrange(OUTAGES, 0, 0)
        pipe.time()
        (beat, closed, outages), listed, (seconds, micros) = await pipe.execute()
    at, closed_ms = round(1000 * seconds + micros / 1000), int(closed or 0)
    return Opening(
        now_ms=at - closed_ms,
        known_ms=(at if beat is None else min(at, int(beat))) - closed_ms,
        closed_ms=closed_ms,
        outages=int(outages or 0),
        last=_outage(listed[0]) if listed else None,
    )


async def closed_since(redis: Redis, ms: int) -> int:
    """Return for how many ms deadlines stood still after this time of Redis; of the newest hundred outages."""
    return sum(until - since for since, until in await _outages(redis) if until > ms)


async def open_times(redis: Redis, times_ms: Sequence[int]) -> list[int]:
    """Return what open time was at these times of Redis, in ms; before the newest hundred outages it is too late."""
    closed_ms, outages = (await read_opening(redis)).closed_ms, await _outages(redis)
    return [ms - closed_ms + sum(until - since for since, until in outages if until > ms) for ms in times_ms]


async def _outages(redis: Redis) -> list[tuple[int, int]]:
    """Return (since, until) in ms of the newest hundred outages."""
    async with answering():
        found = await redis.lrange(OUTAGES, 0, -1)
    return [(int(since), int(until)) for since, until in (text.split() for text in found)]


def _outage(text: bytes) -> Outage:
    since, until = text.split()
    return Outage(int(since) / 1000, int(until) / 1000)
