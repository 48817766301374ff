"""Announcements between the processes, by publish and subscribe: they cost nothing while there is nothing to tell.

An announcement can get lost, with the connection that it was on its way to. A listener that has to connect again is
told so, and looks at everything.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from service.store.connection import GONE
from service.store.keys import USED

EVERY_S = 1.0  # a process announces the use of a loop at most so often
SILENCE_S = 5.0  # after which a connection is asked whether it still stands
RETRY_S = 0.1


async def listen(
    redis: Redis, *channels: str, heard: Callable[[str, str], None], connected: Callable[[], None]
) -> None:
    """Hear announcements until cancelled.

    Args:
        heard: is called with the channel and the name of a loop.
        connected: is called whenever announcements may have been missed, the first time included.
    """
    while True:
        with suppress(*GONE):
            async with redis.pubsub() as channel:
                await channel.subscribe(*channels)
                silent, subscribed = False, 0
                while True:
                    message = await channel.get_message(timeout=SILENCE_S)
                    if message is None:
                        if silent:  # not even an answer
                            raise RedisConnectionError("the connection is dead")
                        await channel.ping()
                    elif message["type"] == "message":
                        heard(message["channel"].decode(), message["data"].decode())
                    elif message["type"] == "subscribe":
                        subscribed += 1
                        if subscribed == len(channels):
                            connected()
                    silent = message is None
        await asyncio.sleep(RETRY_S)


async def announce_use(redis: Redis, loop: str) -> None:
    """Say that a loop is used: its log has grown."""
    await redis.publish(USED, loop)


class InUse:
    """The loops whose use a process is to announce: each at most once in `EVERY_S`."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._since = 0.0

    def untold(self, loops: set[str]) -> set[str]:
        """Return those of `loops` that were not announced lately; they count as announced now."""
        if (now := time.monotonic()) - self._since > EVERY_S:
            self._told, self._since = set(), now
        new = loops - self._told
        self._told |= new
        return new

    def forget(self) -> None:
        """Announce every loop anew: it is not known whether the last announcements arrived."""
        self._told = set()
