"""What a fit finds in logs with a planted truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from service.layout import Layout
from service.represent.fit import Fitted, Raw
from service.represent.fit import fit as fit_with
from service.represent.learned import LearnedEncoder, LearnedSchema
from service.represent.profile import Profile

Make = Callable[[np.random.Generator, int], tuple[dict[str, Any], str, dict[str, Any], str, float]]


def log_of(make: Make, n: int, seed: int = 1) -> list[Raw]:
    """Draw n records; `make` returns context, item, features, user and click rate."""
    rng = np.random.default_rng(seed)
    records = []
    for at in range(n):
        context, item, features, user, p = make(rng, at)
        records.append(Raw(context, item, features, user, float(rng.random() < p)))
    return records


def fit(records: list[Raw], former: LearnedSchema | None = None) -> Fitted:
    profile = Profile()
    for at, (context, item, features, user, reward) in enumerate(records):
        profile.add(context=context, item=item, features=features, user=user, reward=reward, at=float(at))
    return fit_with(records, profile, former)


def segments(rng: np.random.Generator, at: int) -> tuple[dict[str, Any], str, dict[str, Any], str, float]:
    """The kind of the item that suits the segment; beside it noise, an id, a clock and a constant."""
    seg, item = int(rng.integers(4)), int(rng.integers(12))
    context = {
        "seg": f"s{seg}",
        "noise": f"n{rng.integers(5)}",
        "request": f"{rng.integers(2**60):x}",
        "clock": at + 1_700_000_000,
        "shop": "eu",
    }
    return context, f"i{item}", {"kind": item % 4}, f"u{rng.integers(300)}", 0.6 if seg == item % 4 else 0.2


def layout_of(schema: LearnedSchema) -> Layout:
    layout = LearnedEncoder(schema).layout
    assert layout is not None
    return layout


def variance(fitted: Fitted, context: str | None, item: str | None) -> float:
    """The variance of a block, 0 where it was left out."""
    found = [b.variance for b in fitted.schema.blocks if (b.context, b.item) == (context, item)]
    return found[0] if found else 0.0


def own(fitted: Fitted, field: str | None) -> float:
    return next((b.variance for b in fitted.schema.own_of_items if b.context == field), 0.0)


def test_what_matters_grows_and_noise_shrinks() -> None:
    fitted = fit(log_of(segments, 1500))
    assert variance(fitted, "seg", "kind") > 0.5
    assert variance(fitted, "noise", "kind") < 0.02
    assert own(fitted, "seg") < 0.05


def test_what_can_teach_nothing_is_left_out_with_its_reason() -> None:
    fitted = fit(log_of(segments, 300))
    assert fitted.left_out == {
        "context.request": "new_each_time",
        "context.clock": "clock",
        "context.shop": "constant",
    }


def test_items_without_features_have_effects_of_their_own() -> None:
    def ids(rng: np.random.Generator, at: int) -> tuple[dict[str, Any], str, dict[str, Any], str, float]:
        seg, item = int(rng.integers(4)), int(rng.integers(4))
        return {"seg": f"s{seg}"}, f"i{item}", {}, "u", 0.6 if seg == item else 0.2

    fitted = fit(log_of(ids, 800))
    assert own(fitted, "seg") > 0.4
    assert layout_of(fitted.schema).of_item == 5


def test_a_log_in_which_all_items_are_alike_does_not_end_the_search_among_items_without_features() -> None:
    """What a policy gave up is hardly in its log."""

    def alike(rng: np.random.Generator, at: int) -> tuple[dict[str, Any], str, dict[str, Any], str, float]:
        return {"seg": f"s{rng.integers(3)}"}, f"i{rng.integers(8)}", {}, "u", 0.3

    def own(n: int) -> float:
        return sum(block.variance for block in fit(log_of(alike, n)).schema.own_of_items)

    assert own(1000) >= 0.95 * own(60)  # so few teach no variances; columns of a level have squares of 1 on average


def test_of_more_fields_than_an_item_can_have_of_its_own_those_that_tell_most_are_kept() -> None:
    def suits(rng: np.random.Generator, at: int) -> tuple[dict[str, Any], str, dict[str, Any], str, float]:
        item, kind = int(rng.integers(6)), int(rng.integers(6))
        noise = {f"a{j}": f"v{rng.integers(9)}" for j in range(9)}  # before "kind" in the alphabet
        return {**noise, "kind": f"k{kind}"}, f"i{item}", {}, f"u{at}", 0.7 if item == kind else 0.2

    fitted = fit(log_of(suits, 1500))
    assert own(fitted, "kind") > 0.3
    assert own(fitted, "kind") > 3 * max(own(fitted, f"a{j}") for j in range(9))
    assert layout_of(fitted.schema).of_item <= 64


@pytest.mark.parametrize(("items", "columns"), [(5, 64), (40, 50), (500, 28)])
def test_the_fewer_items_without_features_the_more_columns_each_may_have(items: int, columns: int) -> None:
    def wide(rng: np.random.Generator, at: int) -> tuple[dict[str, Any], str, dict[str, Any], str, float]:
        context = {f"c{j}": float(rng.random()) for j in range(70)}
        return context, f"i{at % items}", {}, f"u{at}", 0.5

    assert columns - 5 < layout_of(fit(log_of(wide, 500)).schema).of_item <= columns


def test_a_number_that_matters_in_the_middle_is_bent() -> None:
    def prices(rng: np.random.Generator, at: int) -> tuple[dict[str, Any], str, dict[str, Any], str, float]:
        item = int(rng.integers(20))
        price = 10.0 * item + 5
        return {"seg": "a"}, f"i{item}", {"price": price}, "u", 0.05 + 0.55 * np.exp(-(((price - 100) / 30) ** 2))

    fitted = fit(log_of(prices, 1500))
    assert variance(fitted, None, "price bent") > 10 * variance(fitted, None, "price")


def test_users_with_a_taste_have_effects_of_their_own() -> None:
    def tastes(rng: np.random.Generator, at: int) -> tuple[dict[str, Any], str, dict[str, Any], str, float]:
        user, item = int(rng.integers(40)), int(rng.integers(4))
        return {}, f"i{item}", {}, f"u{user}", 0.65 if user % 4 == item else 0.15

    fitted = fit(log_of(tastes, 2000))
    [taste] = [b.variance for b in fitted.schema.own_of_users if b.item == "@item"]
    assert taste > 0.3


def test_with_few_clicks_the_variances_stand_at_their_defaults() -> None:
    def rare(rng: np.random.Generator, at: int) -> tuple[dict[str, Any], str, dict[str, Any], str, float]:
        context, item, features, user, p = segments(rng, at)
        return {"seg": context["seg"]}, item, features, user, p / 20

    fitted = fit(log_of(rare, 1500))
    assert fitted.schema.blocks[0].variance == 4.0
    assert variance(fitted, "seg", "kind") == pytest.approx(2 * variance(fitted, "seg", None), rel=1e-9)


def test_rewards_are_measured_by_what_was_seen() -> None:
    records = [one._replace(reward=40 * one.reward) for one in log_of(segments, 400)]
    assert fit(records).schema.reward_range == (0.0, 40.0)
    low = [one._replace(reward=one.reward - 1) for one in log_of(segments, 400)]
    assert fit(low).schema.reward_range == (-1.0, 0.0)


def test_vectors_keep_the_directions_in_which_they_differ() -> None:
    rng = np.random.default_rng(5)
    topics = rng.standard_normal((30, 2))
    vectors = topics @ rng.standard_normal((2, 50)) + 0.001 * rng.standard_normal((30, 50))

    def embedded(rng: np.random.Generator, at: int) -> tuple[dict[str, Any], str, dict[str, Any], str, float]:
        item = int(rng.integers(30))
        return {"seg": "a"}, f"i{item}", {"v": vectors[item].tolist()}, "u", 1 / (1 + np.exp(1 - 2 * topics[item, 0]))

    fitted = fit(log_of(embedded, 1000))
    field = fitted.schema.item["v"]
    assert len(field.columns) == 2
    assert variance(fitted, None, "v") > 0.2


@pytest.mark.parametrize("n", [1, 2, 40])
def test_a_short_log_is_enough_for_a_schema(n: int) -> None:
    schema = fit(log_of(segments, n)).schema
    assert LearnedSchema.model_validate_json(schema.model_dump_json()) == schema
    assert LearnedEncoder(schema).d > 1


def test_the_same_log_makes_the_same_schema() -> None:
    records = log_of(segments, 500)
    former = fit(records[:200]).schema
    assert fit(records, former).schema == fit(records, former).schema


def test_columns_are_bounded() -> None:
    def wide(rng: np.random.Generator, at: int) -> tuple[dict[str, Any], str, dict[str, Any], str, float]:
        context = {f"c{j}": f"v{rng.integers(30)}" for j in range(20)}
        features = {f"f{j}": f"v{rng.integers(30)}" for j in range(20)}
        return context, f"i{rng.integers(500)}", features, f"u{rng.integers(300)}", 0.3

    layout = layout_of(fit(log_of(wide, 600)).schema)
    assert layout.shared <= 1 + 224
    assert layout.of_item <= 28
    assert layout.of_user <= 24
