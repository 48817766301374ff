"""Counts how the policy of a release is served, and writes the counts to Redis now and then: its guard reads them."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress

from redis.asyncio import Redis

from service.decide.active import ActiveLoop
from service.errors import StoreUnavailable
from service.store import release_store
from service.store.keys import Keys

FLUSH_S = 0.5


class ReleaseCounter:
    """One worker's counts. What was not written yet is lost with the worker; counts wait while Redis is away."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._of: dict[str, tuple[Keys, str, Counter[str]]] = {}  # id of the release -> its loop, policy and counts

    def count(self, active: ActiveLoop, policy: str, seconds: float, *, degraded: bool) -> None:
        """Count one decision, if it is of a policy that is being released."""
        release = active.release
        if release is None or release["policy"] != policy:
            return
        found = self._of.get(release["id"])
        if found is None:
            found = self._of[release["id"]] = (Keys(active.name, active.id), policy, Counter())
        limit, counts = release["latency_ms"], found[2]
        counts["decisions"] += 1
        counts["slow"] += limit is not None and 1000 * seconds > limit
        counts["degraded"] += degraded

    async def flush(self) -> None:
        """Write the counts down.

        Raises:
            StoreUnavailable: Redis does not answer; the counts are kept for the next time.
        """
        for release, (keys, policy, counts) in list(self._of.items()):
            del self._of[release]
            try:
                await release_store.count_served(self._redis, keys, policy, release, counts)
            except StoreUnavailable:
                self._of.setdefault(release, (keys, policy, Counter()))[2].update(counts)
                raise

    async def run(self) -> None:
        """Flush again and again, until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_S)
            with suppress(StoreUnavailable):
                await self.flush()
