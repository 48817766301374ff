"""Schemas: what is accepted, and what is refused with a reason."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from service.represent.schema import FeatureSchema
from tests.represent.builders import SHOP, TASTE


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"context": {"h": {"type": "numeric", "min": 2, "max": 2}}}, "must be greater"),
        ({"context": {"h": {"type": "numeric", "min": -1.7e308, "max": 1.7e308}}}, "finite amount"),
        ({"context": {"h": {"type": "numeric", "min": 0, "max": math.inf}}}, "finite number"),
        ({"item": {"k": {"type": "categorical", "levels": ["a", "b", "a"]}}}, "level 'a' is listed twice"),
        ({"item": {"k": {"type": "categorical", "levels": []}}}, "at least 1"),
        ({"item": {"k": {"type": "categorical", "levels": ["x" * 257]}}}, "at most 256 characters"),
        ({"item": {"k": {"type": "categorical", "levels": [f"l{i}" for i in range(4097)]}}}, "at most 4096 items"),
        ({"item": {"k": {"type": "categorical", "levels": [f"l{i}" for i in range(4096)]}}}, "4128 columns"),
        ({"item": {"k": {"type": "vector", "size": 0}}}, "greater than or equal to 1"),
        ({"item": {"k": {"type": "vector", "size": 4097}}}, "less than or equal to 4096"),
        ({"item": {"k": {"type": "vector", "size": 4096}}}, "4127 columns; at most 4096"),
        ({"item": {"k": {"type": "word"}}}, "'word'"),
        ({"context": {"h": {"type": "numeric", "min": math.nan, "max": 1}}}, "finite number"),
        ({"item": {"": TASTE}}, "at least 1 character"),
        ({**SHOP, "crosses": [["persona", "colour"]]}, "'colour' is not a declared item field"),
        ({**SHOP, "crosses": [["kind", "kind"]]}, "'kind' is not a declared context field"),
        ({**SHOP, "crosses": [["persona", "kind"], ["persona", "kind"]]}, "listed twice"),
        ({"hash_dims": -1}, "greater than or equal to 0"),
        ({"hash_dims": 4097}, "less than or equal to 4096"),
        ({**SHOP, "hash_dims": 4096}, "4113 columns; at most 4096"),
        (
            {
                "context": {"t": {"type": "vector", "size": 64}},
                "item": {"t": {"type": "vector", "size": 64}},
                "crosses": [["t", "t"]],
            },
            "4255 columns; at most 4096",
        ),
        ({"fields": {}}, "Extra inputs"),
    ],
)
def test_a_wrong_schema_says_why(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FeatureSchema.model_validate(schema)


@pytest.mark.parametrize(
    ("schema", "d"),
    [
        ({}, 32),
        ({"hash_dims": 0}, 1),
        (SHOP, 1 + 5 + 3 + 9 + 31),
        ({"item": {"k": {"type": "vector", "size": 768}}}, 1 + 768 + 31),
        ({"item": {"k": {"type": "vector", "size": 4096}}, "hash_dims": 0}, 4097),
        ({"item": {"k": {"type": "categorical", "levels": [f"l{i}" for i in range(4064)]}}}, 4097),
        ({"context": {"x" * 256: {"type": "numeric", "min": 0, "max": 5e-324}}}, 34),
    ],
)
def test_a_schema_says_how_many_columns_it_has(schema: dict[str, Any], d: int) -> None:
    assert FeatureSchema.model_validate(schema).d == d
