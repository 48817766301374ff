"""Context and item features → the matrix X (n, d) that every policy sees.

    X = ½ [ 1 | context fields | item fields | crosses | hashed ]

Declared fields have columns of their own (`schema.py`); a cross is the outer product of its two fields' columns. All
that is undeclared, any JSON, becomes tokens: `user.tags=red` for strings, booleans and nulls, `user.age` with the value
v / (1 + |v|) for numbers. Context tokens, item tokens and all pairs of one of each are added with a sign into the
hashed columns (feature hashing, Weinberger et al. 2009, arXiv:0902.2206).

Lengths: context, item and crosses are groups of length ≤ 1 each. A group of F fields scales each by 1/√F; all its
undeclared tokens count as one field (if `hash_dims` > 0), in which each of T tokens is scaled by 1/√T. Tokens that meet
in a column may add up, so the hashed columns are shortened to their groups' combined length where they exceed it. With
the ½, |x| ≤ 1 for any JSON: a policy is as unsure about a new candidate of many fields as about one of few.

Letters: **n** candidates, **d** columns, **m** tokens of the item that has most, **t** tokens of the context.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.decide.schema import MAX_STRING, AnyField, FeatureSchema, number, string
from service.errors import InvalidRequest

__all__ = ["Encoder", "FeatureSchema", "ItemBlock"]

Array = NDArray[Any]

CODE = 1  # raise it with any change of what a row holds: snapshots and logged vectors of the old one no longer fit
MAX_TOKENS = 100
MAX_DEPTH = 5
PAIRS_AT_ONCE = 1 << 16  # pairs of tokens: bounds the working memory to a few MB, which fit the cache
LITERALS = {None: "null", True: "true", False: "false"}

# Constants of the hash as 0-d arrays, which NumPy takes in a quarter of the time that a Python integer needs.
_MIX_1, _MIX_2 = np.array(0xBF58476D1CE4E5B9, dtype=np.uint64), np.array(0x94D049BB133111EB, dtype=np.uint64)
_27, _30, _31, _32 = (np.array(shift, dtype=np.uint64) for shift in (27, 30, 31, 32))
_LOW, _TOP = np.array(0xFFFFFFFF, dtype=np.uint64), np.array(1 << 63, dtype=np.uint64)


@dataclass(frozen=True, slots=True, eq=False)
class ItemBlock:
    """n items, encoded once and read-only: all of their rows that no context can change."""

    version: str  # of the encoder
    columns: Array  # (n, item columns) float32: the declared fields, scaled
    hashed: Array  # (n, hash_dims) float32: the items' own tokens, scaled
    tokens: Array  # (n, m) uint64: their hashes, padded with 0
    values: Array  # (n, m) float64: their scaled values, padded with 0, which adds nothing to any row

    def __post_init__(self) -> None:
        for array in (self.columns, self.hashed, self.tokens, self.values):
            array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.columns)

    def take(self, indices: Sequence[int] | Array) -> ItemBlock:
        """The items at `indices`, in that order."""
        at = np.asarray(indices, dtype=np.intp)
        return ItemBlock(self.version, self.columns[at], self.hashed[at], self.tokens[at], self.values[at])

    @staticmethod
    def concat(blocks: Sequence[ItemBlock]) -> ItemBlock:
        """One block after the other.

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
        columns = np.concatenate([block.columns for block in blocks])
        hashed = np.concatenate([block.hashed for block in blocks])
        return ItemBlock(versions.pop(), columns, hashed, tokens, values)


