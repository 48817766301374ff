"""Computes exact selection probabilities from an ensemble of posterior draws that every snapshot carries.

Ensemble sampling (Lu & Van Roy 2017, arXiv:1705.07347): a decision follows one draw, a member of the ensemble, and
every member is equally likely. A candidate's probability is the share of the members that rank it first.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from service.policies.base import Array, Ranked, sigmoid

PAIRS = 64
MEMBERS = 2 * PAIRS  # in ± pairs: the second half are the first, negated
TIE = 1e-5  # relative difference of scores that counts as a tie: a matrix product rounds by its rows' positions

# Mean widths of the confidence bounds, one per member: quantiles of ½ + ½ Exp(1), mean 1. The two members of a ± pair
# are half the distribution apart.
WIDTHS = (0.5 - 0.5 * np.log1p(-((np.arange(MEMBERS) * 53 % MEMBERS + 0.5) / MEMBERS))).astype(np.float32)
WIDEST = float(WIDTHS.max())


def noise(seed: int, events: int, d: int) -> Array:
    """Draw (MEMBERS, d) float32 standard normal numbers in ± pairs, from a policy's seed and number of events."""
    half = np.random.default_rng((seed, events)).standard_normal((MEMBERS // 2, d), dtype=np.float32)
    return np.concatenate([half, -half])


def shares(scores: Array) -> Array:
    """Compute the pmf (n,) from scores (n, MEMBERS).

    Each member gives 1 / MEMBERS to its best candidate. Candidates that tie share it equally.
    """
    n, best = len(scores), scores.max(axis=0)
    won = (scores >= best - TIE * (1.0 + np.abs(best))).ravel().nonzero()[0]
    row = won // MEMBERS
    if len(won) == MEMBERS:  # no ties
        return np.bincount(row, minlength=n) / MEMBERS
    member = won % MEMBERS
    share = 1.0 / (MEMBERS * np.bincount(member))
    pmf: Array = np.bincount(row, weights=share[member], minlength=n)
    return pmf


def squares(z: Array, R: Array) -> Array:
    """Compute |Rᵀzᵢ|² ≥ 0 of each row of z (n, p), for R (p, m): (n,) float64."""
    n, p, m = len(z), *R.shape
    if n * m <= p * (m + n):
        of_each = z @ R
        found: Array = np.vecdot(of_each, of_each)
    else:
        found = np.maximum(np.vecdot(z @ (R @ R.T), z), 0.0)  # rounding may leave it just below 0
    return found


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


class Bounds(Ranked):
    """Candidates that are ranked by confidence bounds whose widths draws scale.

    Member k draws the deviation t of each candidate's value, in standard deviations. Its width z_k is one of WIDTHS.
    The candidate with the highest index wins:

        indexᵢ = fᵢ + z_k spreadᵢ uᵢ,   uᵢ = max(0, tᵢ) / maxⱼ tⱼ,

    where the maximum is over the candidates that could win at the largest width. The candidate that the draw favours
    most gets all of its bound, the others get less, and none gets less than f.

    This combines bounds of random width (RandUCB, Vaswani et al. 2020, arXiv:1910.04928) with optimistic Thompson
    sampling (May et al. 2012, "Optimistic Bayesian sampling in contextual-bandit problems"). Unlike the latter, it does
    not explore more when there are more candidates.

    Args:
        f: (n,), logits.
        spread: (n,) ≥ 0, alpha times their standard deviations.
        draws: returns t (m, PAIRS) float32 of the m candidates at the rows that it is given: those of the first members
            of the ± pairs.
    """

    def __init__(self, f: Array, spread: Array, draws: Callable[[Array], Array]) -> None:
        # Rounded to float32, so that equal candidates tie: a matrix product rounds by its rows' positions.
        self.f, self.spread = f.astype(np.float32), spread.astype(np.float32)
        self._draws = draws

    def __len__(self) -> int:
        return len(self.f)

    def score(self, row: int) -> float:
        return sigmoid(float(self.f[row]))

    def pmf(self, left: Array | None = None) -> Array:
        if left is None:
            return bounds_pmf(self.f, self.spread, self._draws)
        return bounds_pmf(self.f[left], self.spread[left], lambda rivals: self._draws(left[rivals]))

    def estimates(self) -> Array:
        """Compute (n, 3 + PAIRS) float64: σ(f), f, spread, t."""
        estimates = np.empty((len(self), 3 + PAIRS))
        estimates[:, 1], estimates[:, 2] = self.f, self.spread
        estimates[:, 0] = sigmoid(estimates[:, 1])
        estimates[:, 3:] = self._draws(np.arange(len(self)))
        return estimates


def pmf_of_estimates(estimates: Array) -> Array:
    """Compute the pmf (n,) from `Bounds.estimates`, or from some rows of them."""
    f, spread, draws = estimates[:, 1], estimates[:, 2], estimates[:, 3:]
    return bounds_pmf(f.astype(np.float32), spread.astype(np.float32), lambda rivals: draws[rivals].astype(np.float32))


def bounds_pmf(f: Array, spread: Array, draws: Callable[[Array], Array]) -> Array:
    """Compute the probability that each candidate has the highest index, as `Bounds` says.

    Draws are made for those alone that could win at the largest width.

    Args:
        f, spread: (n,) float32.
        draws: as of `Bounds`.

    Returns:
        (n,), sum 1.
    """
    pmf = np.zeros(len(f))
    rivals = (f + WIDEST * spread >= f.max() - TIE).nonzero()[0]
    if len(rivals) == 1:
        pmf[rivals] = 1.0
        return pmf
    t = draws(rivals)  # (rivals, PAIRS)
    index = np.concatenate([t, -t], axis=1)
    most = index.max(axis=0)
    index *= WIDTHS / np.maximum(most, 1e-20, out=most)
    np.maximum(index, 0.0, out=index)
    index *= spread[rivals, None]
    index += f[rivals, None]
    pmf[rivals] = shares(index)
    return pmf


def directed_bounds_pmf(estimates: Array, members: Array) -> Array:
    """Compute the pmf of `Bounds` where draws are noise_k · directionᵢ.

    Args:
        estimates: (n, 3 + d), from `bounds`: f, spread ≥ 0 and directions of length 1. The inner products of two
            directions are the correlations of the candidates' values.
        members: (MEMBERS, d), from `noise`.

    Returns:
        (n,), sum 1.
    """
    f, spread, firsts = estimates[:, 1].astype(np.float32), estimates[:, 2].astype(np.float32), members[:PAIRS].T
    return bounds_pmf(f, spread, lambda rivals: estimates[rivals, 3:].astype(np.float32) @ firsts)
