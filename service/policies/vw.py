"""Wraps Vowpal Wabbit's contextual bandits (`cb_explore_adf`; Bietti, Agarwal & Langford 2021, arXiv:1802.04064).

The model is linear and learned by importance-weighted regression ("mtr"), with VW's adaptive, normalised and invariant
gradient steps. Exploration is VW's own. It needs an optional extra: pip install 'rebound[vw]'.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from itertools import pairwise, repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from service.policies.base import (
    Array,
    Arrays,
    Batch,
    Candidates,
    LinearScore,
    Params,
    Policy,
    Scorer,
    expect,
    finite_batch,
    greedy_pmf,
)

SLOTS = (0, 1)  # of VW's arrays: w, and its sums of squared gradients
NOTHING = 1e-12  # weights of this size are taken for 0


class VWParams(Params):
    """Parameters of `VW`. Those that VW has, too, have VW's names."""

    # VW's other explorations cannot be offered: `cover` must see the features of the candidates that were not chosen,
    # and the randomness of `bag` and `rnd` is not in a model.
    explore: Literal["squarecb", "epsilon", "softmax", "regcb"] = Field(
        default="regcb",
        description="Exploration: epsilon (greedy), softmax (∝ exp(lambda_ r), with r the expected reward), squarecb"
        " (Foster & Rakhlin 2020, arXiv:2002.04926) or regcb (Foster et al. 2018, arXiv:1803.01088).",
    )
    epsilon: float = Field(default=0.05, ge=0, le=1, description="Mass spread evenly; of epsilon only.")
    lambda_: float = Field(default=20.0, ge=0, le=1e6, description="Inverse temperature; of softmax only.")
    gamma_scale: float = Field(
        default=300.0, gt=0, le=1e6, description="γ is gamma_scale × events ** gamma_exponent; of squarecb only."
    )
    gamma_exponent: float = Field(
        default=0.5, ge=0, le=1, description="Exponent with which γ grows with the events; of squarecb only."
    )
    mellowness: float = Field(default=0.0055, ge=0, le=1, description="Width of the confidence sets; of regcb only.")
    learning_rate: float = Field(default=1.5, gt=0, le=100, description="Size of a gradient step.")
    power_t: float = Field(default=0.5, ge=0, le=1, description="Steps fall as (Σ squared gradients) ** -power_t.")
    clip_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="An event weighs 1 / max(its propensity, clip_p); of epsilon and softmax only, else it weighs 1.",
    )

    @model_validator(mode="after")
    def _installed(self) -> Self:
        if find_spec("vowpalwabbit") is None:
            raise ValueError("Vowpal Wabbit is not installed here: pip install 'rebound[vw]'")
        return self


class VW(Policy[VWParams]):
    """Fits a linear model with Vowpal Wabbit and explores as Vowpal Wabbit does.

    Predicted cost = wᵀx, w (d,) float32, with cost = -reward. Beside w, VW keeps two numbers per column: the sum of
    squared gradients, with which its step falls, and the largest |x|.

    VW is shown the chosen candidate only: "mtr" takes its gradient from no other. One thing differs: VW with all n
    candidates divides an event's weight by their mean number; `learning_rate` can make up for that. A column of the
    encoder is one of VW's weights, without hashing. Crosses of context and item are columns already.
    """

    kind = "vw"
    rows_alone = True
    Params = VWParams

    def __init__(self, d: int, params: VWParams, *, seed: int = 0) -> None:
        super().__init__(d, params, seed=seed)
        self._vw = workspace(d, params)

    def update(self, batch: Batch) -> Array:
        finite_batch(batch, self.d)
        # A propensity of nan becomes clip_p. squarecb and regcb assume a regression in which all events weigh the same.
        weighed = self.params.explore in ("epsilon", "softmax")
        propensity = np.fmax(batch.propensity, self.params.clip_p) if weighed else np.ones(len(batch.item))
        expected = np.empty(len(batch.item))
        labels = [f"0:{-r!r}:{p!r}" for r, p in zip(batch.reward.tolist(), propensity.tolist(), strict=True)]
        for at, event in enumerate(examples(self._vw, batch.x, labels)):
            self._vw.predict([event])
            expected[at] = -event.get_partial_prediction()
            self._vw.learn([event])
            self._vw.finish_example([event])
        return expected

    def forget(self, keep: float) -> None:
        """Multiply w and the sums of squared gradients by `keep`. Later steps are longer accordingly.

        VW keeps the number of events itself, on which squarecb's γ and regcb's widths depend. That number starts anew
        when w has faded to NOTHING.
        """
        faded = keep * np.array([[self._vw.get_weight(column, slot) for slot in SLOTS] for column in range(self.d)])
        if np.abs(faded[:, 0]).max() < NOTHING:
            self._vw = workspace(self.d, self.params)
            return
        for column, values in enumerate(faded.tolist()):
            for slot, value in zip(SLOTS, values, strict=True):
                self._vw.set_weight(column, slot, value)

    def state(self) -> Arrays:
        return self.snapshot()

    def load(self, state: Arrays) -> None:
        self._vw = workspace(self.d, self.params, state["model"])

    def snapshot(self) -> Arrays:
        """Copy `model`, uint8: VW's model file, with all that learning needs to go on."""
        return {"model": saved(self._vw)}

    @classmethod
    def scorer(cls, snapshot: Mapping[str, Array], *, d: int, params: VWParams) -> VWScorer:
        return VWScorer(snapshot, d, params)


