"""Effects of one's own: a small Gaussian for each id."""

from __future__ import annotations

import numpy as np
import pytest

from service.policies.effects import Effects, ServedEffects


def observe(effects: Effects, one: str, x: list[float], target: float) -> None:
    """Learn y = aᵀx + N(0, 1) as a Kalman filter does."""
    effects.enter([one], np.array([x]).reshape(1, -1))
    mean, variance = effects.look(0)
    g = 1.0 / (1.0 + variance)
    effects.learn(0, g * (target - mean), g)
    effects.leave()


def mean_of(effects: Effects, one: str, x: list[float]) -> float:
    """Return the effect's mean for one id."""
    return float(effects.means_of([one], np.array([x]))[0])


def test_an_id_has_the_posterior_of_its_own_observations() -> None:
    rng = np.random.default_rng(1)
    X, y = rng.standard_normal((30, 3)), rng.standard_normal(30)
    effects = Effects(3, ridge=0.5)
    for x, target in zip(X, y, strict=True):
        observe(effects, "a", x.tolist(), target)
        observe(effects, "b", rng.standard_normal(3).tolist(), 5.0)
    S = np.linalg.inv(0.5 * np.eye(3) + X.T @ X)
    served = ServedEffects(effects.snapshot("of"), "of", 3, ridge=0.5)
    mean, covariance = served.of_one("a")
    np.testing.assert_allclose(mean, S @ X.T @ y, rtol=1e-5)
    np.testing.assert_allclose(covariance, S, rtol=1e-5)
    probe = rng.standard_normal((2, 3)).astype(np.float32)
    means, variances = served.of_each(["a", "never seen"], probe)
    np.testing.assert_allclose(means, [S @ X.T @ y @ probe[0], 0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(variances, [probe[0] @ S @ probe[0], probe[1] @ probe[1] / 0.5], rtol=1e-4)


def test_forgetting_fades_to_the_prior() -> None:
    effects, half = Effects(2, ridge=2.0), Effects(2, ridge=2.0)
    for _ in range(4):
        observe(effects, "a", [1.0, 0.5], 1.0)
    for _ in range(2):
        observe(half, "a", [1.0, 0.5], 1.0)
    effects.forget(0.5)
    np.testing.assert_allclose(effects.state("of")["of_S"], half.state("of")["of_S"], rtol=1e-12)
    np.testing.assert_allclose(effects.state("of")["of_mean"], half.state("of")["of_mean"], rtol=1e-12)
    effects.forget(0)
    assert mean_of(effects, "a", [1.0, 1.0]) == 0.0


def test_no_more_ids_are_kept_than_the_limit_and_the_longest_unseen_go() -> None:
    effects = Effects(1, ridge=1.0, limit=20)
    for number in range(200):
        observe(effects, f"u{number}", [1.0], 1.0)
        observe(effects, "regular", [1.0], 1.0)
        assert len(effects.ids) <= 20
    kept = list(effects.ids)
    assert "regular" in kept
    assert {f"u{number}" for number in range(190, 200)} <= set(kept)
    assert mean_of(effects, "u0", [1.0]) == 0.0
    assert mean_of(effects, "regular", [1.0]) > 0.9


@pytest.mark.parametrize("limit", [None, 12])
def test_a_loaded_state_goes_on_bit_for_bit(limit: int | None) -> None:
    effects, other = Effects(2, ridge=1.0, limit=limit), Effects(2, ridge=1.0, limit=limit)
    rng = np.random.default_rng(3)
    for number in range(30):
        observe(effects, f"u{number % 17}", rng.standard_normal(2).tolist(), 1.0)
    other.load("of", effects.state("of"))
    for each in (effects, other):
        again = np.random.default_rng(4)
        for number in range(30):
            observe(each, f"u{number % 23}", again.standard_normal(2).tolist(), 0.0)
    for name, array in effects.state("of").items():
        assert array.tobytes() == other.state("of")[name].tobytes()


def test_without_columns_nothing_is_learned() -> None:
    effects = Effects(0, ridge=1.0)
    observe(effects, "a", [], 1.0)
    effects.forget(0.5)
    means, variances = ServedEffects(effects.snapshot("of"), "of", 0, ridge=1.0).of_each(["a", "b"], np.zeros((2, 0)))
    assert means.tolist() == variances.tolist() == [0, 0]
