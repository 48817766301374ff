"""The README's own call, with ids and nothing declared: the default policy learns from it.

The world `ids` of our study: four segments, four items without features, one item matched to each segment (.6, else
.2). Snapshots and rewards come 25 decisions late. Without ids in the rows the gain was .0; with them .98 to 1.00.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from service.decide.active import build_scorer
from service.decide.catalogue import Catalogue
from service.decide.decision import decide
from service.learn.trainer import Trainer
from service.records import Event
from service.represent.encoder import Encoder
from service.represent.schema import FeatureSchema
from tests.builders import policy_of
from tests.decide.builders import active_of, request_of, served_of

STEPS, LATE = 1500, 25


def gain(seed: int, schema: FeatureSchema) -> float:
    """(shown - random) / (best - random), of expected rewards, over the last fifth of the run."""
    rng = np.random.default_rng(seed)
    click = np.where(np.eye(4, dtype=bool)[rng.permutation(4)], 0.6, 0.2)  # (segments, items)
    encoder = Encoder(schema)
    catalogue = Catalogue.of(1, {f"i{item}": {} for item in range(4)}, encoder)
    record = policy_of("adaptive", detect_change=True)
    trainer = Trainer(record, d=encoder.d, reward_range=(0.0, 1.0))
    waiting: deque[Event] = deque()
    shown = []
    for step in range(STEPS):
        if step % LATE == 0:
            trainer.apply([waiting.popleft() for _ in range(max(0, len(waiting) - LATE))])
            scorer = build_scorer(record, trainer.policy.snapshot(), encoder)
        segment = int(rng.integers(4))
        context = {"seg": f"s{segment}"}
        active = active_of(
            traffic={"p": 1.0}, served={"p": served_of("p", scorer)}, catalogue=catalogue, encoder=encoder
        )
        decision, rows = decide(request_of(f"{seed}-{step}", context=context), active, at=0.0)
        [item] = decision.items
        p = click[segment, int(item.id[1:])]
        shown.append(p)
        reward = float(rng.random() < p)
        waiting.append(
            Event(
                position=f"{step + 1}-0",
                decision_id=decision.decision_id,
                item=item.id,
                user=None,
                context=context,
                x=rows[0],
                n=4,
                propensity=item.propensity,
                policy="p",
                version=1,
                reward=reward,
                source="feedback",
                slate_position=step,
            )
        )
    return float((np.mean(shown[-STEPS // 5 :]) - 0.3) / 0.3)


@pytest.mark.parametrize("seed", [11, 12])
def test_ids_are_enough(seed: int) -> None:
    assert gain(seed, FeatureSchema()) > 0.85


def test_without_ids_nothing_can_be_learned() -> None:
    """The check can fail: rows that are equal teach nothing about which item to show."""
    assert gain(11, FeatureSchema(item_ids=False)) < 0.3
