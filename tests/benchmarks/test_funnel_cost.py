"""CPU of one decision, request to the bytes of its record, over large catalogues: with a funnel, and without.

    make bench ARGS=tests/benchmarks/test_funnel_cost.py

All cases decide in turns in one process; the figures are processor time of its thread. The policy is `adaptive` on a
declared schema, and has learned 2 000 events. The cut is 200, the sources are `popular`, `fresh` and `random`;
with `ann` it searches 64-dimensional vectors, exactly. A catalogue of 200 items without a funnel is what as many
candidates cost by themselves. What it takes to build the funnel, at first and again, is told beside it.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from service.decide.active import ActiveLoop
from service.decide.catalogue import Catalogue
from service.decide.decision import Request, decide
from service.funnel import Funnel
from service.retrieve.counts import Counts
from service.retrieve.retriever import Retriever
from service.rules import NO_RULES, Rules
from service.store.codec import decision_bytes
from tests.benchmarks.test_decision_cost import Case, contexts, loop_of
from tests.builders import event_of

ROUNDS = 24
SECONDS = 0.04  # of one round, about
DIMENSIONS = 64
ON_A_SHELF = Rules.model_validate({"filter": [{"field": "shelf", "in": [7]}]})  # 1 % of the items
EVENTS = 20_000  # that the counts have seen
PLAIN = [{"source": "popular", "quota": 100}, {"source": "fresh", "quota": 60}, {"source": "random", "quota": 40}]
ANN = {"source": "ann", "quota": 100, "item_field": "vector", "context_field": "taste"}


def with_vectors(features: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    vectors = np.random.default_rng(3).normal(size=(len(features), DIMENSIONS)).round(4).tolist()
    return {
        item: {**one, "vector": vector, "shelf": row % 100}
        for row, ((item, one), vector) in enumerate(zip(features.items(), vectors, strict=True))
    }


def counts_of(ids: list[str]) -> Counts:
    """Count random impressions, of few items more than of many."""
    rng = np.random.default_rng(4)
    rows = (len(ids) * rng.random(EVENTS) ** 3).astype(int)
    counts = Counts()
    counts.add(
        [event_of(n, item=ids[row], at=1e9 + n, x=[0.0], position=f"{10**13}-{n}") for n, row in enumerate(rows)]
    )
    return counts


class Player:
    """Decides over one catalogue."""

    def __init__(self, active: ActiveLoop, rules: Rules = NO_RULES) -> None:
        self._active, self._rules, self._number = active, rules, 0
        rng = np.random.default_rng(6)
        tastes = rng.normal(size=(200, DIMENSIONS)).round(4).tolist()
        self._contexts = [{**context, "taste": taste} for context, taste in zip(contexts(200, 6), tastes, strict=True)]

    def seconds(self, size: int) -> float:
        """Return the processor time of one decision."""
        first, self._number = self._number, self._number + size
        asked = [
            Request(f"d-{n}", f"user-{n % 500}", self._contexts[n % 200], None, (), 1, self._rules)
            for n in range(first, self._number)
        ]
        started = time.thread_time()
        for request in asked:
            decision_bytes(decide(request, self._active, at=0.0)[0])
        return (time.thread_time() - started) / size


def narrowed(active: ActiveLoop, counts: Counts, sources: list[dict[str, Any]]) -> ActiveLoop:
    """Put a funnel before a loop, and say what building it costs."""
    funnel = Funnel.model_validate({"sources": sources, "cut": 200})
    catalogue, made = active.catalogue, None
    times = [time.thread_time()]
    for version, changed in ((1, None), (1, ()), (2, catalogue.ids[:1])):
        made = Retriever.of(
            funnel,
            catalogue.ids,
            catalogue.features,
            counts,
            version=1,
            catalogue=version,
            former=made,
            changed=changed,
        )
        times.append(time.thread_time())
    first, again, changed_one = np.diff(times)
    names = " ".join(one["source"] for one in sources)
    print(f"seconds of CPU to build {names} over {len(catalogue.ids)} items: {first:.3f}, ", end="")
    print(f"for new counts {again:.3f}, for one changed item {changed_one:.3f}")
    return replace(active, retriever=made)


def test_funnel_cost(quick: bool, request: pytest.FixtureRequest) -> None:
    price = request.config.getoption("--price")
    print(f"\na million decisions at {price} a core hour")
    players = {}
    for n in (50, 200, 10_000, 100_000):
        active = loop_of(Case("adaptive", "declared", n))
        if n <= 200:
            players[f"{n} items, no funnel"] = Player(active)
            continue
        catalogue = Catalogue.of(1, with_vectors(active.catalogue.features), active.encoder)
        active = replace(active, catalogue=catalogue)
        counts = counts_of(list(active.catalogue.ids))
        players[f"{n} items, no funnel"] = Player(active)
        players[f"{n} items, funnel"] = Player(narrowed(active, counts, PLAIN))
        with_ann = narrowed(active, counts, [*PLAIN[:2], ANN, PLAIN[2]])
        players[f"{n} items, funnel with ann"] = Player(with_ann)
        players[f"{n} items, and a filter"] = filtered = Player(with_ann, ON_A_SHELF)
        print(f"seconds of CPU of the first decision with this filter: {filtered.seconds(1):.3f}")
    gc.collect()
    gc.freeze()
    sizes = {name: max(1, int(SECONDS / player.seconds(3))) for name, player in players.items()}
    found: dict[str, list[float]] = {name: [] for name in players}
    for _ in range(1 if quick else ROUNDS):
        for name, player in players.items():
            found[name].append(1e6 * player.seconds(sizes[name]))
    print(
        f"microseconds of CPU per decision, medians of {len(found['50 items, no funnel'])} rounds in turns, and spread"
    )
    base = found["50 items, no funnel"]
    for name, took in found.items():
        ratios = [one / other for one, other in zip(took, base, strict=True)]
        print(
            f"{name:32} {statistics.median(took):8.0f} ({min(took):.0f} to {max(took):.0f}), "
            f"{statistics.median(ratios):7.2f} of 50 items, {statistics.median(took) * price / 3600:.3f} a million"
        )
    if not quick:
        same = statistics.median(found["100000 items, funnel"]) / statistics.median(found["10000 items, funnel"])
        assert same < 1.5, "the catalogue decides what a decision costs"
