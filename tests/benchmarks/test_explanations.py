"""Worlds whose truth is known: is the pair that matters first, and how often is noise taken for something?

    make bench ARGS=tests/benchmarks/test_explanations.py

40 runs of each world and kind, run r with seed r.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from service.evaluate.importance import Findings, Observed, importance
from service.policies import KINDS, Arrays, Scorer, new_policy, new_scorer
from service.represent.learned import Block, LearnedEncoder, LearnedSchema, Levels, Line
from service.represent.parts import Pair

RUNS = 40
EVENTS = 2000
NOISE = 15
ITEMS = 8

World = Callable[[np.random.Generator], tuple[dict[str, Any], dict[str, Any], float]]


def tastes(rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any], float]:
    """A persona likes items of its own kind: 0.6 against 0.3."""
    persona, kind = "abc"[rng.integers(3)], "abc"[rng.integers(3)]
    return {"persona": persona}, {"kind": kind}, 0.6 if persona == kind else 0.3


def age_and_price(rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any], float]:
    """The older, the dearer: the chance is a product of both, and of neither alone."""
    age, price = rng.random(), rng.random()
    return {"age": age}, {"price": price}, 0.4 + 1.2 * (age - 0.5) * (price - 0.5)


def run(kind: str, world: World, truth: Pair, seed: int) -> Findings:
    rng = np.random.default_rng(seed)
    noise = [f"n{number}" for number in range(NOISE)]
    events = []
    for _ in range(EVENTS):
        context, features, chance = world(rng)
        context |= {name: "abc"[rng.integers(3)] for name in noise[::2]} | {name: rng.random() for name in noise[1::2]}
        reward = float(rng.random() < chance)
        events.append(Observed(context, features, f"i{rng.integers(ITEMS)}", None, reward, 1 / ITEMS))
    level, number = Levels(path="", levels=["a", "b", "c"]), Line(path="", values=[0, 1], places=[-1, 1])
    of = level if world is tastes else number
    fields = {name: level for name in noise[::2]} | {name: number for name in noise[1::2]} | {str(truth.context): of}
    blocks = [(None, None), *((name, None) for name in fields), (None, truth.item), *((n, truth.item) for n in fields)]
    schema = LearnedSchema(
        context={name: field.model_copy(update={"path": name}) for name, field in fields.items()},
        item={str(truth.item): of.model_copy(update={"path": truth.item})},
        blocks=[Block(context=one, item=other, variance=1.0) for one, other in blocks],
    )
    encoder, params = LearnedEncoder(schema), KINDS[kind].Params()

    def scorer_of(snapshot: Arrays) -> Scorer:
        return new_scorer(kind, snapshot, encoder.d, encoder.layout, params)

    policy = new_policy(kind, encoder.d, encoder.layout, params, seed=seed)
    steps = importance(policy, scorer_of, encoder, events, confidence=0.95)
    try:
        while True:
            next(steps)
    except StopIteration as stop:
        found: Findings = stop.value
        return found


@pytest.mark.parametrize("kind", ["adaptive", "lin_ts"])
@pytest.mark.parametrize(
    ("world", "truth"),
    [(tastes, Pair("persona", "kind")), (age_and_price, Pair("age", "price"))],
    ids=["tastes", "age"],
)
def test_the_true_pair_is_first_and_noise_is_not_taken_for_something(
    kind: str, world: World, truth: Pair, request: pytest.FixtureRequest
) -> None:
    runs = 2 if request.config.getoption("--quick") else RUNS
    first, certain, excluded, noise = 0, 0, 0, 0
    for seed in range(runs):
        found = run(kind, world, truth, seed).found
        pairs = [one for one in found if None not in one.pair]
        first += pairs[0].pair == truth
        certain += pairs[0].pair == truth and pairs[0].loss.low > 0
        of_noise = [one.loss for one in found if one.pair.context is not None and one.pair.context.startswith("n")]
        excluded += sum(not one.low <= 0 <= one.high for one in of_noise)
        noise += len(of_noise)
    print(
        f"\n{world.__name__}, {kind}, {runs} runs of {EVENTS} events, {NOISE} fields of noise: "
        f"the true pair is first of all pairs in {first} of {runs}, above 0 in {certain}; "
        f"{excluded} of {noise} intervals of noise exclude 0 ({excluded / noise:.2%})"
    )
    assert first >= 0.95 * runs
    assert excluded <= 0.08 * noise
