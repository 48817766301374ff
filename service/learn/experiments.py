"""Keeps what is known of the experiments of one loop: reads its log from the checkpoint on, and adds up units.

A reward is in the log at once, and its absence when the wait is over. Counted as they come, users who click would be
there before those who do not, and an arm with more clicks would seem to have more users. So events with feedback are
counted when the decisions of their time are settled, by a position of their own.

Sums and positions are written in one atomic step, and only by who began where the last one ended. So each event counts
once, whatever crashes and however many learners are at work. An entry that the log dropped before it was counted is
not counted.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import numpy as np
import structlog
from redis.asyncio import Redis

from service.errors import NotFound, StoreUnavailable
from service.evaluate.experiment import COLUMNS
from service.evaluate.units import Unit, arms_of, fold, touches
from service.learn.bell import Bell, rest
from service.learn.tail import Tail
from service.records import Experiment, LoopRecord
from service.store import experiment_store, loop_store
from service.store.connection import now
from service.store.experiment_store import Row
from service.store.keys import Keys
from service.store.open_time import read_opening
from service.store.settled import settled_before

POLL_S = 1.0
RETRY_S = 5.0
TASK = "@experiments"  # stands where names of policies do; no policy has such a name

log = structlog.get_logger()


class ExperimentKeeper:
    """Adds up the experiments of one loop. `step` is one iteration; `run` loops it."""

    def __init__(self, redis: Redis, keys: Keys, tail: Tail | None = None) -> None:
        self._redis, self._keys, self._tail = redis, keys, tail or Tail(redis, keys)
        self._whole: set[tuple[str, int]] = set()  # id and version of experiments of which all is counted

    async def step(self) -> int:
        """Count the next entries for each experiment that needs them; return the number of entries read.

        Raises:
            NotFound: the loop is gone, or has no experiment.
        """
        loop = await loop_store.read_loop(self._redis, self._keys.loop)
        if loop.id != self._keys.id or not loop.experiments:
            raise NotFound(f"loop {self._keys.loop!r} has no experiment", code="unknown_experiment")
        return sum(
            [
                await self._count(loop, one)
                for one in loop.experiments.values()
                if (one.id, one.version) not in self._whole
            ]
        )

    async def _count(self, loop: LoopRecord, experiment: Experiment) -> int:
        sums = await experiment_store.read_sums(self._redis, self._keys, experiment)
        if sums.whole:
            self._whole.add((experiment.id, experiment.version))
            return 0
        over = await self._over(loop, experiment)  # before the log is read
        settled = await self._settled(loop)
        default, reported = sums.positions
        entries = await self._tail.read(default)
        earlier = await self._tail.read(reported, until=settled)
        touched = touches(experiment, entries, reported=False) + touches(experiment, earlier, reported=True)
        names = list(dict.fromkeys(touch.unit for touch in touched))
        rows, count = await experiment_store.read_units(self._redis, self._keys, experiment, names)
        units, more, left_out = fold(experiment, touched, {name: _unit(row) for name, row in rows.items()}, units=count)
        before = sums.moments if len(sums.moments) else np.zeros((len(arms_of(experiment)), COLUMNS, COLUMNS))
        times = [touch.at for touch in touched if touch.arm is not None]
        changed = replace(
            sums,
            positions=(
                entries[-1].position if entries else default,
                earlier[-1].position if earlier else reported,
            ),
            moments=before + more,
            events=sums.events + len(times),
            left_out=sums.left_out + left_out,
            first=min([*times, math.inf if sums.first is None else sums.first]) if times else sums.first,
            last=max([*times, -math.inf if sums.last is None else sums.last]) if times else sums.last,
            whole=over and not entries and not earlier,
        )
        if entries or earlier or changed.whole:
            saved = await experiment_store.save(
                self._redis, self._keys, experiment, seen=sums, sums=changed, units=_rows(units)
            )
            if saved and changed.whole:
                await experiment_store.forget_units(self._redis, self._keys, experiment)
        return len(entries) + len(earlier)

    async def _settled(self, loop: LoopRecord) -> str:
        """Return the position in the log of which all decisions from before are settled."""
        if loop.settings.aggregation != "first":  # rewards and their absence come at the same time
            return "+"
        wait_ms = loop.settings.wait_ms
        before = await settled_before(self._redis, self._keys, wait_ms=wait_ms)
        open_ms = (await read_opening(self._redis)).now_ms
        return str(max(0, round(1000 * await now(self._redis)) - (open_ms + wait_ms - before)))

    async def _over(self, loop: LoopRecord, experiment: Experiment) -> bool:
        """Return whether all decisions of an experiment have their final rewards in the log."""
        if experiment.ends is None or not experiment.ended(await now(self._redis)):
            return False
        wait_ms = loop.settings.wait_ms
        before = await settled_before(self._redis, self._keys, wait_ms=wait_ms)
        return before > 1000 * experiment.ends + 2 * wait_ms  # twice: one that is displayed last waits anew

    async def run(self, stop: asyncio.Event, bell: Bell) -> None:
        """Count until `stop`, or until there is no experiment. While the loop is not used it looks once, and sleeps."""
        while not stop.is_set():
            rung, read = bell.next, 0
            pause = POLL_S
            try:
                read = await self.step()
            except NotFound:
                return
            except StoreUnavailable:
                pause = RETRY_S
            except Exception:
                log.exception("an experiment cannot be counted; trying again", loop=self._keys.loop)
                pause = RETRY_S
            if not read and not bell.awake and pause == POLL_S:
                await rest(stop, rung)
            elif read < 1000:
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), pause)


def _unit(row: Row) -> Unit:
    arm, sums = row
    return Unit(None if arm < 0 else arm, np.array(sums))


def _rows(units: Mapping[bytes, Unit]) -> dict[bytes, Row]:
    return {name: (-1 if one.arm is None else one.arm, tuple(one.sums.tolist())) for name, one in units.items()}
