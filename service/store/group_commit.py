"""Group commit: writes of concurrent requests go to Redis as one pipeline."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

from service.errors import StoreUnavailable
from service.store.announcements import InUse
from service.store.connection import GONE, Script, Value, exchange, packed, takes_no_writes
from service.store.keys import USED
from service.store.open_time import OpenTime


class Call(NamedTuple):
    """A script that waits to be run."""

    script: Script
    keys: Sequence[str]
    args: Sequence[Value]
    loop: str | None  # whose use is to be announced
    result: asyncio.Future[Any]


class GroupCommit:
    """Collects scripts to run while a pipeline is in flight, and sends them together with the next one.

    The batch grows with the load, and nobody waits for a timer.
    """

    def __init__(self, redis: Redis, time: OpenTime | None = None, *, most: int = 512) -> None:
        """`time` is that of an API worker; None: this process takes no feedback."""
        self._redis, self._most = redis, most
        self._time = time or OpenTime(redis)
        self._waiting: deque[Call] = deque()
        self._in_use = InUse()
        self._flusher: asyncio.Task[None] | None = None

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Value], *, uses: str | None = None) -> Any:
        """Return the script's result.

        Args:
            uses: name of a loop whose use is announced to the learner.

        Raises:
            StoreUnavailable: Redis did not answer. The command may or may not have been carried out.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(Call(script, keys, args, uses, future))
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush())
        return await future

    async def _flush(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
            try:
                results = await self._execute(batch)
            except Exception as error:  # whatever it is, nobody may wait for ever
                results = [error] * len(batch)
            for call, result in zip(batch, results, strict=True):
                future = call.result
                if future.done():  # its request was cancelled
                    continue
                if isinstance(result, GONE) or (isinstance(result, Exception) and takes_no_writes(result)):
                    why = "does not answer" if isinstance(result, GONE) else f"takes no writes now ({result})"
                    gone = StoreUnavailable(f"Redis {why}; send it again")
                    gone.__cause__ = result
                    future.set_exception(gone)
                elif isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    async def _execute(self, batch: Sequence[Call]) -> list[Any]:
        if self._time.stale and any(call.script.timed for call in batch):
            await self._time.refresh()
        results = await self._send(batch, known=True)
        unknown = [i for i, result in enumerate(results) if isinstance(result, NoScriptError)]
        if unknown:  # a fresh server: it has not seen these texts yet
            again = await self._send([batch[i] for i in unknown], known=False)
            for i, result in zip(unknown, again, strict=True):
                results[i] = result
        stale = [i for i, result in enumerate(results) if isinstance(result, ResponseError) and "STALE " in str(result)]
        if stale:  # deadlines may have stood still since the last heartbeat
            try:
                await self._time.refresh()
                again = await self._send([batch[i] for i in stale], known=True)
            except StoreUnavailable as error:
                again = list[Any]([error]) * len(stale)
            for i, result in zip(stale, again, strict=True):
                results[i] = result
        return results

    async def _send(self, batch: Sequence[Call], *, known: bool) -> list[Any]:
        """Run a batch in one round trip; return results, and errors in the place of results.

        Args:
            known: the server knows the scripts by their digests. Else the first call of each carries its text.
        """
        told: set[str] = set()
        commands = []
        for script, keys, args, _, _ in batch:
            if script.timed:
                args = (*args, *self._time.args)
            if known or script.sha in told:
                commands.append(packed("EVALSHA", script.sha, len(keys), *keys, *args))
            else:
                commands.append(packed("EVAL", script.text, len(keys), *keys, *args))
                told.add(script.sha)
        loops = self._in_use.untold({call.loop for call in batch if call.loop is not None})
        commands += [packed("PUBLISH", USED, loop) for loop in loops]
        try:
            results = await exchange(self._redis, commands)
        except GONE as error:
            self._in_use.forget()
            return [error] * len(batch)
        return results[: len(batch)]
