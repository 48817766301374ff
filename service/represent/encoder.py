"""Context and item features → the matrix X (n, d) that every policy sees.

    X = ½ [ 1 | context fields | item fields | crosses | hashed ]

Declared fields have columns of their own (`fields.py`). A cross is the outer product of its two fields' columns. All
undeclared fields become tokens (`tokens.py`). The tokens of the context, those of the item and all pairs of one of each
are added into the hashed columns.

Lengths: context, item and crosses are groups of length ≤ 1 each. A group of F fields scales each by 1/√F. All its
undeclared tokens count as one field (if `hash_dims` > 0), in which each of T tokens is scaled by 1/√T. Tokens that meet
in a column may add up, so the hashed columns are shortened to their groups' combined length where they exceed it. With
the ½, |x| ≤ 1 for any JSON: a policy is as unsure about a new candidate of many fields as about one of few.

Limits of undeclared fields, per context or item: 100 tokens, 256 characters per text and per name, 5 levels of objects
and lists. A value that does not fit is shortened or left out, and counted (`misfits.py`); it raises nothing.

Letters: **n** candidates, **d** columns, **m** tokens of the item that has most, **t** tokens of the context.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.layout import Layout, Products, Rows
from service.represent.fields import AnyField
from service.represent.item_cache import ItemCache, Packed, rows_of
from service.represent.json_paths import ITEM_ID
from service.represent.misfits import Misfits, Side
from service.represent.parts import Numbers, Parts, Shared
from service.represent.schema import FeatureSchema
from service.represent.tokens import Tokens, add_each, add_own, add_up, columns_of, mix, token_hash

Array = NDArray[Any]

CODE = 1  # raise it with any change of what a row holds: snapshots and logged vectors of the old one no longer fit
PAIRS_AT_ONCE = 1 << 16  # pairs of tokens: bounds the working memory to a few MB, which fit the cache


@dataclass(frozen=True, slots=True, eq=False)
class ItemBlock:
    """n items, encoded once and read-only: the part of their rows that does not depend on the context."""

    version: str  # of the encoder
    z: Array  # (n, 1 + item columns) float64: the constant 1, and the declared fields, scaled; float32 holds them
    hashed: Array  # (n, hash_dims) float32: the items' own tokens, scaled
    tokens: Array  # (n, m) uint64: their hashes, padded with 0
    values: Array  # (n, m) float64: their scaled values, padded with 0, which adds nothing to any row

    def __post_init__(self) -> None:
        for array in (self.z, self.hashed, self.tokens, self.values):
            array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.z)

    @property
    def columns(self) -> Array:
        """The declared fields (n, item columns), scaled."""
        return self.z[:, 1:]

    def take(self, indices: Sequence[int] | Array) -> ItemBlock:
        """Select the items at `indices`, in that order."""
        at = np.asarray(indices, dtype=np.intp)
        return ItemBlock(self.version, self.z[at], self.hashed[at], self.tokens[at], self.values[at])

    def packed(self) -> list[Packed]:
        """Copy each item's arrays."""
        arrays = (self.z, self.hashed, self.tokens, self.values)
        return list(zip(*(rows_of(array) for array in arrays), strict=True))

    @staticmethod
    def concat(blocks: Sequence[ItemBlock]) -> ItemBlock:
        """Join blocks, one after the other.

        Raises:
            ValueError: no block, or blocks of different encoders.
        """
        versions = {block.version for block in blocks}
        if len(versions) != 1:
            raise ValueError(f"blocks of one encoder are needed, got {sorted(versions) or 'none'}")
        n, m = sum(map(len, blocks)), max(block.tokens.shape[1] for block in blocks)
        tokens, values = np.zeros((n, m), dtype=np.uint64), np.zeros((n, m))
        start = 0
        for block in blocks:
            rows, cols = slice(start, start + len(block)), slice(block.tokens.shape[1])
            tokens[rows, cols], values[rows, cols] = block.tokens, block.values
            start += len(block)
        z = np.concatenate([block.z for block in blocks])
        hashed = np.concatenate([block.hashed for block in blocks])
        return ItemBlock(versions.pop(), z, hashed, tokens, values)


