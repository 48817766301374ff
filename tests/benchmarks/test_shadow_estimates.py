"""Measures how often the estimates of shadow policies hold at every look, and what they cost.

make bench ARGS='-s tests/benchmarks/test_shadow_estimates.py'            # 200 logs a scenario

The logs are those of `test_coverage_of_intervals.py`. A shadow is looked at after every 100 decisions. An interval
holds if it has, at every look at which it was told, the mean difference of the expected rewards of the visits so far.
"""

from __future__ import annotations

import time
from collections import defaultdict

import numpy as np
import pytest

from service.decide.active import serving
from service.decide.decision import decide
from service.evaluate.counterfactual import opinion
from service.evaluate.shadow import Judged, Shadow, estimates
from service.policies import KINDS, new_policy
from tests.benchmarks.test_coverage_of_intervals import SCENARIOS, rates_of
from tests.builders import batch_of, policy_of
from tests.decide.builders import ENCODER, active_of, request_of

EVERY = 100
SHADOW_SCENARIOS = [name for name in SCENARIOS if name != "petshop, short"]


@pytest.mark.parametrize("name", SHADOW_SCENARIOS)
def test_intervals_hold_at_every_look(name: str, quick: bool) -> None:
    world, size, simulate, options = SCENARIOS[name]
    logs = 3 if quick else 200
    rates = rates_of(world)
    held: dict[str, list[bool]] = defaultdict(list)
    widths: dict[str, list[float]] = defaultdict(list)
    first: list[int] = []
    for seed in range(logs):
        log = simulate(np.random.default_rng(seed), rates, size, **options)
        truth = np.cumsum(log.each) / np.arange(1, size + 1)
        said = log.evidence
        shadow, holds, answered = Shadow("", 0.0, ""), {"dr": True, "ips": True}, 0
        columns = (said.reward, said.weight, said.predicted, said.expected)
        for number, one in enumerate(zip(*(column.tolist() for column in columns), strict=True), start=1):
            shadow.add(Judged(*one))
            if number % EVERY:
                continue
            found = estimates(shadow, (0.0, 1.0))
            answered += not answered and found["dr"] is not None and number
            for estimator in holds:
                if found[estimator] is not None:
                    low, high = (found[estimator]["difference"][end] for end in ("low", "high"))
                    holds[estimator] &= bool(low <= truth[number - 1] <= high)
                    last = (high - low) / 2
                    if number == size:
                        widths[estimator].append(last)
        for estimator, one_held in holds.items():
            held[estimator].append(one_held)
        first.append(answered)
    told = [count for count in first if count]
    cells = [
        f"{100 * np.mean(held[estimator]):.1f} %, "
        + (f"{np.median(widths[estimator]):.4f}" if widths[estimator] else "refused")
        for estimator in ("dr", "ips")
    ]
    answered_share = f"{100 * len(widths['dr']) / logs:.0f} %"
    median = f"{np.median(told):,.0f}" if told else ""
    print(f"| {name} ({log.difference:+.4f}) | {' | '.join(cells)} | {answered_share} | {median} |")
    if not quick:
        assert np.mean(held["ips"]) >= 0.95
        assert np.mean(held["dr"]) >= 0.93


def test_what_a_judged_decision_costs(quick: bool) -> None:
    times = 50 if quick else 1000
    active = active_of(50)
    request = request_of("d1", context={"hour": 3})
    decision, _ = decide(request, active, at=1.0)
    for kind in ("linucb", "adaptive"):
        params = KINDS[kind].Params()
        policy = new_policy(kind, ENCODER.d, ENCODER.layout, params, seed=0)
        rng = np.random.default_rng(0)
        items = [f"p{number % 50}" for number in range(500)]
        policy.update(batch_of(rng.normal(size=(500, ENCODER.d)), rng.random(500), items))
        served = serving(policy_of(kind), 1, policy.snapshot(), ENCODER)
        shadow = Shadow("", 0.0, "")
        asked, added = [], []
        for _ in range(times):
            started = time.thread_time()
            said = opinion(decision, active.catalogue, served, (0.0, 1.0))
            middle = time.thread_time()
            assert said is not None
            shadow.add(Judged(1.0, said.chosen, said.predicted, said.expected))
            asked.append(middle - started)
            added.append(time.thread_time() - middle)
        print(f"{kind}: {1e6 * np.median(asked):.0f} µs to ask, {1e6 * np.median(added):.0f} µs to add")
