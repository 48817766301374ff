"""Checks what a decision is drawn from against a simple version, which multiplies out every row and every draw."""

from __future__ import annotations

from functools import cache
from typing import Any
from zlib import crc32

import numpy as np
import orjson
import pytest

from service.layout import Layout, Rows
from service.policies import Arrays, Candidates, Ids, Ranked, Scorer
from service.policies.adaptive import Adaptive
from service.policies.adaptive_layers import DRAWS, AdaptiveOnLayers, AdaptiveParams
from service.policies.effects import Effects, ServedEffects
from service.policies.ensemble import TIE, WIDTHS, noise
from service.policies.linalg import unpack
from tests.builders import Array, batch_of, candidates_of, scorer_of
from tests.policies.conformance import ALL, requests, taught

P, C = 6, 5  # columns of an item and of a context, the constants among them
LAYOUT = Layout(P * C, C, P)
PARAMS = AdaptiveParams()


def rows_of(n: int, seed: int) -> Rows:
    """Draw one context with n items, as a learned schema lays them out; some items are alike, most columns are 0."""
    rng = np.random.default_rng(seed)
    z = (rng.integers(0, 3, (n, P)) * (rng.random((n, P)) < 0.6) / 2).astype(np.float64)
    z[:, 0] = 1.0
    c = (rng.random(C) * (rng.random(C) < 0.6)).astype(np.float32)
    c[0] = 1.0
    shared = [(left, right) for left in range(C) for right in range(P)]
    pairs = [*shared, *((left, 0) for left in range(C)), *((0, right) for right in range(P))]
    left, right = np.array(pairs).T
    return Rows(z, right, c[left] * np.float32(0.3), P)


@cache
def snapshots() -> tuple[Arrays, Arrays]:
    """Teach both versions of the default policy 600 events of 20 items and 9 users."""
    rng = np.random.default_rng(3)
    x = np.concatenate([rows_of(1, seed).dense() for seed in range(600)])
    item, user = [f"i{at}" for at in rng.integers(0, 20, 600)], [f"u{at}" for at in rng.integers(0, 9, 600)]
    reward = (rng.random(600) < 0.2 + 0.6 * (x[:, 9] > 0)).astype(np.float64)
    plain, layers = Adaptive(LAYOUT.d, PARAMS), AdaptiveOnLayers(LAYOUT, PARAMS)
    for policy in (plain, layers):
        policy.update(batch_of(x, reward, item, user=user))
    return plain.snapshot(), layers.snapshot()


def of_ids(ids: list[str], stored: Array) -> list[int]:
    known = orjson.loads(bytes(stored))
    return [known.index(one) if one in known else -1 for one in ids]


def plain_draws(of: Arrays, x: Array, ids: list[str]) -> tuple[Array, Array, Array]:
    """Compute f, spread and t (MEMBERS, n) of `adaptive`, from rows (n, d)."""
    rows = of_ids(ids, of["items"])
    intercept, variance = np.append(of["intercept"], 0.0)[rows], np.append(of["variance"], 1 / PARAMS.item_ridge)[rows]
    of_features = x.astype(np.float64) @ of["root"].T
    length = np.linalg.norm(of_features, axis=1)
    f, spread = x @ of["mean"] + intercept, PARAMS.alpha * np.sqrt(length**2 + variance)
    return f, spread, of["noise"] @ (of_features / np.maximum(length, 1e-150)[:, None]).T


def layered_draws(of: Arrays, x: Array, ids: list[str], user: str | None) -> tuple[Array, Array, Array]:
    """Compute the same of `adaptive` on layers."""
    shared, of_item, of_user = LAYOUT.split(x.astype(np.float64))
    own_draws = noise(0, 0, DRAWS).astype(np.float64)
    draws = of["draws"].astype(np.float64) @ shared.T
    f, variance = shared @ of["mean"], (draws**2).mean(axis=0)
    for at, row in enumerate(of_ids(ids, of["items"])):
        prior = np.eye(C) / PARAMS.ridge
        mean, S = (of["items_mean"][row], unpack(of["items_S"], C)[row]) if row >= 0 else (np.zeros(C), prior)
        own = of_item[at] @ S @ of_item[at]
        f[at], variance[at] = f[at] + of_item[at] @ mean, variance[at] + own
        draws[:, at] += np.sqrt(own) * own_draws[:, crc32(ids[at].encode()) % DRAWS]
    if user is not None:
        [row] = of_ids([user], of["users"])
        prior = np.eye(P) / PARAMS.ridge
        mean, S = (of["users_mean"][row], unpack(of["users_S"], P)[row]) if row >= 0 else (np.zeros(P), prior)
        f, variance = f + of_user @ mean, variance + np.vecdot(of_user @ S, of_user)
        draws += own_draws[:, -P:] @ (of_user @ np.linalg.cholesky(S + 1e-7 * np.eye(P))).T
    return f, PARAMS.alpha * np.sqrt(variance), draws / np.sqrt(variance)


