"""Computes exact selection probabilities from an ensemble of posterior draws that every snapshot carries.

Ensemble sampling (Lu & Van Roy 2017, arXiv:1705.07347): a decision follows one draw, a member of the ensemble, and
every member is equally likely. A candidate's probability is the share of the members that rank it first.
"""

from __future__ import annotations

import numpy as np

from service.policies.base import Array, sigmoid

MEMBERS = 128  # even
TIE = 1e-5  # relative difference of scores that counts as a tie: a matrix product rounds by its rows' positions

# Mean widths of the confidence bounds, one per member: quantiles of ½ + ½ Exp(1), mean 1. The two members of a ± pair
# are half the distribution apart.
WIDTHS = (0.5 - 0.5 * np.log1p(-((np.arange(MEMBERS) * 53 % MEMBERS + 0.5) / MEMBERS))).astype(np.float32)


def noise(seed: int, events: int, d: int) -> Array:
    """Draw (MEMBERS, d) float32 standard normal numbers in ± pairs, from a policy's seed and number of events."""
    half = np.random.default_rng((seed, events)).standard_normal((MEMBERS // 2, d), dtype=np.float32)
    return np.concatenate([half, -half])


def shares(scores: Array) -> Array:
    """Compute the pmf (n,) from scores (MEMBERS, n).

    Each member gives 1 / MEMBERS to its best candidate. Candidates that tie share it equally.
    """
    best = scores.max(axis=1, keepdims=True)
    member, row = np.nonzero(scores >= best - TIE * (1.0 + np.abs(best)))
    share = 1.0 / (MEMBERS * np.bincount(member))
    pmf: Array = np.bincount(row, weights=share[member], minlength=scores.shape[1])
    return pmf


def bounds(found: Array, intercept: Array, variance: Array, alpha: float) -> Array:
    """Compute the estimates of a logistic model for `directed_bounds_pmf`.

    Args:
        found: (n, 1 + d): mᵀx, then root x. The posterior of the weights is N(m, rootᵀ root).
        intercept: (n,), the intercept of each candidate.
        variance: (n,), the variance of each intercept.
        alpha: mean width of a bound, in standard deviations of the logit.

    Returns:
        (n, 3 + d): σ(f), the logit f, alpha times the standard deviation of f, and root x / |root x|.
    """
    of_features = found[:, 1:]
    squares = np.vecdot(of_features, of_features)
    estimates = np.empty((len(found), 2 + found.shape[1]))
    # Rounded to float32, so that equal candidates tie: a matrix product rounds by its rows' positions.
    estimates[:, 1] = (found[:, 0] + intercept).astype(np.float32)
    estimates[:, 2] = (alpha * np.sqrt(squares + variance)).astype(np.float32)
    estimates[:, 3:] = of_features / np.sqrt(np.maximum(squares, np.finfo(np.float64).tiny))[:, None]
    estimates[:, 0] = sigmoid(estimates[:, 1])
    return estimates


def directed_bounds_pmf(estimates: Array, members: Array) -> Array:
    """Compute the probability that each candidate has the highest confidence bound, where draws scale the bounds.

    Member k draws the deviation tᵢ = noise_k · directionᵢ of each candidate's value, in standard deviations. Its width
    z_k is one of WIDTHS. The candidate with the highest index wins:

        indexᵢ = fᵢ + z_k spreadᵢ uᵢ,   uᵢ = max(0, tᵢ) / maxⱼ tⱼ,

    where the maximum is over the candidates that could win at the largest width. The candidate that the draw favours
    most gets all of its bound, the others get less, and none gets less than f.

    This combines bounds of random width (RandUCB, Vaswani et al. 2020, arXiv:1910.04928) with optimistic Thompson
    sampling (May et al. 2012, "Optimistic Bayesian sampling in contextual-bandit problems"). Unlike the latter, it does
    not explore more when there are more candidates.

    Args:
        estimates: (n, 3 + d), from `bounds`: f, spread ≥ 0 and directions of length 1. The inner products of two
            directions are the correlations of the candidates' values.
        members: (MEMBERS, d), from `noise`.

    Returns:
        (n,), sum 1.
    """
    f, spread = estimates[:, 1], estimates[:, 2]
    rivals = _rivals(f, spread)
    return _pmf(f, spread, rivals, members @ estimates[rivals, 3:].astype(np.float32).T)


def favoured_pmf(f: Array, spread: Array, draws: Array) -> Array:
    """Compute the same from draws t (n, MEMBERS) of each candidate's value, in standard deviations.

    Args:
        f, spread: (n,), as in `bounds`.

    Returns:
        (n,), sum 1.
    """
    rivals = _rivals(f, spread)
    return _pmf(f, spread, rivals, draws[rivals].astype(np.float32).T)


def _rivals(f: Array, spread: Array) -> Array:
    """Return the candidates that could win at the largest width."""
    return np.flatnonzero(f + WIDTHS.max() * spread >= f.max() - TIE)


def _pmf(f: Array, spread: Array, rivals: Array, favour: Array) -> Array:
    """Compute the pmf (n,); `favour` (MEMBERS, rivals) holds t and is overwritten."""
    favour = favour.clip(min=0.0)
    favour *= WIDTHS[:, None] / np.maximum(favour.max(axis=1, keepdims=True), np.float32(1e-20))
    favour *= spread[rivals].astype(np.float32)
    favour += f[rivals].astype(np.float32)
    pmf = np.zeros(len(f))
    pmf[rivals] = shares(favour)
    return pmf
