"""What each source finds, and the draws of those that draw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from service.funnel import SourceSetting
from service.represent.misfits import Misfits
from service.retrieve.counts import Standing
from service.retrieve.covisits import Covisits
from service.retrieve.fresh import LOOKS
from service.retrieve.retriever import SOURCES
from service.retrieve.source import Found, Items, Query, drawn
from tests.retrieve.builders import taken


def items_of(n: int = 0, *, features: Sequence[Mapping[str, Any]] = (), **known: Sequence[float]) -> Items:
    """Build items of which nothing is known but what is given."""
    n = n or len(features)
    arrays = {
        name: np.zeros(n, dtype=np.int64 if name in ("born", "looks") else np.float64) for name in Standing._fields
    }
    for name, values in known.items():
        arrays[name][:] = values
    ids = [f"p{row}" for row in range(n)]
    return Items(ids, dict(zip(ids, features or [{}] * n, strict=True)), Standing(**arrays))


def find(
    source: str, items: Items, quota: int, *, context: Any = None, seed: str = "s", misfits: Misfits | None = None
) -> Found:
    fields = {"item_field": "vector", "context_field": "taste"} if source == "ann" else {}
    setting = SourceSetting(source=source, quota=quota, **fields)
    return (
        SOURCES[source]
        .of(setting, items)
        .find(Query(context or {}, seed), quota, Misfits() if misfits is None else misfits)
    )


def test_popular_finds_what_was_rewarded_most_and_does_not_trust_one_impression() -> None:
    items = items_of(5, shown=[100, 1, 0, 100, 40], reward=[30, 1, 0, 10, 0])
    found = find("popular", items, 10)
    assert found.rows.tolist() == [0, 1, 3, 4]
    assert found.scores[1] == pytest.approx((1 + 10 * 41 / 241) / 11)
    assert find("popular", items, 2).rows.tolist() == [0, 1]
    assert len(find("popular", items_of(3), 2).rows) == 0


def test_popular_ranks_negative_rewards() -> None:
    assert find("popular", items_of(2, shown=[50, 50], reward=[-40, -10]), 2).rows.tolist() == [1, 0]


def test_friends_finds_what_they_took_in_its_order() -> None:
    context = {"@graph": {"friends": 3, "items": ["p4", "gone", "p0", "p2"]}}
    found = find("friends", items_of(5), 3, context=context)
    assert (found.rows.tolist(), found.scores.tolist()) == ([4, 0, 2], [1.0, 1 / 2, 1 / 3])
    assert find("friends", items_of(5), 1, context=context).rows.tolist() == [4]
    for nobody in ({}, {"@graph": {"friends": 3}}):
        assert len(find("friends", items_of(5), 3, context=nobody).rows) == 0


def test_fresh_finds_the_newest_and_those_that_were_shown_least() -> None:
    items = items_of(6, born=[0, 5, 9, 5, 9, 7], looks=[3, 1, LOOKS, 0, LOOKS - 1, 1])
    found = find("fresh", items, 10)
    assert set(found.rows.tolist()) == {0, 1, 3, 4, 5}
    assert [row for row in found.rows.tolist() if row in find("fresh", items, 3).rows[::2]][:2] == [4, 5]
    assert dict(zip(found.rows.tolist(), found.scores.tolist(), strict=True))[4] == LOOKS - 1


def test_no_fresh_item_starves_though_the_newest_come_first() -> None:
    items = items_of(400, born=np.arange(400).tolist())
    seen = Counter(row for seed in range(600) for row in find("fresh", items, 10, seed=str(seed)).rows.tolist())
    assert all(seen[row] == 600 for row in range(395, 400))
    others = np.array([seen[row] for row in range(395)])
    assert others.sum() == 600 * 5
    assert others.min() > 0


def test_random_finds_every_item_alike() -> None:
    n, draws = 50, 2000
    seen = Counter(row for seed in range(draws) for row in find("random", items_of(n), 5, seed=str(seed)).rows.tolist())
    expected = draws * 5 / n
    chi_squared = sum((seen[row] - expected) ** 2 / expected for row in range(n))
    assert chi_squared < 85.4  # the .999 quantile of 49 degrees of freedom
    assert find("random", items_of(n), 5).scores.tolist() == [0.1] * 5


@pytest.mark.parametrize(("most", "of"), [(5, 3), (5, 5), (5, 6), (5, 40), (5, 41), (1, 10), (20, 100_000), (0, 7)])
def test_draws_are_different_numbers_and_the_same_for_the_same_seed(most: int, of: int) -> None:
    for seed in ("a", "b"):
        numbers = drawn(seed, "it", most, of)
        assert len(set(numbers.tolist())) == len(numbers) == min(most, of)
        assert all(0 <= number < of for number in numbers.tolist())
        assert numbers.tolist() == drawn(seed, "it", most, of).tolist()
    if of > 10 * most > 0:
        assert drawn("a", "it", most, of).tolist() != drawn("a", "else", most, of).tolist()


def test_ann_finds_the_nearest_exactly() -> None:
    rng = np.random.default_rng(1)
    vectors, taste = rng.normal(size=(300, 8)), rng.normal(size=8)
    items = items_of(features=[{"vector": vector.tolist()} for vector in vectors])
    cosines = vectors @ taste / np.linalg.norm(vectors, axis=1) / np.linalg.norm(taste)
    found = find("ann", items, 20, context={"taste": (7 * taste).tolist()})
    assert found.rows.tolist() == np.argsort(-cosines)[:20].tolist()
    assert found.scores == pytest.approx(np.sort(cosines)[::-1][:20], abs=1e-6)
    assert len(find("ann", items, 1000, context={"taste": taste.tolist()}).rows) == 300


def test_ann_leaves_out_what_is_no_vector_and_counts_what_the_context_got_wrong() -> None:
    values: list[Any] = [[1, 0], None, [1, 2, 3], [0, 0], "text", [1, "a"], [0, 1.5], [True, 1], [1e300, 1]]
    items = items_of(features=[{} if value is None else {"vector": value} for value in values])
    assert sorted(find("ann", items, 9, context={"taste": [1, 1]}).rows.tolist()) == [0, 6, 8]
    for value, reason in (([1, 2, 3], "wrong_size"), ("text", "wrong_type"), ([0, 0], None)):
        misfits = Misfits()
        assert len(find("ann", items, 9, context={"taste": value}, misfits=misfits).rows) == 0
        assert list(misfits.counts) == ([] if reason is None else [("context", "taste", reason)])
    assert len(find("ann", items, 9).rows) == 0
    assert len(find("ann", items_of(3), 9, context={"taste": [1, 1]}).rows) == 0


def test_covisited_finds_what_others_took_with_the_users_last_items() -> None:
    covisits = Covisits()
    covisits.add(taken(a="p0 p1", b="p0 p1", c="p0 p2", d="p3 p4", e="p0 gone", f="p5 p6"), "1-0")
    items = replace(items_of(7), covisits=covisits)
    source = SOURCES["covisited"].of(SourceSetting(source="covisited", quota=9), items)

    def found(*last: str, most: int = 9) -> dict[str, float]:
        rows, scores = source.find(Query({}, "s", last=last), most, Misfits())
        assert scores.tolist() == sorted(scores.tolist(), reverse=True)
        return dict(zip((f"p{row}" for row in rows.tolist()), scores.tolist(), strict=True))

    assert found("p0") == {"p1": 0.5, "p2": 0.25}  # a quarter is of an item that the catalogue lacks
    assert found("p0", most=1) == {"p1": 0.5}
    assert found("p3", "p0") == {"p4": 1.0, "p1": 0.25, "p2": 0.125}
    assert found("p0", "p1") == {"p2": 0.25}  # not what he has just taken himself
    assert found("nowhere", "p5") == {"p6": 1.0}
    assert found("nowhere") == found() == {}
    nothing = SOURCES["covisited"].of(SourceSetting(source="covisited", quota=9), items_of(3))
    assert len(nothing.find(Query({}, "s", last=("p0",)), 3, Misfits()).rows) == 0
