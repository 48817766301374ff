"""Which fields does a policy predict by: the true pair comes first, and noise is told from it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from service.evaluate.importance import Findings, Observed, fields_of, importance
from service.policies import KINDS, Arrays, Scorer
from service.represent.parts import Pair
from tests.represent.builders import encoder

NOISE = 4
LEVELS = {"type": "categorical", "levels": ["a", "b"]}


def world(seed: int, events: int, *, noise: int = NOISE) -> list[Observed]:
    """A shop where persona a likes kind a and b kind b, the price matters a little, and all else is noise."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(events):
        context: dict[str, Any] = {f"n{number}": "ab"[rng.integers(2)] for number in range(noise)}
        context["persona"] = "ab"[rng.integers(2)]
        item = int(rng.integers(4))
        features = {"kind": "ab"[item % 2], "colour": "ab"[item // 2]}
        chance = 0.8 if features["kind"] == context["persona"] else 0.3
        user = f"u{rng.integers(5)}"
        found.append(Observed(context, features, f"i{item}", user, float(rng.random() < chance), 0.25))
    return found


def schema(noise: int = NOISE) -> dict[str, Any]:
    context = {name: LEVELS for name in ("persona", *(f"n{number}" for number in range(noise)))}
    item = {"kind": LEVELS, "colour": LEVELS}
    return {"context": context, "item": item, "crosses": [[one, other] for one in context for other in item]}


def found_in(kind: str, events: list[Observed], *, noise: int = NOISE, confidence: float = 0.95) -> Findings:
    rows = encoder(schema(noise), hash_dims=0)
    params = KINDS[kind].Params()
    policy = KINDS[kind](rows.d, params, seed=1)

    def scorer_of(snapshot: Arrays) -> Scorer:
        return KINDS[kind].scorer(snapshot, d=rows.d, params=params)

    steps = importance(policy, scorer_of, rows, events, confidence=confidence)
    learned = 0
    try:
        while True:
            learned = next(steps)
    except StopIteration as stop:
        assert learned == len(events)
        result: Findings = stop.value
        return result


@pytest.mark.parametrize("kind", ["adaptive", "lin_ts"])
def test_the_pair_that_matters_is_first_and_noise_is_not_found(kind: str) -> None:
    events = world(1, 900)
    found = found_in(kind, events)
    assert len(found.found) == len(fields_of(events)) == 5 + 2 + 10
    assert found.held_out == 600, "whole blocks of the newest three quarters"
    assert 0.15 < found.loss < 0.25
    first = next(one for one in found.found if None not in one.pair)
    assert first.pair == Pair("persona", "kind")
    assert first.loss.low > 0
    assert {one.pair for one in found.found[:3]} == {Pair("persona", "kind"), Pair("persona", None), Pair(None, "kind")}
    noise = [one.loss for one in found.found if one.pair.context is not None and one.pair.context.startswith("n")]
    assert all(one.low <= 0 <= one.high for one in noise)


def test_what_the_pair_adds_is_twice_the_variance_of_what_it_explains() -> None:
    """A policy that knows the truth predicts .8 or .3: ±.25 around the mean, by the pair alone."""
    found = found_in("lin_ts", world(2, 2000, noise=0), noise=0, confidence=0.999)
    [pair] = [one.loss for one in found.found if one.pair == Pair("persona", "kind")]
    assert pair.low < 2 * 0.25**2 < pair.high
    assert pair.half_width < 0.09
    [kind] = [one.loss for one in found.found if one.pair == Pair(None, "kind")]
    assert kind.low < 2 * 0.25**2 < kind.high, "the field by itself matters by its pair"


def test_a_policy_that_predicts_by_nothing_finds_nothing() -> None:
    found = found_in("random", world(3, 250))
    assert [one.loss.estimate for one in found.found] == [0.0] * len(found.found)


def test_too_few_events_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        found_in("lin_ts", world(3, 1))


def test_each_interval_is_wide_enough_for_all_together() -> None:
    assert found_in("lin_ts", world(4, 200)).confidence == pytest.approx(1 - 0.05 / 17)
    assert math.isclose(found_in("lin_ts", world(4, 200, noise=0), noise=0).confidence, 1 - 0.05 / 5)
