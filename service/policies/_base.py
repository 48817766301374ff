"""What every policy promises.

Axis letters, used in every file of this package: **B** events, **n** candidates, **d** features, **s** statistics
per candidate. A policy has two halves. The learning half (`Policy`) lives in the learner, owns the statistics and may
use PyTorch. The serving half (`Scorer`) lives in the API workers, is immutable, and is NumPy on a snapshot's arrays.

A policy returns probabilities and never draws: the exploration floor and the one draw are `decide/decision.py`'s.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Array = NDArray[Any]
Arrays = dict[str, Array]


class NumericalError(ArithmeticError):
    """A statistic left the finite numbers; the learner keeps the last good snapshot."""


class Batch(NamedTuple):
    """B events, in log order."""

    x: Array  # (B, d) float32: the chosen item's vector, as it was served
    item: Sequence[str]  # (B,)
    user: Sequence[str | None]  # (B,)
    reward: Array  # (B,) float64: where in the loop's reward range, from 0 (its lower end) to 1; sums may lie outside
    propensity: Array  # (B,) float64 in (0, 1]; nan where an imported event did not say


class Candidates(NamedTuple):
    """The n items eligible in one request."""

    x: Array  # (n, d) float32
    item: Sequence[str]  # (n,)
    user: str | None


class Params(BaseModel):
    """A policy's knobs: typed, ranged, and closed to unknown names.

    These three any policy takes; `learn/drift.py` acts on them by calling the policy's `forget`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    half_life: float | None = Field(default=None, gt=0)  # in the loop's events: so much later, one counts half
    half_life_s: float | None = Field(default=None, gt=0)  # the same in seconds
    detect_change: bool = False  # start anew when rewards no longer are as predicted


AnyParams: TypeAlias = Params  # inside `Policy` the name `Params` means that kind's own


class Scorer(ABC):
    """The serving half: immutable, built from one snapshot."""

    @abstractmethod
    def estimate(self, candidates: Candidates) -> Array:
        """Per-candidate statistics, (n, s) float64; column 0 is the score that the reply shows."""

    @abstractmethod
    def pmf(self, estimates: Array) -> Array:
        """Probabilities (n,) float64 that sum to 1, from the rows (n, s) of the candidates still in play.

        A slate of k > 1 is drawn one by one: each time with the rows that are left.
        """

    def summary(self) -> dict[str, Any]:
        """What `GET /policies/{name}` shows of the learned state; JSON-serialisable."""
        return {}


class Policy(ABC):
    """The learning half: owns the statistics.

    `d` is the number of features of the loop's encoder; `seed` is all the randomness that it may use.
    """

    kind: ClassVar[str]
    Params: ClassVar[type[Params]] = Params
    batch_trained: ClassVar[bool] = False  # True: learns in `train` only, and only when someone asks
    # True: what `update` returns are the probabilities of a model of which `forget` leaves one with a shorter memory,
    # so that it can be compared with a copy that forgets (`learn/drift.py`).
    comparable: ClassVar[bool] = False

    def __init__(self, d: int, params: AnyParams, *, seed: int = 0) -> None:
        self.d, self.params, self.seed = d, params, seed

    @abstractmethod
    def update(self, batch: Batch) -> Array | None:
        """Learn from B events, exactly as if they came one by one (bit for bit: replays must agree).

        Returns:
            The expected reward of each event, (B,) float64, as it was just before learning from it; None from a
            policy that has no cheap one.

        Raises:
            NumericalError: a statistic would no longer be finite; the state is as it was before the call.
        """

    def expected(self, batch: Batch) -> Array:
        """What `update` would return, (B,), without learning; whatever the batch. Of `comparable` policies only.

        Raises:
            NumericalError: a feature is not finite.
        """
        raise NotImplementedError(f"{self.kind} cannot be compared with others of its kind")

    @abstractmethod
    def forget(self, keep: float) -> None:
        """Let all evidence so far weigh `keep` of what it does, in [0, 1). At 0 only the prior is left, in mean and in
        uncertainty alike: a reset of one without the other locks a policy in. Nothing is done where nothing is learned.
        """

    def train_due(self, events: int) -> bool:
        """Whether to train unasked, now that the log holds so many events (`batch_trained` policies only)."""
        return False

    def train(self, history: Iterable[Batch]) -> None:
        """Learn anew from the whole retained log, in batches in log order (`batch_trained` policies only)."""
        raise NotImplementedError(f"{self.kind} learns from every event; there is nothing to train")

    @abstractmethod
    def state(self) -> Arrays:
        """All that learning needs to go on, bit for bit."""

    @abstractmethod
    def load(self, state: Arrays) -> None:
        """Take up a `state()` of a policy with the same d and params."""

    @abstractmethod
    def snapshot(self) -> Arrays:
        """All that serving needs."""

    @classmethod
    @abstractmethod
    def scorer(cls, snapshot: Mapping[str, Array], *, d: int, params: AnyParams) -> Scorer:
        """The serving half for one snapshot.

        Raises:
            ValueError: an array is missing, has the wrong shape for `d`, or is not finite.
        """


def part(batch: Batch, rows: slice) -> Batch:
    """Some of the events."""
    return Batch(batch.x[rows], batch.item[rows], batch.user[rows], batch.reward[rows], batch.propensity[rows])


def ids_to_array(ids: Iterable[str]) -> Array:
    """Ids as a uint8 array (safetensors has no strings)."""
    return np.frombuffer(orjson.dumps(list(ids)), dtype=np.uint8).copy()


def ids_from_array(array: Array) -> list[str]:
    """The inverse of `ids_to_array`."""
    ids: list[str] = orjson.loads(array.tobytes())
    return ids


def fade(weight: float, keep: float) -> tuple[float, float]:
    """To forget without touching any sum: events to come weigh more instead.

    Returns:
        (weight of an event from now on, factor to apply to the sums so far). The factor is 0 for a reset, else 1, but
        once in a long while, before the weights leave the floats.
    """
    if keep == 0:
        return 1.0, 0.0
    weight /= keep
    return (weight, 1.0) if weight < 1e100 else (1.0, 1.0 / weight)


def greedy(score: Array) -> Array:
    """All mass on the best score, ties shared: (n,) -> (n,)."""
    best = score == score.max()
    pmf: Array = best / best.sum()
    return pmf


def expect(array: Array | None, name: str, shape: tuple[int | None, ...]) -> Array:
    """`array` if it is there, has `shape` (None: any length) and is finite; else ValueError with what was found."""
    if array is None:
        raise ValueError(f"snapshot lacks array {name!r}")
    if array.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, array.shape, strict=True)):
        raise ValueError(f"array {name!r}: shape {array.shape}, expected {shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"array {name!r} is not finite")
    return array
