"""Compares the policy `vw` with Vowpal Wabbit as its own users call it."""

from __future__ import annotations

import subprocess
import sys
from itertools import repeat
from typing import Any

import numpy as np
import pytest
from vowpalwabbit import Workspace

from service.policies import Batch
from service.policies.vw import VW, VWParams, examples, workspace
from tests.builders import Array, batch_of, estimates_of, pmf_of, scorer_of

D, N = 9, 7
RATE = 0.3
EXPLORE = {  # how we say it, and how VW's users do
    "squarecb": ({"gamma_scale": 3.0, "gamma_exponent": 0.25}, "--squarecb --gamma_scale 3 --gamma_exponent 0.25"),
    "epsilon": ({"epsilon": 0.2}, "--epsilon 0.2"),
    "softmax": ({"lambda_": 4.0}, "--softmax --lambda 4"),
    "regcb": ({"mellowness": 0.1}, "--regcb --mellowness 0.1 --cb_min_cost -1 --cb_max_cost 0"),
}
every_exploration = pytest.mark.parametrize("explore", EXPLORE)


def exploring(explore: str) -> VW:
    return VW(D, VWParams.model_validate({"explore": explore, "learning_rate": RATE, **EXPLORE[explore][0]}))


def rows(rng: np.random.Generator, n: int) -> Array:
    """Draw rows (n, D): the bias and three other columns of each are .5."""
    x = np.zeros((n, D), np.float32)
    x[np.arange(n)[:, None], 1 + rng.permuted(np.tile(np.arange(D - 1), (n, 1)), axis=1)[:, :3]] = 0.5
    x[:, 0] = 0.5
    return x


def events(size: int, *, seed: int = 0) -> Batch:
    """Draw clicks whose rate rises with column 1 and falls with column 2, under a uniform choice."""
    rng = np.random.default_rng(seed)
    x = rows(rng, size)
    rate = 0.4 + 0.8 * x[:, 1] - 0.6 * x[:, 2]
    reward = (rng.uniform(size=size) < rate).astype(float)
    return batch_of(x, reward, propensity=1 / N)


def text(row: Array) -> str:
    """Write a row in VW's text format, with names, which VW hashes."""
    return "| " + " ".join(f"column{i}:{v}" for i, v in enumerate(row.tolist()) if v)


def by_hand(explore: str, batch: Batch, *, others: int) -> Any:
    """Teach VW with its own hashing and 2¹⁸ weights, each chosen candidate among `others` more."""
    rng = np.random.default_rng(1)
    vw = Workspace(f"--cb_explore_adf {EXPLORE[explore][1]} --learning_rate {RATE} --noconstant --quiet")
    for x, r in zip(batch.x, batch.reward.tolist(), strict=True):
        chosen = f"0:{-r}:{1 / (1 + others)} {text(x)}"
        vw.learn([*map(text, rows(rng, others)), chosen])
    return vw