def plain_pmf(f: Array, spread: Array, t: Array) -> Array:
    """Compute the pmf as `ensemble.Bounds` says, for all members and candidates at once."""
    out = f + WIDTHS.max() * spread < f.max() - TIE
    t = np.where(out, 0.0, np.maximum(t, 0.0))
    index = f + WIDTHS[:, None] * spread * (t / np.maximum(t.max(axis=1, keepdims=True), 1e-20))
    index[:, out] = -np.inf
    best = index.max(axis=1, keepdims=True)
    won = index >= best - TIE * (1 + np.abs(best))
    pmf: Array = (won / won.sum(axis=1, keepdims=True)).mean(axis=0)
    return pmf


@pytest.mark.parametrize("n", [1, 2, 7, 50, 300])
@pytest.mark.parametrize("user", [None, "u3", "nobody"])
def test_a_decision_is_drawn_from_the_pmf_of_the_simple_version(n: int, user: str | None) -> None:
    """A member that is undecided to the last bit may fall to another candidate; here none is."""
    whole = Ids([f"i{at}" for at in range(2 * n)])
    for seed in range(12):
        rows, at = rows_of(n, seed), np.random.default_rng(seed).permutation(2 * n)[:n]
        ids, x = [whole[row] for row in at], rows_of(n, seed).dense()
        plain, layers = snapshots()
        for drawn, scorer in (
            (plain_draws(plain, x, ids), scorer_of(Adaptive(LAYOUT.d, PARAMS), plain)),
            (layered_draws(layers, x, ids, user), layered(layers)),
        ):
            f, spread, t = drawn
            for items in (ids, whole.take(at)):
                ranked = scorer.rank(Candidates(rows, items, user))
                assert np.abs(ranked.pmf() - plain_pmf(f, spread, t)).max() <= 1e-5
                assert ranked.score(0) == pytest.approx(1 / (1 + np.exp(-f[0])), abs=1e-6)
                left = np.flatnonzero(np.arange(n) % 3)
                if len(left):
                    found = plain_pmf(f[left], spread[left], t[:, left])
                    assert np.abs(ranked.pmf(left) - found).max() <= 1e-5


def layered(snapshot: Arrays) -> Scorer:
    return AdaptiveOnLayers.scorer(snapshot, d=LAYOUT.d, params=PARAMS)


@pytest.mark.parametrize("kind", [ALL["adaptive"], ALL["adaptive on layers"], ALL["popularity"]])
def test_the_ranked_say_what_estimates_and_pmf_say(kind: Any) -> None:
    scorer = scorer_of(taught(kind))
    for request in requests():
        estimates, ranked = scorer.estimate(request), scorer.rank(request)
        n = len(request.item)
        assert len(ranked) == n
        np.testing.assert_allclose([ranked.score(row) for row in range(n)], estimates[:, 0], rtol=1e-12)
        left = np.arange(n // 2, n)
        for found, expected in (
            (ranked.pmf(), scorer.pmf(estimates)),
            (ranked.pmf(left), scorer.pmf(estimates[left])),
        ):
            assert np.abs(found - expected).max() <= 1e-5
            assert abs(found.sum() - 1) <= 1e-12


def test_a_second_request_of_a_user_is_scored_as_the_first() -> None:
    snapshot = snapshots()[1]
    scorer, ids = layered(snapshot), [f"i{at}" for at in range(30)]
    asked = [Candidates(rows_of(30, seed), ids, f"u{seed % 4}") for seed in range(40)]
    together = [scorer.rank(one).pmf().tobytes() for one in asked]
    assert together == [layered(snapshot).rank(one).pmf().tobytes() for one in asked]


def test_without_a_rival_nothing_is_drawn() -> None:
    one = candidates_of(np.zeros((1, LAYOUT.d)), "i0")
    assert scorer_of(Adaptive(LAYOUT.d, PARAMS)).rank(one).pmf().tolist() == [1.0]
    assert isinstance(scorer_of(taught(ALL["random"])).rank(one), Ranked)


@pytest.mark.parametrize("m", [3, 400])
def test_effects_on_one_context_are_those_on_rows_that_are_all_alike(m: int) -> None:
    rng = np.random.default_rng(4)
    effects = Effects(5, ridge=0.5)
    for number in range(2 * m):
        effects.enter([f"i{number % m}"], rng.standard_normal((1, 5)))
        mean, variance = effects.look(0)
        effects.learn(0, 0.3 * (1.0 - mean), 0.3 / (1.0 + variance))
        effects.leave()
    served, ids = ServedEffects(effects.snapshot("of"), "of", 5, ridge=0.5), ["i2", "new", "i0", "i2"]
    x = np.array([1.0, 0.0, -0.5, 0.0, 2.0], dtype=np.float32)
    for found, expected in zip(served.of_each(ids, x), served.of_each(ids, np.tile(x, (4, 1))), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)
