"""Schemas and encoders that the tests of this room share."""

from typing import Any

import pytest
from hypothesis import strategies as st

from service.represent.encoder import Encoder
from service.represent.schema import FeatureSchema

PERSONA = {"type": "categorical", "levels": ["a", "b"]}
HOUR = {"type": "numeric", "min": 0, "max": 20}
TASTE = {"type": "vector", "size": 2}
SHOP = {"context": {"persona": PERSONA, "hour": HOUR}, "item": {"kind": PERSONA}, "crosses": [["persona", "kind"]]}
MIXED = {"context": {"persona": PERSONA, "taste": TASTE}, "item": {"price": HOUR}, "crosses": [["taste", "price"]]}

NUMBERS = st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=8)
KEYS = st.text(max_size=4)
MISFITS = st.sampled_from(["x" * 257, 10**400, -(10**400), [[[[[1]]]]], {"y" * 300: 1}, list(range(101)), b"z"])
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))


def encoder(schema: dict[str, Any] | None = None, **more: Any) -> Encoder:
    return Encoder(FeatureSchema.model_validate({**(schema or {}), **more}))


def row(encoder: Encoder, context: dict[str, Any], item: dict[str, Any]) -> dict[str, Any]:
    """The non-zero columns of one candidate, by name."""
    (x,) = encoder.encode(context, encoder.items([item]))
    return {name: pytest.approx(value) for name, value in zip(encoder.columns, x.tolist(), strict=True) if value != 0}
