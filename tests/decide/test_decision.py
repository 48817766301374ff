"""From a request to a decision: pmf, floor, draw, record."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.decide.active import UNIFORM, ActiveLoop, serving
from service.decide.catalogue import Catalogue
from service.decide.decision import decide, draw_slate, request_of, seed_of, uniform
from service.errors import NoCandidates
from service.policies import Array, Candidates, Ranked, Scorer
from service.policies.linucb import LinUCB, LinUCBParams
from service.represent.encoder import Encoder
from service.represent.misfits import Misfits
from service.represent.schema import FeatureSchema
from service.rules import Rules
from service.store.codec import decision_bytes, read_decision
from tests.builders import batch_of, policy_of
from tests.decide.builders import ENCODER, active_of, catalogue_of, served_of
from tests.decide.builders import request_of as request

AT = 1_700_000_000.0


class Fixed(Scorer):
    """Gives item p0 the weight 1, p1 the weight 2, ...; the score is the weight."""

    def estimate(self, candidates: Candidates) -> Array:
        return np.array([[1.0 + int(item[1:])] for item in candidates.item])

    def pmf(self, estimates: Array) -> Array:
        pmf: Array = estimates[:, 0] / estimates[:, 0].sum()
        return pmf


def shop(**settings: Any) -> ActiveLoop:
    return active_of(4, traffic={"fixed": 1.0}, served={"fixed": served_of("fixed", Fixed(), version=7)}, **settings)


def test_equal_inputs_give_equal_decisions() -> None:
    first, rows = decide(request("d1", user_id="u1", k=3), shop(), at=AT)
    second, again = decide(request("d1", user_id="u1", k=3), shop(), at=AT)
    assert first == second
    assert np.array_equal(rows, again)
    assert first != decide(request("d2", user_id="u1", k=3), shop(), at=AT)[0]


def test_a_decision_is_made_again_from_its_record() -> None:
    asked = request("d1", user_id="u1", context={"a": [1, {"b": None}]}, candidates=["p1", ("p2", {"x": 1})], k=2)
    decision, _ = decide(asked, shop(), at=AT)
    assert request_of(decision) == asked
    assert decide(request_of(decision), shop(), at=AT)[0] == decision


def test_the_record_says_what_was_decided() -> None:
    active = shop(exploration_floor=0.2, reward_range=(0.0, 10.0))
    decision, rows = decide(request("d1", user_id="u1", context={"c": 1}, exclude=["p0"], k=2), active, at=AT)
    assert (decision.loop, decision.at, decision.policy, decision.version) == ("shop", AT, "fixed", 7)
    assert (decision.n, decision.k, decision.catalogue, decision.encoder) == (3, 2, 1, active.encoder.version)
    assert (decision.exploration_floor, decision.seed) == (0.2, seed_of("shop", "d1"))
    # Scores are in units of the reward: the policy's shares of [0, 10].
    assert [item.score for item in decision.items] == [10.0 * (1 + int(item.id[1:])) for item in decision.items]
    ids, block = active.catalogue.eligible(None, ["p0"], active.encoder)
    x = active.encoder.encode({"c": 1}, block)
    assert np.array_equal(rows, x[[ids.index(item.id) for item in decision.items]])


@given(floor=st.floats(0, 1), k=st.integers(1, 6), number=st.integers(0, 10**6))
def test_propensities_are_those_of_the_draw(floor: float, k: int, number: int) -> None:
    """Each place is drawn from pmf and floor over what is left; the propensity is that very probability."""
    estimates = np.array([[1.0], [2.0], [3.0], [4.0]])
    scorer = Fixed()
    slate = draw_slate(Ranked(scorer, estimates), k=k, floor=floor, seed=seed_of("shop", str(number)))
    assert len({pick.row for pick in slate}) == len(slate) == min(k, 4)
    left = [0, 1, 2, 3]
    for place, pick in enumerate(slate):
        p = (1 - floor) * scorer.pmf(estimates[left]) + floor / len(left)
        assert pick.propensity == p[left.index(pick.row)] > 0
        cdf = np.cumsum(p)
        below = cdf[left.index(pick.row)] - p[left.index(pick.row)]
        u = uniform(seed_of("shop", str(number)), place) * cdf[-1]
        assert below - 1e-12 <= u <= below + pick.propensity + 1e-12
        left.remove(pick.row)


def test_items_come_as_often_as_their_propensities_say() -> None:
    """20 000 draws of a pmf (.1 .2 .3 .4) with a floor of .1: each share within 4 standard errors (.0035 at most)."""
    active, n = shop(exploration_floor=0.1), 20_000
    drawn = Counter(decide(request(f"d{i}"), active, at=AT)[0].items[0].id for i in range(n))
    for row in range(4):
        p = 0.9 * (row + 1) / 10 + 0.1 / 4
        assert abs(drawn[f"p{row}"] / n - p) < 4 * np.sqrt(p * (1 - p) / n)


def test_uniform_numbers_are_uniform() -> None:
    """Kolmogorov-Smirnov at 20 000 numbers: the distance stays below 1.95 / √n (probability of more: .001)."""
    n = 20_000
    numbers = np.sort([uniform(seed_of("shop", str(i)), 0) for i in range(n)])
    assert np.abs(numbers - np.arange(n) / n).max() < 1.95 / np.sqrt(n)


def test_what_was_sent_before_changes_nothing() -> None:
    """A candidate's features are found again where they were sent before; decisions and misfits are the same."""
    active = shop()
    sent = [(f"p{i}", {"kind": kind, "text": "x" * 300}) for i, kind in enumerate((1, 1.0, True, "1"))]
    alone = decide(request("d1", candidates=sent, k=2), shop(), at=AT, misfits=(first := Misfits()))
    for number in range(3):
        decide(request("d0", candidates=sent[number:]), active, at=AT)
    again = decide(request("d1", candidates=sent, k=2), active, at=AT, misfits=(later := Misfits()))
    assert again[0] == alone[0]
    assert again[1].tobytes() == alone[1].tobytes()
    assert first.counts == later.counts


