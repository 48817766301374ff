"""Checks the linear algebra under the ridge policies."""

from __future__ import annotations

import numpy as np
import pytest

from service.policies import NumericalError
from service.policies import linalg as la
from tests.builders import Array


def positive(m: int, d: int, *, seed: int = 0) -> Array:
    root = np.random.default_rng(seed).normal(size=(m, d, d))
    return root @ root.mT + np.eye(d)


def test_cholesky_of_positive_definite_matrices_needs_no_jitter() -> None:
    A = positive(5, 4)
    L = la.psd_cholesky(A)
    assert (np.tril(L) == L).all()
    np.testing.assert_allclose(L @ L.mT, A, rtol=1e-12)


def test_cholesky_of_a_singular_matrix_adds_the_least_jitter_and_says_so() -> None:
    singular = np.outer([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    with pytest.warns(RuntimeWarning, match="added 1e-12"):
        L = la.psd_cholesky(singular)
    np.testing.assert_allclose(L @ L.T, singular, atol=1e-9)


def test_jitter_for_one_matrix_leaves_the_others_of_the_stack_alone() -> None:
    A = positive(3, 3)
    A[1] = 1.0
    with pytest.warns(RuntimeWarning, match="singular"):
        L = la.psd_cholesky(A)
    for row in (0, 2):
        assert L[row].tobytes() == la.psd_cholesky(A[row : row + 1]).tobytes()


def test_cholesky_refuses_what_is_not_positive_by_more_than_rounding() -> None:
    with pytest.raises(la.NotPSD):
        la.psd_cholesky(np.diag([1.0, -1e-3]))
    with pytest.raises(la.NotPSD):
        la.psd_cholesky(np.zeros((2, 2)))


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_cholesky_never_maps_nan_to_a_number(poison: float) -> None:
    A = positive(2, 2)
    A[1, 0, 0] = poison
    with pytest.raises(NumericalError):
        la.psd_cholesky(A)


@pytest.mark.parametrize("d", [1, 2, 7])
def test_packing_round_trips(d: int) -> None:
    A = positive(3, d)
    packed = la.pack(A)
    assert packed.shape == (3, d * (d + 1) // 2)
    symmetric = np.triu(A) + np.triu(A, 1).mT
    assert (la.unpack(packed, d) == symmetric).all()


def test_packed_outer_in_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(la, "BLOCK", 20)
    x = np.random.default_rng(0).normal(size=(11, 3))
    assert (np.array(list(la.packed_outer(x))) == la.pack(x[:, :, None] * x[:, None, :])).all()


@pytest.mark.parametrize("rows", [[2, 0, 2, 1], [1, 2, 3], [0], [3, 2, 1], [0, 2, 1, 3], list(range(4)) * 50])
def test_products_are_the_same_in_any_company(monkeypatch: pytest.MonkeyPatch, rows: list[int]) -> None:
    rng = np.random.default_rng(1)
    stack, x = rng.normal(size=(4, 5, 3)), rng.normal(size=(len(rows), 3))
    whole = la.matvec(stack, np.array(rows), x)
    np.testing.assert_allclose(whole, [stack[row] @ v for v, row in zip(x, rows, strict=True)], rtol=1e-12)
    monkeypatch.setattr(la, "BLOCK", 1)
    assert la.matvec(stack, np.array(rows), x).tobytes() == whole.tobytes()


@pytest.mark.parametrize(("rows", "view"), [([1, 2, 3], True), ([0], True), ([0, 2, 1, 3], False), ([1, 1, 3], False)])
def test_take_copies_only_when_it_must(rows: list[int], view: bool) -> None:
    stack = np.arange(8.0).reshape(4, 2)
    taken = la.take(stack, np.array(rows))
    assert (taken == stack[rows]).all()
    assert np.shares_memory(taken, stack) == view


def test_a_root_of_the_inverse() -> None:
    [A] = positive(1, 5)
    root = la.root_of_inverse(A)
    np.testing.assert_allclose(root.T @ root @ A, np.eye(5), atol=1e-10)
