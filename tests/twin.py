"""The loop in one process: the same policies on the same world as the arena, without HTTP, Redis or learner.

It does by hand what the service promises: encode, pmf, floor, one draw; a reward arrives `reward_delay` decisions after
its decision, in that order; every `snapshot_period` decisions all that has arrived is learned and served. So its
figures are those that the service must reach, whatever lies between.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.decide.decision import draw_slate, seed_of
from service.decide.features import Encoder
from service.decide.schema import FeatureSchema
from service.policies import KINDS, Batch, Candidates

Array = NDArray[Any]

R = np.array([[0.40, 0.50, 0.10, 0.05, 0.02], [0.05, 0.02, 0.55, 0.45, 0.05], [0.25, 0.15, 0.40, 0.20, 0.20], [0.02, 0.02, 0.10, 0.08, 0.60]])
P = ["new_puppy_parent", "cat_connoisseur", "budget_shopper", "fish_hobbyist"]
C = ["Dog Food", "Dog Toy", "Cat Food", "Cat Toy", "Fish Supplies"]


class StandIn:
    """Petshop, until simulator.world.petshop is there."""

    def __init__(self, seed: int, shock_at: int | None) -> None:
        self.seed, self.shock_at = seed, shock_at
        rng = np.random.default_rng([seed, 1])
        self.after = []
        for row in R:
            while True:
                p = rng.permutation(5)
                if (p != np.arange(5)).all():
                    break
            self.after.append(row[p])
        self.after = np.array(self.after)

    def rates(self, step, persona):
        return (R if self.shock_at is None or step < self.shock_at else self.after)[persona][np.arange(50) // 10]

    def at(self, step):
        rng = np.random.default_rng([self.seed, 2, step])
        u = int(rng.integers(1000))
        return u, u % 4, rng.random(50)


SCHEMA = FeatureSchema.model_validate(
    {
        "context": {"persona": {"type": "categorical", "levels": P}},
        "item": {"category": {"type": "categorical", "levels": C}},
        "crosses": [["persona", "category"]],
        "hash_dims": 0,
    }
)


def run_twin(
    policy_kind: str,
    params: Mapping[str, Any],
    *,
    steps: int,
    seed: int,
    snapshot_period: int = 100,
    reward_delay: int = 16,
    shock_at: int | None = None,
    floor: float = 0.01,
    history: int = 0,
    schema: FeatureSchema = SCHEMA,
    scale: float = 1.0,
    columns=slice(None),
) -> Array:
    world = StandIn(seed, shock_at)
    encoder = Encoder(schema)
    block = encoder.items([{"category": C[i // 10]} for i in range(50)])
    X = np.stack([encoder.encode({"persona": p}, block) for p in P])[:, :, columns] * np.float32(scale)
    ids = [f"product-{i:02d}" for i in range(50)]
    kind = KINDS[policy_kind]
    policy = kind(X.shape[2], kind.Params.model_validate(params), seed=seed)
    if history:
        rng = np.random.default_rng([seed, 3])
        user, item = rng.integers(0, 1000, history), rng.integers(0, 50, history)
        r = rng.random(history) < R[user % 4, item // 10]
        batch = Batch(X[user % 4, item], [ids[i] for i in item], [f"user-{u}" for u in user], r.astype(float), np.full(history, 0.02))
        policy.update(batch)
        if kind.batch_trained:
            policy.train([batch])
    expected = np.empty(steps)
    log: list[tuple[Array, str, str, float, float]] = []
    learned = 0
    scorer = None
    for step in range(steps):
        if step % snapshot_period == 0:
            arrived = log[learned : max(0, step - reward_delay)]
            if arrived:
                x, item_, user_, reward, propensity = zip(*arrived, strict=True)
                policy.update(Batch(np.stack(x), item_, user_, np.array(reward), np.array(propensity)))
                learned += len(arrived)
            scorer = kind.scorer(policy.snapshot(), d=policy.d, params=policy.params)
        u, persona, luck = world.at(step)
        x = X[persona]
        estimates = scorer.estimate(Candidates(x, ids, f"user-{u}"))
        [pick] = draw_slate(scorer, estimates, k=1, floor=floor, seed=seed_of("twin", f"{seed}-{step}"))
        rates = world.rates(step, persona)
        expected[step] = rates[pick.row]
        log.append((x[pick.row], ids[pick.row], f"user-{u}", float(luck[pick.row] < rates[pick.row]), pick.propensity))
    return expected
