"""Items that are found again are those that would be encoded, bit for bit, and so are their misfits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.represent.encoder import Encoder
from service.represent.item_cache import OVERHEAD, ItemCache
from service.represent.learned import Block, LearnedEncoder, LearnedSchema, Levels
from service.represent.misfits import Misfits
from service.represent.stored import AnyEncoder
from tests.represent.builders import JSON, KEYS, MISFITS, SHOP, encoder

LEARNED = LearnedSchema(
    item={
        "kind": Levels(path="kind", levels=["a", "1"], others=True),
        "@item": Levels(path="@item", levels=["i0", "i2"]),
    },
    blocks=[Block(context=None, item="kind", variance=1.0), Block(context=None, item="@item", variance=1.0)],
)
ENCODERS: dict[str, AnyEncoder] = {
    "hashed": encoder(item_ids=True),
    "declared": encoder(SHOP, hash_dims=0),
    "both": encoder(SHOP, hash_dims=5),
    "learned": LearnedEncoder(LEARNED),
}
objects = st.dictionaries(KEYS | st.just("kind"), JSON | MISFITS, max_size=4)


@pytest.mark.parametrize("name", ENCODERS)
@settings(max_examples=25, deadline=None)
@given(batches=st.lists(st.lists(objects, max_size=4), min_size=1, max_size=4), again=st.randoms())
def test_what_is_found_is_what_would_be_encoded(name: str, batches: list[list[dict[str, Any]]], again: Any) -> None:
    for batch in (*batches, *again.sample(batches, len(batches))):
        ids = [f"i{at}" for at in range(len(batch))]
        one, other = Misfits(), Misfits()
        found = ENCODERS[name].sent(batch, ids, misfits=one)
        plain = ENCODERS[name].items(batch, ids, misfits=other)
        assert one.counts == other.counts
        x, y = (ENCODERS[name].encode({"seg": 1, "persona": "a"}, block) for block in (found, plain))
        assert x.tobytes() == y.tobytes()


def test_values_that_python_takes_for_equal_are_not_mixed_up() -> None:
    made = LearnedEncoder(LEARNED)
    for value in (1, True, 1.0, "1", False, 0, -0.0, None, [1], [1.0]):
        for _ in range(2):
            z = made.sent([{"kind": value}], ["x"]).z
            assert z.tobytes() == made.items([{"kind": value}], ["x"]).z.tobytes(), value


def test_items_are_encoded_once_and_found_by_id_and_features() -> None:
    encoded: list[str] = []
    made = Encoder(encoder(SHOP).schema)

    def encode(features: Any, ids: Any, misfits: Misfits) -> Any:
        encoded.extend(ids)
        return made.items(features, ids, misfits=misfits)

    cache = ItemCache(encode, made._joined)
    for _ in range(3):
        cache.items([{"kind": "a"}, {"kind": "b"}], ["x", "y"], Misfits())
    assert (encoded, cache.hits, cache.misses, len(cache)) == (["x", "y"], 4, 2, 2)
    cache.items([{"kind": "b"}, {"kind": "b"}], ["x", "y"], Misfits())
    assert encoded == ["x", "y", "x"]


def test_the_oldest_make_room() -> None:
    made = encoder(SHOP)
    cache = ItemCache(lambda features, ids, misfits: made.items(features, ids, misfits=misfits), made._joined, 20_000)
    for number in range(500):
        block = cache.items([{"kind": number}], ["x"], Misfits())
        assert block.z.tobytes() == made.items([{"kind": number}], ["x"]).z.tobytes()
    assert 2 <= len(cache) <= 20_000 // OVERHEAD
    misses = cache.misses
    cache.items([{"kind": 499}], ["x"], Misfits())
    assert cache.misses == misses
    cache.items([{"kind": 0}], ["x"], Misfits())
    assert cache.misses == misses + 1


def test_one_item_twice_in_a_request() -> None:
    made = encoder(SHOP)
    twice = made.sent([{"kind": "a"}, {"kind": "a"}], ["x", "x"])
    np.testing.assert_array_equal(twice.z, made.items([{"kind": "a"}] * 2, ["x", "x"]).z)
