"""Changelog, version and decision records keep to the rules that CONTRIBUTING.md and docs/decisions/README.md state."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest

from service.version import VERSION

ROOT = Path(__file__).parents[2]
RECORDS = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))
HEADINGS = ["Breaking changes", "Upgrade", "Added", "Changed", "Fixed", "Removed"]
LONGEST = 25  # lines of a record
PARTS = ("Context: ", "**Decision: “", "Consequence: ", "Alternatives", "Enforced by: ")


def faults(record: str) -> list[str]:
    """Return the rules that the text of a record breaks."""
    found = [f"lacks {part}" for part in PARTS if not re.search(rf"^{re.escape(part)}", record, re.MULTILINE)]
    if len(record.splitlines()) > LONGEST:
        found.append(f"is longer than {LONGEST} lines")
    for path in re.findall(r"`((?:service|simulator|tests|docs)/[\w./-]+)`", record):
        if not (ROOT / path).exists():
            found.append(f"names {path}, which is not there")
    return found


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.stem)
def test_a_record_has_all_parts_and_is_short(record: Path) -> None:
    assert faults(record.read_text()) == []


def test_the_check_of_records_can_fail() -> None:
    whole = RECORDS[1].read_text()
    assert faults(whole.replace("Consequence: ", "")) == ["lacks Consequence: "]
    assert faults(whole + "\n" * LONGEST) == [f"is longer than {LONGEST} lines"]
    assert faults(whole + "`service/nowhere.py`") == ["names service/nowhere.py, which is not there"]


def test_records_are_numbered_one_by_one_and_listed_under_their_titles() -> None:
    assert [int(record.name[:4]) for record in RECORDS] == list(range(1, len(RECORDS) + 1))
    listed = re.findall(r"^- \[(\d{4})\]\((\S+)\) (.+)$", (ROOT / "docs/decisions/README.md").read_text(), re.MULTILINE)
    titles = [record.read_text().splitlines()[0] for record in RECORDS]
    assert sorted(listed) == [
        (record.name[:4], record.name, title.removeprefix(f"# {record.name[:4]}. "))
        for record, title in zip(RECORDS, titles, strict=True)
    ]


def test_the_version_stands_in_one_place() -> None:
    assert version("rebound") == VERSION, "run `make setup`: the installed package is of another version"
    assert "version =" not in (ROOT / "pyproject.toml").read_text().split("[tool.setuptools.dynamic]")[0]


def test_the_changelog_has_a_section_for_this_version_and_its_headings_in_order() -> None:
    sections = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1:]
    newest = sections[0].split()[0]
    assert newest == ("Unreleased" if "dev" in VERSION else VERSION)
    for section in sections:
        found = re.findall(r"^### (.+)$", section, re.MULTILINE)
        assert found == [heading for heading in HEADINGS if heading in found]
