"""Checks bounds folded over a catalogue against the bound of each row, written out."""

from __future__ import annotations

import numpy as np
import pytest

from service.layout import Products, Rows
from service.policies import Bounds, Candidates, Fold, Ids, Scorer
from service.policies import fold as module
from service.policies.linucb import LinUCB, LinUCBParams
from tests.builders import Array, batch_of, scorer_of

P, C, N = 7, 6, 40  # columns of an item and of a context, the constants among them; items


def products(rng: np.random.Generator) -> Products:
    """Draw products of a constant and some pairs of columns; the context's column 3 is in none of them."""
    left, right = np.array([(0, 0), *((i, j) for i in (0, 1, 2, 4, 5) for j in range(P) if rng.random() < 0.6)]).T
    return Products(left, right, rng.uniform(0.1, 0.6, len(left)).astype(np.float32))


def items(rng: np.random.Generator) -> Array:
    """Draw the columns (N, P) of items; some are alike."""
    z = (rng.integers(0, 3, (N, P)) * (rng.random((N, P)) < 0.6) / 2).astype(np.float64)
    z[:, 0] = 1.0
    z[N // 2 :] = z[N // 2]
    return z


def context(rng: np.random.Generator) -> Array:
    c = (rng.normal(size=C) * (rng.random(C) < 0.7)).astype(np.float32)
    c[0] = 1.0
    return c


def written_out(bounds: Bounds, how: Products, z: Array, c: Array) -> Array:
    """Compute the bound of each row, in float64."""
    x = z[:, how.right] * (c[how.left].astype(np.float64) * how.scale)
    models = bounds.models[bounds.rows]
    variance = np.einsum("ni,nij,nj->n", x, models[:, :-1], x)
    bound: Array = np.einsum("ni,ni->n", x, models[:, -1]) + bounds.width * np.sqrt(variance)
    return bound


def learned(how: Products, z: Array, rng: np.random.Generator, ids: list[str]) -> Scorer:
    """Teach LinUCB 300 events of the first ids."""
    policy = LinUCB(len(how.left), LinUCBParams())
    rows, item = [], rng.integers(0, len(ids), 300)
    for at in item:
        c = context(rng)
        rows.append(Rows(z[at, None], how.right, c[how.left] * how.scale, P).dense()[0])
    policy.update(batch_of(np.stack(rows), rng.random(300), [ids[at] for at in item]))
    return scorer_of(policy)


@pytest.fixture(scope="module")
def folded() -> tuple[Fold, Scorer, Products, Array, Ids]:
    """The fold of a policy that knows the first ten items, of which two are no longer in the catalogue."""
    rng = np.random.default_rng(3)
    how, z, ids = products(rng), items(rng), Ids([f"i{at}" for at in range(N)])
    scorer = learned(how, z, rng, ["gone", *list(ids)[:10], "gone, too"])
    bounds = scorer.bounds(ids)
    assert bounds is not None
    fold = Fold.of(bounds, how, z, ids)
    assert fold is not None
    return fold, scorer, how, z, ids


@pytest.mark.parametrize("seed", range(8))
def test_bounds_are_those_of_the_rows_written_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    how, z, ids = products(rng), items(rng), Ids([f"i{at}" for at in range(N)])
    d, m = len(how.left), 9
    roots = rng.normal(size=(m, d, d)) * 10.0 ** rng.uniform(-3, 1, (m, 1, 1))
    models = np.concatenate([roots.mT @ roots, rng.normal(size=(m, 1, d))], axis=1)
    bounds = Bounds(models, rng.integers(0, m, N), 0.7)
    fold = Fold.of(bounds, how, z, ids)
    assert fold is not None
    for _ in range(10):
        c = context(rng)
        expected = written_out(bounds, how, z, c)
        np.testing.assert_allclose(fold.estimate(c, slice(None))[:, 0], expected, rtol=1e-9, atol=1e-12)


def test_they_are_the_scorers_but_for_the_rounding_of_rows_to_float32(
    folded: tuple[Fold, Scorer, Products, Array, Ids],
) -> None:
    fold, scorer, how, z, ids = folded
    rng = np.random.default_rng(4)
    for _ in range(10):
        c = context(rng)
        rows = Rows(z, how.right, c[how.left] * how.scale, P)
        np.testing.assert_allclose(
            fold.estimate(c, slice(None)), scorer.estimate(Candidates(rows, ids, None)), rtol=1e-6, atol=1e-7
        )


def test_an_item_has_the_same_bound_in_any_company(folded: tuple[Fold, Scorer, Products, Array, Ids]) -> None:
    """And items that are alike, and unknown, have equal ones: they share the probability."""
    fold, *_, ids = folded
    c = context(np.random.default_rng(5))
    every = fold.estimate(c, slice(None))
    for some in ([0], [N - 1], [3, 1], [7, 7], list(range(N))[::-1], list(range(1, N))):
        at = fold.places(ids.take(np.array(some)))
        assert at is not None
        assert fold.estimate(c, at).tobytes() == every[some].tobytes()
    assert len(set(every[N // 2 :, 0].tolist())) == 1
    assert len(set(every[:, 0].tolist())) > 10


def test_it_knows_the_ids_of_its_catalogue_alone(folded: tuple[Fold, Scorer, Products, Array, Ids]) -> None:
    fold, *_, ids = folded
    other = Ids(list(ids))  # of another catalogue, whose items may have other features
    assert fold.places(ids) == slice(None)
    for stranger in (other, other.take(np.arange(3)), list(ids)):
        assert fold.places(stranger) is None


def test_a_bound_of_a_row_that_is_known_for_sure_is_a_number() -> None:
    """After 10¹² events in one direction the variance is 0 but for rounding, which may leave it below."""
    rng = np.random.default_rng(6)
    how, z, ids = products(rng), items(rng), Ids([f"i{at}" for at in range(N)])
    c = context(rng)
    x = z[:, how.right] * (c[how.left].astype(np.float64) * how.scale)
    spread = np.eye(x.shape[1]) - x[:, :, None] * x[:, None] / np.square(x).sum(axis=1)[:, None, None]  # x S x = 0
    fold = Fold.of(Bounds(np.concatenate([spread, 0 * x[:, None]], axis=1), np.arange(N), 1.0), how, z, ids)
    assert fold is not None
    found = fold.estimate(c, slice(None))
    assert (found >= 0).all()
    assert (found < 1e-6).all()


@pytest.mark.parametrize(("limit", "most"), [("MOST_NUMBERS", N * 5 * (5 + 3) // 2), ("MOST_PRODUCTS", None)])
def test_what_is_too_large_is_not_folded(
    folded: tuple[Fold, Scorer, Products, Array, Ids], monkeypatch: pytest.MonkeyPatch, limit: str, most: int | None
) -> None:
    _, scorer, how, z, ids = folded
    bounds = scorer.bounds(ids)
    assert bounds is not None
    if most is None:
        used = max(np.count_nonzero(z[:, how.right], axis=1))
        most = N * used * (used + 1) // 2
    monkeypatch.setattr(module, limit, most)
    assert Fold.of(bounds, how, z, ids) is not None
    monkeypatch.setattr(module, limit, most - 1)
    assert Fold.of(bounds, how, z, ids) is None


def test_an_empty_catalogue_has_a_fold(folded: tuple[Fold, Scorer, Products, Array, Ids]) -> None:
    _, scorer, how, z, _ = folded
    ids = Ids([])
    bounds = scorer.bounds(ids)
    assert bounds is not None
    fold = Fold.of(bounds, how, z[:0], ids)
    assert fold is not None
    assert fold.estimate(context(np.random.default_rng(0)), slice(None)).shape == (0, 1)
