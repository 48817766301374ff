"""Which items are eligible, and with which features."""

from __future__ import annotations

import numpy as np
import pytest

from service.represent.misfits import Misfits
from tests.decide.builders import ENCODER, catalogue_of

ITEMS = {"a": {"kind": "x"}, "b": {"kind": "y"}, "c": {}}


def test_without_candidates_it_is_the_whole_catalogue() -> None:
    catalogue = catalogue_of(ITEMS)
    ids, block = catalogue.eligible(None, (), ENCODER)
    assert list(ids) == ["a", "b", "c"]
    assert block is catalogue.block  # encoded once, not once a request


def test_what_is_excluded_is_left_out() -> None:
    ids, block = catalogue_of(ITEMS).eligible(None, ("b", "unknown"), ENCODER)
    assert (list(ids), len(block)) == (["a", "c"], 2)
    ids, block = catalogue_of(ITEMS).eligible([("a", None), ("new", None)], ("a",), ENCODER)
    assert (list(ids), len(block)) == (["new"], 1)


def test_excluding_all_leaves_nothing() -> None:
    ids, block = catalogue_of(ITEMS).eligible(None, ("a", "b", "c"), ENCODER)
    assert (list(ids), len(block)) == ([], 0)


@pytest.mark.parametrize(
    ("candidate", "features"),
    [
        (("a", None), ITEMS["a"]),  # the catalogue's
        (("a", {"kind": "z"}), {"kind": "z"}),  # its own
        (("a", {}), {}),  # its own, which are none
        (("new", None), {}),  # unknown to the catalogue
        (("new", {"kind": "x"}), {"kind": "x"}),
    ],
)
def test_a_candidates_own_features_go_first(
    candidate: tuple[str, dict[str, str] | None], features: dict[str, str]
) -> None:
    _, block = catalogue_of(ITEMS).eligible([candidate, ("b", None)], (), ENCODER)
    rows = ENCODER.encode({"seg": 1}, block)
    expected = ENCODER.encode({"seg": 1}, ENCODER.items([features, ITEMS["b"]], [candidate[0], "b"]))
    assert np.array_equal(rows, expected)


def test_candidates_keep_their_order() -> None:
    ids, block = catalogue_of(ITEMS).eligible([("c", None), ("a", None)], (), ENCODER)
    assert list(ids) == ["c", "a"]
    assert np.array_equal(ENCODER.encode({}, block), ENCODER.encode({}, ENCODER.items([{}, ITEMS["a"]], ["c", "a"])))


def test_what_the_encoder_cannot_use_is_counted() -> None:
    misfits = Misfits()
    catalogue_of(ITEMS).eligible([("new", {"text": "x" * 300})], (), ENCODER, misfits)
    assert list(misfits.counts.values()) == [1]


def test_items_are_shown_with_the_features_that_they_take_part_with() -> None:
    catalogue = catalogue_of(ITEMS)
    assert catalogue.shown(None, ["b", "c"]) == [{"kind": "y"}, {}]
    candidates = [("a", None), ("b", {}), ("new", {"kind": "z"}), ("bare", None)]
    assert catalogue.shown(candidates, ["new", "bare", "b", "a"]) == [{"kind": "z"}, {}, {}, {"kind": "x"}]