class Encoder:
    """A pure function of (schema, context, item). An item's row is the same, bit for bit, whatever items are beside it.

    Args:
        schema: the declared fields. Their order does not matter: columns are sorted by field name.

    Attributes:
        schema: as given.
        d: columns of a row, the bias among them: 1 to 4097.
        version: 12 hexadecimal digits, a hash of the code's version and the schema.
        layout, reward_range: None; those of a learned schema say more.
        products: how rows are made; None if some columns are hashed.
        columns: (d,) names of the columns, for people.
    """

    layout: Layout | None = None
    reward_range: tuple[float, float] | None = None

    def __init__(self, schema: FeatureSchema) -> None:
        self.schema = schema
        self.d = schema.d
        # A schema without `item_ids` makes the rows, and so has the version, that it had before there were any.
        said = schema.model_dump(exclude=None if schema.item_ids else {"item_ids"})
        canonical = json.dumps({"code": CODE, "schema": said}, sort_keys=True)
        self.version = blake2b(canonical.encode(), digest_size=6).hexdigest()

        hashes = schema.hash_dims > 0
        sizes = (len(schema.context), len(schema.item), len(schema.crosses))
        context_share, item_share, cross_share = (0.5 / math.sqrt(max(1, size + hashes)) for size in sizes)
        self._context = _Side("context", schema.context, context_share, schema.hash_dims)
        self._item = _Side("item", schema.item, item_share, schema.hash_dims)
        self._hash_length = math.hypot(context_share, item_share, cross_share)
        # A pair's value comes out as context_share * item_share * v; this makes it cross_share * v. So with crosses.
        self._cross_scale = cross_share / (context_share * item_share)
        self._sent = ItemCache(lambda features, ids, misfits: self.items(features, ids, misfits=misfits), self._joined)

        # A cross is a context column times an item column. With a constant on either side, every declared column is:
        # column j of a row is context column left[j] times item column right[j], times scale[j].
        crosses = [
            (1 + left, 1 + right)
            for c, i in schema.crosses
            for left in self._context.columns_of(c)
            for right in self._item.columns_of(i)
        ]
        of_context, of_item = range(1, 1 + len(self._context.columns)), range(1, 1 + len(self._item.columns))
        pairs = [(0, 0), *((at, 0) for at in of_context), *((0, at) for at in of_item), *crosses]
        self._pairs = pairs
        self._left = np.array([left for left, _ in pairs], dtype=np.intp)
        self._right = np.array([right for _, right in pairs], dtype=np.intp)
        self._scale = np.ones(len(pairs), dtype=np.float32)
        self._scale[0] = 0.5
        self._scale[len(pairs) - len(crosses) :] = self._cross_scale
        self.products: Products | None = None if schema.hash_dims else Products(self._left, self._right, self._scale)
        self.columns: tuple[str, ...] = (
            "bias",
            *self._context.columns,
            *self._item.columns,
            *(f"{self._context.columns[left - 1]} × {self._item.columns[right - 1]}" for left, right in crosses),
            *(f"hash[{i}]" for i in range(schema.hash_dims)),
        )

    def items(
        self, features: Sequence[Mapping[str, Any]], ids: Sequence[str] | None = None, *, misfits: Misfits | None = None
    ) -> ItemBlock:
        """Encode n items, once for all contexts.

        Args:
            features: a JSON object per item.
            ids: (n,), for items without features, if the schema uses them; None leaves such items without columns.
            misfits: counts the values that could not be used as they are; None counts nothing.
        """
        misfits = Misfits() if misfits is None else misfits
        n, side = len(features), self._item
        columns = np.zeros((n, len(side.columns)), dtype=np.float32)
        hashes, values, counts = side.encode_all(features, columns, misfits, ids if self.schema.item_ids else None)
        z = np.ones((n, 1 + len(side.columns)))
        z[:, 1:] = columns * np.float32(side.share)
        hashed = np.zeros((n, self.schema.hash_dims), dtype=np.float32)
        if len(hashes):
            add_each(hashes, values.astype(np.float32), np.repeat(np.arange(n), counts), hashed)
        there = np.arange(counts.max(initial=0)) < counts[:, None]  # (n, m)
        tokens, padded = np.zeros(there.shape, dtype=np.uint64), np.zeros(there.shape)
        tokens[there], padded[there] = hashes, values
        return ItemBlock(self.version, z, hashed, tokens, padded)

    def sent(
        self, features: Sequence[Mapping[str, Any]], ids: Sequence[str], *, misfits: Misfits | None = None
    ) -> ItemBlock:
        """Encode n items that a client sent, as `items` does; those that were sent before are found again."""
        return self._sent.items(features, ids, Misfits() if misfits is None else misfits)

    def _joined(self, packed: Sequence[Packed]) -> ItemBlock:
        n, width = len(packed), max((len(tokens) for _, _, tokens, _ in packed), default=0)  # of the tokens, in bytes
        z = np.frombuffer(b"".join([z for z, _, _, _ in packed])).reshape(n, 1 + len(self._item.columns))
        hashed = np.frombuffer(b"".join([hashed for _, hashed, _, _ in packed]), dtype=np.float32)
        tokens = np.frombuffer(b"".join([tokens.ljust(width, b"\0") for _, _, tokens, _ in packed]), dtype=np.uint64)
        values = np.frombuffer(b"".join([values.ljust(width, b"\0") for _, _, _, values in packed]))
        shape = (n, width // 8)
        hashed = hashed.reshape(n, self.schema.hash_dims)
        return ItemBlock(self.version, z, hashed, tokens.reshape(shape), values.reshape(shape))

    def encode(self, context: Mapping[str, Any], items: ItemBlock, *, misfits: Misfits | None = None) -> Array:
        """Encode one context with each of n items: X (n, d) float32, |x| ≤ 1 up to rounding.

        Args:
            context: a JSON object.
            items: n items, encoded by this encoder.
            misfits: counts the context's values that could not be used as they are; None counts nothing.

        Raises:
            ValueError: `items` comes from another encoder.
        """
        return self.rows(context, items, misfits=misfits).dense()

    def rows(self, context: Mapping[str, Any], items: ItemBlock, *, misfits: Misfits | None = None) -> Rows:
        """Encode one context with each of n items as `encode` does, without multiplying the rows out.

        Raises:
            ValueError: `items` comes from another encoder.
        """
        if items.version != self.version:
            raise ValueError(f"items of encoder {items.version} given to encoder {self.version}")
        c = np.zeros(1 + len(self._context.columns), dtype=np.float32)
        hashed = np.zeros(self.schema.hash_dims)
        tokens, values = self._context.encode(context, c[1:], hashed, Misfits() if misfits is None else misfits)
        c *= self._context.share
        c[0] = 1.0
        z, weight = items.z, c[self._left] * self._scale
        if self.schema.hash_dims:
            z = np.concatenate([z, self._hashed(hashed, tokens, values, items).astype(np.float32)], axis=1)
        return Rows(z, self._right, weight, items.z.shape[1], c)

    def pairs(
        self, contexts: Sequence[Mapping[str, Any]], features: Sequence[Mapping[str, Any]], ids: Sequence[str]
    ) -> Array:
        """Encode B pairs of a context and an item: (B, d) float32, each row as `encode` makes it."""
        items = self.items(features, ids)
        pairs = enumerate(contexts)
        return np.concatenate([self.encode(context, items.take([at])) for at, context in pairs])

    def parts(self, context: Mapping[str, Any], features: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> Parts:
        """Return what each field, and each pair of fields, wrote into the rows of one context with n > 0 items."""
        x = self.encode(context, self.items(features, ids)).astype(np.float64)
        numbers = Numbers()
        fields = [(self._context.field_of(left), self._item.field_of(right)) for left, right in self._pairs]
        of_column = np.array([numbers.of(*pair) for pair in fields], dtype=np.intp)
        shared = Shared.joined(self._hashed_parts(context, features, ids, numbers))
        declared = len(of_column)
        return Parts([*numbers.pairs], x, of_column, shared.rounded_as(x[:, declared:]))

    def _hashed_parts(
        self, context: Mapping[str, Any], features: Sequence[Mapping[str, Any]], ids: Sequence[str], numbers: Numbers
    ) -> Iterator[tuple[Array, Array, Array, Array]]:
        """Yield the entries of the hashed columns, item by item: rows, columns, pairs, values, each (E,)."""
        dims = self.schema.hash_dims
        if not dims:
            return
        own = self._context.tokens(context)
        for row, (one, item_id) in enumerate(zip(features, ids, strict=True)):
            its = self._item.tokens(one, item_id if self.schema.item_ids else None)
            pair = [numbers.of(field, None) for field, _, _ in own]
            pair += [numbers.of(None, field) for field, _, _ in its]
            pair += [numbers.of(c, i) for i, _, _ in its for c, _, _ in own]
            (h, v), (its_h, its_v) = _hashes_and_values(own), _hashes_and_values(its)
            hashes = np.concatenate([h, its_h, mix(its_h[:, None] + h).ravel()])
            values = np.concatenate([v, its_v, np.outer(its_v, v * self._cross_scale).ravel()])
            column, signed = columns_of(hashes, values, dims)
            length = float(np.linalg.norm(np.bincount(column, signed, dims)))
            signed *= self._hash_length / max(length, self._hash_length)
            yield np.full(len(column), row), column, np.array(pair, dtype=np.intp), signed

    def _hashed(self, own: Array, tokens: list[int], values: list[float], items: ItemBlock) -> Array:
        """Return the hashed columns (n, dims) float64, of the context's own (dims,), its t tokens, and the items."""
        z = items.hashed + own  # (n, dims)
        per_item = items.tokens.shape[1] * len(tokens)
        if per_item:
            context_tokens = np.array(tokens, dtype=np.uint64)
            context_values = np.array(values) * self._cross_scale
            step = PAIRS_AT_ONCE // per_item  # ≥ 1, as MAX_TOKENS² < PAIRS_AT_ONCE
            for start in range(0, len(items), step):
                rows = slice(start, start + step)
                hashes = mix(items.tokens[rows, :, None] + context_tokens)  # (rows, m, t)
                products = items.values[rows, :, None] * context_values
                z[rows] += add_up(hashes, products, self.schema.hash_dims)
        # A plain sum over the row: it adds in the same order however many rows there are, which BLAS does not promise.
        length = np.sqrt(np.add.reduce(z * z, axis=1, keepdims=True))  # (n, 1)
        z *= self._hash_length / np.maximum(length, self._hash_length)
        return z


def _hashes_and_values(tokens: Sequence[tuple[str, int, float]]) -> tuple[Array, Array]:
    return np.array([h for _, h, _ in tokens], dtype=np.uint64), np.array([value for _, _, value in tokens])


class _Side:
    """The declared columns and the tokens of the context, or of an item."""

    def __init__(self, name: Side, fields: Mapping[str, AnyField], share: float, hash_dims: int) -> None:
        self._name = name
        self._person = name.encode()
        self._hash_dims = hash_dims
        self.share = share  # the length of one field; the caller scales the declared columns, all rows at once
        self._fields: dict[str, tuple[AnyField, slice]] = {}
        self.columns: list[str] = []
        for field_name in sorted(fields):
            field, start = fields[field_name], len(self.columns)
            self._fields[field_name] = (field, slice(start, start + len(field.columns)))
            self.columns += [f"{name}.{field_name}{suffix}" for suffix in field.columns]

    def columns_of(self, field: str) -> range:
        where = self._fields[field][1]
        return range(where.start, where.stop)

    def field_of(self, column: int) -> str | None:
        """Return the field that writes a column, of which the first is the constant; None: the constant."""
        if column == 0:
            return None
        return next(name for name, (_, where) in self._fields.items() if where.start <= column - 1 < where.stop)

    def tokens(self, features: Mapping[str, Any], own_id: str | None = None) -> list[tuple[str, int, float]]:
        """Return (field, hash, scaled value) of each token that `encode` makes; the field of an id is `ITEM_ID`."""
        found, fields = Tokens(self._name, Misfits()), []
        if own_id is not None and not features:
            found.add_id(own_id)
            fields.append(ITEM_ID)
        for name, value in features.items():
            if name not in self._fields:
                found.add_field(name, value)
                fields += [name] * (len(found.names) - len(fields))
        scale = self.share / math.sqrt(max(1, len(fields)))
        hashes = (token_hash(name, self._person) for name in found.names)
        values = (scale * weight for weight in found.weights)
        return list(zip(fields, hashes, values, strict=True))

    def encode(
        self, features: Mapping[str, Any], fields: Array, hashed: Array, misfits: Misfits
    ) -> tuple[list[int], list[float]]:
        """Encode one JSON object into the zeros of `fields` (columns,), unscaled, and `hashed` (hash_dims,).

        Returns:
            The tokens' hashes and their scaled values.
        """
        found = self._read(features, fields, misfits)
        if not found.names:
            return [], []
        scale = self.share / math.sqrt(len(found.names))
        hashes = [token_hash(name, self._person) for name in found.names]
        values = [scale * weight for weight in found.weights]
        add_own(hashes, values, hashed)
        return hashes, values

    def encode_all(
        self, features: Sequence[Mapping[str, Any]], fields: Array, misfits: Misfits, ids: Sequence[str] | None
    ) -> tuple[Array, Array, Array]:
        """Encode n JSON objects into the zeros of `fields` (n, columns), unscaled. An empty one's token is its id.

        Returns:
            The hashes (N,) uint64 and the scaled values (N,) of all tokens, and how many each object has (n,).
        """
        hashes: list[int] = []
        weights: list[float] = []
        counts: list[int] = []
        person = self._person
        for row, one in enumerate(features):
            found = self._read(one, fields[row], misfits, None if ids is None else ids[row])
            hashes += [token_hash(name, person) for name in found.names]
            weights += found.weights
            counts.append(len(found.names))
        of_each = np.array(counts, dtype=np.intp)
        scale = self.share / np.sqrt(np.maximum(of_each, 1))
        return np.array(hashes, dtype=np.uint64), np.repeat(scale, of_each) * np.array(weights), of_each

    def _read(self, features: Mapping[str, Any], fields: Array, misfits: Misfits, own_id: str | None = None) -> Tokens:
        """Write the declared fields of a JSON object into `fields`; return the tokens of all others."""
        found = Tokens(self._name, misfits)
        if own_id is not None and not features and self._hash_dims:
            found.add_id(own_id)
        for name, value in features.items():
            known = self._fields.get(name)
            if known is None:
                if self._hash_dims:
                    found.add_field(name, value)
            elif value is not None:
                field, columns = known
                reason = field.write(value, fields[columns])
                if reason is not None:
                    misfits.add(self._name, name, reason)
        return found
