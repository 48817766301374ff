"""Measures what an experiment shows of two learners that learn from each other's events, and of two that do not.

make bench ARGS='-s tests/benchmarks/test_leakage.py'            # 5 seeds

Users of the simulator's pet shop fall into two arms, of which both policies begin with nothing. `control` explores.
`greedy` shows what looks best to it. In a shared experiment each learns every event, in a disjoint one those of its own
users. What is compared are expected rewards of what was shown, so that nothing but the policies' choices differs.

The truth is what each does alone: it serves as many decisions as it does in the experiment, and learns from them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from service.decide.active import serving
from service.decide.assignment import Assigner
from service.decide.decision import decide
from service.learn.trainer import Trainer
from service.records import Event, Experiment, PolicyRecord
from service.represent.encoder import Encoder
from service.represent.schema import FeatureSchema
from simulator import world as worlds
from tests.benchmarks.in_process import CatalogueEncoder, apply
from tests.builders import experiment_of
from tests.decide.builders import active_of, request_of

STEPS, PERIOD = 4000, 50  # decisions of the experiment, and from one snapshot to the next
POLICIES = {"control": ("linucb", {"alpha": 0.5}), "greedy": ("linucb", {"alpha": 0.0})}
FLOOR = 0.001


def records() -> dict[str, PolicyRecord]:
    """Return the policies of the arms; they have learned nothing."""
    return {arm: PolicyRecord(arm, f"id-{arm}", kind, params, seed=0) for arm, (kind, params) in POLICIES.items()}


def play(seed: int, steps: int, experiment: Experiment | None, alone: str = "") -> Mapping[str, NDArray[np.float64]]:
    """Let the policies serve users who fall to them, or one of them all users; return arm -> expected rewards."""
    period = PERIOD if experiment is not None else PERIOD // 2  # as many decisions of its own to the next snapshot
    world = worlds.WORLDS["petshop"](seed)
    encoder = Encoder(FeatureSchema.model_validate(world.schema))
    schema = encoder.schema.model_dump(mode="json")
    policies = records() if experiment is not None else {alone: records()[alone]}
    trainers = {
        arm: Trainer(record, d=encoder.d, reward_range=(0.0, 1.0), encoder=encoder.version, schema=schema)
        for arm, record in policies.items()
    }
    assigner = None if experiment is None else Assigner(experiment)
    active = active_of(
        catalogue=CatalogueEncoder(encoder)(world.catalogue(0)), encoder=encoder, exploration_floor=FLOOR
    )
    log: list[Event] = []
    learned = 0
    served = {arm: serving(record, 1, trainers[arm].policy.snapshot(), encoder) for arm, record in policies.items()}
    expected: dict[str, list[float]] = defaultdict(list)
    for step in range(steps):
        if step and step % period == 0:
            for arm, record in policies.items():
                apply(trainers[arm], log, learned)
                served[arm] = serving(record, 1, trainers[arm].policy.snapshot(), encoder)
            learned = len(log)
        moment = world.at(step)
        request = request_of(f"{seed}-{step}", user_id=moment.visit.user_id, context=moment.visit.context)
        fell = None if assigner is None else assigner.assignment(request.user_id, request.decision_id, at=2000.0)
        arm = alone if fell is None else fell.arm
        decision, rows = decide(request, active, at=float(step), served=served[arm], experiment=fell)
        [shown] = decision.items
        rate, reward = moment.outcome(shown.id)
        expected[arm].append(rate)
        log.append(
            Event(
                position=f"{1000 * (1 + step)}-0",
                decision_id=decision.decision_id,
                item=shown.id,
                user=decision.user_id,
                context=decision.context,
                x=rows[0],
                n=decision.n,
                propensity=shown.propensity,
                policy=arm,
                version=1,
                reward=reward,
                source="feedback",
                slate_position=step,
                encoder=decision.encoder,
                experiment=fell,
            )
        )
    return {arm: np.array(found) for arm, found in expected.items()}


def test_what_the_arms_teach_each_other(quick: bool) -> None:
    steps, seeds = (400, 1) if quick else (STEPS, 5)
    shared = experiment_of({"control": 0.5, "greedy": 0.5})
    disjoint = replace(shared, learners={arm: record.id for arm, record in records().items()})
    lifts: dict[str, list[float]] = defaultdict(list)
    means: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for seed in range(1, seeds + 1):
        found = {
            "shared": play(seed, steps, shared),
            "disjoint": play(seed, steps, disjoint),
            "alone": {arm: play(seed, steps // 2, None, arm)[arm] for arm in POLICIES},
        }
        for name, arms in found.items():
            control, greedy = (float(arms[arm].mean()) for arm in ("control", "greedy"))
            means[name].append((control, greedy))
            lifts[name].append(greedy / control - 1)
    for name, found_lifts in lifts.items():
        control, greedy = np.mean(means[name], axis=0)
        spread = np.std(found_lifts, ddof=1) if seeds > 1 else 0.0
        print(f"| {name} | {control:.3f} | {greedy:.3f} | {100 * np.mean(found_lifts):+.1f} % ± {100 * spread:.1f} |")