class Encoder:
    """A pure function of (schema, context, item): the row of an item is the same, bit for bit, in any company.

    Args:
        schema: the declared fields. Their order does not matter: columns are sorted by field name.
    """

    def __init__(self, schema: FeatureSchema) -> None:
        self.schema = schema
        self.d = schema.d  # columns, the bias among them: 1 to 4097
        canonical = json.dumps({"code": CODE, "schema": schema.model_dump()}, sort_keys=True)
        self.version = blake2b(canonical.encode(), digest_size=6).hexdigest()

        hashes = schema.hash_dims > 0
        sizes = (len(schema.context), len(schema.item), len(schema.crosses))
        context_share, item_share, cross_share = (0.5 / math.sqrt(max(1, size + hashes)) for size in sizes)
        self._context = _Side("context", schema.context, context_share, schema.hash_dims)
        self._item = _Side("item", schema.item, item_share, schema.hash_dims)
        self._hash_length = math.hypot(context_share, item_share, cross_share)
        # A pair's value comes out as context_share * item_share * v; this makes it cross_share * v. So with crosses.
        self._cross_scale = cross_share / (context_share * item_share)

        # Column j of the crosses is context column left[j] times item column right[j].
        pairs = [
            (left, right)
            for c, i in schema.crosses
            for left in self._context.columns_of(c)
            for right in self._item.columns_of(i)
        ]
        self._left = np.array([left for left, _ in pairs], dtype=np.intp)
        self._right = np.array([right for _, right in pairs], dtype=np.intp)
        self._item_start = 1 + len(self._context.columns)
        self._cross_start = self._item_start + len(self._item.columns)
        self._hash_start = self._cross_start + len(pairs)
        self.columns = (  # (d,) what each column holds, for people
            "bias",
            *self._context.columns,
            *self._item.columns,
            *(f"{self._context.columns[left]} × {self._item.columns[right]}" for left, right in pairs),
            *(f"hash[{i}]" for i in range(schema.hash_dims)),
        )

    def items(
        self, features: Sequence[Mapping[str, Any]], *, where: str = "items", at: Sequence[int] | None = None
    ) -> ItemBlock:
        """Encode n items' features, once for all contexts.

        Args:
            features: a JSON object per item.
            where: how the request calls the list of items, for errors: "items.3.features.price".
            at: each item's place in that list, where it is not 0, 1, 2, …

        Raises:
            InvalidRequest: a value is not JSON, not finite, not of its declared type, or beyond a limit (100 tokens,
                256 characters, 5 levels).
        """
        n, side = len(features), self._item
        columns = np.zeros((n, len(side.columns)), dtype=np.float32)
        hashed = np.zeros((n, self.schema.hash_dims), dtype=np.float32)
        encoded = [
            side.encode(item, its_columns, its_hashed, f"{where}.{place}.features")
            for item, its_columns, its_hashed, place in zip(
                features, columns, hashed, range(n) if at is None else at, strict=True
            )
        ]
        columns *= side.share
        m = max((len(tokens) for tokens, _ in encoded), default=0)
        pad = [0] * m
        tokens = np.array([(some + pad)[:m] for some, _ in encoded], dtype=np.uint64).reshape(n, m)
        values = np.array([(some + pad)[:m] for _, some in encoded], dtype=np.float64).reshape(n, m)
        return ItemBlock(self.version, columns, hashed, tokens, values)

    def encode(self, context: Mapping[str, Any], items: ItemBlock, *, where: str = "context") -> Array:
        """X (n, d) float32, |x| ≤ 1 up to rounding: one context with each item.

        Raises:
            InvalidRequest: as for `items`; the field begins with `where`.
            ValueError: `items` comes from another encoder.
        """
        if items.version != self.version:
            raise ValueError(f"items of encoder {items.version} given to encoder {self.version}")
        fields = np.zeros(len(self._context.columns), dtype=np.float32)
        hashed = np.zeros(self.schema.hash_dims)
        tokens, values = self._context.encode(context, fields, hashed, where)
        fields *= self._context.share
        x = np.empty((len(items), self.d), dtype=np.float32)
        x[:, 0] = 0.5
        x[:, 1 : self._item_start] = fields
        x[:, self._item_start : self._cross_start] = items.columns
        if len(self._left):
            left = fields[self._left] * np.float32(self._cross_scale)
            np.multiply(items.columns[:, self._right], left, out=x[:, self._cross_start : self._hash_start])
        if self.schema.hash_dims:
            x[:, self._hash_start :] = self._hashed(hashed, tokens, values, items)
        return x

    def _hashed(self, own: Array, tokens: list[int], values: list[float], items: ItemBlock) -> Array:
        """The hashed columns (n, dims) float64, from the context's own (dims,), its t tokens, and the items'."""
        z = items.hashed + own  # (n, dims)
        per_item = items.tokens.shape[1] * len(tokens)
        if per_item:
            context_tokens = np.array(tokens, dtype=np.uint64)
            context_values = np.array(values) * self._cross_scale
            step = PAIRS_AT_ONCE // per_item  # ≥ 1, as MAX_TOKENS² < PAIRS_AT_ONCE
            for start in range(0, len(items), step):
                rows = slice(start, start + step)
                hashes = _mix(items.tokens[rows, :, None] + context_tokens)  # (rows, m, t)
                products = items.values[rows, :, None] * context_values
                z[rows] += _add_up(hashes, products, self.schema.hash_dims)
        # A plain sum over the row: it adds in the same order however many rows there are, which BLAS does not promise.
        length = np.sqrt(np.add.reduce(z * z, axis=1, keepdims=True))  # (n, 1)
        z *= self._hash_length / np.maximum(length, self._hash_length)
        return z


