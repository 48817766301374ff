"""Measures how often the intervals of `rebound evaluate` hold, on simulated logs whose truth is known.

make bench ARGS='-s tests/benchmarks/test_coverage_of_intervals.py'            # 500 logs a scenario

Visits and their expected rewards are those of the simulator's worlds. A log has 4 decisions of each user. What served
and the target are soft choices by two models of the rewards, with a floor; in `learning` both are models of the clicks
so far, which take in what was logged every 100 decisions.

An interval for one look holds if it has the difference of the two values over the world's visits in it. One that holds
at any time holds if it has, at every look, the mean difference of the expected rewards of the visits so far in it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from service.evaluate.comparison import Comparison, compare
from service.evaluate.estimators import Evidence
from service.evaluate.intervals import lower_sequence
from simulator.world import WORLDS

Array = NDArray[Any]

VISITS = 1000  # of a world
EACH = 4  # decisions of a user
BLOCK = 100
ROWS = [("ips", "bootstrap"), ("snips", "bootstrap"), ("dr", "bootstrap"), ("ips", "bernstein")]


class Log(NamedTuple):
    """A simulated log: evidence, the difference of the values, and of the expected rewards of each visit (B,)."""

    evidence: Evidence
    difference: float
    each: Array


def rates_of(world: str) -> Array:
    """Return the expected rewards of the items at each of a world's visits: (VISITS, n)."""
    made = WORLDS[world](1)
    return np.stack([made.at(step).rates for step in range(VISITS)])


def soft(model: Array, floor: float, *, sharpness: float = 2.0) -> Array:
    """Choose softly by a model's rewards (B, n)."""
    sharp = np.exp(sharpness * (model - model.max(axis=-1, keepdims=True)) / model.std())
    pmf: Array = (1 - floor) * sharp / sharp.sum(axis=-1, keepdims=True) + floor / model.shape[-1]
    return pmf


def drawn(rng: np.random.Generator, rates: Array, pmf: Array) -> tuple[Array, Array]:
    """Draw items and clicks: (B,), (B,)."""
    cdf = pmf.cumsum(axis=1)
    item = (cdf < rng.random((len(pmf), 1)) * cdf[:, -1:]).sum(axis=1)
    return item, (rng.random(len(pmf)) < rates[np.arange(len(pmf)), item]).astype(np.float64)


def log_of(user: Array, item: Array, reward: Array, pmfs: tuple[Array, Array], model: Array, floor: float) -> Evidence:
    """Gather what a log says; pmfs are those of what served and of the target, (B, n) each."""
    behaviour, target = pmfs
    row = np.arange(len(item))
    return Evidence(
        reward=reward,
        propensity=behaviour[row, item],
        target=target[row, item],
        predicted=model[row, item],
        expected=(target * model).sum(axis=1),
        least=np.full(len(item), floor / model.shape[1]),
        user=user,
    )


