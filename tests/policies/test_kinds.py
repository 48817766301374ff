"""Checks that kinds describe themselves, and that packages bring kinds or are reported and left out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jsonschema_rs
import pytest
from structlog.testing import capture_logs

from service.policies import KINDS, PolicyClass, describe_kinds
from service.policies.kinds import describe, discover
from tests.policies.conformance import every_kind
from tests.policies.packages import EXAMPLE, kinds_with_example, write_metadata

WHOLE = """
from rebound_greedy import Greedy

class Mine(Greedy):
    "Does what Greedy does."
    kind = "mine"
"""


def test_an_installed_package_brings_its_kind_to_a_new_process(tmp_path: Path) -> None:
    code = """
import sys
from service.policies import KINDS, describe_kinds
described = {info.kind for info in describe_kinds()}
print(KINDS["mine"].__module__, "mine" in described, "torch" in sys.modules, "vowpalwabbit" in sys.modules)
"""
    write_metadata(tmp_path, "rebound-mine", {"mine": "rebound_mine:Mine"})
    (tmp_path / "rebound_mine.py").write_text(WHOLE)
    path = os.pathsep.join([str(tmp_path), str(EXAMPLE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.stdout == "rebound_mine True False False\n"


def discovered(monkeypatch: pytest.MonkeyPatch, folder: Path, module: str, value: str) -> tuple[set[str], list[str]]:
    """Discover with a package `rebound-mine` installed. Return its new kinds, and the reasons that were logged."""
    kinds_with_example()  # imports `rebound_greedy`, which WHOLE builds on
    write_metadata(folder, "rebound-mine", {"mine": value})
    (folder / "rebound_mine.py").write_text(module)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "rebound_mine", raising=False)
    with capture_logs() as logs:
        kinds = discover()
    assert KINDS.items() <= kinds.items()
    for line in logs:
        assert (line["log_level"], line["package"]) == ("error", "rebound-mine")
        assert line["entry_point"] == f"mine = {value}"
    return kinds.keys() - KINDS.keys(), [line["reason"] for line in logs]


def test_a_whole_package_is_taken_and_nothing_is_logged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert discovered(monkeypatch, tmp_path, WHOLE, "rebound_mine:Mine") == ({"mine"}, [])


@pytest.mark.parametrize(
    ("old", "new", "value", "reason"),
    [
        ("from rebound_greedy", "from not_there", "rebound_mine:Mine", "No module named 'not_there'"),
        ("from rebound_greedy", "this is no Python; from", "rebound_mine:Mine", "SyntaxError"),
        (
            "from rebound_greedy",
            "raise SystemExit('no licence')\nfrom x",
            "rebound_mine:Mine",
            "SystemExit: no licence",
        ),
        ("", "", "rebound_mine:Yours", "has no attribute 'Yours'"),
        ("", "", "rebound_mine:Mine.kind", "not a subclass of service.policies.Policy"),
        ("(Greedy)", "", "rebound_mine:Mine", "not a subclass of service.policies.Policy"),
        ('"mine"', '"adaptive"', "rebound_mine:Mine", "'adaptive' exists already, in service.policies.adaptive"),
        ('"mine"', '"My kind"', "rebound_mine:Mine", "`kind` is 'My kind'"),
        ('kind = "mine"', "", "rebound_mine:Mine", "`kind` is None"),
        ('kind = "mine"', 'kind = "mine"; Params = dict', "rebound_mine:Mine", "`Params` is not a subclass"),
        ('"Does what Greedy does."', "", "rebound_mine:Mine", "no docstring"),
        (
            "from rebound_greedy import Greedy",
            "from service.policies import Policy as Greedy",
            "rebound_mine:Mine",
            "lacks forget, load, scorer, snapshot, state, update",
        ),
    ],
)
def test_a_broken_package_is_logged_and_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, old: str, new: str, value: str, reason: str
) -> None:
    assert old in WHOLE
    new_kinds, reasons = discovered(monkeypatch, tmp_path, WHOLE.replace(old, new) if old else WHOLE, value)
    assert new_kinds == set()
    assert len(reasons) == 1
    assert reason in reasons[0]


def test_of_two_packages_with_one_kind_the_first_by_name_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_metadata(tmp_path, "a-mine", {"mine": "rebound_mine:Mine"})
    new_kinds, reasons = discovered(monkeypatch, tmp_path, WHOLE, "rebound_mine:Mine")
    assert new_kinds == {"mine"}
    assert reasons == ["ValueError: the kind 'mine' exists already, in rebound_mine"]


@every_kind
def test_a_kind_describes_itself_and_its_parameters(kind: PolicyClass) -> None:
    info = describe(kind)
    assert (info.kind, info.batch_trained, info.comparable) == (kind.kind, kind.batch_trained, kind.comparable)
    assert info.summary.endswith(".")
    assert 20 < len(info.summary) < 200
    jsonschema_rs.meta.validate(info.params)
    assert info.params["properties"].keys() == kind.Params.model_fields.keys()
    for name, schema in info.params["properties"].items():
        assert schema.get("description", "").endswith("."), name
        assert "default" in schema, name
    validator = jsonschema_rs.validator_for(info.params)
    assert validator.is_valid(kind.Params().model_dump(mode="json"))
    assert not validator.is_valid({"no_such_parameter": 1})


def test_all_kinds_are_described() -> None:
    assert [info.kind for info in describe_kinds()] == list(KINDS)
