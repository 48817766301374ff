"""Why did it show that: parts of every linear kind add up to the score it serves, and of others they are estimates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.decide.active import ActiveLoop, ServedPolicy, serving
from service.decide.catalogue import Catalogue
from service.decide.explanation import MOST_PARTS, MOST_SAMPLED, Explanation, NotLinear, Part, Steps, explained, largest
from service.decide.shapley import Logged
from service.loop import LoopSettings
from service.policies import KINDS, Array, Candidates, LinearScore, Scorer, new_policy
from service.represent.learned import LearnedEncoder
from service.represent.stored import AnyEncoder
from service.rules import Rules
from tests.builders import batch_of, policy_of
from tests.decide.builders import request_of
from tests.represent.builders import JSON, MIXED, SHOP, encoder
from tests.represent.test_learned import SCHEMA

LINEAR = ("adaptive", "lin_ts", "linucb", "linucb_hybrid", "popularity", "random", "squarecb", "vw")
SHAPED = ("embedding_mlp", "neural_linear", "neural_ucb")
ENCODERS: dict[str, AnyEncoder] = {
    "hashed": encoder(),
    "declared": encoder(SHOP, hash_dims=0),
    "mixed": encoder(MIXED, hash_dims=5),
    "learned": LearnedEncoder(SCHEMA),
}
NAMES = st.sampled_from(["persona", "hour", "taste", "seg", "user", "likes", "else"])
CONTEXTS = st.dictionaries(NAMES, JSON | st.sampled_from(["a", "b", 7, [0.6, 0.8], {"age": 33}]), max_size=5)
ITEMS: dict[str, dict[str, Any]] = {
    "i0": {"kind": "a", "price": 3, "v": [1.0, 0.5]},
    "i1": {"kind": "b", "price": 12},
    "i2": {},
    "i3": {"kind": "a", "colour": "red", "price": 99},
}


def finished(steps: Steps[Explanation]) -> Explanation:
    try:
        while True:
            next(steps)
    except StopIteration as stop:
        found: Explanation = stop.value
        return found


def contexts(rng: np.random.Generator, count: int) -> list[dict[str, Any]]:
    return [
        {"persona": "ab"[rng.integers(2)], "hour": int(rng.integers(20)), "seg": "ab"[rng.integers(2)], "else": "x"}
        for _ in range(count)
    ]


def taught(kind: str, rows: AnyEncoder, *, events: int = 120) -> ServedPolicy:
    """A policy that has learned some events of a shop where persona a likes kind a."""
    rng = np.random.default_rng(5)
    params = KINDS[kind].Params()
    policy = new_policy(kind, rows.d, rows.layout, params, seed=3)
    asked, shown = contexts(rng, events), [f"i{rng.integers(3)}" for _ in range(events)]
    x = rows.pairs(asked, [ITEMS[item] for item in shown], shown)[:, : policy.d]
    click = [ITEMS[item].get("kind") == context["persona"] for item, context in zip(shown, asked, strict=True)]
    batch = batch_of(x, np.array(click) * 0.8 + 0.1, shown, user=[f"u{rng.integers(4)}" for _ in shown])
    policy.update(batch)
    if policy.batch_trained:
        policy.train([batch])
    return serving(policy_of(kind), 1, policy.snapshot(), rows)


def active_with(rows: AnyEncoder, **settings: Any) -> ActiveLoop:
    catalogue = Catalogue.of(1, ITEMS, rows)
    return ActiveLoop("shop", "1", LoopSettings(**settings), rows, catalogue, {}, {}, 1)


TAUGHT = {(kind, name): taught(kind, rows) for kind in LINEAR for name, rows in ENCODERS.items() if kind != "vw"}
TAUGHT |= {("vw", "declared"): taught("vw", ENCODERS["declared"])}


def added_up(explanation: Explanation) -> list[float]:
    return [one.bias + sum(part.value for part in one.parts) + one.item + one.user for one in explanation.candidates]


@settings(max_examples=40)
@given(which=st.sampled_from(sorted(TAUGHT)), context=CONTEXTS, user=st.sampled_from([None, "u1", "new"]))
def test_parts_add_up_to_the_score_that_is_served(
    which: tuple[str, str], context: dict[str, Any], user: str | None
) -> None:
    served, rows = TAUGHT[which], ENCODERS[which[1]]
    low, high = -2.0, 6.0
    active = active_with(rows, reward_range=(low, high))
    found = finished(explained(request_of(context=context, user_id=user), active, served))
    assert found.exact
    assert found.n == len(found.candidates) == len(ITEMS)
    scores = [one.score for one in found.candidates]
    np.testing.assert_allclose(added_up(found), scores, rtol=0, atol=1e-9)
    assert sum(one.propensity for one in found.candidates) == pytest.approx(1)

    ids = [one.id for one in found.candidates]
    x = rows.encode(context, rows.items([ITEMS[item] for item in ids], ids))[:, : served.columns]
    shown = served.scorer.estimate(Candidates(x, ids, user))
    if found.scale == "logit":
        np.testing.assert_allclose(scores, shown[:, 1], rtol=1e-4, atol=1e-4)  # f, which is rounded to float32
        expected = low + (high - low) * shown[:, 0]
    else:
        sd = np.array([one.sd or 0.0 for one in found.candidates])
        np.testing.assert_allclose(
            np.array(scores) + (found.width or 0) * sd, low + (high - low) * shown[:, 0], atol=1e-6
        )
        expected = np.array(scores)
    np.testing.assert_allclose([one.expected for one in found.candidates], expected, rtol=1e-4, atol=1e-4)


def test_every_kind_that_explains_itself_is_tested_here() -> None:
    known = {kind for kind, policy in KINDS.items() if policy.on_layers or kind not in SHAPED}
    assert known == set(LINEAR)


def test_the_pair_that_matters_comes_first_and_belongs_to_the_right_candidate() -> None:
    served, rows = TAUGHT["adaptive", "declared"], ENCODERS["declared"]
    found = finished(explained(request_of(context={"persona": "a", "hour": 3}), active_with(rows), served))
    parts = {one.id: one.parts[0] for one in found.candidates}
    assert parts["i0"].fields == ["persona", "kind"]
    assert parts["i0"].value > 0.3
    assert parts["i1"].value < -0.3
    assert all(one.sd is not None and one.sd > 0 for one in found.candidates)


def test_items_that_were_shown_come_first_and_the_rules_hold() -> None:
    active, served = active_with(ENCODERS["declared"], exploration_floor=0.2), TAUGHT["linucb", "declared"]
    rules = Rules.model_validate({"filter": [{"field": "price", "max": 50}], "pin": [{"item": "i1", "place": 2}]})
    found = finished(explained(request_of(context={"persona": "a"}, rules=rules), active, served, first=["i1"]))
    assert [one.id for one in found.candidates] == ["i1", "i0"]
    assert found.candidates[0].propensity == 0
    assert found.candidates[0].rules == ("pin: place 2",)


def test_parts_beyond_those_that_are_listed_are_added_up() -> None:
    parts = [Part(f"f{number}", None, (-1) ** number / (1 + number), 0.01) for number in range(MOST_PARTS + 40)]
    found = largest([*parts, Part("nothing", None, 0.0)])
    assert len(found) == MOST_PARTS
    assert sum(part.value for part in found) == pytest.approx(sum(part.value for part in parts))
    assert (found[0].fields, found[-1].fields) == (["f0"], [])
    assert found[-1].error == pytest.approx(0.41)


class Product(Scorer):
    """A score that is no sum: the product of two columns, and what an item and a user have of their own."""

    def estimate(self, candidates: Candidates) -> Array:
        own = np.array([0.3 if item == "i1" else 0.0 for item in candidates.item])
        found: Array = (candidates.x[:, 1:2] * candidates.x[:, 4:5] + own[:, None]).astype(np.float64)
        return found + (0.1 if candidates.user == "u1" else 0.0)

    def pmf(self, estimates: Array) -> Array:
        return np.full(len(estimates), 1 / len(estimates))


def logged(count: int, fields: Sequence[Mapping[str, Any]]) -> list[Logged]:
    return [
        Logged(f"d{number}", ["i0", "i1"][number % 2], ["u1", "u2"][number // 2 % 2], context, ITEMS["i0"])
        for number, context in zip(range(count), fields, strict=False)
    ]


def test_shapley_values_of_a_product_are_those_by_hand() -> None:
    """f = a·b with a in the context and b in the item: worth (a·b + a·E[b] - E[a]·b - E[a]E[b]) / 2 to a, and so on."""
    rows = encoder(SHOP, hash_dims=0)
    columns = list(rows.columns)
    served = ServedPolicy("p", "1", 1, _of(columns.index("context.persona=a"), columns.index("item.kind=a")), rows)
    background = logged(100, [{"persona": "a" if number % 4 < 1 else "b", "hour": 3} for number in range(100)])
    request = request_of(context={"persona": "a", "hour": 15}, candidates=["i0"], user_id="u1")
    found = finished(explained(request, active_with(rows), served, background=background))
    (one,) = found.candidates
    assert not found.exact
    assert list(found.background) == [f"d{number}" for number in range(100)]
    a = float(rows.encode({"persona": "a"}, rows.items([ITEMS["i0"]]))[0, columns.index("context.persona=a")])
    b = float(rows.encode({}, rows.items([ITEMS["i0"]]))[0, columns.index("item.kind=a")])
    values = {tuple(part.fields): part for part in one.parts}
    assert one.bias == pytest.approx(0.25 * a * b + 0.15 + 0.05)
    assert one.score == pytest.approx(a * b + 0.1)
    assert added_up(found) == pytest.approx([one.score])
    persona = values[("persona",)]
    assert persona.value == pytest.approx(0.75 * a * b), "the item's fields are the same in all logged requests"
    assert persona.error is not None
    assert 0 < persona.error < 0.1 * a * b
    assert (one.item, one.user) == pytest.approx((-0.15, 0.05))
    assert ("hour",) not in values, "what changes nothing has no part"


def _of(left: int, right: int) -> Scorer:
    class Of(Product):
        def estimate(self, candidates: Candidates) -> Array:
            x = np.zeros((len(candidates.item), 5), dtype=np.float32)
            x[:, 1], x[:, 4] = candidates.x[:, left], candidates.x[:, right]
            return super().estimate(Candidates(x, candidates.item, candidates.user))

    return Of()


@pytest.mark.parametrize("kind", ["neural_linear", "neural_ucb"])  # the third is trained in seconds
def test_estimates_add_up_and_find_what_matters(kind: str) -> None:
    rows = ENCODERS["declared"]
    served = taught(kind, rows, events=400)
    assert served.scorer.explain(Candidates(np.zeros((1, rows.d), np.float32), ["i0"], None)) is None
    rng = np.random.default_rng(1)
    background = [
        Logged(f"d{number}", item, "u1", context, ITEMS[item])
        for number, (item, context) in enumerate(zip(["i0", "i1", "i2"] * 14, contexts(rng, 40), strict=False))
    ]
    request = request_of(context={"persona": "a", "hour": 3, "seg": "a", "else": "x"}, user_id="u1")
    found = finished(explained(request, active_with(rows), served, first=["i0"], background=background))
    assert len(found.candidates) == min(len(ITEMS), MOST_SAMPLED)
    np.testing.assert_allclose(added_up(found), [one.score for one in found.candidates], atol=1e-9)
    x = rows.encode(request.context, rows.items([ITEMS["i0"]], ["i0"]))
    shown = served.scorer.estimate(Candidates(x, ["i0"], "u1"))[0, 0]
    assert found.candidates[0].score == pytest.approx(float(shown), abs=1e-5)
    assert found == finished(explained(request, active_with(rows), served, first=["i0"], background=background))


def test_without_a_background_there_is_no_estimate() -> None:
    rows = ENCODERS["declared"]
    served = ServedPolicy("p", "1", 1, _of(1, 2), rows)
    with pytest.raises(ValueError, match="nothing to compare"):
        finished(explained(request_of(), active_with(rows), served))
    with pytest.raises(NotLinear):
        finished(explained(request_of(), active_with(rows), served, background=logged(3, [{}] * 3)))
    found = finished(explained(request_of(), active_with(rows), served, background=logged(4, [{}] * 4)))
    assert all(np.isfinite(part.error or 0.0) for one in found.candidates for part in one.parts)


def test_a_policy_that_says_nothing_of_its_uncertainty_has_none() -> None:
    rows = ENCODERS["declared"]

    class Plain(Product):
        def explain(self, candidates: Candidates) -> LinearScore:
            return LinearScore(np.ones(2), np.zeros(len(candidates.item)), bias=0.5)

    served = replace(ServedPolicy("p", "1", 1, Plain()), encoder=rows)
    found = finished(explained(request_of(context={"persona": "a"}), active_with(rows), served))
    assert {one.sd for one in found.candidates} == {None}
    assert found.candidates[0].bias == pytest.approx(0.5 + 0.5)
