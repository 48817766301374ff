"""Defines the policy interface: what every policy implements and what its callers may rely on.

Axis letters in this package: **B** events, **n** candidates, **d** features, **s** statistics per candidate.

A policy has two halves. `Policy` learns: it owns the statistics, runs in the learner, and may use PyTorch. `Scorer`
serves: it runs in the API workers, is immutable, and uses NumPy on the arrays of one snapshot.

A scorer returns probabilities and never draws. `service/decide` adds the exploration floor and makes the one draw.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar, get_args, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticUseDefault

from service.layout import Rows

Array = NDArray[Any]
Arrays = dict[str, Array]


class NumericalError(ArithmeticError):
    """A statistic or an input is not finite. The learner keeps the last good snapshot."""


class Batch(NamedTuple):
    """B events, in log order."""

    x: Array  # (B, d) float32: the chosen item's vector, as it was served
    item: Sequence[str]  # (B,)
    user: Sequence[str | None]  # (B,)
    reward: Array  # (B,) float64: 0 at the lower end of the loop's reward range, 1 at the upper; sums may lie outside
    propensity: Array  # (B,) float64 in (0, 1]; nan where an imported event has none


class Candidates:
    """The n items that are eligible in one request.

    Args:
        x: (n, d) float32, or the same not multiplied out.
        item: (n,) ids.
        user: who asks.
    """

    def __init__(self, x: Array | Rows, item: Sequence[str], user: str | None) -> None:
        self.rows = x if isinstance(x, Rows) else Rows.of(x)
        self.item, self.user = item, user

    @cached_property
    def x(self) -> Array:
        """The rows (n, d) float32."""
        return self.rows.dense()


# Descriptions of parameters that some kinds give another default.
HALF_LIFE = "Number of events in the loop after which the weight of an event has halved; null: never."
DETECT_CHANGE = "Whether to replace the model when rewards stop matching its predictions."


class Params(BaseModel):
    """Parameters of a policy: typed, with ranges. Unknown names are refused.

    Every policy takes these three. `service/learn/change` acts on them by calling `Policy.forget`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    half_life: float | None = Field(default=None, gt=0, description=HALF_LIFE)
    half_life_s: float | None = Field(
        default=None, gt=0, description="Number of seconds after which the weight of an event has halved; null: never."
    )
    detect_change: bool = Field(default=False, description=DETECT_CHANGE)

    @field_validator("*", mode="before")
    @classmethod
    def _strict(cls, value: Any, info: ValidationInfo) -> Any:
        """Take the default for a null where the parameter has none of its own; booleans and texts are no numbers."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        kinds = {annotation, *get_args(annotation)}
        if value is None and type(None) not in kinds:
            raise PydanticUseDefault
        for part in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(part, bool) and bool not in kinds:
                raise ValueError("a boolean is no number")
            if isinstance(part, str) and kinds & {int, float, bool}:
                raise ValueError("a text is neither a number nor a boolean")
        return value

    def on_fitted_rows(self) -> Self:
        """Return the parameters to use on rows of a fitted schema, whose columns have another length than declared."""
        return self


P = TypeVar("P", bound=Params)


class Ranked:
    """The candidates of one request, scored by a scorer: what a slate is drawn from."""

    def __init__(self, scorer: Scorer, estimates: Array) -> None:
        self._scorer, self._estimates = scorer, estimates

    def __len__(self) -> int:
        return len(self._estimates)

    def score(self, row: int) -> float:
        """Return the score of one candidate."""
        return float(self._estimates[row, 0])

    def pmf(self, left: Array | None = None) -> Array:
        """Compute the probabilities (m,) of the m candidates at `left`, of all if it is left out."""
        return self._scorer.pmf(self._estimates if left is None else self._estimates[left])


class Bounds(NamedTuple):
    """Upper confidence bounds xᵀm + width √(xᵀ S x) of n items' rewards at a row x, each S positive semi-definite."""

    models: Array  # (m, d + 1, d): S, and m as the last row
    rows: Array  # (n,): the model of each item
    width: float


