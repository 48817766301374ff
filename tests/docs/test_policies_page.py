"""docs/policies.md says of every kind what the code says."""

from __future__ import annotations

import re

import pytest

from tests.docs.parameters import EVERY_KIND, PAGE, REGION, own_kinds, rewritten, table


def test_every_kind_has_a_section_and_a_line_in_the_table() -> None:
    page = PAGE.read_text()
    sections = re.findall(r"^## `(\w+)`$", page, re.MULTILINE)
    lines = re.findall(r"^\| \**`(\w+)`", page, re.MULTILINE)
    assert set(sections) == set(own_kinds())
    assert set(own_kinds()) <= set(lines)


def test_tables_of_parameters_are_those_of_the_code() -> None:
    page = PAGE.read_text()
    named = {region["name"] for region in REGION.finditer(page)}
    assert named == {EVERY_KIND, *own_kinds()} - {"random"}  # random has no parameter of its own
    assert rewritten(page) == page, "run: python -m tests.docs.parameters"


def test_a_changed_default_would_be_seen() -> None:
    page = PAGE.read_text()
    assert rewritten(page.replace("| `200.0` |", "| `100.0` |")) == page != page.replace("| `200.0` |", "| `100.0` |")


def test_a_table_shows_shared_parameters_only_where_their_default_differs() -> None:
    assert "`half_life`" in table("popularity")
    assert "`half_life`" not in table("adaptive")
    with pytest.raises(KeyError):
        table("nobody")
