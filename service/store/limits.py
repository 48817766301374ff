"""What limits count, in Redis: impressions and items taken of each user, and the budgets of items.

What is counted of a user lies on his partition. A budget lies at the loop's home, and is granted to partitions in
portions; there the script that stores a decision takes from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson
from redis.asyncio import Redis

from service.limits import Budget, Caps
from service.records import Decision
from service.store.codec import read_decision
from service.store.connection import answering, now, script
from service.store.group_commit import GroupCommit
from service.store.keys import Keys

PARTITIONS = 1
UNUSED_MS = 30_000  # after which a partition gives back what it does not use
FORGOTTEN_MS = 86_400_000  # after which the counts of a budget that was taken away are forgotten
DAY_MS = 86_400_000
LONGEST_ID = 512  # bytes of an item's id: 128 characters
MOST_DIGITS = 14  # of an impression's time, and a space
AT_ONCE = 100  # budgets that are looked at in one round trip: Redis takes 10 µs for each


@dataclass(frozen=True, slots=True)
class Limits:
    """What is to be checked and counted when one decision is stored."""

    caps: Caps | None  # None: nobody's
    user: str
    budgets: Mapping[str, str]  # item of the slate that has one -> per
    enforce: bool = True  # False: it is counted, whatever the limits say

    @property
    def as_json(self) -> bytes:
        """As `limits.lua` reads it."""
        said: dict[str, Any] = {"enforce": self.enforce, "budgets": self.budgets}
        if self.caps is not None:
            said |= {"user": self.user, "kept": self.caps.kept, "ms": self.caps.ms}
            if self.caps.impressions:
                said["impressions"] = [(cap.most, 1000 * cap.within) for cap in self.caps.impressions]
            if self.caps.taken is not None and self.caps.taken.reward_above is not None:
                said["above"] = self.caps.taken.reward_above
        return orjson.dumps(said)


class Counted(NamedTuple):
    """What is counted of one user."""

    at: int  # unix milliseconds
    shown: Mapping[bytes, bytes]  # item -> unix milliseconds of its impressions that are kept, the newest last
    taken: Sequence[str]  # items

    def is_capped(self, caps: Caps) -> list[str]:
        """Return the items that he was shown as often as may be, in no order."""
        rules = [(cap.most, self.at - 1000 * cap.within) for cap in caps.impressions]
        found = []
        for item, times in self.shown.items():
            newest = times.split()
            if any(len(newest) >= most and int(newest[-most]) > after for most, after in rules):
                found.append(item.decode())
        return found


def limit_keys(keys: Keys, user: str | None) -> tuple[str, ...]:
    """Return the keys of `limits.lua`."""
    part, user = keys.partition(), user or ""
    return part.shown(user), part.taken(user), part.capped_users, part.budgets


# ---- caps


async def read_counted(commit: GroupCommit, keys: Keys, user: str, caps: Caps) -> Counted:
    """Return what is counted of a user, in the round trip that others share.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    part = keys.partition()
    within = 0.0 if caps.taken is None else caps.taken.within
    answer = await commit.run(script("read_caps"), (part.shown(user), part.taken(user)), (round(1000 * within),))
    at, shown, taken = answer
    return Counted(int(at), dict(zip(shown[::2], shown[1::2], strict=True)), [item.decode() for item in taken])


async def read_owner(commit: GroupCommit, keys: Keys, decision_id: str) -> tuple[str, str] | None:
    """Return a decision's user and its first item; None where caps ask for no user, or there is no such decision.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    user, first = await _fields_of(commit, keys, decision_id, "user", "item0")
    return None if user is None or first is None else (user.decode(), first.decode())


async def read_record(commit: GroupCommit, keys: Keys, decision_id: str) -> Decision | None:
    """Return a decision as it was stored; None: there is no such one.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    [record] = await _fields_of(commit, keys, decision_id, "record")
    return None if record is None else read_decision(record)


async def _fields_of(commit: GroupCommit, keys: Keys, decision_id: str, *fields: str) -> list[bytes | None]:
    found: list[bytes | None] = await commit.run(
        script("read_decision"), (keys.partition().decision(decision_id),), fields
    )
    return found


async def mark_taken(commit: GroupCommit, keys: Keys, user: str, item: str, caps: Caps) -> None:
    """Say that a user took an item.

    Raises:
        StoreUnavailable: Redis did not answer.
    """
    part = keys.partition()
    await commit.run(script("mark_taken"), (part.taken(user), part.capped_users), (user, item, caps.kept, caps.ms))


