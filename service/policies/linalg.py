"""Factors, packs and applies symmetric matrices for the ridge policies.

All numbers are float64. A symmetric (d, d) matrix is stored packed: its upper triangle row by row, P = d (d + 1) / 2
numbers. Stacks of m matrices are processed in blocks of rows that fit the cache. Each matrix is processed by itself, so
its result does not depend on the others in the stack, bit for bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from service.policies.base import Array, NumericalError

BLOCK = 1 << 17  # numbers per block: 1 MB
PANEL = 128  # columns: a square of them is 128 kB, which the allocator keeps at hand
JITTERS = (0.0, *(10.0**k for k in range(-12, -5)))  # of the mean diagonal element


class NotPSD(NumericalError):
    """A matrix is not positive definite, by more than rounding."""


def psd_cholesky(A: Array) -> Array:
    """Factor symmetric positive definite matrices (..., d, d) into lower Cholesky factors (..., d, d).

    A matrix that is singular to working precision gets a multiple of the identity added: 10⁻¹² of its mean diagonal
    element, then ten times that, up to 10⁻⁶. A RuntimeWarning tells how much.

    Raises:
        NumericalError: a matrix is not finite.
        NotPSD: a matrix is not positive definite even then.
    """
    if not np.isfinite(A).all():
        raise NumericalError("cannot factor a matrix that is not finite")
    try:
        factors: Array = np.linalg.cholesky(A)
    except np.linalg.LinAlgError:  # does not name the matrix of the stack
        each = [_cholesky_with_jitter(one) for one in A.reshape(-1, *A.shape[-2:])]
        factors = np.stack(each).reshape(A.shape)
    return factors


def _cholesky_with_jitter(A: Array) -> Array:
    """Factor one matrix (d, d)."""
    scale = np.trace(A) / len(A)
    for jitter in JITTERS:
        try:
            factor: Array = np.linalg.cholesky(A + jitter * scale * np.eye(len(A)))
        except np.linalg.LinAlgError:
            continue
        if jitter:
            warnings.warn(f"matrix singular to working precision; added {jitter:.0e} of its scale", RuntimeWarning, 3)
        return factor
    raise NotPSD(f"matrix ({len(A)}, {len(A)}) with mean diagonal {scale:g} is not positive definite")


def root_of_inverse(A: Array) -> Array:
    """Compute root (d, d) with A⁻¹ = rootᵀ root, for A (d, d) symmetric positive definite.

    Raises:
        NumericalError: A cannot be factored.
    """
    root: Array = np.linalg.solve(psd_cholesky(A), np.eye(len(A)))
    return root


def add_products(A: Array, rows: Array, *, op: np.ufunc = np.add) -> None:
    """Add rowsᵀ rows, from rows (k, d), to A (d, d) in place; exactly symmetric stays so. `op` may be np.subtract.

    A product of d × d numbers in one piece would need fresh memory each time, which costs more than the product.
    """
    d = len(A)
    step = d if d <= PANEL else PANEL // 2
    for start in range(0, d, step):
        stop = min(start + step, d)
        own = rows[:, start:stop]
        block = A[start:stop, start:stop]
        op(block, own.T @ own, out=block)
        if stop < d:
            beside = own.T @ rows[:, stop:]
            right, below = A[start:stop, stop:], A[stop:, start:stop]
            op(right, beside, out=right)
            op(below, beside.T, out=below)


@lru_cache(maxsize=16)
def packed_index(d: int) -> tuple[Array, Array]:
    """Return row and column of each packed element: two arrays (P,)."""
    return np.triu_indices(d)


def pack(A: Array) -> Array:
    """Pack symmetric matrices: (m, d, d) → (m, P)."""
    left, right = packed_index(A.shape[-1])
    packed: Array = np.ascontiguousarray(A[:, left, right])  # the index alone leaves it column by column
    return packed


def unpack(packed: Array, d: int) -> Array:
    """Unpack symmetric matrices: (m, P) → (m, d, d)."""
    left, right = packed_index(d)
    position = np.empty((d, d), dtype=np.intp)
    position[left, right] = position[right, left] = np.arange(len(left))
    return packed.take(position, axis=1)


def packed_outer(x: Array) -> Iterator[Array]:
    """Yield the packed x xᵀ (P,) of each row of x (B, d), in order."""
    left, right = packed_index(x.shape[1])
    for rows in blocks(len(x), len(left)):
        yield from x[rows].take(left, axis=1) * x[rows].take(right, axis=1)


def matvec(stack: Array, rows: Array, x: Array) -> Array:
    """Compute stack[rowsᵢ] xᵢ for each row of x (n, d): (n, e), from a stack (m, e, d)."""
    out = np.empty((len(x), stack.shape[1]))
    for part in blocks(len(x), stack[0].size):
        np.matvec(take(stack, rows[part]), x[part], out=out[part])
    return out


def take(stack: Array, rows: Array) -> Array:
    """Return stack[rows], as a view if the rows are consecutive: copying matrices costs more than using them."""
    start, stop = int(rows[0]), int(rows[-1]) + 1
    consecutive = stop - start == len(rows) and (rows == np.arange(start, stop)).all()
    taken: Array = stack[start:stop] if consecutive else stack[rows]
    return taken


def blocks(n: int, width: int) -> Iterator[slice]:
    """Cut 0 … n into slices of about BLOCK / width rows."""
    step = max(1, BLOCK // width)
    return (slice(start, min(start + step, n)) for start in range(0, n, step))
