"""Checks the probabilities from an ensemble of draws against their definition, member by member."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from service.policies.ensemble import MEMBERS, TIE, WIDTHS, bounds, directed_bounds_pmf, noise, shares
from tests.builders import Array

D = 3


def estimates_of(mean: Array, spread: Array, directions: Array) -> Array:
    return np.column_stack([mean, mean, spread, directions / np.linalg.norm(directions, axis=1, keepdims=True)])


def defined(estimates: Array, members: Array) -> Array:
    """Compute the pmf from its definition, one member and one candidate at a time."""
    n = len(estimates)
    widest = max(WIDTHS.tolist())
    rivals = [i for i in range(n) if estimates[i, 1] + widest * estimates[i, 2] >= estimates[:, 1].max() - TIE]
    pmf = np.zeros(n)
    for member, z in zip(members, WIDTHS.tolist(), strict=True):
        drawn = {i: max(0.0, float(np.dot(member, estimates[i, 3:]))) for i in rivals}
        most = max(drawn.values())
        index = {i: estimates[i, 1] + z * estimates[i, 2] * (t / most if most else 0.0) for i, t in drawn.items()}
        best = [i for i in rivals if index[i] >= max(index.values()) - TIE * (1 + abs(max(index.values())))]
        pmf[best] += 1 / len(best) / MEMBERS
    return pmf


def test_widths_are_exponential_from_half_their_mean_on() -> None:
    assert abs(WIDTHS.mean() - 1) < 0.01
    assert WIDTHS.min() >= 0.5
    for z in (0.7, 1.0, 2.0):
        assert abs((z < WIDTHS).mean() - np.exp(-2 * (z - 0.5))) < 1 / MEMBERS


def test_noise_comes_in_pairs_and_is_new_after_every_event() -> None:
    first = noise(7, 100, D)
    assert first.shape == (MEMBERS, D)
    assert (first[: MEMBERS // 2] == -first[MEMBERS // 2 :]).all()
    assert (first == noise(7, 100, D)).all()
    assert not (first == noise(7, 101, D)).any()
    assert not (first == noise(8, 100, D)).any()


@settings(deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.floats(-3, 3), st.floats(0, 2), *[st.integers(-3, 3).filter(bool)] * D), min_size=1, max_size=8
    ),
    seed=st.integers(0, 99),
)
def test_it_is_the_share_of_members_under_which_a_candidate_has_the_highest_bound(
    rows: list[tuple[float, ...]], seed: int
) -> None:
    table, members = np.array(rows), noise(seed, 0, D)
    estimates = estimates_of(table[:, 0], table[:, 1], table[:, 2:])
    pmf = directed_bounds_pmf(estimates, members)
    assert abs(pmf.sum() - 1) < 1e-12
    # In float32 a member that is undecided between two may fall to the other.
    assert np.abs(pmf - defined(estimates, members)).sum() <= 4 / MEMBERS


def test_equal_candidates_share_and_unequal_ones_explore_in_turn() -> None:
    estimates = estimates_of(np.zeros(4), np.ones(4), np.eye(3)[[0, 0, 1, 2]])
    pmf = directed_bounds_pmf(estimates, noise(1, 0, D))
    assert pmf[0] == pmf[1]
    assert (np.abs(np.array([pmf[:2].sum(), pmf[2], pmf[3]]) - 1 / 3) < 0.1).all()


def test_a_candidate_behind_in_mean_and_in_spread_is_still_tried() -> None:
    """With one width for all candidates, as in RandUCB, its probability would be 0."""
    estimates = estimates_of(np.array([0.0, -0.2]), np.array([0.8, 0.7]), np.eye(3)[:2])
    pmf = directed_bounds_pmf(estimates, noise(1, 0, D))
    assert 0.1 < pmf[1] < pmf[0]


def test_without_features_it_is_one_width_for_all() -> None:
    """Candidates with equal rows differ by their intercepts only: half of the members widen all bounds."""
    estimates = estimates_of(np.array([0.0, -0.5]), np.array([0.1, 0.6]), np.eye(3)[[0, 0]])
    wide = (WIDTHS > 1.0).mean() / 2  # where -0.5 + 0.6 z is more than 0.1 z
    assert abs(directed_bounds_pmf(estimates, noise(1, 0, D))[1] - wide) < 0.1


def test_among_certain_candidates_the_best_wins() -> None:
    estimates = estimates_of(np.array([0.1, 0.3, 0.2]), np.zeros(3), np.eye(3))
    assert directed_bounds_pmf(estimates, noise(1, 0, D)).tolist() == [0, 1, 0]


def test_the_order_of_the_candidates_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    estimates = estimates_of(rng.normal(size=300), rng.random(300), rng.normal(size=(300, D)))
    order = rng.permutation(300)
    members = noise(1, 0, D)
    found = directed_bounds_pmf(estimates[order], members)
    assert np.abs(found - directed_bounds_pmf(estimates, members)[order]).sum() <= 2 / MEMBERS


def test_shares_are_counted() -> None:
    scores = np.zeros((MEMBERS, 3))
    scores[:32, 1] = 1.0  # elsewhere all three tie
    np.testing.assert_allclose(shares(scores.T), [0.25, 0.5, 0.25], atol=1e-15)


def test_bounds_are_logits_with_their_standard_deviations() -> None:
    found = np.array([[0.4, 3.0, 0.0, 4.0], [-0.2, 0.0, 0.0, 0.0]])
    estimates = bounds(found, np.array([0.1, 0.0]), np.array([11.0, 0.25]), alpha=0.5)
    np.testing.assert_allclose(estimates[:, 0], 1 / (1 + np.exp([-0.5, 0.2])), rtol=1e-6)
    np.testing.assert_allclose(estimates[:, 1], [0.5, -0.2], rtol=1e-6)
    np.testing.assert_allclose(estimates[:, 2], [3.0, 0.25], rtol=1e-6)
    np.testing.assert_allclose(estimates[:, 3:], [[0.6, 0.0, 0.8], [0.0, 0.0, 0.0]], atol=1e-12)