class LinearScore(NamedTuple):
    """How the scores of n candidates add up before exploration: bias + xᵀ weights + item + user."""

    weights: Array  # (n, c) or (c,) float64, of a row's first c columns
    item: Array  # (n,) what is each item's own
    user: Array | None = None  # (n,) what is the user's own; None: nothing is
    bias: float = 0.0
    sd: Array | None = None  # (n,) how unsure the policy is of each; None: it does not say
    width: float | None = None  # how many `sd` it adds to explore, on average; None: it adds none
    is_logit: bool = False  # whether the score is a logit; else it is a share of the reward range
    by_item: bool = False  # whether every item has weights of its own: that of the constant is then the item's own


class Scorer(ABC):
    """The serving half of a policy: immutable, built from one snapshot.

    A decision calls `rank`. A scorer that need not estimate everything of every candidate says so there.
    """

    @abstractmethod
    def estimate(self, candidates: Candidates) -> Array:
        """Compute the statistics of each candidate: (n, s) float64. Column 0 is the score that the reply shows."""

    @abstractmethod
    def pmf(self, estimates: Array) -> Array:
        """Compute selection probabilities from estimates (n, s): (n,) float64, non-negative, sum 1.

        A slate of k > 1 items is drawn one by one. Each draw passes the rows of the candidates that are left.
        """

    def rank(self, candidates: Candidates) -> Ranked:
        """Score the candidates of one request. The result's pmf is that of `pmf` on `estimate`, up to rounding."""
        return Ranked(self, self.estimate(candidates))

    def bounds(self, items: Sequence[str]) -> Bounds | None:
        """Return the bounds of n items if `estimate` computes one for each, and nothing else; else None."""
        return None

    def explain(self, candidates: Candidates) -> LinearScore | None:
        """Return how the score of each candidate adds up; None where it is not linear in the row."""
        return None

    def summary(self) -> dict[str, Any]:
        """Describe the learned state for `GET /policies/{name}`; JSON-serialisable."""
        return {}


class Policy(ABC, Generic[P]):
    """The learning half of a policy: owns the statistics.

    Args:
        d: number of features of the loop's encoder.
        params: an instance of this class's `Params`.
        seed: the source of all randomness that the policy may use.
    """

    kind: ClassVar[str]
    Params: type[P] = Params  # type: ignore[assignment]  # a kind with parameters of its own names them here
    # True if the policy learns in `train` only.
    batch_trained: ClassVar[bool] = False
    # True if `update` returns click probabilities and `forget` only shortens the memory. Change detection then compares
    # the policy with a copy that forgets.
    comparable: ClassVar[bool] = False
    # True if the policy knows items by their rows alone. No fit then moves it to rows that do not tell items apart.
    rows_alone: ClassVar[bool] = False
    # The same policy for rows that have layers (`service/represent/learned.py`), made with their layout in place of d;
    # None: it is given the first layer, which all items share.
    on_layers: ClassVar[Any] = None  # a class like this one

    def __init__(self, d: int, params: P, *, seed: int = 0) -> None:
        self.d, self.params, self.seed = d, params, seed

    def fresh(self) -> Policy[P]:
        """Make another one for the same rows, with the same parameters and seed, that has learned nothing."""
        return type(self)(self.d, self.params, seed=self.seed)

    @abstractmethod
    def update(self, batch: Batch) -> Array | None:
        """Learn from B events. The result is the same, bit for bit, in whatever batches the events come.

        Returns:
            The reward expected of each event before it was learned, (B,) float64; None if that is not cheap to tell.

        Raises:
            NumericalError: a statistic would no longer be finite. The state is then unchanged.
        """

    def expected(self, batch: Batch) -> Array:
        """Compute the expected rewards (B,) float64 as `update` does, without learning. Only `comparable` policies can.

        An event's value does not depend on the other events of the batch.

        Raises:
            NumericalError: a feature is not finite.
            NotImplementedError: the policy is not `comparable`.
        """
        raise NotImplementedError(f"{self.kind} cannot be compared with others of its kind")

    @abstractmethod
    def forget(self, keep: float) -> None:
        """Multiply the weight of all evidence by `keep`, in [0, 1).

        At 0 the policy returns to its prior, in means and in uncertainty. A policy that has learned nothing, or that
        learns in `train` only, does nothing.
        """

    def forget_items(self, gone: Collection[str]) -> None:
        """Drop all that is kept under these item ids. The policy then treats them as never seen.

        Parameters that items share keep what the dropped items' events taught them. Unknown ids are ignored.
        """

    def train_due(self, events: int) -> bool:
        """Tell whether to train now that the log holds this many events (`batch_trained` policies only)."""
        return False

    def train(self, history: Iterable[Batch]) -> None:
        """Learn anew from the retained log, given as batches in log order (`batch_trained` policies only).

        Raises:
            NumericalError: the history or the outcome is not finite. The state is then unchanged.
            NotImplementedError: the policy is not `batch_trained`.
        """
        raise NotImplementedError(f"{self.kind} learns from every event; there is nothing to train")

    @abstractmethod
    def state(self) -> Arrays:
        """Copy all that learning needs to go on, bit for bit."""

    @abstractmethod
    def load(self, state: Arrays) -> None:
        """Replace what was learned by a `state()` of a policy with the same d and params."""

    @abstractmethod
    def snapshot(self) -> Arrays:
        """Copy or compute all that serving needs.

        Raises:
            NumericalError: the statistics have no finite solution.
        """

    @classmethod
    @abstractmethod
    def scorer(cls, snapshot: Mapping[str, Array], *, d: int, params: P) -> Scorer:
        """Build the serving half from one snapshot.

        Raises:
            ValueError: an array is missing, has the wrong shape for `d`, or is not finite.
        """


