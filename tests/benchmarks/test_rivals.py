"""What most people have today, beside ours: Vowpal Wabbit and MABWiser on the stationary pet shop.

make bench ARGS=tests/benchmarks/test_rivals.py  # 15 minutes
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.decide.features import Encoder
from service.decide.schema import FeatureSchema
from service.policies import KINDS, Batch, Candidates
from simulator.world.petshop import Petshop
from tests.benchmarks.mabwiser import Rival, context_columns, run_rival
from tests.twin import Shelf, oracle, run_twin

STEPS, SEEDS = 10_000, range(1, 4)
ROUNDS, TAUGHT = 300, 2_000
OURS = ("adaptive", "linucb", "vw")
MABWISER = "MABWiser LinUCB"
ALPHA = 0.5  # of MABWiser's bound; its ridge is 1

Call = Callable[[], object]


def shop() -> tuple[Candidates, Batch, Encoder]:
    """One request of the pet shop, and `TAUGHT` random impressions with their clicks."""
    world, rng = Petshop(0), np.random.default_rng(0)
    encoder = Encoder(FeatureSchema.model_validate(world.schema))
    encode = Shelf(encoder).rows
    x, items, clicks = [], [], []
    for step in range(TAUGHT):
        moment = world.at(step)
        item = moment.catalogue.items[rng.integers(len(moment.catalogue.items))]
        x.append(encode(moment.visit.context, moment.catalogue)[moment.catalogue.row[item.id]])
        items.append(item.id)
        clicks.append(float(moment.outcome(item.id)[1]))
    moment = world.at(TAUGHT)
    request = Candidates(encode(moment.visit.context, moment.catalogue), list(moment.catalogue.row), "someone")
    n = len(request.item)
    return request, Batch(np.stack(x), items, [None] * TAUGHT, np.array(clicks), np.full(TAUGHT, 1 / n)), encoder


def calls(name: str, request: Candidates, past: Batch, encoder: Encoder) -> tuple[Call, Call]:
    """(decide, learn one event) of one contender that has learned the past."""
    if name == MABWISER:
        shared = context_columns(encoder)
        x = past.x[:, shared].astype(np.float64)
        rival = Rival(list(request.item), len(shared), alpha=ALPHA, seed=0)
        for row, item in enumerate(past.item):
            rival.learn(x[row], item, past.reward[row])
        context = request.x[0, shared].astype(np.float64)
        return lambda: rival.choose(context), lambda: rival.learn(x[0], past.item[0], past.reward[0])
    kind = KINDS[name]
    policy = kind(encoder.d, kind.Params())
    policy.update(past)
    scorer = kind.scorer(policy.snapshot(), d=encoder.d, params=policy.params)
    one = Batch(past.x[:1], past.item[:1], past.user[:1], past.reward[:1], past.propensity[:1])
    return lambda: scorer.pmf(scorer.estimate(request)), lambda: policy.update(one)


def medians(contenders: dict[str, Call]) -> dict[str, float]:
    """µs a call: the contenders take turns, so that what disturbs the machine disturbs all."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
    return {name: float(1e6 * np.median(seconds)) for name, seconds in taken.items()}


def share(world: Petshop, expected: NDArray[Any]) -> float:
    """Of the oracle's clicks."""
    return float(expected.sum() / oracle(world, STEPS).sum())


def test_time() -> None:
    request, past, encoder = shop()
    assert len(request.item) == 50
    contenders = {name: calls(name, request, past, encoder) for name in (*OURS, MABWISER)}
    decide = medians({name: call for name, (call, _) in contenders.items()})
    learn = medians({name: call for name, (_, call) in contenders.items()})
    print(f"\nn = {len(request.item)}, d = {encoder.d}; medians of {ROUNDS}, in turns")
    print(f"{'':16} {'decide, µs':>12} {'× adaptive':>11} {'learn, µs':>12} {'× adaptive':>11}")
    for name in contenders:
        ratios = decide[name] / decide["adaptive"], learn[name] / learn["adaptive"]
        print(f"{name:16} {decide[name]:12.0f} {ratios[0]:11.1f} {learn[name]:12.0f} {ratios[1]:11.1f}")


def test_share_of_oracle() -> None:
    worlds = [Petshop(seed) for seed in SEEDS]
    runs = [("random", 100), *((name, period) for name in OURS for period in (100, 1))]
    found = {
        (name, period): [
            share(world, run_twin(name, {}, world=world, steps=STEPS, snapshot_period=period, reward_delay=0).expected)
            for world in worlds
        ]
        for name, period in runs
    }
    found[MABWISER, 1] = [share(world, run_rival(world, steps=STEPS, alpha=ALPHA)) for world in worlds]
    print(f"\nshare of oracle over the first {STEPS} steps of S0, {len(worlds)} seeds: mean (worst)")
    for (name, period), shares in found.items():
        print(f"{name:16} learned every {period:3} decisions: {np.mean(shares):.3f} ({min(shares):.3f})")
        assert name == "random" or min(shares) > max(found["random", 100])
