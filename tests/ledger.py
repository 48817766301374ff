"""Lets time pass for the decisions of a loop, by moving the times in Redis back."""

from __future__ import annotations

from typing import Any

import orjson
from redis import Redis

from service.store.keys import Keys


def pass_time(redis: Redis, keys: Keys, seconds: float) -> None:
    """Move deadlines, and the times at which early reports are given up, so many seconds back."""
    part, ms = keys.partition(), round(1000 * seconds)
    for name, at in _scores(redis, part.pending).items():
        redis.zadd(part.pending, {name: at - ms})
    for name, at in _scores(redis, part.early_due).items():
        redis.zadd(part.early_due, {name: at - ms})
    for key in redis.scan_iter(match=part.decision("*"), count=1000):
        redis.hincrby(key, "deadline", -ms)
    for key in redis.scan_iter(match=part.early("*"), count=1000):
        kept: list[Any] = [orjson.loads(text) for text in redis.lrange(key, 0, -1)]
        for number, (due, *rest) in enumerate(kept):
            redis.lset(key, number, orjson.dumps([str(int(due) - ms), *rest]).decode())


def _scores(redis: Redis, key: str) -> dict[bytes, int]:
    return {name: int(score) for name, score in redis.zrange(key, 0, -1, withscores=True)}
