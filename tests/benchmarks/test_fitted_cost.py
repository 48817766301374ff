"""What a fitted schema costs beside the hashed columns that a loop begins with.

make bench ARGS=tests/benchmarks/test_fitted_cost.py

A decision is a context encoded with n items, scored, and its pmf. The two take turns; the ratio is the median of pairs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import pytest

from service.policies import Candidates, new_policy, new_scorer
from service.policies.adaptive_layers import AdaptiveParams
from service.represent.encoder import Encoder
from service.represent.fit import Raw, fit
from service.represent.learned import LearnedEncoder
from service.represent.profile import Profile
from service.represent.schema import FeatureSchema
from service.represent.stored import AnyEncoder
from simulator.world.shapes import make
from tests.builders import batch_of

EVENTS, ROUNDS = 1500, 40


def records_of(world: str) -> tuple[list[Raw], Profile]:
    """Return the records of random impressions, and their profile."""
    rng, made = np.random.default_rng(1), make(world, 1)
    records, profile = [], Profile()
    for step in range(EVENTS):
        moment = made.at(step)
        item = moment.catalogue.items[int(rng.integers(len(moment.catalogue.items)))]
        _, reward = moment.outcome(item.id)
        visit = moment.visit
        records.append(Raw(visit.context, item.id, item.features, visit.user_id, reward))
        profile.add(
            context=visit.context,
            item=item.id,
            features=item.features,
            user=visit.user_id,
            reward=reward,
            at=float(step),
        )
    return records, profile


def decision(encoder: AnyEncoder, records: list[Raw], n: int) -> tuple[Callable[[], object], float]:
    """Return a decision among n items by a policy that has learned, and the microseconds of CPU an event took it."""
    policy = new_policy("adaptive", encoder.d, encoder.layout, AdaptiveParams(), seed=1)
    rows = [encoder.encode(one.context, encoder.items([one.features], [one.item]))[0] for one in records[:600]]
    item, user = [one.item for one in records[:600]], [one.user for one in records[:600]]
    started = time.process_time()
    policy.update(batch_of(np.stack(rows), np.array([one.reward for one in records[:600]]), item, user=user))
    update_us = 1e6 * (time.process_time() - started) / 600
    scorer = new_scorer("adaptive", policy.snapshot(), encoder.d, encoder.layout, policy.params)
    ids = [f"{records[at % EVENTS].item}-{at}" for at in range(n)]
    block = encoder.items([records[at % EVENTS].features for at in range(n)], ids)

    def decide() -> object:
        return scorer.rank(Candidates(encoder.rows(records[0].context, block), ids, records[0].user)).pmf()

    return decide, update_us


@pytest.mark.parametrize("world", ["kinds", "noise-15", "nested", "embeddings"])
def test_cost(world: str, quick: bool) -> None:
    records, profile = records_of(world)
    started = time.process_time()
    fitted = LearnedEncoder(fit(records, profile).schema)
    print(f"\n{world}: {fitted.layout}, a fit of {EVENTS} events {time.process_time() - started:.2f} s of CPU")
    for n in (50, 1000):
        (before, event_before), (after, event_after) = (
            decision(encoder, records, n) for encoder in (Encoder(FeatureSchema()), fitted)
        )
        pairs = []
        for _ in range(2 if quick else ROUNDS):
            times = []
            for decide in (before, after):
                started = time.perf_counter()
                for _ in range(5):
                    decide()
                times.append((time.perf_counter() - started) / 5e-6)
            pairs.append((times[0], times[1]))
        ratio = statistics.median(one[1] / one[0] for one in pairs)
        hashed, own = (statistics.median(of) for of in zip(*pairs, strict=True))
        print(
            f"  n = {n}: hashed {hashed:.0f} µs, fitted {own:.0f} µs, ratio {ratio:.2f}; "
            f"an event {event_before:.0f} µs, {event_after:.0f} µs"
        )
