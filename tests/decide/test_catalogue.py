"""Which items are eligible, and with which features."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.decide.catalogue import Catalogue
from service.decide.items import Items
from service.policies import ItemIndex
from service.represent.encoder import Encoder
from service.represent.learned import LearnedEncoder, LearnedSchema
from service.represent.misfits import Misfits
from service.represent.schema import FeatureSchema
from service.represent.stored import AnyEncoder
from service.rules import Rules
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


# ---- changes

LEARNED = LearnedEncoder(
    LearnedSchema.model_validate(
        {
            "item": {"kind": {"type": "levels", "path": "kind", "levels": ["x", "y"]}},
            "blocks": [{"context": None, "item": "kind", "variance": 1.0}],
        }
    )
)
ENCODERS: list[AnyEncoder] = [ENCODER, LEARNED]
CHANGES = st.dictionaries(
    st.sampled_from([f"p{i}" for i in range(12)] + ["é", "𝄞"]),
    st.none() | st.fixed_dictionaries({"kind": st.sampled_from(["x", "y", "z", None])}),
    max_size=6,
)
RULES = Rules.model_validate({"filter": [{"field": "kind", "in": ["x"]}], "at_most": [{"field": "kind", "items": 1}]})


def written(changes: dict[str, Any]) -> dict[str, bytes | None]:
    return {item: None if features is None else orjson.dumps(features) for item, features in changes.items()}


def arrays(block: Any) -> list[bytes]:
    """A block's rows without the zeros that pad them."""
    return [b"".join(part.rstrip(b"\0") for part in row) for row in block.packed()]


def check_same(catalogue: Catalogue, again: Catalogue) -> None:
    """Whether two catalogues are the same to whoever asks them; the first to be asked are those who name items."""
    named = [(item, None) for item in sorted(again.features, reverse=True)]
    assert dict(catalogue.features) == dict(again.features)
    assert len(catalogue.features) == len(again.features)
    assert catalogue.page("p1", 5) == again.page("p1", 5)
    for candidates in (named, None):
        for encoder in ENCODERS:
            (ids, block), (other_ids, other) = (
                one.eligible(candidates, ("p2",), encoder) for one in (catalogue, again)
            )
            assert list(ids) == list(other_ids)
            assert arrays(block) == arrays(other)
    assert catalogue.ids == again.ids == tuple(sorted(again.features, key=str.encode))


@given(changes=st.lists(CHANGES, max_size=12), scanned=st.integers(0, 12))
@settings(max_examples=40)
def test_a_changed_catalogue_is_as_if_made_anew(changes: list[dict[str, Any]], scanned: int) -> None:
    """Whether its items were put together before, or are put together now."""
    catalogue, items = Catalogue.written(0, {}, ENCODERS), dict[str, Any]()
    finder = ItemIndex(["p3", "é", "p0"])
    for version, change in enumerate(changes, 1):
        if version == scanned:
            assert catalogue.whole.known.rows(finder) is not None
            assert catalogue.asked(RULES) is catalogue.whole
        catalogue = catalogue.changed(version, written(change), ENCODERS)
        items = {item: features for item, features in {**items, **change}.items() if features is not None}
    again = Catalogue.written(len(changes), {item: orjson.dumps(items[item]) for item in sorted(items)}, ENCODERS)
    check_same(catalogue, again)
    assert np.array_equal(catalogue.whole.known.rows(finder), finder.find(again.ids))
    kinds, anew = catalogue.whole.traits.kinds("kind"), again.whole.traits.kinds("kind")
    assert np.array_equal(kinds[:, None] == kinds, anew[:, None] == anew)
    assert np.array_equal(catalogue.whole.traits.holding(RULES.filter[0]), again.whole.traits.holding(RULES.filter[0]))


class Counting(Encoder):
    """Counts the items that it encodes."""

    def __init__(self) -> None:
        super().__init__(FeatureSchema())
        self.encoded = 0

    def items(self, features: Any, ids: Any = None, **options: Any) -> Any:
        self.encoded += len(features)
        return super().items(features, ids, **options)


@pytest.mark.parametrize("scanned", [False, True])
def test_only_what_changed_is_encoded(scanned: bool) -> None:
    encoder = Counting()
    catalogue = catalogue_of({f"p{i:03}": {"kind": "x"} for i in range(400)}, encoder=encoder)
    if scanned:
        assert len(catalogue.whole) == 400
    assert encoder.encoded == 400
    changed = catalogue.changed(2, written({"p007": {"kind": "y"}, "p008": None, "new": {}}), [encoder])
    ids, _ = changed.eligible(None, (), encoder)
    assert (encoder.encoded, len(ids)) == (402, 400)
    assert list(catalogue.ids)[7:9] == ["p007", "p008"], "whoever works on the old one sees the old one"
    assert catalogue.features["p007"] == {"kind": "x"}


@pytest.mark.parametrize(("batch", "most"), [(1, 32), (30, 170)])
def test_changes_beside_the_items_are_few(batch: int, most: int) -> None:
    """About √(2 b n) of them, for n items and b changes at once: then a merge costs as much as they cost before."""
    catalogue, merges = catalogue_of(400), 0
    for version in range(2, 102):
        base = catalogue.base
        change: dict[str, Any] = {f"new{version}-{number}": {} for number in range(batch - 1)}
        catalogue = catalogue.changed(version, written({**change, f"p{version}": None}), [ENCODER])
        assert len(catalogue.recent) + len(catalogue.gone) <= most * (len(catalogue.base) / 400) ** 0.5
        merges += catalogue.base is not base
    assert 3 <= merges <= 30


def test_another_encoder_encodes_all_and_one_that_is_not_used_is_dropped() -> None:
    catalogue = catalogue_of(ITEMS).changed(2, written({"d": {"kind": "x"}}), [ENCODER]).encoded(ENCODERS)
    assert len(catalogue.eligible(None, (), LEARNED)[1]) == 4
    catalogue = catalogue.encoded([LEARNED])
    assert catalogue.block.version == LEARNED.version
    with pytest.raises(KeyError):
        catalogue.eligible(None, (), ENCODER)


def test_items_know_their_rows() -> None:
    items = Items.of({"a": b"{}", "b": b'{"kind": "y"}'}, [ENCODER])
    assert ([items.index[item] for item in items.ids], items.written[0:2]) == ([0, 1], [{}, {"kind": "y"}])