def part(batch: Batch, rows: slice) -> Batch:
    """Select consecutive events of a batch."""
    return Batch(batch.x[rows], batch.item[rows], batch.user[rows], batch.reward[rows], batch.propensity[rows])


def finite_batch(batch: Batch, d: int) -> Array:
    """Check a batch and return its features as (B, d) float64.

    Raises:
        ValueError: the features have another shape.
        NumericalError: a feature or a reward is not finite.
    """
    if batch.x.ndim != 2 or batch.x.shape[1] != d:
        raise ValueError(f"features of shape {batch.x.shape}, expected (B, {d})")
    if not (np.isfinite(batch.x).all() and np.isfinite(batch.reward).all()):
        raise NumericalError("a feature or a reward is not finite")
    return batch.x.astype(np.float64)


def same_arrays(one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    """Return whether two sets of arrays have the same names, types, shapes and bytes."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].tobytes() == other[name].tobytes()
        for name in one
    )


def expect(snapshot: Mapping[str, Array], name: str, shape: tuple[int | None, ...]) -> Array:
    """Return an array of a snapshot after checking it. None in `shape` stands for any length.

    Raises:
        ValueError: the array is missing, has another shape, or is not finite.
    """
    array = snapshot.get(name)
    if array is None:
        raise ValueError(f"snapshot lacks array {name!r}")
    if array.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, array.shape, strict=True)):
        raise ValueError(f"array {name!r}: shape {array.shape}, expected {shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"array {name!r} is not finite")
    return array


def greedy_pmf(score: Array) -> Array:
    """Compute the pmf (n,) that shares all mass among the highest scores (n,)."""
    best = score == score.max()
    pmf: Array = best / np.count_nonzero(best)
    return pmf


@overload
def sigmoid(f: float) -> float: ...
@overload
def sigmoid(f: Array) -> Array: ...
def sigmoid(f: float | Array) -> float | Array:
    """Compute 1 / (1 + exp(-f)) without overflow, of a number or elementwise."""
    return 0.5 + 0.5 * (math.tanh(0.5 * f) if isinstance(f, float) else np.tanh(0.5 * f))


def fade(weight: float, keep: float) -> tuple[float, float]:
    """Fade sums by raising the weight of later events, so that the sums need not be touched.

    Args:
        weight: weight of one event in the sums so far, at least 1.
        keep: the factor in [0, 1) by which all evidence so far fades.

    Returns:
        The weight of one event from now on, and the factor to apply to the sums: 0 for a reset, else 1, except when
        the weight would pass 10¹⁰⁰ and both are scaled back.
    """
    if keep == 0:
        return 1.0, 0.0
    weight /= keep
    return (weight, 1.0) if weight < 1e100 else (1.0, 1.0 / weight)
