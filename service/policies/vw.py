"""Vowpal Wabbit's contextual bandits (`cb_explore_adf`; Bietti, Agarwal & Langford 2021, arXiv:1802.04064) in this
arena: a linear model learned by importance-weighted regression ("mtr") with VW's adaptive, normalised and invariant
gradient steps, and VW's explorations. An optional extra: pip install 'rebound[vw]'.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from itertools import pairwise, repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self, cast

import numpy as np
from pydantic import BaseModel, Field, model_validator

from service.policies._base import Array, Arrays, Batch, Candidates, Params, Policy, Scorer, expect, greedy
from service.policies._linalg import finite_batch

SLOTS = (0, 1)  # where VW keeps w, and its sums of squared gradients
NOTHING = 1e-12  # a predicted cost of this size is none


class VWParams(Params):
    """The knobs of `VW`; those that are VW's own have its names."""

    # epsilon: greedy. softmax: ∝ exp(lambda r). squarecb (Foster & Rakhlin 2020, arXiv:2002.04926) and regcb (Foster et
    # al. 2018, arXiv:1803.01088), with r the expected reward. Those that VW has beside them cannot be had: cover must
    # see, to learn, the features of the candidates that were not chosen; bag's and rnd's randomness is not in a model.
    explore: Literal["squarecb", "epsilon", "softmax", "regcb"] = "regcb"
    epsilon: float = Field(default=0.05, ge=0, le=1)
    lambda_: float = Field(default=20.0, ge=0, le=1e6)
    gamma_scale: float = Field(default=300.0, gt=0, le=1e6)  # squarecb's γ is this × events ** gamma_exponent
    gamma_exponent: float = Field(default=0.5, ge=0, le=1)
    mellowness: float = Field(default=0.0055, ge=0, le=1)  # of regcb: the width of its confidence sets
    learning_rate: float = Field(default=1.5, gt=0, le=100)
    power_t: float = Field(default=0.5, ge=0, le=1)  # steps fall as Σ squared gradients ** -power_t
    clip_p: float = Field(default=1.0, gt=0, le=1)  # an event weighs 1 / max(its propensity, this); squarecb, regcb: 1

    @model_validator(mode="after")
    def _installed(self) -> Self:
        if find_spec("vowpalwabbit") is None:
            raise ValueError("Vowpal Wabbit is not installed here: pip install 'rebound[vw]'")
        return self


class VW(Policy):
    """Predicted cost = wᵀx, w (d,) float32, on cost = -reward. Beside w, VW keeps two numbers for each column: the sum
    of squared gradients, which its step falls with, and the largest |x|.

    VW is shown the chosen candidate only: "mtr" takes its gradient from no other. The one difference: where VW sees all
    n it divides an event's weight by their mean number, which learning_rate can make up for. A column of the encoder is
    one of VW's weights, without hashing; crosses of context and item are columns already.
    """

    kind = "vw"
    Params = VWParams
    params: VWParams

    def __init__(self, d: int, params: VWParams, *, seed: int = 0) -> None:
        super().__init__(d, params, seed=seed)
        self._vw = workspace(d, params)

    def update(self, batch: Batch) -> Array:
        finite_batch(batch, self.d)
        # Where nobody said, clip_p. squarecb and regcb are for a regression in which all events weigh the same.
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
        """w and the sums of squares fade: the past counts for less, and steps are as long as if there were less of it.

        The number of events, which squarecb's γ and regcb's widths depend on, is VW's own: it goes with the last of w.
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
        """model, uint8: a file of VW's, with all that learning needs to go on."""
        return {"model": saved(self._vw)}

    @classmethod
    def scorer(cls, snapshot: Mapping[str, Array], *, d: int, params: BaseModel) -> VWScorer:
        return VWScorer(snapshot, d, cast(VWParams, params))


class VWScorer(Scorer):
    """estimates: the expected reward, and VW's own probability among all n; pmf: that, scaled to those left."""

    def __init__(self, snapshot: Mapping[str, Array], d: int, params: VWParams) -> None:
        self._vw = workspace(d, params, expect(snapshot.get("model"), "model", (None,)))
        w = np.array([self._vw.get_weight(column) for column in range(d)])
        self._reward = -expect(w, "model", (d,))

    def estimate(self, candidates: Candidates) -> Array:
        estimates = np.empty((len(candidates.item), 2))
        estimates[:, 0] = candidates.x @ self._reward
        # squarecb gives the best what the others leave of 1, in float32: among 20 000 that can be less than 0.
        rows = list(examples(self._vw, candidates.x, repeat("")))
        estimates[:, 1] = np.maximum(self._vw.predict(rows), 0.0)
        self._vw.finish_example(rows)
        return estimates

    def pmf(self, estimates: Array) -> Array:
        mass = estimates[:, 1].sum()
        pmf: Array = estimates[:, 1] / mass if mass > 0 else greedy(estimates[:, 0])
        return pmf


def workspace(d: int, params: VWParams, model: Array | None = None) -> Any:
    """VW with no events, or with those of a saved model.

    Raises:
        ValueError: VW does not give the model back byte for byte, so it is not a whole one of these parameters.
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
    """A workspace as the bytes of VW's file, uint8."""
    with TemporaryDirectory() as folder:  # VW writes to nothing but files
        file = Path(folder) / "model"
        vw.save(file)
        return np.frombuffer(file.read_bytes(), dtype=np.uint8).copy()


def examples(vw: Any, x: Array, labels: Iterable[str]) -> Iterator[Any]:
    """Rows of features (n, d), float32, as VW's examples, zeros left out; each with its label, "" for none.

    Whoever takes one has to finish it. As numbers, not in VW's text format, from which VW reads them with rounding
    errors. That is quicker, too, where rows are dense; where they are sparse (the pet shop), it is a little slower.
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
