"""The sums of experiments in Redis: two hashes at the loop's home for each, which go with it."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from redis.asyncio import Redis

from service.records import START, Experiment
from service.store.codec import FORMAT, check_format, pack, unpack
from service.store.connection import answering, script
from service.store.keys import Keys

ROW = struct.Struct("<b7d")  # the arm, -1: none yet; and a unit's sums

Row = tuple[int, tuple[float, ...]]  # (arm, sums)


def _no_moments() -> NDArray[np.float64]:
    return np.zeros((0, 7, 7))


@dataclass(frozen=True)
class SumsRecord:
    """What is known of an experiment, as its loop's home holds it."""

    positions: tuple[str, str] = (START, START)  # up to which events by default, and reported ones, were counted
    moments: NDArray[np.float64] = field(default_factory=_no_moments)  # (arms, 7, 7); (0, 7, 7): nothing yet
    events: int = 0  # counted, of the experiment
    left_out: int = 0  # events of units that were too many
    first: float | None = None  # unix seconds: of the first event of the experiment
    last: float | None = None  # and of the last
    whole: bool = False  # the experiment is over, and all its events are counted
    erased: int = 0  # units whose sums were erased


async def read_sums(redis: Redis, keys: Keys, experiment: Experiment) -> SumsRecord:
    """Read what is known of an experiment; an empty record where nothing was counted.

    Raises:
        NewerFormat: a newer version wrote it.
        ValueError, KeyError: it is garbled.
    """
    async with answering():
        stored = await redis.hgetall(keys.experiment_sums(experiment.id, experiment.version))
    erased = int(stored.get(b"erased", 0))
    if b"positions" not in stored:
        return SumsRecord(erased=erased)
    check_format(f"what is known of experiment {experiment.name!r}", stored.get(b"v"))

    def time(name: bytes) -> float | None:
        return float(stored[name]) if stored[name] else None

    return SumsRecord(
        positions=_positions(stored[b"positions"].decode()),
        moments=unpack(stored[b"moments"])["moments"].astype(np.float64),
        events=int(stored[b"events"]),
        left_out=int(stored[b"left_out"]),
        first=time(b"first"),
        last=time(b"last"),
        whole=stored[b"whole"] == b"1",
        erased=erased,
    )


def _positions(stored: str) -> tuple[str, str]:
    default, reported = stored.split(" ")
    return default, reported


async def read_units(
    redis: Redis, keys: Keys, experiment: Experiment, units: Sequence[bytes]
) -> tuple[dict[bytes, Row], int]:
    """Return those of these units that are kept, and how many are kept in all."""
    name = keys.experiment_units(experiment.id, experiment.version)
    async with answering():
        rows = await redis.hmget(name, units) if units else []
        count = int(await redis.hlen(name))
    found: dict[bytes, Row] = {}
    for unit, row in zip(units, rows, strict=True):
        if row is not None:
            arm, *sums = ROW.unpack(row)
            found[unit] = (arm, tuple(sums))
    return found, count


async def save(
    redis: Redis, keys: Keys, experiment: Experiment, *, seen: SumsRecord, sums: SumsRecord, units: Mapping[bytes, Row]
) -> bool:
    """Write what is known, if it still stands where `seen` does and no unit was erased since; False when it does not,
    or the loop is gone.
    """
    began = ("" if not len(seen.moments) else " ".join(seen.positions)) + f"/{seen.erased}"
    fields: list[str | bytes | int] = ["v", FORMAT, "positions", " ".join(sums.positions)]
    fields += ("moments", pack({"moments": sums.moments}), "events", sums.events, "left_out", sums.left_out)
    fields += ("first", "" if sums.first is None else repr(sums.first))
    fields += ("last", "" if sums.last is None else repr(sums.last), "whole", int(sums.whole))
    rows = [part for unit, (arm, row) in units.items() for part in (unit, ROW.pack(arm, *row))]
    names = (
        keys.record,
        keys.experiment_sums(experiment.id, experiment.version),
        keys.experiment_units(experiment.id, experiment.version),
    )
    return bool(await script("save_experiment")(redis, names, (keys.id, began, len(fields), *fields, *rows)))


async def erase_unit(redis: Redis, keys: Keys, experiment: Experiment, unit: str) -> None:
    """Remove the sums of one unit. Those of its arm stay: it is one of many in them."""
    names = (
        keys.record,
        keys.experiment_sums(experiment.id, experiment.version),
        keys.experiment_units(experiment.id, experiment.version),
    )
    await script("erase_unit")(redis, names, (keys.id, experiment.digest(unit)))


async def forget_units(redis: Redis, keys: Keys, experiment: Experiment) -> None:
    """Remove the sums of units; those of arms stay."""
    async with answering():
        await redis.unlink(keys.experiment_units(experiment.id, experiment.version))


async def forget(redis: Redis, keys: Keys, experiment: Experiment) -> None:
    """Remove all that is known of this version of an experiment."""
    async with answering():
        await redis.unlink(
            keys.experiment_sums(experiment.id, experiment.version),
            keys.experiment_units(experiment.id, experiment.version),
        )
