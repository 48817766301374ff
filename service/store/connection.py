"""The connection to Redis, and its scripts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Any

from hiredis import pack_command
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.errors import StoreUnavailable

GONE = (RedisConnectionError, RedisTimeoutError, OSError)
"""What a command raises when Redis does not answer (loading its data counts: BusyLoadingError is a ConnectionError)."""

UNWILLING = ("OOM ", "READONLY ", "MISCONF ", "NOREPLICAS ", "MASTERDOWN ", "CLUSTERDOWN ", "TRYAGAIN ", "STALE ")

CLIENT = "rebound:"  # begins the names of this version's connections; those of 0.1 began with `rebound-`

Value = str | bytes | int | float


def connect(url: str, *, name: str, timeout_s: float, connections: int = 64) -> Redis:
    """Make a client that gives up after `timeout_s` and never sends a command twice by itself.

    A silent retry would count a reward twice where the first try arrived and only its answer was lost.
    """
    return Redis.from_url(
        url,
        client_name=CLIENT + name,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        max_connections=connections,
        retry=Retry(NoBackoff(), 0),
    )


def takes_no_writes(error: BaseException) -> bool:
    """Return whether Redis answered that it writes nothing now: it is full, a replica, or its disk fails."""
    if isinstance(error, (OutOfMemoryError, ReadOnlyError)):  # whose messages lack the word
        return True
    return isinstance(error, ResponseError) and any(word in str(error) for word in UNWILLING)


@asynccontextmanager
async def answering() -> AsyncIterator[None]:
    """Turn a Redis that does not answer, or takes no writes, into `StoreUnavailable`."""
    try:
        yield
    except GONE as error:
        raise StoreUnavailable("Redis does not answer; nothing was acknowledged") from error
    except ResponseError as error:
        if takes_no_writes(error):
            raise StoreUnavailable(f"Redis takes no writes now ({error}); nothing was acknowledged") from error
        raise


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks that talk to Redis until all are done.

    One cancellation does not do: until Python 3.12, `asyncio.wait_for` loses the one that comes when what it waits for
    is just done, and so the client waits for every command to be written.
    """
    while waiting := [task for task in tasks if not task.done()]:
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting, timeout=0.5)


def packed(*parts: Value) -> bytes:
    """Write a command as Redis reads it."""
    command: bytes = pack_command(parts)  # type: ignore[arg-type]  # its stub knows commands of one word alone
    return command


async def exchange(redis: Redis, commands: Sequence[bytes]) -> list[Any]:
    """Send commands together; return their answers, and errors in the place of answers.

    A pipeline of the client's does the same, at twice the CPU a command.
    """
    pool = redis.connection_pool
    connection = await pool.get_connection()
    answered: list[Any] = []
    try:
        await connection.send_packed_command(commands)
        while len(answered) < len(commands):
            try:
                answered.append(await connection.read_response())
            except ResponseError as error:
                answered.append(error)
    finally:
        if len(answered) < len(commands):  # what it answers from now on is for nobody
            await connection.disconnect(nowait=True)
        await pool.release(connection)
    return answered


async def answers(redis: Redis, commands: Sequence[bytes]) -> list[Any]:
    """Send commands together; return their answers.

    Raises:
        ResponseError: the first error among them.
    """
    found = await exchange(redis, commands)
    for one in found:
        if isinstance(one, ResponseError):
            raise one
    return found


@dataclass(frozen=True)
class Script:
    """A Lua script, called by its digest. It names every key in KEYS and touches one hash tag."""

    text: str
    sha: str
    timed: bool = False  # it includes `open_time.lua`, whose arguments `GroupCommit` adds

    async def __call__(self, redis: Redis, keys: Sequence[str], args: Sequence[Value]) -> Any:
        """Run it by itself (group commit is for the hot paths).

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        async with answering():
            try:
                return await redis.evalsha(self.sha, len(keys), *keys, *args)
            except NoScriptError:  # a fresh server: it has not seen the text yet
                return await redis.eval(self.text, len(keys), *keys, *args)


@cache
def script(name: str) -> Script:
    """Read the script `scripts/<name>.lua`. A line `-- include <other>` stands for the text of another."""
    folder = files("service.store") / "scripts"
    text = (folder / f"{name}.lua").read_text()
    whole = re.sub(r"^-- include (\w+)\n", lambda found: (folder / f"{found[1]}.lua").read_text(), text, flags=re.M)
    return Script(whole, sha1(whole.encode()).hexdigest(), timed="-- include open_time\n" in text)


async def now(redis: Redis) -> float:
    """Return the time of Redis, in unix seconds: the one clock that all processes share."""
    async with answering():
        seconds, micros = await redis.time()
    return float(seconds + micros / 1e6)
