"""The union of the sources, in its stated order, and the cut."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import pytest
from pydantic import ValidationError

from service.funnel import Funnel
from service.records import ItemChange
from service.retrieve.counts import Counts
from service.retrieve.retriever import Origin, Retriever
from service.retrieve.source import Query
from tests.builders import event_of

QUERY = Query({"taste": [1, 0]}, "seed")
FEATURES: dict[str, dict[str, Any]] = {f"p{n:02}": {"vector": [100 - n, n]} for n in range(60)}
ANN = {"source": "ann", "quota": 5, "item_field": "vector", "context_field": "taste"}


def counts_of(rewards: dict[str, float]) -> Counts:
    """Count thirty impressions of items with these rewards."""
    counts = Counts()
    counts.add(
        [event_of(item=item, reward=r, at=1e9, x=[0.0], position=f"{10**13}-0") for item, r in rewards.items()] * 30
    )
    return counts


def made_of(
    funnel: Funnel,
    features: dict[str, dict[str, Any]] = FEATURES,
    counts: Counts | None = None,
    *,
    catalogue: int = 1,
    former: Retriever | None = None,
    changed: Collection[str] | None = None,
) -> Retriever:
    counts = counts or Counts()
    return Retriever.of(
        funnel, sorted(features), features, counts, version=3, catalogue=catalogue, former=former, changed=changed
    )


def retriever_of(*sources: Any, cut: int = 20, counts: Counts | None = None) -> Retriever:
    funnel = Funnel.model_validate({"sources": sources, "cut": cut})
    return made_of(funnel, counts=counts)


def test_sources_take_turns_and_the_cut_is_theirs_alike() -> None:
    counts = counts_of({f"p{n}": n / 100 for n in range(50, 60)})
    made = retriever_of({"source": "popular", "quota": 10}, ANN, counts=counts, cut=6)
    assert made.retrieve(QUERY) == (0, 1, 2, 57, 58, 59)
    assert retriever_of({"source": "popular", "quota": 2}, ANN, counts=counts, cut=6).retrieve(QUERY) == (
        0,
        1,
        2,
        3,
        58,
        59,
    )


def test_an_item_that_two_sources_find_counts_once() -> None:
    made = retriever_of({"source": "popular", "quota": 2}, ANN, counts=counts_of({"p00": 1.0, "p59": 0.5}))
    assert made.retrieve(QUERY) == (0, 1, 2, 3, 4, 59)
    origins = made.origins(QUERY)
    assert [(one.source, one.rank) for one in origins[0]] == [("popular", 1), ("ann", 1)]
    [second] = origins[1]
    assert second == Origin("ann", 2, second.score)
    assert second.score == pytest.approx(99 / math.hypot(99, 1))


def test_sources_give_others_for_what_is_excluded_and_pins_come_before_all() -> None:
    made = retriever_of(ANN, cut=5)
    assert made.retrieve(QUERY, exclude=[0, 2]) == (1, 3, 4, 5, 6)
    assert made.retrieve(QUERY, pinned=[40]) == (0, 1, 2, 3, 40)
    assert 0 not in made.origins(QUERY, exclude=[0])


def test_where_no_source_finds_anything_there_are_no_candidates() -> None:
    assert retriever_of({"source": "popular", "quota": 5}).retrieve(QUERY) == ()


def test_sources_of_the_catalogue_alone_are_lent_to_the_next() -> None:
    former = retriever_of({"source": "fresh", "quota": 2}, ANN)
    counts = Counts()
    counts.follow([ItemChange(9, "p30", was=False, now=True)])
    made = made_of(former.funnel, counts=counts, former=former, changed=())
    assert made.sources[1] is former.sources[1]
    assert 30 in made.retrieve(QUERY)
    other = made_of(former.funnel, counts=counts, catalogue=2, former=former)
    assert other.sources[1] is not former.sources[1]
    assert other.retrieve(QUERY) == made.retrieve(QUERY)


class Unread(dict[str, Any]):
    """Features that must not be read again."""

    def get(self, *_: Any) -> Any:
        raise AssertionError("read again")


def test_after_a_change_of_the_catalogue_only_what_changed_is_read() -> None:
    former = retriever_of(ANN)
    changes = {"p00": {}, "p03": {"vector": [0, 1]}, "aa": {"vector": [50, 1]}, "zz": {"vector": [1, 0, 0]}}
    unread = {item: Unread(features) for item, features in FEATURES.items() if item not in ("p01", *changes)}
    made = made_of(former.funnel, unread | changes, catalogue=2, former=former, changed=["p01", *changes])
    anew = made_of(former.funnel, {item: one for item, one in FEATURES.items() if item != "p01"} | changes, catalogue=2)
    assert made.origins(QUERY) == anew.origins(QUERY)
    assert [made.ids[row] for row in made.retrieve(QUERY)] == ["aa", "p02", "p04", "p05", "p06"]
    third = made_of(former.funnel, FEATURES, catalogue=3, former=made, changed=["p01", *changes])
    assert third.origins(QUERY) == former.origins(QUERY)


def test_where_changes_are_missing_everything_is_read() -> None:
    former = retriever_of(ANN)
    features = {item: one for item, one in FEATURES.items() if item != "p01"}
    made = made_of(former.funnel, features, catalogue=2, former=former, changed=[])
    assert made.origins(QUERY) == made_of(former.funnel, features, catalogue=2).origins(QUERY)


def test_vectors_of_a_new_size_take_over_when_they_are_most() -> None:
    former = retriever_of(ANN)
    query = Query({"taste": [1, 0, 0]}, "seed")
    for most in (29, 31):
        new = {f"p{n:02}": {"vector": [n, 1, 1]} for n in range(most)}
        made = made_of(former.funnel, FEATURES | new, catalogue=2, former=former, changed=list(new))
        assert bool(made.retrieve(query)) == (most == 31)
        assert bool(made.retrieve(QUERY)) == (most == 29)


@pytest.mark.parametrize(
    ("funnel", "field"),
    [
        ({"sources": [{"source": "best", "quota": 5}]}, "sources.0.source"),
        ({"sources": [{"source": "popular"}]}, "sources.0.quota"),
        ({"sources": [{"source": "popular", "quota": 0}]}, "sources.0.quota"),
        ({"sources": [{"source": "popular", "quota": True}]}, "sources.0.quota"),
        ({"sources": [{"source": "ann", "quota": 5, "item_field": "v"}]}, "sources.0.context_field"),
        ({"sources": [{"source": "fresh", "quota": 5, "item_field": "v"}]}, "sources.0.item_field"),
        ({"sources": [{"source": "fresh", "quota": 5}] * 2}, ""),
        ({"cut": 1001}, "cut"),
        ({"sauces": []}, "sauces"),
    ],
)
def test_a_funnel_that_makes_no_sense_is_refused(funnel: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Funnel.model_validate(funnel)
    assert ".".join(map(str, refused.value.errors()[0]["loc"])) == field


def test_a_funnel_without_sources_is_none() -> None:
    assert not Funnel()
    assert Funnel.model_validate({"sources": [ANN]})