async def counted_of(redis: Redis, keys: Keys, user: str) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Return (when, item) of a user's impressions that are kept, and of what he took, oldest first.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    part = keys.partition()
    async with answering(), redis.pipeline(transaction=False) as pipe:
        pipe.hgetall(part.shown(user)).zrange(part.taken(user), 0, -1, withscores=True)
        shown, taken = await pipe.execute()
    impressions = sorted((int(at), item.decode()) for item, times in shown.items() for at in times.split())
    return impressions, [(int(at), item.decode()) for item, at in taken]


async def count_capped_users(redis: Redis, keys: Keys) -> int:
    """Return for how many users something is counted.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    at = round(1000 * await now(redis))
    async with answering():
        return int(await redis.zcount(keys.partition().capped_users, f"({at}", "+inf"))


def bytes_at_most(caps: Caps) -> int:
    """Return the most bytes that the counters of one user take, without what Redis needs beside."""
    most = max((cap.most for cap in caps.impressions), default=0)
    shown = most * MOST_DIGITS + LONGEST_ID if most else 0
    taken = 8 + LONGEST_ID if caps.taken is not None else 0
    return caps.kept * (shown + taken)


# ---- budgets


class Held(NamedTuple):
    """The budget of an item as a partition holds it, in impressions since the period began."""

    period: int  # the day (UTC), 0 of a budget in total
    granted: int
    returned: int
    used: int

    @property
    def left(self) -> int:
        """What the partition may still show."""
        return self.granted - self.returned - self.used


class Grant(NamedTuple):
    """What the home says of a budget to a partition."""

    period: int
    granted: int  # since the period began
    back: int  # how much is called back: the budget is smaller than it was


async def hold_budgets(
    redis: Redis, keys: Keys, budgets: Mapping[str, Budget], told: Mapping[str, Grant] | None = None
) -> dict[str, Held]:
    """Take up what the home granted, give back what was not used for `UNUSED_MS`; return item -> what is held.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    args: list[str | int] = [UNUSED_MS]
    for item, budget in budgets.items():
        args += (budget.per, item, *(("", "", "") if told is None else told[item]))
    answer = await script("hold_budgets")(redis, (keys.partition().budgets,), args)
    parts = zip(*(answer[start::4] for start in range(4)), strict=True)
    return {item: Held(*map(int, part)) for item, part in zip(budgets, parts, strict=True)}


async def grant_budgets(
    redis: Redis, keys: Keys, budgets: Mapping[str, Budget], held: Mapping[str, Held], *, wanted: bool
) -> dict[str, Grant]:
    """Have the home grant portions of budgets to the partition; return item -> what it says.

    Args:
        wanted: whether the partition is asked for items.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    args: list[str | int] = [0, PARTITIONS, int(wanted)]
    for item, budget in budgets.items():
        args += (budget.per, item, budget.impressions, *held[item])
    answer = await script("grant_budgets")(redis, (keys.granted,), args)
    parts = zip(*(answer[start::3] for start in range(3)), strict=True)
    return {item: Grant(*map(int, part)) for item, part in zip(budgets, parts, strict=True)}


async def forget_budgets(redis: Redis, keys: Keys, budgets: Mapping[str, Budget]) -> None:
    """Forget the counts of budgets that are none any more, where nothing was counted for `FORGOTTEN_MS`.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    there = {f"{budget.per}/{item}" for item, budget in budgets.items()}
    async with answering():
        here, home = await redis.hkeys(keys.partition().budgets), await redis.hkeys(keys.granted)
    gone = [field for field in here if field.decode() not in there]
    if gone:
        await script("forget_budgets")(redis, (keys.partition().budgets,), (FORGOTTEN_MS, *gone))
    gone = [field for field in home if field.decode().partition("/")[2] not in there]
    if gone:
        await script("forget_budgets")(redis, (keys.granted,), (FORGOTTEN_MS, *gone))


async def used_of(redis: Redis, keys: Keys, budgets: Mapping[str, Budget]) -> dict[str, int]:
    """Return item -> impressions that its budget had in the period of now.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    if not budgets:
        return {}
    day = int(1000 * await now(redis)) // DAY_MS
    async with answering():
        stored = await redis.hmget(
            keys.partition().budgets, [f"{budget.per}/{item}" for item, budget in budgets.items()]
        )
    used = {}
    for (item, budget), text in zip(budgets.items(), stored, strict=True):
        period, _, _, count, _ = map(int, (text or b"0 0 0 0 0").split())
        used[item] = count if period == (day if budget.per == "day" else 0) else 0
    return used
