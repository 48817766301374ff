"""Decisions of a funnel: candidates, records, replays, rules, explanations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from service.admin.exports import candidates_of
from service.decide.active import ActiveLoop
from service.decide.decision import chances, decide
from service.decide.decision import request_of as request_of_record
from service.errors import NoCandidates
from service.evaluate.counterfactual import opinion
from service.evaluate.replay import same_decision
from service.funnel import Funnel
from service.retrieve.counts import Counts
from service.retrieve.retriever import KEPT_NARROWED, Retriever
from service.rules import Rules
from service.store.codec import decision_bytes, read_decision
from tests.builders import event_of, loop_of
from tests.decide.builders import active_of, request_of, served_of

AT = 1_700_000_000.0
ITEMS: dict[str, Any] = {f"p{n:02}": {"category": "ab"[n % 2], "vector": [60 - n, n]} for n in range(60)}
ANN = {"source": "ann", "quota": 6, "item_field": "vector", "context_field": "taste"}
FUNNEL = Funnel.model_validate({"sources": [ANN, {"source": "random", "quota": 4}], "cut": 20})


def shop(funnel: Funnel = FUNNEL) -> ActiveLoop:
    active = active_of(ITEMS, traffic={"p": 1.0}, served={"p": served_of("p")}, exploration_floor=0.1)
    catalogue = active.catalogue
    made = Retriever.of(funnel, catalogue.ids, catalogue.features, Counts(), version=7, catalogue=catalogue.version)
    return replace(active, retriever=made)


SHOP = shop()
TASTE = {"taste": [1, 0]}


def test_candidates_are_what_the_funnel_finds() -> None:
    seen = set()
    for number in range(30):
        decision, _ = decide(request_of(f"d{number}", context=TASTE, k=3), SHOP, at=AT)
        assert decision.retrieved is not None
        version, rows, _ = decision.retrieved
        assert (version, decision.n) == (7, len(rows))
        assert set(range(6)) <= set(rows)
        assert 6 < decision.n <= 10
        assert {item.id for item in decision.items} <= {f"p{row:02}" for row in rows}
        assert [item.propensity for item in decision.items] == pytest.approx([1 / (decision.n - k) for k in range(3)])
        seen |= set(rows)
    assert len(seen) > 40  # the random source reaches everywhere


def test_a_decision_is_made_again_from_its_record_without_the_funnel() -> None:
    rules = Rules.model_validate({"filter": [{"field": "category", "in": ["a"]}], "pin": [{"item": "p50", "place": 2}]})
    for asked in (
        request_of(context=TASTE, k=3),
        request_of(context=TASTE, exclude=["p00", "p01", "nobody"], k=20),
        request_of(context=TASTE, rules=rules, k=4),
    ):
        decision = read_decision(decision_bytes(decide(asked, SHOP, at=AT)[0]))
        assert decision.retrieved is not None
        loop = loop_of("shop", exploration_floor=0.1)
        assert same_decision(decision, loop, SHOP.encoder, SHOP.catalogue, SHOP.served["p"])
        other = replace(decision, retrieved=decision.retrieved._replace(rows=decision.retrieved.rows[1:]))
        assert not same_decision(other, loop, SHOP.encoder, SHOP.catalogue, SHOP.served["p"])
        target = replace(SHOP.served["p"], encoder=SHOP.encoder)
        if len(decision.items) == 1:
            said = opinion(decision, SHOP.catalogue, target, (0, 1))
            assert said is not None
            assert said.chosen == decision.items[0].propensity


def test_an_evaluation_asks_about_what_the_funnel_found() -> None:
    decision, _ = decide(request_of(context=TASTE), SHOP, at=AT)
    said = opinion(decision, SHOP.catalogue, replace(SHOP.served["p"], encoder=SHOP.encoder), (0, 1))
    assert said is not None
    assert said.chosen == decision.items[0].propensity


def test_an_export_names_what_the_funnel_found() -> None:
    decision, _ = decide(request_of(context=TASTE, exclude=["p01"]), SHOP, at=AT)
    assert decision.retrieved is not None
    found = candidates_of(decision, ITEMS)
    assert [item for item, _ in found] == [f"p{row:02}" for row in decision.retrieved.rows]


def test_excluded_items_make_room_for_others() -> None:
    decision, _ = decide(request_of(context=TASTE, exclude=["p00", "p02"]), SHOP, at=AT)
    assert decision.retrieved is not None
    assert {1, 3, 4, 5, 6, 7} <= set(decision.retrieved.rows)
    assert not {0, 2} & set(decision.retrieved.rows)


def test_a_pinned_item_is_a_candidate_where_it_meets_the_filter() -> None:
    rules = Rules.model_validate({"pin": [{"item": "p58", "place": 1}], "filter": [{"field": "category", "in": ["a"]}]})
    decision, _ = decide(request_of(context=TASTE, rules=rules, k=5), SHOP, at=AT)
    assert decision.items[0].id == "p58"
    assert decision.items[0].propensity == 1.0
    assert all(int(item.id[1:]) % 2 == 0 for item in decision.items)
    nothing = Rules.model_validate({"filter": [{"field": "category", "in": ["c"]}]})
    with pytest.raises(NoCandidates, match="none of the 60 candidates that were left has `category`"):
        decide(request_of(context=TASTE, rules=nothing), SHOP, at=AT)


@pytest.mark.parametrize("passes", [30, 3, 1])
def test_each_source_gives_its_quota_among_what_meets_a_filter(passes: int) -> None:
    """So few items meet it that it would take nearly all that the sources find otherwise."""
    wanted = [f"p{n:02}" for n in range(59, 59 - passes, -1)]  # the farthest from the taste
    items = {item: {**one, "deal": item in wanted} for item, one in ITEMS.items()}
    counts = Counts()
    counts.add([event_of(item=item, reward=0.5, at=1e9, x=[0.0], position=f"{10**13}-0") for item in items] * 2)
    quotas = {"popular": 3, "fresh": 3, "random": 3, "ann": 3}
    rules = Rules.model_validate({"filter": [{"field": "deal", "in": [True]}], "pin": [{"item": "p00", "place": 1}]})
    for source, quota in quotas.items():
        setting = {**ANN, "quota": quota} if source == "ann" else {"source": source, "quota": quota}
        active = active_of(items, traffic={"p": 1.0}, served={"p": served_of("p")}, exploration_floor=0.1)
        catalogue = active.catalogue
        of_source = Funnel.model_validate({"sources": [setting], "cut": 20})
        made = Retriever.of(of_source, catalogue.ids, catalogue.features, counts, version=7, catalogue=1)
        active = replace(active, retriever=made)
        for excluded in ([], wanted[:1]):
            asked = request_of(context=TASTE, rules=rules, exclude=excluded)
            left = passes - len(excluded)
            if not left:
                with pytest.raises(NoCandidates, match="none is left"):
                    decide(asked, active, at=AT)
                continue
            decision, _ = decide(asked, active, at=AT)
            assert decision.n == min(quota, left), source
            assert decision.retrieved is not None
            assert {f"p{row:02}" for row in decision.retrieved.rows} <= {*wanted[len(excluded) :]}
            again = read_decision(decision_bytes(decision))
            loop = loop_of("shop", exploration_floor=0.1)
            assert same_decision(again, loop, active.encoder, catalogue, active.served["p"])
            assert all(chance.sources for chance in chances(request_of_record(decision), active, active.served["p"])), (
                "it is explained among these, too"
            )


def test_funnels_of_filters_are_kept_within_a_bound() -> None:
    assert SHOP.retriever is not None
    found = []
    for number in (*range(40), 39):
        rules = Rules.model_validate({"filter": [{"field": "vector", "not_in": [f"{number}"]}]})
        decide(request_of(context=TASTE, rules=rules), SHOP, at=AT)
        found.append(list(SHOP.retriever._narrowed.values())[-1])
        assert len(SHOP.retriever._narrowed) <= KEPT_NARROWED
    assert found[-1] is found[-2]


def test_candidates_of_a_request_are_not_narrowed() -> None:
    decision, _ = decide(request_of(candidates=["p40", "p41"], context=TASTE), SHOP, at=AT)
    assert (decision.n, decision.retrieved) == (2, None)


def test_a_funnel_that_finds_nothing_says_so() -> None:
    popular = Funnel.model_validate({"sources": [{"source": "popular", "quota": 5}], "cut": 20})
    with pytest.raises(NoCandidates, match="none is left"):
        decide(request_of(), shop(popular), at=AT)


def test_an_explanation_says_where_each_candidate_came_from() -> None:
    rules = Rules.model_validate({"pin": [{"item": "p58", "place": 2}]})
    decision, _ = decide(request_of(context=TASTE, rules=rules, exclude=["p01"]), SHOP, at=AT)
    assert decision.retrieved is not None
    said = {chance.id: chance for chance in chances(request_of_record(decision), SHOP, SHOP.served["p"])}
    assert set(said) == {f"p{row:02}" for row in decision.retrieved.rows}
    [nearest] = [one for one in said["p00"].sources or () if one.source == "ann"]
    assert (nearest.rank, nearest.score) == (1, 1.0)
    assert all(chance.sources for item, chance in said.items() if item != "p58")
    moved_on = replace(SHOP, retriever=None)
    assert {chance.sources for chance in chances(request_of_record(decision), moved_on, SHOP.served["p"])} == {None}
    plain = replace(SHOP, retriever=None)
    asked = request_of(context=TASTE)
    assert chances(asked, plain, SHOP.served["p"])[0].sources is None
