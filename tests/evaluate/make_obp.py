"""Writes `obp.json`: 20 random problems, and what the Open Bandit Pipeline estimates in each.

Needs obp, in an environment of its own: `pip install --ignore-requires-python obp==0.5.7`, then
`python tests/evaluate/make_obp.py`. The suite reads the file alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import obp
from obp.ope import (
    DirectMethod,
    DoublyRobust,
    InverseProbabilityWeighting,
    SelfNormalizedInverseProbabilityWeighting,
    SlateIndependentIPS,
    SlateRewardInteractionIPS,
    SwitchDoublyRobust,
)

MOST = 1.5  # weight, of clipped IPS and SWITCH-DR


def rounded_pmf(rng: np.random.Generator, B: int, n: int) -> Any:
    """Draw pmfs (B, n) of few digits."""
    cuts = np.sort(rng.choice(np.arange(1, 1000), (B, n - 1)), axis=1)
    return np.diff(np.hstack([np.zeros((B, 1), int), cuts, np.full((B, 1), 1000)])) / 1000


def problem(seed: int, *, B: int = 12, n: int = 3, k: int = 2) -> dict[str, Any]:
    """Make arrays and OBP's estimates of them."""
    rng = np.random.default_rng(seed)
    behaviour, target = rounded_pmf(rng, B, n), rounded_pmf(rng, B, n)
    model = rng.random((B, n)).round(4)
    action = np.array([rng.choice(n, p=p) for p in behaviour])
    row = np.arange(B)
    reward = rng.binomial(1, 0.4, B) if seed % 2 else rng.random(B).round(4)
    logged = {"reward": reward, "action": action, "pscore": behaviour[row, action]}
    logged |= {"action_dist": target[:, :, None], "position": np.zeros(B, dtype=int)}
    modelled = logged | {"estimated_rewards_by_reg_model": model[:, :, None]}
    slate = {
        "slate_id": np.repeat(row, k),
        "position": np.tile(np.arange(k), B),
        "reward": rng.binomial(1, 0.4, B * k),
    }
    places = rng.uniform(0.2, 0.9, (4, B * k)).round(
        4
    )  # propensities and the target's: of the place alone, then given the places before
    return {
        "reward": reward.tolist(),
        "action": action.tolist(),
        "propensity": behaviour[row, action].tolist(),
        "target": target.tolist(),
        "model": model.tolist(),
        "slate_reward": slate["reward"].reshape(B, k).tolist(),
        "slate": places.reshape(4, B, k).tolist(),
        "estimates": {
            "ips": InverseProbabilityWeighting().estimate_policy_value(**logged),
            "clipped-ips": InverseProbabilityWeighting(lambda_=MOST).estimate_policy_value(**logged),
            "snips": SelfNormalizedInverseProbabilityWeighting().estimate_policy_value(**logged),
            "dm": DirectMethod().estimate_policy_value(
                action_dist=target[:, :, None],
                estimated_rewards_by_reg_model=model[:, :, None],
                position=logged["position"],
            ),
            "dr": DoublyRobust().estimate_policy_value(**modelled),
            "switch-dr": SwitchDoublyRobust(lambda_=MOST).estimate_policy_value(**modelled),
            "item-position": SlateIndependentIPS(len_list=k).estimate_policy_value(
                **slate, pscore_item_position=places[0], evaluation_policy_pscore_item_position=places[1]
            ),
            "cascade": SlateRewardInteractionIPS(len_list=k).estimate_policy_value(
                **slate,
                pscore_cascade=places[2].reshape(B, k).cumprod(axis=1).ravel(),
                evaluation_policy_pscore_cascade=places[3].reshape(B, k).cumprod(axis=1).ravel(),
            ),
        },
    }


if __name__ == "__main__":
    found = {"obp": obp.__version__, "most": MOST, "problems": [problem(seed) for seed in range(20)]}
    Path(__file__).with_name("obp.json").write_text(json.dumps(found, indent=None) + "\n")