class _Side:
    """How the context, or an item, becomes declared columns and tokens."""

    def __init__(self, name: str, fields: Mapping[str, AnyField], share: float, hash_dims: int) -> None:
        self._person = (
            name.encode()
        )  # part of the hash: the same words mean another thing in the context and in an item
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

    def encode(
        self, features: Mapping[str, Any], fields: Array, hashed: Array, where: str
    ) -> tuple[list[int], list[float]]:
        """Write into the zeros of `fields` (columns,), unscaled, and `hashed` (hash_dims,); return the tokens' hashes
        and scaled values."""
        found = _Tokens(where)
        for name, value in features.items():
            known = self._fields.get(name)
            if known is None:
                found.add_member("", name, value, 1)
            elif value is not None:
                field, columns = known
                try:
                    field.write(value, fields[columns])
                except ValueError as error:
                    raise InvalidRequest(f"{where}.{name}", str(error)) from None
        if not (self._hash_dims and found.names):
            return [], []
        scale = self.share / math.sqrt(len(found.names))
        tokens, values = [self._hash(name) for name in found.names], [scale * value for value in found.values]
        for token, value in zip(tokens, values, strict=True):
            hashed[(token & 0xFFFFFFFF) * self._hash_dims >> 32] += -value if token >> 63 else value
        return tokens, values

    def _hash(self, token: str) -> int:
        """64 bits, the same in every process and on every machine."""
        digest = blake2b(token.encode("utf-8", "surrogatepass"), digest_size=8, person=self._person)
        return int.from_bytes(digest.digest(), "little")


class _Tokens:
    """Collects the tokens of one JSON object. Limits hold whether or not anything is hashed."""

    def __init__(self, where: str) -> None:
        self.names: list[str] = []
        self.values: list[float] = []
        self._where = where

    def add_member(self, parent: str, key: str, value: Any, depth: int) -> None:
        if len(key) > MAX_STRING:
            message = f"a name of {len(key)} characters; at most {MAX_STRING} are allowed"
            raise InvalidRequest(self._where + parent, message)
        self._add(f"{parent}.{key}", value, depth)

    def _add(self, path: str, value: Any, depth: int) -> None:
        """`path` begins with a dot; `depth` counts the objects and lists around the value."""
        try:
            if isinstance(value, str):
                name, weight = f"{path}={string(value)}", 1.0
            elif value is None or isinstance(value, bool):
                name, weight = f"{path}={LITERALS[value]}", 1.0
            elif isinstance(value, (dict, list, tuple)):
                self._add_all(path, value, depth)
                return
            else:
                v = number(value)
                name, weight = path, v / (1.0 + abs(v))
        except ValueError as error:
            raise InvalidRequest(self._where + path, str(error)) from None
        self.names.append(name)
        self.values.append(weight)
        if len(self.names) > MAX_TOKENS:
            raise InvalidRequest(self._where, f"more than {MAX_TOKENS} undeclared values")

    def _add_all(self, path: str, value: Any, depth: int) -> None:
        if depth == MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(value, dict):
            for key, member in value.items():
                self.add_member(path, key, member, depth + 1)
            return
        for i, element in enumerate(value):  # in a vector places count; a list of words or objects is a set
            is_vector = isinstance(element, (int, float, list, tuple)) and not isinstance(element, bool)
            self._add(f"{path}.{i}" if is_vector else path, element, depth + 1)


def _mix(h: Array) -> Array:
    """uint64 → uint64, in place: the finaliser of splitmix64 (Steele et al. 2014), so that every bit depends on all."""
    h ^= h >> _30
    h *= _MIX_1
    h ^= h >> _27
    h *= _MIX_2
    h ^= h >> _31
    return h


def _add_up(hashes: Array, values: Array, dims: int) -> Array:
    """(n, m, t) hashes and values → (n, dims) float64: each value in its hash's column, with its hash's sign.

    `bincount` adds one by one in order, so a row depends on nothing but its own tokens.
    """
    n = len(hashes)
    signed = (values.view(np.uint64) ^ (hashes & _TOP)).view(np.float64)
    flat = hashes & _LOW
    flat *= np.array(dims, dtype=np.uint64)
    flat >>= _32  # now each hash's column, in 0 .. dims - 1
    flat += np.arange(0, n * dims, dims, dtype=np.uint64)[:, None, None]
    return np.bincount(flat.view(np.int64).ravel(), signed.ravel(), n * dims).reshape(n, dims)
