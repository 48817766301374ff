"""The inverted file and what keeps it current: recall, repetition, items that come and go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.retrieve import inverted, nearest
from service.retrieve.inverted import Inverted
from service.retrieve.nearest import Nearest

Array = NDArray[Any]
SIZE = 16


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inverted, "FEWEST", 1000)
    monkeypatch.setattr(inverted, "QUERIES", 16)
    monkeypatch.setattr(nearest, "FEW_CHANGED", 50)


def clustered(n: int, seed: int = 1) -> Array:
    rng = np.random.default_rng(seed)
    vectors = 2 * np.random.default_rng(9).normal(size=(40, SIZE))[rng.integers(40, size=n)]
    vectors += 0.5 * rng.normal(size=(n, SIZE))
    found: Array = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return found


def test_lists_find_nearly_what_a_search_of_everything_finds() -> None:
    vectors = clustered(2000)
    file = Inverted.of(vectors)
    assert 0 < file.probes < 40
    found = []
    for query in clustered(25, seed=2):
        places, products = file.search(query, 100)
        assert products == pytest.approx(vectors[places] @ query, abs=1e-6)
        found.append(len({*places.tolist()} & {*np.argsort(-(vectors @ query))[:100].tolist()}))
    assert np.mean(found) >= 95


def test_where_lists_gain_nothing_everything_is_searched() -> None:
    spread = np.random.default_rng(3).normal(size=(1100, SIZE))
    file = Inverted.of((spread / np.linalg.norm(spread, axis=1, keepdims=True)).astype(np.float32))
    assert file.probes == 0
    assert Inverted.of(clustered(999)).probes == 0  # too few
    assert len(Inverted.of(clustered(20)).search(clustered(1)[0], 100)[0]) == 20


def test_the_same_vectors_give_the_same_answers() -> None:
    one, other = Inverted.of(clustered(2000)), Inverted.of(clustered(2000))
    assert one.probes > 0
    for query in clustered(20, seed=4):
        for found, again in zip(one.search(query, 30), other.search(query, 30), strict=True):
            assert found.tobytes() == again.tobytes()


def test_what_came_is_found_at_once_and_what_is_gone_never() -> None:
    vectors = clustered(2000)
    made = Nearest.of(2000, np.arange(2000), vectors)
    query = vectors[7]
    near = made.search(query, 40).rows
    assert near[0] == 7
    # The 30 nearest go; one that equals the query comes, in the first row.
    gone = set(near[:30].tolist())
    stay = [row for row in range(2000) if row not in gone]
    moved = made.moved(np.array([-1, *stay]), np.array([0]), query[None])
    found = moved.search(query, 10)
    assert found.rows.tolist() == [0, *(1 + stay.index(row) for row in near[30:39].tolist())]
    assert found.scores[0] == pytest.approx(1, abs=1e-6)
    assert len(moved) == 2000 - 30 + 1
    # Nearly all around it go: it looks further.
    order = made.search(query, 2000).rows
    few = np.sort(order[45:])
    assert len(made.moved(few, few[:0], vectors[:0]).search(query, 20).rows) == 20


def test_after_many_changes_another_file_is_made() -> None:
    vectors = clustered(2000)
    made = Nearest.of(2000, np.arange(2000), vectors)
    few = made.moved(np.arange(50, 2000), np.zeros(0, dtype=np.intp), vectors[:0])
    assert few._file is made._file
    more = few.moved(np.concatenate([np.arange(1950), np.full(60, -1)]), np.arange(1950, 2010), clustered(60, seed=5))
    assert more._file is not made._file
    assert len(more) == len(more._file) == 2010
    anew = Nearest.of(2010, np.arange(2010), np.concatenate([vectors[50:], clustered(60, seed=5)]))
    for query in clustered(10, seed=6):
        assert more.search(query, 20).rows.tolist() == anew.search(query, 20).rows.tolist()
    assert (
        len(more.moved(np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.intp), vectors[:0]).search(query, 5).rows) == 0
    )
