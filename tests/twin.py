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

PERSONAS = ["new_puppy_parent", "cat_connoisseur", "budget_shopper", "fish_hobbyist"]
CATEGORIES = ["Dog Food", "Dog Toy", "Cat Food", "Cat Toy", "Fish Supplies"]
RATES = np.array(  # (personas, categories)
    [
        [0.40, 0.50, 0.10, 0.05, 0.02],
        [0.05, 0.02, 0.55, 0.45, 0.05],
        [0.25, 0.15, 0.40, 0.20, 0.20],
        [0.02, 0.02, 0.10, 0.08, 0.60],
    ]
)
SCHEMA = FeatureSchema.model_validate(
    {
        "context": {"persona": {"type": "categorical", "levels": PERSONAS}},
        "item": {"category": {"type": "categorical", "levels": CATEGORIES}},
        "crosses": [["persona", "category"]],
        "hash_dims": 0,
    }
)


class PetShop:
    """50 products, 1 000 users of 4 personas; at `shock_at` each persona's rates move to other categories."""

    products = tuple(f"product-{i:02}" for i in range(50))
    categories = np.arange(50) // 10
    users = 1000

    def __init__(self, seed: int, shock_at: int | None) -> None:
        self.seed, self._shock_at = seed, shock_at
        rng = np.random.default_rng([seed, 0])
        self._swapped = np.stack([row[_derangement(rng, len(row))] for row in RATES])

    def rates(self, step: int, persona: int) -> Array:
        """Click probability of each product: (50,)."""
        shocked = self._shock_at is not None and step >= self._shock_at
        rates: Array = (self._swapped if shocked else RATES)[persona, self.categories]
        return rates

    def visit(self, step: int) -> tuple[int, Array]:
        """The user at this step, and the luck of each product: (50,) uniform."""
        rng = np.random.default_rng([self.seed, 1, step])
        return int(rng.integers(self.users)), rng.random(len(self.products))

    def history(self, size: int) -> tuple[Array, Array, Array]:
        """Users, products and clicks (size,) of uniformly random impressions before the first step."""
        rng = np.random.default_rng([self.seed, 2])
        user, product = rng.integers(self.users, size=size), rng.integers(len(self.products), size=size)
        click = rng.random(size) < RATES[user % len(PERSONAS), self.categories[product]]
        return user, product, click.astype(np.float64)


def _derangement(rng: np.random.Generator, n: int) -> Array:
    while True:
        order = rng.permutation(n)
        if (order != np.arange(n)).all():
            return order


def run_twin(
    policy_kind: str,
    params: Mapping[str, Any],
    *,
    steps: int,
    seed: int,
    snapshot_period: int,
    reward_delay: int,
    shock_at: int | None = None,
    history: int = 0,
    floor: float = 0.01,
) -> Array:
    """Expected click rate of the product shown at each step: (steps,).

    Args:
        policy_kind: a kind of `service.policies`, with its `params`.
        seed: of the world, the policy and the draws.
        snapshot_period: decisions from one snapshot to the next.
        reward_delay: decisions that are made between a decision and the arrival of its reward.
        shock_at: the step of the taste-swap.
        history: uniformly random impressions to learn from, or train on, beforehand.
        floor: the loop's exploration floor.
    """
    world, encoder = PetShop(seed, shock_at), Encoder(SCHEMA)
    block = encoder.items([{"category": CATEGORIES[c]} for c in world.categories])
    x = np.stack([encoder.encode({"persona": persona}, block) for persona in PERSONAS])  # (personas, n, d)
    kind = KINDS[policy_kind]
    policy = kind(encoder.d, kind.Params.model_validate(params), seed=seed)

    def batch(user: Array, product: Array, reward: Array, propensity: Array) -> Batch:
        return Batch(
            x[user % len(PERSONAS), product],
            [world.products[p] for p in product],
            [f"user-{u}" for u in user],
            reward,
            propensity,
        )

    if history:
        past = batch(*world.history(history), np.full(history, 1 / len(world.products)))
        policy.update(past)
        if policy.batch_trained:
            policy.train([past])

    users, shown = np.zeros(steps, dtype=np.intp), np.zeros(steps, dtype=np.intp)
    rewards, propensities, expected = np.zeros(steps), np.zeros(steps), np.zeros(steps)
    learned = 0
    for step in range(steps):
        if step % snapshot_period == 0:
            new = slice(learned, max(0, step - reward_delay))
            if new.start < new.stop:
                policy.update(batch(users[new], shown[new], rewards[new], propensities[new]))
                learned = new.stop
            scorer = kind.scorer(policy.snapshot(), d=encoder.d, params=policy.params)
        user, luck = world.visit(step)
        persona = user % len(PERSONAS)
        estimates = scorer.estimate(Candidates(x[persona], world.products, f"user-{user}"))
        [pick] = draw_slate(scorer, estimates, k=1, floor=floor, seed=seed_of("twin", f"{seed}-{step}"))
        rate = world.rates(step, persona)[pick.row]
        users[step], shown[step] = user, pick.row
        rewards[step], propensities[step], expected[step] = float(luck[pick.row] < rate), pick.propensity, rate
    return expected
