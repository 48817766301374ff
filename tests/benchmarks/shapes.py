"""Plays policies in the shapes of data that users send, in one process, and compares their gains.

Batches of 25 decisions; snapshots and rewards are 25 decisions late; exploration floor .01.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.represent.schema import FeatureSchema
from simulator.measures import gain, half_gain_at, last_fifth, locked_in, regained_after
from simulator.world.shapes import SHAPES, ShapedWorld, make
from tests.benchmarks.in_process import run_in_process
from tests.benchmarks.per_user import run_per_user

BATCH = 25  # decisions from one snapshot to the next, and from a decision to its reward
PER_USER = "per-user"  # `run_per_user`, which is no policy of the service

Array = NDArray[Any]


@dataclass(frozen=True)
class Arm:
    """A column of the table: a policy, and what it is told of the data.

    Args:
        declared: play the declared reference.
        schema: the loop's features; None: the loop's default, or the reference's.
        fits: whether schemas are fitted to the log, as in a loop that declares none.
    """

    policy: str
    params: Mapping[str, Any] = field(default_factory=dict)
    declared: bool = False
    schema: FeatureSchema | None = None
    fits: bool = False


# Hashed columns without ids of items: what the study of representations calls "today, no schema".
HASHED = FeatureSchema(item_ids=False)
ARMS: Mapping[str, Arm] = {
    "no schema": Arm("adaptive", fits=True),
    "not fitted": Arm("adaptive"),
    "hashed": Arm("adaptive", schema=HASHED),
    "declared": Arm("adaptive", declared=True),
    "linucb": Arm("linucb", fits=True),
    "squarecb": Arm("squarecb", fits=True),
    "popularity": Arm("popularity"),
    "per user": Arm(PER_USER),  # only where it is asked for
}
USUAL = tuple(name for name, arm in ARMS.items() if arm.policy != PER_USER and name != "not fitted")


@dataclass(frozen=True)
class Job:
    """One run."""

    world: str
    arm: str
    seed: int
    steps: int | None = None  # None: those of the world


@dataclass(frozen=True)
class Outcome:
    """The measures of one run.

    Args:
        last, whole: gains of the last fifth and of the whole run.
        share: of the oracle's expected reward, over the run, of people alone; NaN where the oracle's is not positive.
        regained: decisions from a change of the data until .9 of the gain before it was there again; None: never.
        half_at: first decision up to which the gain of the last 500 decisions was .5; None: there was none.
        error: why the service refused the data; the figures are then NaN.
    """

    last: float = np.nan
    whole: float = np.nan
    share: float = np.nan
    half_at: int | None = None
    regained: int | None = None
    decide_us: float = np.nan
    update_us: float = np.nan
    alarms: int = 0
    error: str | None = None


def play(job: Job) -> Outcome:
    """Play one run."""
    arm = ARMS[job.arm]
    world = make(job.world, job.seed, declared=arm.declared)
    steps = SHAPES[job.world].steps if job.steps is None else job.steps
    if arm.policy == PER_USER:
        return measured(world, run_per_user(world, steps=steps, batch=BATCH))
    try:
        run = run_in_process(
            arm.policy,
            arm.params,
            world=world,
            steps=steps,
            snapshot_period=BATCH,
            reward_delay=BATCH,
            schema=arm.schema,
            fits=arm.fits,
        )
    except ValueError as error:  # a schema with too many columns, or an event that the trainer refused
        return Outcome(error=f"{type(error).__name__}: {error}"[:200])
    found = measured(world, run.expected)
    return replace(found, decide_us=run.decide_us, update_us=run.update_us, alarms=len(run.alarms))


def measured(world: ShapedWorld[Any, Any], expected: Array) -> Outcome:
    """Measure a run, of the expected rewards (T,) of what was shown."""
    moments = [world.at(step) for step in range(len(expected))]
    people = np.array([moment.person for moment in moments])
    shown = expected[people]
    change = world.shape.changes_at
    best, chance = (np.array([of(moment) for moment in moments])[people] for of in (_oracle, _random))
    return Outcome(
        last=gain(*map(last_fifth, (shown, best, chance))),
        whole=gain(shown, best, chance),
        share=float(shown.sum() / best.sum()) if best.sum() > 0 else np.nan,
        half_at=half_gain_at(shown, best, chance),
        regained=None if change is None else regained_after(shown, best, chance, at=int(people[:change].sum())),
    )


def _oracle(moment: Any) -> float:
    found: float = moment.oracle
    return found


def _random(moment: Any) -> float:
    found: float = moment.random
    return found


@dataclass(frozen=True)
class Cell:
    """One world and one arm, over the seeds that could be played.

    Args:
        last, whole, share: means over the seeds.
        half_at, regained: of the median seed; infinite: it did not get there.
        last_sd: the sample's standard deviation, 0 for one seed.
        worst: the smallest gain of a last fifth.
        locked: seeds that are locked in.
        error: of the first seed that could not be played.
    """

    seeds: int = 0
    last: float = np.nan
    last_sd: float = np.nan
    worst: float = np.nan
    whole: float = np.nan
    whole_sd: float = np.nan
    share: float = np.nan
    half_at: float = np.inf
    regained: float = np.inf
    locked: int = 0
    decide_us: float = np.nan
    error: str | None = None

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Cell:
        played = [outcome for outcome in outcomes if outcome.error is None]
        error = next((outcome.error for outcome in outcomes if outcome.error is not None), None)
        if not played:
            return cls(error=error)
        last, whole = (np.array([getattr(outcome, of) for outcome in played]) for of in ("last", "whole"))
        return cls(
            seeds=len(played),
            last=float(last.mean()),
            last_sd=_sd(last),
            worst=float(last.min()),
            whole=float(whole.mean()),
            whole_sd=_sd(whole),
            share=float(np.mean([outcome.share for outcome in played])),
            half_at=_median(outcome.half_at for outcome in played),
            regained=_median(outcome.regained for outcome in played),
            locked=locked_in(last),
            decide_us=float(np.median([outcome.decide_us for outcome in played])),
            error=error,
        )

    def __str__(self) -> str:
        if self.seeds == 0:
            return "refused"
        text = f"{_short(self.last)} / {_short(self.whole)}"
        if self.seeds > 1:
            text += f" (±{_short(self.last_sd)}, {_short(self.worst)})"
        return text + (f" !{self.locked}" if self.locked else "")


def cells(outcomes: Mapping[Job, Outcome]) -> dict[str, dict[str, Cell]]:
    """Collect outcomes by world and arm, in the order in which they are given."""
    found: dict[str, dict[str, list[Outcome]]] = {}
    for job, outcome in outcomes.items():
        found.setdefault(job.world, {}).setdefault(job.arm, []).append(outcome)
    return {world: {arm: Cell.of(runs) for arm, runs in of.items()} for world, of in found.items()}


def as_json(outcomes: Mapping[Job, Outcome]) -> list[dict[str, Any]]:
    """Return one record for each run."""
    return [{**asdict(job), **asdict(outcome)} for job, outcome in outcomes.items()]


def _median(steps: Iterable[int | None]) -> float:
    """Return the median; None is later than all others."""
    found = sorted(np.inf if step is None else step for step in steps)
    return float(found[(len(found) - 1) // 2])


def _sd(values: Array) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _short(value: float) -> str:
    """Write a gain with two digits and no leading zero: .98, -.01, 1.00."""
    return f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 0.995 else f"{value:.2f}"