def by_models(
    rng: np.random.Generator, rates: Array, size: int, *, floor: float = 0.1, scale: float = 1.0, shock: bool = False
) -> Log:
    """Simulate a log of two fixed policies."""
    rates = rates * scale
    noise = np.random.default_rng(7).normal(scale=rates.std(), size=(2, *rates.shape[1:]))
    after = rates[:, np.random.default_rng(8).permutation(rates.shape[1])] if shock else rates
    models = [rates + one for one in noise]
    pmfs = [soft(models[0], floor), soft(0.5 * models[1] + 0.5 * rates, floor)]
    visit = np.repeat(rng.integers(VISITS, size=size // EACH), EACH)
    user = np.repeat(np.arange(size // EACH), EACH)
    mixed = rng.permutation(size)
    visit, user = visit[mixed], user[mixed]
    true = np.concatenate([rates[visit[: size // 2]], after[visit[size // 2 :]]])
    behaviour, target = (pmf[visit] for pmf in pmfs)
    item, reward = drawn(rng, true, behaviour)
    difference = float(((pmfs[1] - pmfs[0]) * (rates + after) / 2).sum(axis=1).mean())
    evidence = log_of(user, item, reward, (behaviour, target), models[1][visit], floor)
    return Log(evidence, difference, ((target - behaviour) * true).sum(axis=1))


def learning(rng: np.random.Generator, rates: Array, size: int, *, floor: float = 0.1) -> Log:
    """Simulate a log of a policy that learns, judged for another that would have learned along."""
    n = rates.shape[1]
    tilt = 1 + 0.1 * np.random.default_rng(9).normal(size=n)  # what is believed at first
    shown, clicked = np.zeros(n), np.zeros(n)
    visit = np.repeat(rng.integers(VISITS, size=size // EACH), EACH)
    user = np.repeat(np.arange(size // EACH), EACH)
    mixed = rng.permutation(size)
    visit, user = visit[mixed], user[mixed]
    pmfs: list[list[Array]] = [[], []]
    models, items, rewards = [], [], []
    for start in range(0, size, BLOCK):
        block = visit[start : start + BLOCK]
        model = (clicked + 10 * rates.mean() * tilt) / (shown + 10)
        served = soft(model, floor)
        ahead = soft(model, floor, sharpness=3.0)
        for pmf, one in zip(pmfs, (served, ahead), strict=True):
            pmf.append(np.tile(one, (len(block), 1)))
        item, reward = drawn(rng, rates[block], pmfs[0][-1])
        shown += np.bincount(item, minlength=n)
        clicked += np.bincount(item, reward, minlength=n)
        models.append(np.tile(model, (len(block), 1)))
        items.append(item)
        rewards.append(reward)
    behaviour, target = (np.concatenate(pmf) for pmf in pmfs)
    evidence = log_of(
        user, np.concatenate(items), np.concatenate(rewards), (behaviour, target), np.concatenate(models), floor
    )
    difference = float(((target - behaviour) @ rates.mean(axis=0)).mean())
    return Log(evidence, difference, ((target - behaviour) * rates[visit]).sum(axis=1))


SCENARIOS: dict[str, tuple[str, int, Callable[..., Log], dict[str, Any]]] = {
    "petshop": ("petshop", 4000, by_models, {}),
    "petshop, short": ("petshop", 400, by_models, {}),
    "petshop, floor .01": ("petshop", 4000, by_models, {"floor": 0.01}),
    "latent": ("latent", 4000, by_models, {}),
    "rare clicks": ("petshop", 8000, by_models, {"scale": 0.05}),
    "shock": ("petshop", 4000, by_models, {"shock": True}),
    "learning": ("petshop", 4000, learning, {}),
}


def holds_at_every_look(log: Log, confidence: float = 0.95) -> tuple[bool, float]:
    """Return whether the sequence for the difference holds at each look, and its half width at the last."""
    weight, reward = log.evidence.weight, log.evidence.reward
    error = (1 - confidence) / 2
    truth = np.cumsum(log.each) / np.arange(1, len(reward) + 1)
    low = lower_sequence((weight - 1) * reward, least=-1, error=error)
    high = -lower_sequence((weight - 1) * (1 - reward), least=-1, error=error)
    return bool(((low <= truth) & (truth <= high)).all()), float(high[-1] - low[-1]) / 2


@pytest.mark.parametrize("name", SCENARIOS)
def test_intervals_hold_as_often_as_they_say(name: str, quick: bool) -> None:
    world, size, simulate, options = SCENARIOS[name]
    logs = 10 if quick else 500
    rates = rates_of(world)
    held: dict[str, list[bool]] = defaultdict(list)
    widths: dict[str, list[float]] = defaultdict(list)
    refused: dict[str, int] = defaultdict(int)
    for seed in range(logs):
        log = simulate(np.random.default_rng(seed), rates, size, **options)
        for estimator, interval in ROWS:
            row = f"{estimator}, {interval}"
            found = compare(log.evidence, estimator=estimator, interval=interval, confidence=0.95, seed=seed)
            if isinstance(found, Comparison):
                held[row].append(found.difference.low <= log.difference <= found.difference.high)
                widths[row].append(found.difference.half_width)
            else:
                refused[row] += 1
        holds, width = holds_at_every_look(log)
        held["ips, anytime"].append(holds)
        widths["ips, anytime"].append(width)
    for row in [*(f"{estimator}, {interval}" for estimator, interval in ROWS), "ips, anytime"]:
        share = f"{100 * np.mean(held[row]):.1f} %" if held[row] else "-"
        half = f"{np.median(widths[row]):.4f}" if widths[row] else "-"
        print(f"| {name} ({log.difference:+.4f}) | {row} | {share} | {half} | {100 * refused[row] / logs:.0f} % |")
    if quick:
        return
    for row, found_held in held.items():
        if len(found_held) >= logs / 2:
            least = 0.95 if row in ("ips, anytime", "ips, bernstein") else 0.93
            assert np.mean(found_held) >= least, row
