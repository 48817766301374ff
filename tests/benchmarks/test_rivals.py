"""Compares the policies with MABWiser, and with Vowpal Wabbit as the kind `vw`, on the stationary pet shop.

make bench ARGS=tests/benchmarks/test_rivals.py  # about 15 minutes
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.admin.loops import DEFAULT_POLICY
from service.policies import KINDS, Batch, Candidates
from service.represent.encoder import Encoder
from service.represent.schema import FeatureSchema
from simulator.world.petshop import Petshop
from tests.benchmarks.in_process import CatalogueEncoder, oracle, run_in_process
from tests.benchmarks.mabwiser import Rival, context_columns, run_rival

STEPS, SEEDS = 10_000, 3
ROUNDS, TAUGHT = 300, 2_000  # timed calls; events learned before
QUICK_STEPS, QUICK_ROUNDS, QUICK_TAUGHT = 200, 5, 50
ONLINE = [name for name, kind in KINDS.items() if not kind.batch_trained]
CHANCE = "random"
MABWISER = "MABWiser LinUCB"
ALPHA = 0.5  # of MABWiser's bound; its ridge is 1

Call = Callable[[], object]


def shop(taught: int) -> tuple[Candidates, Batch, Encoder]:
    """Make one request of the pet shop, `taught` random impressions with their clicks, and the encoder."""
    world, rng = Petshop(0), np.random.default_rng(0)
    encoder = Encoder(FeatureSchema.model_validate(world.schema))
    encode_catalogue = CatalogueEncoder(encoder)
    x, items, clicks = [], [], []
    for step in range(taught):
        moment = world.at(step)
        row = int(rng.integers(len(moment.catalogue.items)))
        item = moment.catalogue.items[row]
        x.append(encoder.encode(moment.visit.context, encode_catalogue(moment.catalogue).block.take([row]))[0])
        items.append(item.id)
        clicks.append(float(moment.outcome(item.id)[1]))
    moment = world.at(taught)
    rows = encoder.encode(moment.visit.context, encode_catalogue(moment.catalogue).block)
    request = Candidates(rows, list(moment.catalogue.row), "someone")
    n = len(request.item)
    return request, Batch(np.stack(x), items, [None] * taught, np.array(clicks), np.full(taught, 1 / n)), encoder


def calls(name: str, request: Candidates, past: Batch, encoder: Encoder) -> tuple[Call, Call]:
    """Return two functions of a policy that has learned the past: score one request, and learn one event."""
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
    return lambda: scorer.rank(request).pmf(), lambda: policy.update(one)


def medians(contenders: dict[str, Call], rounds: int) -> dict[str, float]:
    """Measure the microseconds of a call. The contenders take turns, so that other load slows all of them alike."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
    return {name: float(1e6 * np.median(seconds)) for name, seconds in taken.items()}


def share(world: Petshop, expected: NDArray[Any]) -> float:
    """Compute the share of the oracle's clicks."""
    return float(expected.sum() / oracle(world, len(expected)).sum())


def test_time(quick: bool) -> None:
    rounds, taught = (QUICK_ROUNDS, QUICK_TAUGHT) if quick else (ROUNDS, TAUGHT)
    request, past, encoder = shop(taught)
    assert len(request.item) == 50
    contenders = {name: calls(name, request, past, encoder) for name in (*ONLINE, MABWISER)}
    decide = medians({name: call for name, (call, _) in contenders.items()}, rounds)
    learn = medians({name: call for name, (_, call) in contenders.items()}, rounds)
    print(f"\nn = {len(request.item)}, d = {encoder.d}; medians of {rounds}, in turns")
    ratio = f"× {DEFAULT_POLICY}"
    print(f"{'':16} {'decide, µs':>12} {ratio:>11} {'learn, µs':>12} {ratio:>11}")
    for name in contenders:
        ratios = decide[name] / decide[DEFAULT_POLICY], learn[name] / learn[DEFAULT_POLICY]
        print(f"{name:16} {decide[name]:12.0f} {ratios[0]:11.1f} {learn[name]:12.0f} {ratios[1]:11.1f}")


def test_share_of_oracle(quick: bool) -> None:
    steps = QUICK_STEPS if quick else STEPS
    worlds = [Petshop(seed) for seed in range(1, 1 + (1 if quick else SEEDS))]

    def shares(name: str, period: int) -> list[float]:
        runs = (
            run_in_process(name, {}, world=world, steps=steps, snapshot_period=period, reward_delay=0)
            for world in worlds
        )
        return [share(world, run.expected) for world, run in zip(worlds, runs, strict=True)]

    found = {(name, period): shares(name, period) for name in ONLINE for period in (100, 1)}
    found[MABWISER, 1] = [share(world, run_rival(world, steps=steps, alpha=ALPHA)) for world in worlds]
    print(f"\nshare of oracle over the first {steps} steps of S0, {len(worlds)} seeds: mean (worst)")
    for (name, period), its in found.items():
        print(f"{name:16} learned every {period:3} decisions: {np.mean(its):.3f} ({min(its):.3f})")
        assert quick or name == CHANCE or min(its) > max(found[CHANCE, 100])
