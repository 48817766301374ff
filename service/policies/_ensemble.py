"""An ensemble of posterior draws that every snapshot carries: under how many a candidate wins is its exact propensity.

Ensemble sampling (Lu & Van Roy 2017, arXiv:1705.07347): a decision follows one member, each as likely as the other.
"""

from __future__ import annotations

import numpy as np

from service.policies._base import Array

MEMBERS = 128  # even
TIE = 1e-5  # of a score: equal candidates tie whatever order the matrix product added their rows in

# The quantiles of ½ + ½ Exp(1), mean 1. The two members of a ± pair are half the distribution apart.
WIDTHS = (0.5 - 0.5 * np.log1p(-((np.arange(MEMBERS) * 53 % MEMBERS + 0.5) / MEMBERS))).astype(np.float32)


def noise(seed: int, events: int, d: int) -> Array:
    """(MEMBERS, d) float32, standard normal, in ± pairs: what a policy's draws are made from after so many events."""
    half = np.random.default_rng((seed, events)).standard_normal((MEMBERS // 2, d), dtype=np.float32)
    return np.concatenate([half, -half])


def shares(scores: Array) -> Array:
    """pmf (n,) from scores (MEMBERS, n): each member gives 1 / MEMBERS to its best candidate; ties share."""
    best = scores.max(axis=1, keepdims=True)
    member, row = np.nonzero(scores >= best - TIE * (1.0 + np.abs(best)))
    share = 1.0 / (MEMBERS * np.bincount(member))
    pmf: Array = np.bincount(row, weights=share[member], minlength=scores.shape[1])
    return pmf


def bounds(found: Array, intercept: Array, variance: Array, alpha: float) -> Array:
    """Estimates of a logistic model for `directed_bounds_pmf`.

    Args:
        found: (n, 1 + d), mᵀx and root x; the weights' posterior is N(m, rootᵀ root).
        intercept: (n,), each candidate's own.
        variance: (n,), of the intercept.
        alpha: the mean width of a bound, in standard deviations of the logit.

    Returns:
        (n, 3 + d): σ(f), the logit f, alpha times its standard deviation, and root x / |root x|.
    """
    of_features = found[:, 1:]
    squares = np.vecdot(of_features, of_features)
    estimates = np.empty((len(found), 2 + found.shape[1]))
    # In float32, so that equal candidates tie whatever order the matrix product added their rows in.
    estimates[:, 1] = (found[:, 0] + intercept).astype(np.float32)
    estimates[:, 2] = (alpha * np.sqrt(squares + variance)).astype(np.float32)
    estimates[:, 3:] = of_features / np.sqrt(np.maximum(squares, np.finfo(np.float64).tiny))[:, None]
    estimates[:, 0] = 0.5 + 0.5 * np.tanh(0.5 * estimates[:, 1])  # σ, without overflow
    return estimates


def directed_bounds_pmf(estimates: Array, members: Array) -> Array:
    """P(i has the highest bound), a member's bounds being as wide for a candidate as its draw is favourable to it.

    Member k draws a deviation tᵢ = noise_k · directionᵢ of each candidate's value, in standard deviations, and has a
    width z_k, exponential over the members but never below half their mean:

        indexᵢ = fᵢ + z spreadᵢ uᵢ,   uᵢ = max(0, tᵢ) / maxⱼ tⱼ,

    the maximum being over the candidates that could win at any width. So the candidate that a draw favours most gets
    all of its confidence bound, others less, and nobody less than f: confidence bounds of random width (RandUCB,
    Vaswani et al. 2020, arXiv:1910.04928) that the posterior directs; or optimistic Thompson sampling (May et al. 2012,
    "Optimistic Bayesian sampling in contextual-bandit problems"), no wider for many candidates than for few.

    Why not one width for all candidates, which has a closed form (`_envelope`): until the next snapshot it repeats the
    few choices on the envelope; who is behind in mean and spread both, by bad luck with a few rewards, is not tried at
    all. Why not the draws as they are: the best of many draws lies high, so they explore the more, the more candidates
    there are. docs/policies.md has the figures.

    Args:
        estimates: (n, 3 + d), `bounds`: f, spread ≥ 0 and directions of length 1, whose inner products are the
            correlations of the candidates' values.
        members: (MEMBERS, d), `noise`.

    Returns:
        (n,), sums to 1.
    """
    f, spread = estimates[:, 1], estimates[:, 2]
    rivals = np.flatnonzero(f + WIDTHS.max() * spread >= f.max() - TIE)
    favour = members @ estimates[rivals, 3:].astype(np.float32).T  # (MEMBERS, rivals)
    favour.clip(min=0.0, out=favour)
    favour *= WIDTHS[:, None] / np.maximum(favour.max(axis=1, keepdims=True), np.float32(1e-20))
    favour *= spread[rivals].astype(np.float32)
    favour += f[rivals].astype(np.float32)
    pmf = np.zeros(len(f))
    pmf[rivals] = shares(favour)
    return pmf
