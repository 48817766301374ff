"""The connection to Redis, its scripts, and group commit."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.errors import StoreUnavailable

GONE = (RedisConnectionError, RedisTimeoutError, OSError)
"""What a command raises when Redis does not answer (loading its data counts: BusyLoadingError is a ConnectionError)."""

Value = str | bytes | int | float


def connect(url: str, *, name: str, timeout_s: float, connections: int = 64) -> Redis:
    """A client that gives up after `timeout_s` and never sends a command twice by itself.

    A silent retry would count a reward twice where the first try arrived and only its answer was lost.
    """
    return Redis.from_url(
        url,
        client_name=f"rebound-{name}",
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        max_connections=connections,
        retry=Retry(NoBackoff(), 0),
    )


@dataclass(frozen=True)
class Script:
    """A Lua script, called by its digest."""

    text: str
    sha: str

    async def __call__(self, redis: Redis, keys: Sequence[str], args: Sequence[Value]) -> Any:
        """Run it by itself (group commit is for the hot paths).

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        try:
            try:
                return await redis.evalsha(self.sha, len(keys), *keys, *args)
            except NoScriptError:  # a fresh server: it has not seen the text yet
                return await redis.eval(self.text, len(keys), *keys, *args)
        except GONE as error:
            raise StoreUnavailable("Redis does not answer; nothing was changed or acknowledged") from error


@cache
def script(name: str) -> Script:
    """The script `scripts/<name>.lua`."""
    text = (files("service.store") / "scripts" / f"{name}.lua").read_text()
    return Script(text, sha1(text.encode()).hexdigest())


class GroupCommit:
    """Writes of concurrent requests go out as one pipeline, and each request waits for its own result.

    While a pipeline is in flight the next one collects, so the batch grows with the load and nobody waits for a timer.
    """

    def __init__(self, redis: Redis, *, most: int = 512) -> None:
        self._redis, self._most = redis, most
        self._waiting: deque[tuple[Script, Sequence[str], Sequence[Value], asyncio.Future[Any]]] = deque()
        self._flusher: asyncio.Task[None] | None = None

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Value]) -> Any:
        """The script's result.

        Raises:
            StoreUnavailable: Redis did not answer. The command may or may not have been carried out.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((script, keys, args, future))
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
            for (_, _, _, future), result in zip(batch, results, strict=True):
                if future.done():  # its request was cancelled
                    continue
                if isinstance(result, GONE):
                    gone = StoreUnavailable("Redis does not answer; send it again")
                    gone.__cause__ = result
                    future.set_exception(gone)
                elif isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    async def _execute(self, batch: Sequence[tuple[Script, Sequence[str], Sequence[Value], Any]]) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for script, keys, args, _ in batch:
                pipe.evalsha(script.sha, len(keys), *keys, *args)
            results: list[Any] = await pipe.execute(raise_on_error=False)
        unknown = [i for i, result in enumerate(results) if isinstance(result, NoScriptError)]
        for i in unknown:
            script, keys, args, _ = batch[i]
            results[i] = await self._redis.eval(script.text, len(keys), *keys, *args)
        return results
