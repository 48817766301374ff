"""Encoders as they are kept: a schema as JSON, under the version of the encoder that it made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.represent.encoder import Encoder
from service.represent.schema import FeatureSchema


def stored_encoder(version: str, schema: Mapping[str, Any] | None) -> Encoder:
    """Make the encoder of this version.

    Raises:
        ValueError: there is no schema of it, or this code makes another encoder of the schema.
    """
    if schema is None:
        raise ValueError(f"the schema of encoder {version!r} is not kept")
    encoder = Encoder(FeatureSchema.model_validate(schema))
    if encoder.version != version:
        raise ValueError(
            f"encoder {version!r} was made by another version of Rebound, whose rows this one does not make: "
            f"its schema now makes {encoder.version!r}"
        )
    return encoder