def test_nothing_eligible_is_an_error() -> None:
    with pytest.raises(NoCandidates):
        decide(request(exclude=["p0", "p1", "p2", "p3"]), shop(), at=AT)
    with pytest.raises(NoCandidates):
        decide(request(), active_of(0), at=AT)


def test_a_slate_is_no_longer_than_what_is_there() -> None:
    decision, rows = decide(request(k=10), shop(), at=AT)
    assert (len(decision.items), decision.k, len(rows)) == (4, 10, 4)


def test_misfits_are_counted_and_change_nothing_else() -> None:
    misfits = Misfits()
    counted, _ = decide(request(context={"ua": "x" * 300}), shop(), at=AT, misfits=misfits)
    plain, _ = decide(request(context={"ua": "x" * 300}), shop(), at=AT)
    assert counted == plain
    assert misfits


def test_a_replay_names_its_policy() -> None:
    decision, _ = decide(request(), shop(), at=AT, served=UNIFORM)
    assert (decision.policy, decision.version) == ("random", 0)
    assert decision.items[0].propensity == 0.25


SCHEMA = FeatureSchema.model_validate(
    {
        "context": {"hour": {"type": "numeric", "min": 0, "max": 23}, "seg": {"type": "categorical", "levels": ["a"]}},
        "item": {"kind": {"type": "categorical", "levels": ["x", "y"]}},
        "crosses": [["seg", "kind"]],
        "hash_dims": 0,
    }
)


