"""Asks a policy what it would have chosen for a logged decision, and gathers the answers as evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.decide.active import ServedPolicy
from service.decide.catalogue import Catalogue
from service.decide.decision import with_floor
from service.decide.stage import Stage
from service.errors import NoCandidates
from service.evaluate.estimators import Evidence
from service.policies import Candidates
from service.records import Decision
from service.rules import Rules


@dataclass(frozen=True, slots=True)
class Outcome:
    """A logged decision of one item, and what it got."""

    decision: Decision
    reward: float  # share of the loop's reward range, in [0, 1]


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a target says of one logged decision. Rewards are shares of the loop's reward range."""

    chosen: float  # its probability of the logged item
    predicted: float  # the reward that it expects of that item
    expected: float  # the reward that it expects of its own choice


def opinion(
    decision: Decision, catalogue: Catalogue, target: ServedPolicy, reward_range: tuple[float, float]
) -> Opinion | None:
    """Ask a target about the candidates of a decision; None: they are not those of then.

    The exploration floor of then is mixed in, as it was for the policy that served. So a difference is not one of
    floors.

    Args:
        catalogue: at the decision's version, encoded for the target.
        target: with its encoder.
        reward_range: of the loop.
    """
    encoder = target.encoder
    assert encoder is not None, "the target has no encoder"
    stage: Stage | None = None
    if decision.rules is None:
        ids, block = catalogue.eligible(decision.candidates, decision.left_out, encoder, retrieved=decision.retrieved)
    else:
        rules = Rules.model_validate(decision.rules)
        try:
            ids, block, stage = catalogue.eligible_by_rules(
                decision.candidates, decision.left_out, rules, encoder, retrieved=decision.retrieved
            )
        except NoCandidates:
            return None
    [shown] = decision.items
    if len(ids) != decision.n or shown.id not in ids:
        return None
    row = list(ids).index(shown.id)
    x = encoder.encode(decision.context, block)  # (n, d)
    estimates = target.scorer.estimate(Candidates(x[:, : target.columns], ids, decision.user_id))  # (n, s)
    floor = decision.exploration_floor
    if stage is None:
        pmf = with_floor(target.scorer.pmf(estimates), floor)
    else:
        left = stage.left(0, [])
        pmf = np.zeros(len(ids))
        pmf[left] = with_floor(stage.weighed(target.scorer.pmf(estimates[left]), left), floor)
    low, high = encoder.reward_range or reward_range  # scores are shares of it
    score = (low + estimates[:, 0] * (high - low) - reward_range[0]) / (reward_range[1] - reward_range[0])
    return Opinion(float(pmf[row]), float(score[row]), float(pmf @ score))


def evidence(outcomes: Sequence[Outcome], opinions: Sequence[Opinion]) -> Evidence:
    """Gather outcomes and what a target says of them, in the order of the decisions.

    A decision without a user counts as one of a user of its own.

    Raises:
        ValueError: there are none, or a number is not finite.
    """
    decisions = [outcome.decision for outcome in outcomes]
    users: dict[object, int] = {}
    codes = [users.setdefault(d.decision_id if d.user_id is None else (d.user_id,), len(users)) for d in decisions]
    return Evidence(
        reward=np.array([outcome.reward for outcome in outcomes]),
        propensity=np.array([d.items[0].propensity for d in decisions]),
        target=np.array([o.chosen for o in opinions]),
        predicted=np.array([o.predicted for o in opinions]),
        expected=np.array([o.expected for o in opinions]),
        least=np.array([d.exploration_floor / d.candidates_for(0) for d in decisions]),
        user=np.array(codes),
    )
