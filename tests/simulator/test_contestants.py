"""Policies and swaps as they are written on the command line."""

from __future__ import annotations

import pytest

from simulator.contestants import Contestant, PolicySpec, parse_contestants, parse_swap
from simulator.errors import UsageError


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("linucb", PolicySpec("linucb")),
        ("linucb:alpha=1.5,ridge=2", PolicySpec("linucb", {"alpha": 1.5, "ridge": 2})),
        ("popularity:half_life=null", PolicySpec("popularity", {"half_life": None})),
        ("x:mode=fast", PolicySpec("x", {"mode": "fast"})),
        ('x:on=true,layers=[8],text="1.5"', PolicySpec("x", {"on": True, "layers": [8], "text": "1.5"})),
    ],
)
def test_policies(text: str, spec: PolicySpec) -> None:
    assert PolicySpec.parse(text) == spec
    assert str(spec) == text, "so a report can be played again"


@pytest.mark.parametrize("text", ["", "linucb:alpha", "LinUCB", "linucb:=1", "lin ucb"])
def test_what_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        PolicySpec.parse(text)


def test_labels_are_kinds_unless_that_is_ambiguous() -> None:
    labels = [c.label for c in parse_contestants(["random", "linucb:alpha=1", "linucb:alpha=2"], None)]
    assert labels == ["random", "linucb:alpha=1", "linucb:alpha=2"]
    with pytest.raises(UsageError, match="repeated"):
        parse_contestants(["linucb", "linucb"], None)


def test_swap_with_parameters() -> None:
    first, second = PolicySpec("linucb", {"alpha": 1, "ridge": 2}), PolicySpec("popularity", {"epsilon": 0.2})
    expected = Contestant("swapped", first, second, 0.25)
    assert parse_swap("linucb:alpha=1,ridge=2,popularity:epsilon=0.2@0.25") == expected
    assert [c.label for c in parse_contestants(["random"], "popularity,linucb@.5")] == ["random", "swapped"]


@pytest.mark.parametrize(
    "text", ["popularity,linucb", "popularity@0.5", "a,b,c@0.5", "a,b@1.5", "linucb,linucb:alpha=2@.5"]
)
def test_swaps_that_cannot_be_read(text: str) -> None:
    with pytest.raises(UsageError):
        parse_swap(text)