@every_exploration
def test_probabilities_are_those_that_vw_gives_its_own_users(explore: str) -> None:
    policy = exploring(explore)
    policy.update(events(400))
    theirs = by_hand(explore, events(400), others=0)
    x = rows(np.random.default_rng(2), N)
    ours = pmf_of(policy, x)
    assert np.ptp(ours) > 0.01
    np.testing.assert_allclose(ours, theirs.predict(list(map(text, x))), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("explore", ["epsilon", "softmax"])
def test_the_chosen_candidate_alone_teaches_what_it_does_among_the_others(explore: str) -> None:
    """With equal propensities VW weighs an event (1 / p) / n = 1 if it sees all n; the policy weighs it 1 / clip_p."""
    policy = exploring(explore)
    policy.update(events(400))
    theirs = by_hand(explore, events(400), others=N - 1)
    x = rows(np.random.default_rng(2), N)
    ours = pmf_of(policy, x)
    np.testing.assert_allclose(ours, theirs.predict(list(map(text, x))), rtol=1e-4, atol=1e-6)


def test_vw_gets_every_number_as_it_is() -> None:
    x = np.random.default_rng(0).normal(size=(100, D)).astype(np.float32) * np.logspace(-12, 12, D, dtype=np.float32)
    x[3], x[4, :-1] = 0, 0
    vw = workspace(D, VWParams())
    for row, example in zip(x, examples(vw, x, repeat("")), strict=True):
        index, value = zip(*example.iter_features(), strict=True) if row.any() else ((), ())
        assert value == tuple(row[row != 0].tolist())
        assert index == tuple(row.nonzero()[0].tolist())
        vw.finish_example([example])


def test_squarecb_by_its_formula() -> None:
    """p = 1 / (n + γ (best - r)) for all but the best, which gets the rest (Foster & Rakhlin 2020, section 3)."""
    policy = exploring("squarecb")
    policy.update(events(400))
    x = rows(np.random.default_rng(2), N)
    estimates = estimates_of(policy, x)
    r = estimates[:, 0]
    p = 1 / (N + 3.0 * 400**0.25 * (r.max() - r))
    p[r.argmax()] += 1 - p.sum()
    np.testing.assert_allclose(scorer_of(policy).pmf(estimates), p, rtol=1e-4)


def test_no_probability_is_negative_where_vw_has_one() -> None:
    policy, x = exploring("squarecb"), np.full((20_000, D), 0.5, np.float32)
    assert min(by_hand("squarecb", events(0), others=0).predict([text(x[0])] * len(x))) < 0
    assert pmf_of(policy, x).min() == 0


@every_exploration
def test_learns_the_rates(explore: str) -> None:
    policy = exploring(explore)
    policy.update(events(5000))
    x = rows(np.random.default_rng(2), 50)
    reward = estimates_of(policy, x)[:, 0]
    assert np.sqrt(np.mean((reward - (0.4 + 0.8 * x[:, 1] - 0.6 * x[:, 2])) ** 2)) < 0.1


def test_expects_what_the_scorer_showed() -> None:
    policy = VW(D, VWParams())
    policy.update(events(300))
    [after] = estimates_of(policy, events(1, seed=3).x)[:, 0]
    assert policy.update(events(1, seed=3)) == pytest.approx(after, rel=1e-5)
    assert abs(after) > 0.01


@pytest.mark.parametrize("explore", ["epsilon", "softmax"])
def test_an_unlikely_event_weighs_more_up_to_the_clip(explore: str) -> None:
    def after(propensity: float, clip_p: float) -> float:
        policy = VW(D, VWParams(explore=explore, clip_p=clip_p))
        batch = events(1, seed=3)
        policy.update(batch._replace(reward=np.ones(1), propensity=np.array([propensity])))
        return float(estimates_of(policy, batch.x)[0, 0])

    assert after(0.1, 0.01) > after(0.5, 0.01) > after(1.0, 0.01)
    assert after(0.1, 0.5) == after(0.5, 0.5) == after(np.nan, 0.5)


def test_the_rest_of_a_slate_has_what_the_first_left_in_its_proportions() -> None:
    scorer = scorer_of(VW(D, VWParams()))
    assert scorer.pmf(np.array([[0.3, 0.2], [0.1, 0.6]])).tolist() == pytest.approx([0.25, 0.75])
    assert scorer.pmf(np.array([[0.3, 0.0], [0.1, 0.0], [0.3, 0.0]])).tolist() == [0.5, 0, 0.5]


def test_forgetting_makes_room_for_the_new() -> None:
    """After tastes are reversed, the policy that forgot half learns it sooner."""
    old, new = events(3000), events(100, seed=4)
    new = new._replace(reward=1 - new.reward)
    truth = 1 - (0.4 + 0.8 * new.x[:, 1] - 0.6 * new.x[:, 2])
    off = {}
    for keep in (0.0, 0.5, 1.0):
        policy = VW(D, VWParams(learning_rate=0.2))
        policy.update(old)
        if keep < 1:
            policy.forget(keep)
        policy.update(new)
        reward = estimates_of(policy, new.x)[:, 0]
        off[keep] = np.mean((reward - truth) ** 2)
    assert off[0.0] < off[0.5] < off[1.0]


@every_exploration
def test_a_model_that_is_not_whole_is_refused(explore: str) -> None:
    policy = exploring(explore)
    policy.update(events(20))
    model = policy.snapshot()["model"]
    for bad in (model[:0], model[:5], model[:200], np.append(model, model), np.append(model, np.uint8(0)), ~model):
        with pytest.raises(ValueError, match="model"):
            VW.scorer({"model": bad}, d=D, params=policy.params)


def test_where_the_extra_is_missing_the_kind_is_known_and_says_what_to_install() -> None:
    code = """
import sys
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, *rest):
        return None if name.startswith("vowpalwabbit") else super().find_spec(name, *rest)
sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
from pydantic import ValidationError
from service.policies import KINDS
try:
    KINDS["vw"].Params.model_validate({"epsilon": 0.1})
except ValidationError as error:
    print(error.errors()[0]["msg"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "Value error, Vowpal Wabbit is not installed here: pip install 'rebound[vw]'\n"


def test_the_kinds_are_found_without_importing_vw() -> None:
    code = "import sys; from service.policies import KINDS; print('vw' in KINDS, 'vowpalwabbit' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"
