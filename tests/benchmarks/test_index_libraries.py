"""Libraries for nearest neighbours beside exact search and our own inverted file: recall, time, bytes.

    .venv/bin/pip install -c constraints.txt -e '.[neighbours]'     # what is not installed is left out
    make bench ARGS=tests/benchmarks/test_index_libraries.py
    make bench ARGS='tests/benchmarks/test_index_libraries.py --million'

Everything is done by one thread. Vectors have 64 dimensions and length 1. `clustered` ones lie around 200 centres, and
so do the queries; `spread` ones lie anywhere, the hardest case. Each index is asked for the 100 nearest of 500 queries,
one after the other. Its setting of search is the cheapest of a doubling ladder with which 100 other queries reach a
recall of .95; `inverted file` sets itself. Where none reaches it, the last is shown. Times are
processor time of the thread. Bytes are those of the index when it is saved, the vectors among them.
"""

from __future__ import annotations

import importlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.retrieve.inverted import Inverted

Array = NDArray[Any]

SIZE, NEAREST = 64, 100
WANTED = 0.95
LADDER = (8, 16, 32, 64, 128, 256, 512, 1024)


def clustered(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    centres = rng.normal(size=(200, SIZE))
    items = centres[rng.integers(200, size=n)] + 0.7 * rng.normal(size=(n, SIZE))
    queries = centres[rng.integers(200, size=600)] + 0.7 * rng.normal(size=(600, SIZE))
    return unit(items), unit(queries)


def spread(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    return unit(rng.normal(size=(n, SIZE))), unit(rng.normal(size=(600, SIZE)))


def unit(vectors: Array) -> Array:
    found: Array = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return found


class Exact:
    """Looks at every vector."""

    ladder: tuple[int, ...] = (0,)

    def __init__(self, vectors: Array) -> None:
        self._vectors = vectors

    def set(self, effort: int) -> None:
        """Nothing to set."""

    def search(self, query: Array) -> Array:
        products = self._vectors @ query
        best = np.argpartition(-products, NEAREST)[:NEAREST]
        found: Array = best[np.argsort(-products[best])]
        return found

    def bytes(self, folder: Path) -> int:
        return self._vectors.nbytes


class Own(Exact):
    """`service/retrieve/inverted.py`."""

    def __init__(self, vectors: Array) -> None:
        self._file = Inverted.of(vectors)

    def search(self, query: Array) -> Array:
        places, products = self._file.search(query, NEAREST)
        found: Array = places[np.argsort(-products)]
        return found

    def bytes(self, folder: Path) -> int:
        file = self._file
        return file.vectors.nbytes + file.places.nbytes + file._centres.nbytes + file._starts.nbytes

    def __str__(self) -> str:
        return f"{self._file.probes or 'all'} of {len(self._file._centres)} lists"


class Faiss(Exact):
    ladder = LADDER

    def __init__(self, vectors: Array, graph: bool = False) -> None:
        faiss = self._faiss = importlib.import_module("faiss")
        faiss.omp_set_num_threads(1)
        self._graph = graph
        text = "HNSW16,Flat" if graph else f"IVF{int(2 * len(vectors) ** 0.5)},Flat"
        self._index = faiss.index_factory(SIZE, text, faiss.METRIC_INNER_PRODUCT)
        if graph:
            self._index.hnsw.efConstruction = 100
        self._index.train(vectors)
        self._index.add(vectors)

    def set(self, effort: int) -> None:
        if self._graph:
            self._index.hnsw.efSearch = effort
        else:
            self._index.nprobe = effort

    def search(self, query: Array) -> Array:
        found: Array = self._index.search(query[None], NEAREST)[1][0]
        return found

    def bytes(self, folder: Path) -> int:
        return len(self._faiss.serialize_index(self._index))


class Hnswlib(Exact):
    ladder = LADDER[4:]

    def __init__(self, vectors: Array) -> None:
        self._index = importlib.import_module("hnswlib").Index(space="ip", dim=SIZE)
        self._index.init_index(max_elements=len(vectors), ef_construction=100, M=16, random_seed=1)
        self._index.set_num_threads(1)
        self._index.add_items(vectors)

    def set(self, effort: int) -> None:
        self._index.set_ef(effort)

    def search(self, query: Array) -> Array:
        found: Array = self._index.knn_query(query, k=NEAREST)[0][0]
        return found

    def bytes(self, folder: Path) -> int:
        self._index.save_index(str(folder / "index"))
        return (folder / "index").stat().st_size


class Usearch(Hnswlib):
    def __init__(self, vectors: Array) -> None:
        module = importlib.import_module("usearch.index")
        self._index = module.Index(ndim=SIZE, metric="ip", dtype="f32", connectivity=16, expansion_add=100)
        self._index.add(np.arange(len(vectors)), vectors, threads=1)

    def set(self, effort: int) -> None:
        self._index.expansion_search = effort

    def search(self, query: Array) -> Array:
        found: Array = self._index.search(query, NEAREST, threads=1).keys
        return found

    def bytes(self, folder: Path) -> int:
        self._index.save(str(folder / "index"))
        return (folder / "index").stat().st_size


class Voyager(Usearch):
    def __init__(self, vectors: Array) -> None:
        module = importlib.import_module("voyager")
        self._index = module.Index(module.Space.InnerProduct, SIZE, M=16, ef_construction=100, random_seed=1)
        self._index.add_items(vectors, num_threads=1)
        self._effort = 0

    def set(self, effort: int) -> None:
        self._effort = effort

    def search(self, query: Array) -> Array:
        found: Array = self._index.query(query, k=NEAREST, num_threads=1, query_ef=self._effort)[0]
        return found


TRIED: dict[str, Callable[[Array], Exact]] = {
    "exact, NumPy": Exact,
    "inverted file, NumPy": Own,
    "faiss IVF": Faiss,
    "faiss HNSW": lambda vectors: Faiss(vectors, graph=True),
    "hnswlib": Hnswlib,
    "usearch": Usearch,
    "voyager": Voyager,
}


def recall(index: Exact, queries: Array, truth: list[set[int]]) -> float:
    found = [len(truth[n] & set(index.search(query).tolist())) for n, query in enumerate(queries)]
    return float(np.mean(found)) / NEAREST


def rows(vectors: Array, queries: Array) -> Iterator[str]:
    exact = Exact(vectors)
    truth = [set(exact.search(query).tolist()) for query in queries]
    for name, make in TRIED.items():
        started = time.process_time()
        try:
            index = make(vectors)
        except ImportError:
            yield f"| {name} | not installed | | | | | |"
            continue
        built = time.process_time() - started
        for effort in index.ladder:
            index.set(effort)
            if recall(index, queries[:100], truth[:100]) >= WANTED:
                break
        took = []
        for query in queries[100:]:
            before = time.thread_time()
            index.search(query)
            took.append(1e6 * (time.thread_time() - before))
        found = recall(index, queries[100:], truth[100:])
        p50, p99 = np.percentile(took, [50, 99])
        with tempfile.TemporaryDirectory() as folder:
            size = index.bytes(Path(folder)) / 1e6
        said = str(index) if isinstance(index, Own) else effort or ""
        yield f"| {name} | {found:.3f} | {p50:.0f} | {p99:.0f} | {built:.2f} | {size:.1f} | {said} |"


def test_index_libraries(quick: bool, request: pytest.FixtureRequest) -> None:
    sizes = [10_000] if quick else [10_000, 100_000]
    if request.config.getoption("--million"):
        sizes = [1_000_000]
    for n in sizes:
        for kind, make in (("clustered", clustered), ("spread", spread)):
            print(f"\n{n} vectors, {kind}\n")
            print("| index | recall of the 100 nearest | p50, µs | p99, µs | to build, s | MB | effort |")
            print("|---|---|---|---|---|---|---|", flush=True)
            for row in rows(*make(n, np.random.default_rng(1))):
                print(row, flush=True)
