"""What a loop got over time, for `GET /loops/{loop}/history`, and what people noted beside it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict

from pydantic import BaseModel, ConfigDict, Field
from redis.asyncio import Redis

from service.errors import InvalidRequest, NotFound
from service.evaluate import history
from service.evaluate.history import KEPT, Bin, BinId, Sums
from service.evaluate.intervals import Interval
from service.loop import LoopSettings
from service.records import Change, order
from service.store import change_log, event_log, history_store, loop_store, policy_store
from service.store.connection import now
from service.store.history_store import Mark
from service.store.keys import Keys
from service.store.open_time import open_times

STEPS = (1, 5, 10, 30, 60, 300, 600, 1800, 3600, 10_800, 21_600, 86_400)  # seconds of a bin that may be asked for
MOST_BINS = 1000  # of a reply
NICE_BINS = 180  # of a reply that may choose its step, unless they are of a day
MOST_MARKS = 500  # of a reply
SPAN_S = 3600.0  # of a reply that is not told from when on
MOST_FROM_NOW_S = 366 * 86_400.0  # of a mark, before or after


class Estimate(BaseModel):
    """A figure with its 95 % interval."""

    estimate: float
    low: float
    high: float


class PolicyBin(BaseModel):
    """Sums over the settled items of one policy. r: reward; w: 1 / (n p) of an item drawn with probability p of n."""

    decisions: int
    items: int = Field(description="a decision has one for each place of its slate")
    reward: Estimate | None = Field(description="mean of an item; null while the bin is provisional")
    r: float
    rr: float = Field(description="Σ r²")
    w: float
    ww: float = Field(description="Σ w²")
    wr: float
    wwr: float = Field(description="Σ w² r")
    wwrr: float = Field(description="Σ w² r²")


class HistoryBin(BaseModel):
    """One bin of time. A decision counts in the bin in which it was made."""

    model_config = ConfigDict(serialize_by_alias=True)

    since: int = Field(alias="from", description="unix seconds")
    decisions: int = Field(description="settled, and those that wait")
    settled: int = Field(description="decisions whose reward is known, or the default")
    items: int = Field(description="of the settled decisions")
    reward_sum: float = Field(description="of their items")
    reward: Estimate | None = Field(description="mean of an item; null while the bin is provisional")
    so_far: float | None = Field(
        description="of a provisional bin: the mean, if those who wait get the default reward; null: it is final"
    )
    provisional: bool = Field(description="more of its decisions may be settled; who clicks is settled first")
    rungs: dict[str, int] = Field(description="rung -> settled decisions; store_down: answered from memory")
    policies: dict[str, PolicyBin] = Field(description="at most 8 a bin; `@other` sums up the rest")


class Total(BaseModel):
    """What the final bins say together."""

    decisions: int
    items: int
    reward: Estimate | None = Field(description="mean of an item")
    uniform: Estimate | None = Field(
        description="what a uniform choice among the same candidates would have got; null: too little was seen"
    )
    lift: Estimate | None = Field(description="reward less that of the uniform choice")
    effective_size: float = Field(description="(Σ w)² / Σ w²: the items that `uniform` is worth")
    more_decisions: int | None = Field(description="that it takes, about, until `uniform` can be told")


class MarkReply(BaseModel):
    """Something that happened."""

    model_config = ConfigDict(from_attributes=True)

    at: float = Field(description="unix seconds")
    kind: str = Field(description="note | change | encoder | reset | succession | recall | none")
    text: str


class HistoryReply(BaseModel):
    """What a loop got over time. Bins without decisions are left out."""

    model_config = ConfigDict(serialize_by_alias=True)

    loop: str
    now: float = Field(description="unix seconds, by the clock of Redis")
    known_to: float = Field(description="up to when the log is counted; `now` where all of it is")
    since: int = Field(alias="from", description="unix seconds")
    to: int
    step: int = Field(description="seconds of a bin")
    reward_range: tuple[float, float]
    bins: list[HistoryBin]
    total: Total = Field(description="of all policies, over the bins that are not provisional")
    policies: dict[str, Total] = Field(description="the same, by policy")
    marks: list[MarkReply] = Field(description=f"the newest {MOST_MARKS}, oldest first")


async def read_history(
    redis: Redis, loop: str, *, since: float | None, until: float | None, step: int | None
) -> HistoryReply:
    """Return what a loop got in a span of time.

    Args:
        since, until: unix seconds; None: the hour before `until`, and now.
        step: seconds of a bin; None: such that there are at most 180 bins, or bins of a day.

    Raises:
        NotFound: there is no such loop.
        InvalidRequest: names what is wrong with the span, or the step.
    """
    record = await loop_store.read_loop(redis, loop)
    keys = Keys(loop, record.id)
    at = await now(redis)
    until = at if until is None else until
    since = until - SPAN_S if since is None else since
    if not since < until:
        raise InvalidRequest("from", "must be before `to`")
    step = _step(since, until, at, step)
    starts = range(math.floor(since / step) * step, math.ceil(until / step) * step, step)
    ends = [*starts, starts.stop]
    position = await history_store.read_position(redis, keys)
    [end] = await event_log.ends(redis, [keys])
    known_to = order(position)[0] / 1000 if order(position) < order(end) else at
    wait_s = record.settings.wait_time
    waits = await history_store.waiting(redis, keys, ends, wait_ms=record.settings.wait_ms)
    closing, *open_now = await open_times(redis, [round(1000 * end) for end in (at, *ends[1:])])
    base = _base(step)
    wanted = [BinId(base, number) for number in range(starts.start // base, starts.stop // base)]
    stored = await history_store.read_bins(redis, keys, [bin.name for bin in wanted])
    unsettled = {
        start: waiting
        for start, waiting, open_end in zip(starts, waits, open_now, strict=True)
        if waiting or open_end + 1000 * wait_s > closing or start + step + wait_s > known_to
    }
    marks = await _marks(redis, keys, since=starts.start, until=starts.stop)

    def assemble() -> HistoryReply:
        found = {bin: history.load(stored[bin.name]) for bin in wanted if bin.name in stored}
        wider = history.merged(found, step)
        final = history.by_policy(bin for start, bin in wider.items() if start not in unsettled)
        return HistoryReply.model_validate(
            {
                "loop": loop,
                "now": at,
                "known_to": known_to,
                "from": starts.start,
                "to": starts.stop,
                "step": step,
                "reward_range": record.settings.reward_range,
                "bins": [
                    _bin(start, wider.get(start, {}), unsettled.get(start), record.settings)
                    for start in starts
                    if start in wider or unsettled.get(start)
                ],
                "total": _total(history.whole(final.values()), record.settings),
                "policies": {policy: _total(sums, record.settings) for policy, sums in final.items()},
                "marks": [MarkReply.model_validate(mark) for mark in marks],
            }
        )

    return await asyncio.to_thread(assemble)  # a year of an hour's bins takes some tens of milliseconds


def _step(since: float, until: float, at: float, step: int | None) -> int:
    """Return the seconds of a bin, checked or chosen.

    Raises:
        InvalidRequest.
    """

    def is_kept(step: int) -> bool:
        base = _base(step)
        return since >= at - KEPT[base] * base - step

    if step is None:
        return next((s for s in STEPS if (until - since) / s <= NICE_BINS and is_kept(s)), _coarsest(since, until))
    if step not in STEPS:
        raise InvalidRequest("step", f"must be one of {', '.join(map(str, STEPS))} (seconds)")
    if (until - since) / step > MOST_BINS:
        raise InvalidRequest("step", f"gives more than {MOST_BINS} bins; ask for wider ones, or for less time")
    if not is_kept(step):
        days = KEPT[_base(step)] * _base(step) / 86_400
        raise InvalidRequest("step", f"bins of {step} s are kept for {days:.3g} days; ask for wider ones")
    return step


def _coarsest(since: float, until: float) -> int:
    """Return the widest step.

    Raises:
        InvalidRequest: even that gives too many bins.
    """
    if (until - since) / STEPS[-1] > MOST_BINS:
        raise InvalidRequest("from", f"is more than {MOST_BINS} days before `to`")
    return STEPS[-1]


def _base(step: int) -> int:
    """Return the level whose bins make up bins of `step` seconds."""
    return max(base for base in KEPT if base <= step)


def _bin(start: int, bin: Bin, waiting: int | None, settings: LoopSettings) -> HistoryBin:
    """Return one bin of a reply.

    Args:
        waiting: decisions that wait; None: the bin is final.
    """
    policies = history.by_policy([bin])
    all_of_it = history.whole(policies.values())
    final = waiting is None
    rungs: dict[str, int] = {}
    for (_, rung), sums in bin.items():
        rungs[rung] = rungs.get(rung, 0) + sums.decisions
    return HistoryBin.model_validate(
        {
            "from": start,
            "decisions": all_of_it.decisions + (waiting or 0),
            "settled": all_of_it.decisions,
            "items": all_of_it.items,
            "reward_sum": all_of_it.r,
            "reward": _reward(all_of_it, settings) if final else None,
            "so_far": _so_far(all_of_it, waiting, settings) if waiting is not None else None,
            "provisional": not final,
            "rungs": rungs,
            "policies": {
                policy: {**asdict(sums), "reward": _reward(sums, settings) if final else None}
                for policy, sums in policies.items()
            },
        }
    )


def _so_far(sums: Sums, waiting: int, settings: LoopSettings) -> float | None:
    """Return the mean reward of an item if the decisions that wait get the default reward; None where there are none.

    They are taken to have as many items each as the others.
    """
    open_items = waiting * (sums.items / sums.decisions if sums.decisions else 1)
    items = sums.items + open_items
    return (sums.r + open_items * settings.default_reward) / items if items else None


def _total(sums: Sums, settings: LoopSettings) -> Total:
    found = history.lift(sums, *settings.reward_range, floor=settings.exploration_floor)
    return Total(
        decisions=sums.decisions,
        items=sums.items,
        reward=_reward(sums, settings),
        uniform=_estimate(found.uniform),
        lift=_estimate(found.lift),
        effective_size=found.size,
        more_decisions=found.more,
    )


def _reward(sums: Sums, settings: LoopSettings) -> Estimate | None:
    return _estimate(history.reward(sums, *settings.reward_range))


def _estimate(interval: Interval | None) -> Estimate | None:
    return None if interval is None else Estimate(estimate=interval.estimate, low=interval.low, high=interval.high)


async def add_mark(redis: Redis, loop: str, *, at: float | None, text: str, by: str) -> Mark:
    """Note something beside the history of a loop.

    Args:
        at: unix seconds; None: now.

    Raises:
        NotFound: there is no such loop.
        InvalidRequest: `at` is more than a year from now.
    """
    record = await loop_store.read_loop(redis, loop)
    if at is not None and abs(at - await now(redis)) > MOST_FROM_NOW_S:
        raise InvalidRequest("at", "is more than a year from now; it is in unix seconds")
    return await history_store.add_mark(redis, Keys(loop, record.id), at=at, text=text, by=by)


async def _marks(redis: Redis, keys: Keys, *, since: float, until: float) -> list[Mark]:
    """Return what happened in a span of time, oldest first."""
    found = await history_store.read_marks(redis, keys)
    changes = await change_log.read(redis, keys.change_log, before=None, most=change_log.MOST)
    found += [Mark(change.at, "change", _said(change)) for _, change in changes]
    for name in await policy_store.policy_names(redis, keys):
        with suppress(NotFound):  # deleted this very moment
            said = (await policy_store.read_policy(redis, keys, name)).encoding or {}
            if swap := said.get("since"):
                found.append(Mark(swap["at"], "encoder", f"{name} took up an encoder: {swap['why']}"))
    return sorted((mark for mark in found if since <= mark.at < until), key=lambda mark: mark.at)[-MOST_MARKS:]


def _said(change: Change) -> str:
    """Say what was changed in a few words."""
    after = change.after if isinstance(change.after, Mapping) else {}
    if isinstance(policy := after.get("policy"), str):
        return f"{change.what}: {policy}" + (f", version {after['version']}" if "version" in after else "")
    shares = after if change.what == "split traffic" else after.get("traffic")
    if isinstance(shares, Mapping):
        return f"{change.what}: " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    return change.what