class VWScorer(Scorer):
    """estimates: the expected reward, and VW's probability among all n; pmf: that probability, scaled to sum 1."""

    def __init__(self, snapshot: Mapping[str, Array], d: int, params: VWParams) -> None:
        self._vw = workspace(d, params, expect(snapshot, "model", (None,)))
        w = np.array([self._vw.get_weight(column) for column in range(d)])
        if not np.isfinite(w).all():
            raise ValueError("array 'model' holds weights that are not finite")
        self._reward = -w

    def estimate(self, candidates: Candidates) -> Array:
        estimates = np.empty((len(candidates.item), 2))
        estimates[:, 0] = candidates.x @ self._reward
        # squarecb gives the best candidate the rest of 1, in float32: among 20 000 candidates that may be negative.
        rows = list(examples(self._vw, candidates.x, repeat("")))
        estimates[:, 1] = np.maximum(self._vw.predict(rows), 0.0)
        self._vw.finish_example(rows)
        return estimates

    def explain(self, candidates: Candidates) -> LinearScore:
        return LinearScore(self._reward, np.zeros(len(candidates.item)))

    def pmf(self, estimates: Array) -> Array:
        mass = estimates[:, 1].sum()
        pmf: Array = estimates[:, 1] / mass if mass > 0 else greedy_pmf(estimates[:, 0])
        return pmf


def workspace(d: int, params: VWParams, model: Array | None = None) -> Any:
    """Start VW, with no events or from a saved model.

    Raises:
        ValueError: VW does not write the model back byte for byte. It is then incomplete, or of other parameters.
    """
    from vowpalwabbit import Workspace

    explore = {
        "squarecb": f"--squarecb --gamma_scale {params.gamma_scale!r} --gamma_exponent {params.gamma_exponent!r}",
        "epsilon": f"--epsilon {params.epsilon!r}",
        "softmax": f"--softmax --lambda {params.lambda_!r}",
        "regcb": f"--regcb --mellowness {params.mellowness!r} --cb_min_cost -1 --cb_max_cost 0",
    }[params.explore]
    bits = max(1, (d - 1).bit_length())
    options = (
        f"--cb_explore_adf --cb_type mtr {explore} --learning_rate {params.learning_rate!r}"
        f" --power_t {params.power_t!r} --noconstant --bit_precision {bits} --preserve_performance_counters"
        " --quiet --no_stdin"
    ).split()
    if model is None:
        return Workspace(arg_list=options)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model"
        file.write_bytes(model.tobytes())
        try:
            vw = Workspace(arg_list=[*options, "--initial_regressor", str(file)])
        except RuntimeError as error:
            raise ValueError(f"array 'model' is no model of Vowpal Wabbit's: {error}") from error
    if saved(vw).tobytes() != model.tobytes():
        raise ValueError("array 'model' is not a whole model of Vowpal Wabbit's")
    return vw


def saved(vw: Any) -> Array:
    """Copy a workspace as the bytes of VW's model file, uint8."""
    with TemporaryDirectory() as folder:  # VW writes to files only
        file = Path(folder) / "model"
        vw.save(file)
        return np.frombuffer(file.read_bytes(), dtype=np.uint8).copy()


def examples(vw: Any, x: Array, labels: Iterable[str]) -> Iterator[Any]:
    """Yield each row of x (n, d) float32 as an example of VW, without its zeros, with its label ("" for none).

    The caller must finish each example. The features are passed as numbers: VW reads its text format with rounding
    errors. Numbers are faster for dense rows and a little slower for sparse ones (the pet shop).
    """
    from vowpalwabbit import Example

    rows, columns = x.nonzero()
    features = list(zip(columns.tolist(), x[rows, columns].tolist(), strict=True))
    ends = np.searchsorted(rows, np.arange(len(x) + 1)).tolist()
    kind = vw.get_label_type()
    for (start, end), label in zip(pairwise(ends), labels, strict=False):
        example = Example(vw, {" ": features[start:end]}, kind)
        if label:
            example.set_label_string(label)
        example.setup_example()
        yield example
