"""The loop in one process: the same policies on the same world as the arena, without HTTP, Redis or learner.

It does by hand what the service promises: encode, pmf, floor, one draw; a reward arrives `reward_delay` decisions after
its decision, in that order; every `snapshot_period` decisions all that has arrived is learned and served. So its
figures are those that the service must reach, whatever lies between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.decide.decision import draw_slate, seed_of
from service.decide.features import Encoder
from service.decide.schema import FeatureSchema
from service.policies import KINDS, Batch, Candidates
from simulator.shocks import find_shock
from simulator.world.petshop import PERSONAS, Petshop

Array = NDArray[Any]


class Row(NamedTuple):
    """One event, as the log would hold it."""

    x: Array
    item_id: str
    user_id: str
    reward: float
    propensity: float


def run_twin(
    policy_kind: str,
    params: Mapping[str, Any],
    *,
    steps: int,
    seed: int,
    snapshot_period: int,
    reward_delay: int,
    shock_at: int | None = None,
    shock: str = "taste-swap",
    history: int = 0,
    floor: float = 0.01,
) -> Array:
    """Expected click rate of the product shown at each step of the pet shop: (steps,).

    Args:
        policy_kind: a kind of `service.policies`, with its `params`.
        seed: of the world, the policy and the draws.
        snapshot_period: decisions from one snapshot to the next.
        reward_delay: decisions that are made between a decision and the arrival of its reward.
        shock_at: the step at which `shock` strikes.
        history: uniformly random impressions to learn from, or train on, beforehand.
        floor: the loop's exploration floor.
    """
    world = Petshop(seed, [] if shock_at is None else [(shock_at, find_shock(Petshop.name, shock))])
    encoder = Encoder(FeatureSchema.model_validate(Petshop.schema))
    kind = KINDS[policy_kind]
    policy = kind(encoder.d, kind.Params.model_validate(params), seed=seed)
    on_offer = world.initial().catalogue
    block = encoder.items([item.features for item in on_offer.items])
    if history:
        x_of = {persona: encoder.encode({"persona": persona}, block) for persona in PERSONAS}  # each (n, d)
        past = batch_of(
            Row(x_of[e["context"]["persona"]][on_offer.row[e["item_id"]]], *(e[name] for name in Row._fields[1:]))
            for e in world.history(history)
        )
        policy.update(past)
        if policy.batch_trained:
            policy.train([past])

    log: list[Row] = []
    expected = np.zeros(steps)
    learned = 0
    for step in range(steps):
        if step % snapshot_period == 0:
            arrived = max(0, step - reward_delay)
            if arrived > learned:
                policy.update(batch_of(log[learned:arrived]))
                learned = arrived
            scorer = kind.scorer(policy.snapshot(), d=encoder.d, params=policy.params)
        moment = world.at(step)
        if moment.catalogue is not on_offer:
            on_offer = moment.catalogue
            block = encoder.items([item.features for item in on_offer.items])
        x = encoder.encode(moment.visit.context, block)
        ids, user = [item.id for item in on_offer.items], moment.visit.user_id
        estimates = scorer.estimate(Candidates(x, ids, user))
        [pick] = draw_slate(scorer, estimates, k=1, floor=floor, seed=seed_of("twin", f"{seed}-{step}"))
        expected[step], clicked = moment.outcome(ids[pick.row])
        log.append(Row(x[pick.row], ids[pick.row], user, float(clicked), pick.propensity))
    return expected


def batch_of(rows: Iterable[Row]) -> Batch:
    """Events in log order."""
    x, item, user, reward, propensity = zip(*rows, strict=True)
    return Batch(np.stack(x), item, user, np.array(reward), np.array(propensity))
