"""Encoders as they are kept: a schema as JSON, under the version of the encoder that it made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray

from service.layout import Layout, Products, Rows
from service.represent.encoder import Encoder
from service.represent.learned import LearnedEncoder, LearnedSchema
from service.represent.misfits import Misfits
from service.represent.parts import Parts
from service.represent.schema import FeatureSchema

Array = NDArray[Any]


AnySchema: TypeAlias = FeatureSchema | LearnedSchema
Block: TypeAlias = Any  # n items, encoded once for all contexts: an ItemBlock or ItemColumns, as its encoder makes them


class AnyEncoder(Protocol):
    """An encoder of a declared or of a learned schema.

    Attributes:
        version: 12 hexadecimal digits.
        d: columns of a row.
        columns: (d,) their names, for people.
        layout: where the layers of a row lie; None: a row has no layers.
        products: how rows are made of products; None: some columns are none.
        reward_range: which policies see as [0, 1]; None: the loop's.
    """

    version: str
    d: int
    columns: tuple[str, ...]
    layout: Layout | None
    products: Products | None
    reward_range: tuple[float, float] | None

    @property
    def schema(self) -> AnySchema:
        """What made it."""

    def items(
        self, features: Sequence[Mapping[str, Any]], ids: Sequence[str] | None = None, *, misfits: Misfits | None = None
    ) -> Block:
        """Encode n items, once for all contexts."""

    def sent(
        self, features: Sequence[Mapping[str, Any]], ids: Sequence[str], *, misfits: Misfits | None = None
    ) -> Block:
        """The same, of items that a client sent: those that were sent before are found again."""

    def encode(self, context: Mapping[str, Any], items: Block, *, misfits: Misfits | None = None) -> Array:
        """Encode one context with each of n items: (n, d) float32."""

    def rows(self, context: Mapping[str, Any], items: Block, *, misfits: Misfits | None = None) -> Rows:
        """The same, not multiplied out."""

    def pairs(
        self, contexts: Sequence[Mapping[str, Any]], features: Sequence[Mapping[str, Any]], ids: Sequence[str]
    ) -> Array:
        """Encode B > 0 pairs of a context and an item: (B, d) float32, each row as `encode` makes it."""

    def parts(self, context: Mapping[str, Any], features: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> Parts:
        """Return what each field, and each pair of fields, wrote into the rows of one context with n > 0 items."""


def schema_of(said: Mapping[str, Any]) -> AnySchema:
    """Read a schema as JSON. One that has blocks was learned, or is written like one that was.

    Raises:
        ValueError: it is no schema.
    """
    return LearnedSchema.model_validate(said) if "blocks" in said else FeatureSchema.model_validate(said)


def is_left_to_the_service(first: Mapping[str, Any], *, declared: str | None, fits: bool) -> bool:
    """Return whether a loop fits its schemas to its log: nobody declared one, and nobody refused fitted ones.

    Args:
        first: the schema that the loop was made with, as JSON.
        declared: version of the encoder that a person declared last.
        fits: the loop's setting `fit_schema`.
    """
    return fits and declared is None and not schema_of(first).declares


def make_encoder(schema: AnySchema) -> AnyEncoder:
    """Make the encoder of a schema."""
    return LearnedEncoder(schema) if isinstance(schema, LearnedSchema) else Encoder(schema)


def stored_encoder(version: str, schema: Mapping[str, Any] | None) -> AnyEncoder:
    """Make the encoder of this version.

    Raises:
        ValueError: there is no schema of it, or this code makes another encoder of the schema.
    """
    if schema is None:
        raise ValueError(f"the schema of encoder {version!r} is not kept")
    encoder = make_encoder(schema_of(schema))
    if encoder.version != version:
        raise ValueError(
            f"encoder {version!r} was made by another version of Rebound, whose rows this one does not make: "
            f"its schema now makes {encoder.version!r}"
        )
    return encoder