@pytest.fixture(scope="module")
def folded() -> ActiveLoop:
    """A loop whose policy's bounds are folded over the catalogue."""
    encoder = Encoder(SCHEMA)
    catalogue = catalogue_of({f"p{at}": {"kind": "xyz"[at % 3]} for at in range(12)}, encoder=encoder)
    policy = LinUCB(encoder.d, LinUCBParams())
    x = encoder.encode({"hour": 3, "seg": "a"}, catalogue.block)
    policy.update(batch_of(x[:9], np.arange(9) / 9, catalogue.ids[:9]))
    served = serving(policy_of("linucb"), 7, policy.snapshot(), encoder).folded(catalogue)
    return active_of(traffic={"linucb": 1.0}, served={"linucb": served}, catalogue=catalogue, encoder=encoder)


@pytest.mark.parametrize(
    ("candidates", "exclude", "rules", "is_folded"),
    [
        (None, [], {}, True),
        (None, ["p3", "nobody"], {}, True),
        (["p4", "p1"], [], {}, True),
        (["p4"], [], {}, True),
        (None, ["p1"], {"filter": [{"field": "kind", "in": ["x", "y"]}], "boost": []}, True),
        (["p4", ("p1", {"kind": "x"})], [], {}, False),  # features of its own
        (["p4", "nobody"], [], {}, False),  # not in the catalogue
    ],
)
def test_the_fold_is_used_for_items_of_the_catalogue(
    folded: ActiveLoop, candidates: Any, exclude: list[str], rules: dict[str, Any], is_folded: bool
) -> None:
    """The record says so; scores and propensities are those of the rows but for rounding."""
    asked = request(
        "d1",
        context={"hour": 7, "seg": "a"},
        candidates=candidates,
        exclude=exclude,
        k=3,
        rules=Rules.model_validate(rules),
    )
    decision, rows = decide(asked, folded, at=AT)
    assert decision.folded is is_folded
    [served] = folded.served.values()
    plain, plain_rows = decide(asked, folded, at=AT, served=replace(served, fold=None))
    assert not plain.folded
    assert rows.tobytes() == plain_rows.tobytes()
    for one, other in zip(decision.items, plain.items, strict=True):
        assert (one.id, one.propensity) == (other.id, other.propensity)
        assert one.score == pytest.approx(other.score, rel=1e-6)
    stored = read_decision(decision_bytes(decision))
    assert stored == decision
    assert decide(request_of(stored), folded, at=stored.at)[0] == stored


def test_a_fold_belongs_to_one_catalogue(folded: ActiveLoop) -> None:
    [served] = folded.served.values()
    assert served.folded(folded.catalogue) is served
    again = Catalogue.of(2, folded.catalogue.features, folded.encoder)
    other = served.folded(again)
    assert other is not served
    unfitting, _ = decide(request(), replace(folded, served={"linucb": other}), at=AT)
    assert not unfitting.folded
    fitting, _ = decide(request(), replace(folded, served={"linucb": other}, catalogue=again), at=AT)
    assert fitting.folded


def test_without_bounds_or_with_hashed_columns_there_is_no_fold(folded: ActiveLoop) -> None:
    assert served_of("fixed", Fixed()).folded(folded.catalogue).fold is None
    policy = LinUCB(ENCODER.d, LinUCBParams())
    hashed = serving(policy_of("linucb"), 7, policy.snapshot(), ENCODER)
    assert hashed.folded(catalogue_of(3)).fold is None


def test_users_keep_their_policy() -> None:
    """A split is sticky by user, and users come as often as the shares say (4 standard errors at 4 000 users)."""
    active = active_of(traffic={"a": 0.25, "b": 0.75})
    first = {f"u{i}": active.policy_for(f"u{i}").policy for i in range(4000)}
    assert first == {user: active.policy_for(user).policy for user in first}
    share = Counter(first.values())["a"] / 4000
    assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)
    other = replace(active, traffic={"a": 0.5, "b": 0.5})
    moved = [user for user in first if other.policy_for(user).policy != first[user]]
    assert all(first[user] == "b" for user in moved)  # only those whom the new split takes away from b


def test_without_traffic_the_choice_is_uniform() -> None:
    assert active_of().policy_for("u1") is UNIFORM
