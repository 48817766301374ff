"""The worlds in the shapes of data that users send are what they are said to be, and can be played over HTTP."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from typer.testing import CliRunner

from simulator.cli import app
from simulator.measures import gain
from simulator.shocks import find_shock
from simulator.world import WORLDS, Moment, World
from simulator.world.shapes import SHAPES, STUDY, make, neighbours
from simulator.world.shapes._base import Revenue, Signed
from simulator.world.shapes.embeddings import unit
from simulator.world.shapes.newsroom import NewsroomWorld

SEED = 3


def moments(name: str, count: int = 400, *, seed: int = SEED, declared: bool = False, first: int = 0) -> list[Moment]:
    world = make(name, seed, declared=declared)
    return [world.at(step) for step in range(first, first + count)]


def paid(moment: Moment) -> Any:
    """(n,): the rewards of all items on offer."""
    assert moment.rewards is not None
    return moment.rewards


def same(one: Moment, other: Moment) -> bool:
    return (
        one.visit == other.visit
        and one.catalogue == other.catalogue
        and np.array_equal(one.rates, other.rates)
        and np.array_equal(paid(one), paid(other))
        and one.person == other.person
    )


# ---- every world


def test_each_world_of_the_study_has_three_neighbours() -> None:
    assert all(len(neighbours(name)) >= 3 for name in STUDY)
    assert {shape.near for shape in SHAPES.values()} <= {None, *STUDY}


@pytest.mark.parametrize("name", SHAPES)
def test_a_seed_is_a_world_bit_for_bit_in_any_order(name: str) -> None:
    last = SHAPES[name].steps - 1
    steps = [0, 1, 130, last]
    forth, back, other = make(name, SEED), make(name, SEED), make(name, SEED + 1)
    found = {step: back.at(step) for step in reversed(steps)}
    assert all(same(forth.at(step), found[step]) for step in steps)
    assert not all(same(forth.at(step), other.at(step)) for step in steps)


@pytest.mark.parametrize("name", SHAPES)
def test_the_declared_reference_is_the_same_world_said_otherwise(name: str) -> None:
    plain, declared = make(name, SEED), WORLDS[f"{name}.declared"](SEED)
    low, high = declared.reward_range
    assert plain.reward_range[0] <= low < high <= plain.reward_range[1]
    assert plain.schema == {}
    assert declared.schema["crosses"]
    for step in range(50):
        one, other = plain.at(step), declared.at(step)
        assert one.visit.user_id == other.visit.user_id
        assert [item.id for item in one.catalogue.items] == [item.id for item in other.catalogue.items]
        assert np.array_equal(one.rates, other.rates)
        assert np.array_equal(paid(one), paid(other))
        assert low <= paid(one).min() <= paid(one).max() <= high
        assert set(other.visit.context) == (set() if name == "field-appears" else set(declared.schema["context"]))
        assert all(set(item.features) == set(declared.schema["item"]) for item in other.catalogue.items)


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_paid_is_what_is_expected(name: str) -> None:
    """The mean of (reward - expected reward) over steps and items is 0, within four and a half standard errors."""
    found = moments(name, 300)
    off = np.array([np.mean(paid(moment) - moment.rates) for moment in found])
    assert abs(off.mean()) < 4.5 * off.std() / len(off) ** 0.5 + 1e-12
    assert off.std() > 0


@pytest.mark.parametrize("name", SHAPES)
def test_there_is_something_to_learn(name: str) -> None:
    found = moments(name, 200)
    best, chance = (np.array([of(moment) for moment in found]) for of in (_oracle, _random))
    assert gain(best, best, chance) == 1
    assert gain(chance, best, chance) == 0
    assert (best - chance)[[moment.person for moment in found]].mean() > 0.1 * abs(best.mean())


def _oracle(moment: Moment) -> float:
    return moment.oracle


def _random(moment: Moment) -> float:
    return moment.random


def test_a_catalogue_is_one_object_while_it_is_the_same() -> None:
    for name in ("kinds", "born-and-dying", "many-arms", "newsroom"):
        world = make(name, SEED)
        assert world.catalogue(0) is world.at(7).catalogue is world.catalogue(99)


def test_shocks_of_traffic_reach_them() -> None:
    shock = find_shock("kinds", "bot-flood")
    world = make("kinds", SEED).with_shock(shock, 10)
    calm = make("kinds", SEED)
    assert all(same(world.at(step), calm.at(step)) for step in range(30))
    assert not world.bots(9)
    [bot] = world.bots(10)
    assert bot.user_id == "bot-10-0"
    assert set(bot.context) == {"seg"}


def test_a_history_is_random_and_has_luck_of_its_own() -> None:
    world = make("revenue", SEED)
    past = list(world.history(2000))
    assert len({event["event_id"] for event in past}) == 2000
    assert {event["propensity"] for event in past} == {1 / 12}
    assert len({event["item_id"] for event in past}) == 12
    assert [event["context"] for event in past[:50]] != [world.at(step).visit.context for step in range(50)]
    expected = np.mean([moment.random for moment in moments("revenue", 2000)])
    # a reward has a standard deviation of about 18: four standard errors
    assert np.mean([event["reward"] for event in past]) == pytest.approx(expected, abs=4 * 18 / 2000**0.5)


# ---- the constants of each family


def matched_rates(name: str, count: int = 400) -> set[float]:
    return {round(rate, 6) for moment in moments(name, count) for rate in moment.rates.tolist()}


def likings(found: list[Moment], field: str = "seg") -> dict[Any, set[str]]:
    """The best items of each value of a field of the context."""
    best: dict[Any, set[str]] = {}
    for moment in found:
        ids = [
            item.id for item, rate in zip(moment.catalogue.items, moment.rates, strict=True) if rate == moment.oracle
        ]
        best.setdefault(moment.visit.context[field], set()).update(ids)
    return best


@pytest.mark.parametrize("name", ["kinds", "codes", "codes-1001", "noise-15", "request-ids", "type-change"])
def test_kinds(name: str) -> None:
    found = moments(name)
    assert matched_rates(name) == {0.6, 0.2}
    assert {len(moment.catalogue.items) for moment in found} == {12}
    best = likings(found)
    assert len(best) == 4
    assert sorted(map(len, best.values())) == [3, 3, 3, 3]
    assert len(set().union(*best.values())) == 12, "each segment likes another kind"
    users = {moment.visit.user_id for moment in moments(name, 3000)}
    assert users <= {f"u{number}" for number in range(500)}
    assert len(users) > 480


def test_seeds_match_segments_and_kinds_differently() -> None:
    assert len({str(sorted(likings(moments("kinds", 100, seed=seed)).items())) for seed in range(10)}) > 5


def test_ids_have_no_features() -> None:
    found = moments("ids")
    assert [(item.id, item.features) for item in found[0].catalogue.items] == [(f"i{slot}", {}) for slot in range(4)]
    assert make("ids", SEED).inline
    assert matched_rates("ids") == {0.6, 0.2}


@pytest.mark.parametrize(("name", "values"), [("codes", {0, 1, 2, 3}), ("codes-1001", {1001, 1002, 1003, 1004})])
def test_codes_are_integers(name: str, values: set[int]) -> None:
    found = moments(name)
    sent = [moment.visit.context["seg"] for moment in found] + [i.features["kind"] for i in found[0].catalogue.items]
    assert set(sent) == values
    assert {type(value) for value in sent} == {int}


def test_noise() -> None:
    found = moments("noise-15", 2000)
    context = found[0].visit.context
    assert len(context) == 16
    for name in context.keys() - {"seg"}:
        seen = [moment.visit.context[name] for moment in found]
        assert set(seen) == {f"v{level}" for level in range(5)}
        assert abs(seen.count("v0") / 2000 - 0.2) < 4.5 * (0.16 / 2000) ** 0.5


def test_traces() -> None:
    found = [moment.visit.context for moment in moments("request-ids", 3000)]
    ids = [context["request_id"] for context in found]
    assert len(set(ids)) == 3000
    assert 2**58 < max(ids) < 2**60
    assert {type(value) for value in ids} == {int}
    sessions = [context["session"] for context in found]
    assert 6 < 3000 / len(set(sessions)) < 10
    times = [datetime.fromisoformat(context["time"]) for context in found]
    assert times == sorted(times)


def test_the_type_changes_half_way() -> None:
    world = make("type-change", SEED)
    assert {world.at(step).visit.context["seg"] for step in range(1300, 1500)} == {"1", "2", "3", "4"}
    assert {world.at(step).visit.context["seg"] for step in range(1500, 1700)} == {1, 2, 3, 4}
    for step in range(1500, 1520):
        assert make("type-change", SEED, declared=True).at(step).visit.context["seg"] in {"1", "2", "3", "4"}
    best = likings(moments("type-change", 1500))
    assert best == {str(code): ids for code, ids in likings(moments("type-change", 1500, first=1500)).items()}


def test_fields_come_and_go_and_change_their_scale() -> None:
    world = make("field-appears", SEED)
    assert world.at(999).visit.context == {}
    assert set(world.at(1000).visit.context) == {"seg"}
    world = make("field-vanishes", SEED)
    assert set(world.at(1499).visit.context) == {"seg", "code"}
    assert world.at(1500).visit.context.keys() == {"code"}
    codes = {(moment.visit.context["seg"], moment.visit.context["code"]) for moment in moments("field-vanishes")}
    assert codes == {("s0", 10), ("s1", 20), ("s2", 30), ("s3", 40)}
    world, calm = make("scale-change", SEED), make("age-price", SEED)
    for step in (1499, 1500):
        age = calm.at(step).visit.context["age"]
        assert world.at(step).visit.context["age"] == age * (100 if step >= 1500 else 1)
        assert np.array_equal(world.at(step).rates, calm.at(step).rates)
    found = {name: shape.changes_at for name, shape in SHAPES.items() if shape.changes_at}
    assert found["type-change"] == found["scale-change"] == 1500
    assert found["newsroom"] == 4000


def test_revenue() -> None:
    world = make("revenue", SEED)
    assert world.settings == {"schema": {}, "reward_range": [0, 1000]}
    found = moments("revenue", 3000)
    amounts = np.concatenate([paid(moment)[paid(moment) > 0] for moment in found])
    assert amounts.max() <= 78
    assert amounts.min() >= 14
    bought = np.mean([(paid(moment) > 0).mean() for moment in found])
    assert bought == pytest.approx(0.3, abs=0.01)
    drawn = {round(amount, 6) for seed in range(50) for amount in make("revenue", seed).state(0).amount}
    assert len(drawn) == 200
    assert 20 < min(drawn) < 22
    assert 58 < max(drawn) < 60


def test_negative() -> None:
    assert make("negative", SEED).reward_range == (-10, 1)
    found = moments("negative", 2000)
    assert {value for moment in found for value in paid(moment)} == {-1, 0, 1}
    # 1 with p, -1 with .3 (1 - p)
    assert matched_rates("negative") == {round(0.6 - 0.3 * 0.4, 6), round(0.2 - 0.3 * 0.8, 6)}


def test_robots() -> None:
    found = moments("robots", 3000)
    robots = [moment for moment in found if not moment.person]
    assert len(robots) / 3000 == pytest.approx(0.3, abs=4 * (0.21 / 3000) ** 0.5)
    assert all((moment.rates == 0.5).all() for moment in robots)
    assert len({moment.visit.context["seg"] for moment in robots}) == 4
    assert {rate for moment in found if moment.person for rate in moment.rates.tolist()} == {0.6, 0.2}


def test_rare_clicks() -> None:
    assert matched_rates("rare-clicks") == {0.03, 0.01}
    assert SHAPES["rare-clicks"].steps == 8000
    assert {shape.steps for name, shape in SHAPES.items() if name in STUDY} == {3000, 8000}


def test_age_and_price() -> None:
    found = moments("age-price", 3000)
    prices = [item.features["price"] for item in found[0].catalogue.items]
    assert prices == pytest.approx(np.linspace(10, 1000, 20), abs=0.01)
    ages = [moment.visit.context["age"] for moment in found]
    assert set(ages) == set(range(18, 81))
    for moment in found[:20]:
        a, b = (moment.visit.context["age"] - 49) / 31, (np.linspace(10, 1000, 20) - 505) / 495
        assert moment.rates == pytest.approx(1 / (1 + np.exp(-(-0.6 + 2.2 * a * b))))


def test_a_middle_price() -> None:
    found = moments("middle-price")
    prices = np.array([item.features["price"] for item in found[0].catalogue.items])
    assert prices == pytest.approx(np.linspace(5, 200, 20), abs=0.001)
    mids = set()
    for moment in found:
        fits = [
            m
            for m in (60, 90, 120, 150)
            if np.allclose(moment.rates, 0.05 + 0.55 * np.exp(-(((prices - m) / 30) ** 2)))
        ]
        assert len(fits) == 1
        mids.add((moment.visit.context["seg"], fits[0]))
    assert len(mids) == 4
    assert {mid for _, mid in mids} == {60, 90, 120, 150}


def test_users_by_themselves() -> None:
    p = np.concatenate([make("users-alone", seed).state(0).p for seed in range(5)])
    logits = np.log(p / (1 - p))
    assert p.shape == (1000, 8)
    assert logits.mean() == pytest.approx(-1.2, abs=4 * 1.5 / 8000**0.5)
    assert logits.std() == pytest.approx(1.5, rel=4 / (2 * 8000) ** 0.5)
    found = moments("users-alone", 2000)
    assert all(moment.visit.context == {} for moment in found)
    of: dict[str, list[float]] = {}
    for moment in found:
        assert of.setdefault(moment.visit.user_id, moment.rates.tolist()) == moment.rates.tolist()
    assert len(of) == 200


def test_users_of_kinds() -> None:
    p = make("users-of-kinds", SEED).state(0).p
    assert p.shape == (200, 8)
    assert {tuple(sorted(row)) for row in p.tolist()} == {(*[0.15] * 6, 0.45, 0.65)}
    kinds = np.array(sorted({tuple(row) for row in p.tolist()}))
    assert len(kinds) == 4
    assert ((kinds > 0.15).sum(axis=0) == 1).all(), "each item is the favourite of one kind"
    assert make("users-of-6-kinds", SEED).state(0).p.shape == (200, 12)


def test_embeddings() -> None:
    world = make("embeddings", SEED)
    shown = np.array([item.features["embedding"] for item in world.catalogue(0).items])
    assert shown.shape == (30, 384)
    assert np.linalg.norm(shown, axis=1) == pytest.approx(1, abs=1e-4)
    sizes = np.linalg.svd(shown, compute_uv=False)
    assert sizes[3] > 2.5 * sizes[4], "four directions, and noise"
    logits = np.log(world.state(0).p / (1 - world.state(0).p)) + 1.2  # topic · taste
    assert np.linalg.matrix_rank(logits, tol=1e-9) == 4
    assert 2 < np.abs(logits).max() < 2.5
    assert unit(np.array([[3.0, 4.0]])).tolist() == [[0.6, 0.8]]


def test_nested() -> None:
    found = moments("nested", 2000)
    words = {word for moment in found for word in moment.visit.context["user"]["likes"]}
    assert len(words) == 5
    assert np.mean([moment.visit.context["user"]["premium"] for moment in found]) == pytest.approx(0.4, abs=0.045)
    items = found[0].catalogue.items
    assert len(items) == 24
    assert [item.features["attrs"]["dear"] for item in items] == [False, True] * 12
    for moment in found[:20]:
        user = moment.visit.context["user"]
        assert user["geo"] is None
        assert len(set(user["likes"])) == 2
        for item, rate in zip(items, moment.rates.tolist(), strict=True):
            tags, dear = item.features["attrs"]["tags"], item.features["attrs"]["dear"]
            assert len(set(tags)) == 2
            z = -2.2 + 1.3 * len(set(tags) & set(user["likes"])) + (0.6 if dear == user["premium"] else -0.6)
            assert rate == pytest.approx(1 / (1 + np.exp(-z)))


def test_born_and_dying() -> None:
    world = make("born-and-dying", SEED)
    ids = [[int(item.id[1:]) for item in world.catalogue(step).items] for step in range(0, 3000, 100)]
    assert ids == [list(range(2 * epoch, 2 * epoch + 20)) for epoch in range(30)]
    state = world.state(0)
    own = np.concatenate([make("born-and-dying", seed).state(0).own for seed in range(20)])
    assert own.std() == pytest.approx(0.5, rel=4 / (2 * len(own)) ** 0.5)
    for moment in moments("born-and-dying", 20, first=950):
        segment = int(moment.visit.context["seg"][1:])
        for item, rate in zip(moment.catalogue.items, moment.rates.tolist(), strict=True):
            number = int(item.id[1:])
            matched = item.features["kind"] == f"k{state.liked[segment]}"
            assert rate == pytest.approx(1 / (1 + np.exp(-((0.5 if matched else -1.4) + state.own[number]))))


def test_many_arms() -> None:
    world = make("many-arms", SEED)
    state = world.state(0)
    assert state.p.shape == (4, 2000)
    assert len(state.pools) == 30
    assert {len(pool) for pool in state.pools} == {200}
    catalogues = [world.catalogue(step) for step in range(0, 3000, 50)]
    assert all(one is other for one, other in zip(catalogues[::2], catalogues[1::2], strict=True))
    assert len({id(catalogue) for catalogue in catalogues}) > 10
    assert {item.features["category"] for item in catalogues[0].items} == {f"c{number}" for number in range(10)}
    p = np.stack([make("many-arms", seed).state(0).p for seed in range(30)])
    logits = np.log(p / (1 - p))
    # 1 200 tastes of standard deviation 1: four standard errors
    assert logits.mean() == pytest.approx(-1.8, abs=4 / 1200**0.5)
    assert logits.var() == pytest.approx(1 + 0.35**2, rel=0.2)


def test_the_newsroom_is_shocked_in_part() -> None:
    world = make("newsroom", SEED)
    assert isinstance(world, NewsroomWorld)
    before, after = world.state(0).tastes
    assert np.array_equal(before[:3], after[:3])
    assert not np.isclose(before[3:], after[3:]).any()
    found = moments("newsroom", 1000)
    assert {moment.visit.context["hour"] for moment in found} == set(range(20))
    assert {moment.visit.context["segment"] for moment in found} == {f"s{number}" for number in range(5)}


def test_constants_can_be_changed() -> None:
    shape = replace(SHAPES["kinds"], reward=Revenue(amounts=(1, 1)), matched=0.9)  # type: ignore[call-arg]
    world: World[Any] = type(make("kinds", SEED))(SEED, name="mine", shape=shape)
    assert set(world.at(0).rates.tolist()) == {0.9, 0.2}
    assert Signed().expected(np.array([1.0]), np.ones(1)).tolist() == [1.0]


# ---- over HTTP


@pytest.mark.parametrize("name", ["ids", "born-and-dying", "negative.declared"])
def test_they_are_played_over_http(service: str, tmp_path: Path, name: str) -> None:
    steps = 240
    shown = CliRunner().invoke(
        app,
        [
            "arena",
            "popularity",
            "random",
            "--world",
            name,
            "--steps",
            f"{steps}",
            "--url",
            service,
            "--out",
            str(tmp_path),
        ],
    )
    assert shown.exit_code == 0, shown.output
    [file] = tmp_path.glob("*/report.json")
    report = orjson.loads(file.read_bytes())
    assert report["settings"]["world"] == name
    assert report["shocks"] == []
    found = [WORLDS[name](1).at(step) for step in range(steps)]
    assert report["oracle"]["whole"]["mean"] == pytest.approx(np.mean([moment.oracle for moment in found]))
    chance = report["policies"]["random"]["gain"]["whole"]["mean"]
    assert -0.25 < chance < 0.25
    assert re.search(r"wins with -?\d+ % of the gain that was possible", report["headline"])
    low, high = (of(np.concatenate([paid(moment) for moment in found])) for of in (np.min, np.max))
    assert low <= report["policies"]["random"]["clicked"]["mean"] <= high
