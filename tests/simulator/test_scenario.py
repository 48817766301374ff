"""Scenario files: bundled ones can be played, mistakes are told by their field, a report can be repeated."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from simulator.cli import app
from simulator.errors import UsageError
from simulator.scenario import Scenario, bundled, load
from simulator.shocks import find_shock
from simulator.world import PLACES, WORLDS
from simulator.world.shapes import STUDY

RIGHT: Mapping[str, Any] = {"policies": ["random"], "shocks": [{"name": "taste-swap", "step": 700}], "steps": 1000}


def test_what_comes_along() -> None:
    assert bundled() == [
        "demo",
        "digits",
        "h-latent",
        "s0-stationary",
        "s1-taste-swap",
        "s2-bestseller-collapse",
        "s3-catalogue-churn",
        "s4-gradual-drift",
        "s5-seasonality",
    ]


@pytest.mark.parametrize("name", bundled())
def test_each_can_be_played(name: str) -> None:
    scenario = load(name)
    plan = scenario.plan()
    assert scenario.about
    assert [str(c.policy) for c in plan.contestants if not c.successor] == scenario.policies
    schedule = [(step, find_shock(plan.world, shock)) for shock, step in plan.shock_steps]
    world = WORLDS[plan.world](scenario.seeds[0], schedule)
    for step in (0, plan.steps // 2, plan.steps - 1):
        assert world.at(step).oracle > world.at(step).random
    assert len(schedule) == (name != "s0-stationary")
    if schedule and name != "s5-seasonality":
        assert schedule[0][0] == plan.steps // 2


def test_every_field_reaches_the_plan(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'about = "all of it"\nworld = "petshop"\nsteps = 1_000\nseeds = [4, 9]\n'
        'policies = ["random", "linucb:alpha=0.5"]\nswap = "popularity,linucb@0.25"\nwindow = 7\nhistory = 5_000\n'
        '[[shocks]]\nname = "taste-swap"\nstep = 290\n[[shocks]]\nname = "price-war"\nshare = 0.1\n'
    )
    plan = load(str(file)).plan(keep=True)
    assert [contestant.label for contestant in plan.contestants] == ["random", "linucb", "swapped"]
    assert (plan.world, plan.steps, list(plan.seeds), plan.window, plan.history) == ("petshop", 1000, [4, 9], 7, 5000)
    assert plan.shock_steps == [("price-war", 100), ("taste-swap", 290)]
    assert plan.keep


@pytest.mark.parametrize("step", [29, 57, 999])
def test_a_step_is_that_step(step: int) -> None:
    shocks = [{"name": "taste-swap", "step": step}]
    assert Scenario.of({**RIGHT, "shocks": shocks}, where="test").plan().shock_steps == [("taste-swap", step)]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"world": "zoo"}, r"world: there is no world 'zoo'; there are: petshop, latent, digits"),
        ({"steps": 10}, r"steps: .*greater than or equal to 100"),
        ({"steps": "many"}, r"steps: .*integer"),
        ({"seeds": []}, r"seeds: .*at least 1"),
        ({"seeds": [1, 1]}, r"seeds: a seed is repeated"),
        ({"seeds": [-1]}, r"seeds\.0: .*greater than or equal to 0"),
        ({"policies": ["Lin UCB"]}, r"policies: 'Lin UCB' cannot name a kind"),
        ({"policies": ["random", "random"]}, r"policies: a policy is repeated"),
        ({"swap": "linucb"}, r"swap: .*popularity,linucb@0\.25"),
        ({"window": 0}, r"window: "),
        ({"history": 1}, r"history: "),
        ({"shock": []}, r"shock: there is no such field; there are: about, world"),
        ({"shocks": [{"name": "taste-swop", "step": 1}]}, r"shocks\.0\.name: .*there are: taste-swap"),
        ({"world": "latent"}, r"shocks\.0\.name: latent knows no shock 'taste-swap'; there are: taste-redraw"),
        ({"shocks": [{"name": "taste-swap"}]}, r"shocks\.0: give either `step`"),
        ({"shocks": [{"name": "taste-swap", "step": 1, "share": 0.5}]}, r"shocks\.0: give either `step`"),
        ({"shocks": [{"name": "taste-swap", "share": 1.5}]}, r"shocks\.0\.share: .*less than 1"),
        ({"shocks": [{"name": "taste-swap", "at": 0.5}]}, r"shocks\.0\.at: .*there are: name, step, share"),
        ({"steps": 500}, r"shocks\.0\.step: 700 is not within the 500 steps"),
    ],
)
def test_a_mistake_is_told_by_its_field(wrong: Mapping[str, Any], told: str) -> None:
    Scenario.of(RIGHT, where="test")
    with pytest.raises(UsageError, match=f"^mine: {told}"):
        Scenario.of({**RIGHT, **wrong}, where="mine")


def test_policies_must_be_named() -> None:
    with pytest.raises(UsageError, match="policies: is missing"):
        Scenario.of({}, where="mine")


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no scenario 'nothing'.*s1-taste-swap"):
        load("nothing")
    broken = tmp_path / "broken.toml"
    broken.write_text("steps = = 3")
    with pytest.raises(UsageError, match=r"broken\.toml cannot be read: .*line 1"):
        load(str(broken))
    for text, told in (("{", "cannot be read"), ("[]", "holds no scenario"), ("{}", "holds no scenario")):
        report = tmp_path / "report.json"
        report.write_text(text)
        with pytest.raises(UsageError, match=told):
            load(str(report))


def test_options_replace_fields_and_the_report_plays_again(service: str, tmp_path: Path) -> None:
    def played(*options: str) -> dict[str, Any]:
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        shown = CliRunner().invoke(app, ["arena", *options, "--url", service, "--out", str(out)])
        assert shown.exit_code == 0, shown.output
        [file] = out.glob("*/report.json")
        found: dict[str, Any] = orjson.loads(file.read_bytes())
        return {**found, "file": file}

    changed = ["random", "--steps", "100", "--seed", "7", "--window", "8"]
    first = played("--scenario", "s5-seasonality", *changed)
    assert first["scenario"] == {
        **load("s5-seasonality").model_dump(exclude_none=True),
        "policies": ["random"],
        "steps": 100,
        "seeds": [7],
        "window": 8,
    }
    assert first["shocks"][0]["step"] == 1
    again = played("--scenario", str(first["file"]))
    assert again["scenario"] == first["scenario"]
    assert again["settings"] == first["settings"]
    assert again["oracle"] == first["oracle"]
    assert again["policies"]["random"]["whole"] != {}


def test_options_alone_make_a_scenario_too(service: str, tmp_path: Path) -> None:
    options = ["digits-is-no-option"]
    assert CliRunner().invoke(app, ["arena", "--scenario", *options]).exit_code == 1
    shown = CliRunner().invoke(
        app, ["arena", "random", "--world", "digits", "--steps", "100", "--url", service, "--out", str(tmp_path)]
    )
    assert shown.exit_code == 0, shown.output
    [file] = tmp_path.glob("*/report.json")
    scenario = orjson.loads(file.read_bytes())["scenario"]
    assert Scenario.of(scenario, where="report").shocks[0].name == "label-permutation"
    assert scenario["seeds"] == [1]


def test_worlds_and_scenarios_are_listed() -> None:
    shown = CliRunner().invoke(app, ["worlds", "--steps", "200"], env={"COLUMNS": "160"})
    assert shown.exit_code == 0, shown.output
    for name in (*PLACES, *STUDY, *bundled()):
        assert name in shown.output
    assert re.search(r"latent\W+0\.\d{4}\W+0\.01\d\d", shown.output)
