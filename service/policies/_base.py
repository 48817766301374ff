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
from pydantic import BaseModel, ConfigDict

Array = NDArray[Any]
Arrays = dict[str, Array]


class NumericalError(ArithmeticError):
    """A statistic left the finite numbers; the learner keeps the last good snapshot."""


class Batch(NamedTuple):
    """B events, in log order."""

    x: Array  # (B, d) float32: the chosen item's vector, as it was served
    item: Sequence[str]  # (B,)
    user: Sequence[str | None]  # (B,)
    reward: Array  # (B,) float64, inside the loop's reward range
    propensity: Array  # (B,) float64 in (0, 1]; nan where an imported event did not say


class Candidates(NamedTuple):
    """The n items eligible in one request."""

    x: Array  # (n, d) float32
    item: Sequence[str]  # (n,)
    user: str | None


class Params(BaseModel):
    """A policy's knobs: typed, ranged, and closed to unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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

    def __init__(self, d: int, params: AnyParams, *, seed: int = 0) -> None:
        self.d, self.params, self.seed = d, params, seed

    @abstractmethod
    def update(self, batch: Batch) -> None:
        """Learn from B events, exactly as if they came one by one (bit for bit: replays must agree).

        Raises:
            NumericalError: a statistic is no longer finite.
        """

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


def ids_to_array(ids: Iterable[str]) -> Array:
    """Ids as a uint8 array (safetensors has no strings)."""
    return np.frombuffer(orjson.dumps(list(ids)), dtype=np.uint8).copy()


def ids_from_array(array: Array) -> list[str]:
    """The inverse of `ids_to_array`."""
    ids: list[str] = orjson.loads(array.tobytes())
    return ids


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
