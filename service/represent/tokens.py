"""Undeclared fields, any JSON, as tokens: `user.tags=red` for a text, a boolean or a null; `user.age` for a number.

A token has a weight: 1 for a text, a boolean or a null, and v / (1 + |v|), in (-1, 1), for the number v. In a list of
numbers or lists, the index is part of the name. A list of texts or objects is a set.

Feature hashing (Weinberger et al. 2009, arXiv:0902.2206): a token's hash, 64 bits, gives its column and its sign.

Letters: **n** candidates, **m** tokens of the item that has most, **t** tokens of the context.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.represent.fields import MAX_STRING, number
from service.represent.misfits import Misfits, Reason, Side

Array = NDArray[Any]

MAX_TOKENS = 100  # of one context or item
MAX_DEPTH = 5  # objects and lists around a value, the context or the item itself among them
LITERALS = {None: "null", True: "true", False: "false"}

# Constants of the hash as 0-d arrays, which NumPy takes in a quarter of the time that a Python integer needs.
_MIX_1, _MIX_2 = np.array(0xBF58476D1CE4E5B9, dtype=np.uint64), np.array(0x94D049BB133111EB, dtype=np.uint64)
_27, _30, _31, _32 = (np.array(shift, dtype=np.uint64) for shift in (27, 30, 31, 32))
_LOW, _TOP = np.array(0xFFFFFFFF, dtype=np.uint64), np.array(1 << 63, dtype=np.uint64)


class _TooManyValues(Exception):
    """The token limit is reached."""


class Tokens:
    """Collects the tokens of one context or item, up to 100, and counts the values that it cannot use.

    Attributes:
        names: the tokens, in the order of the fields.
        weights: each token's weight, in [-1, 1].
    """

    def __init__(self, side: Side, misfits: Misfits) -> None:
        self.names: list[str] = []
        self.weights: list[float] = []
        self._side = side
        self._misfits = misfits

    def add_field(self, name: str, value: Any) -> None:
        """Add the tokens of one undeclared field: all, or as many as the limit leaves room for."""
        # Most are short texts and booleans: the same as below, in a third of the time.
        if len(name) <= MAX_STRING and len(self.names) < MAX_TOKENS:
            if type(value) is bool:
                value = LITERALS[value]
            if type(value) is str and len(value) <= MAX_STRING:
                self.names.append(f".{name}={value}")
                self.weights.append(1.0)
                return
        try:
            self._add_member("", name, value, 1)
        except _TooManyValues:
            self._misfits.add(self._side, name, "too_many_values")

    def add_id(self, item: str) -> None:
        """Add an item's id as a token; no field has this name, for a field's begins with a dot."""
        self.names.append(f"={item}")
        self.weights.append(1.0)

    def _add_member(self, parent: str, name: str, value: Any, depth: int) -> None:
        """`parent` is empty or begins with a dot; `depth` counts the objects and lists around the value."""
        if len(name) > MAX_STRING:
            name = name[:MAX_STRING]
            self._count(f"{parent}.{name}", "overlong")
        self._add(f"{parent}.{name}", value, depth)

    def _add(self, path: str, value: Any, depth: int) -> None:
        if isinstance(value, str):
            if len(value) > MAX_STRING:
                value = value[:MAX_STRING]
                self._count(path, "overlong")
            name, weight = f"{path}={value}", 1.0
        elif value is None or isinstance(value, bool):
            name, weight = f"{path}={LITERALS[value]}", 1.0
        elif isinstance(value, (dict, list, tuple)):
            self._add_all(path, value, depth)
            return
        else:
            v = number(value)
            if isinstance(v, str):
                self._count(path, v)
                return
            name, weight = path, v / (1.0 + abs(v))
        if len(self.names) == MAX_TOKENS:
            raise _TooManyValues
        self.names.append(name)
        self.weights.append(weight)

    def _add_all(self, path: str, value: dict[str, Any] | list[Any] | tuple[Any, ...], depth: int) -> None:
        if depth == MAX_DEPTH:
            if value:  # an empty object or list has no token at any depth
                self._count(path, "too_deep")
            return
        if isinstance(value, dict):
            for name, member in value.items():
                self._add_member(path, name, member, depth + 1)
            return
        for i, element in enumerate(value):
            is_vector = isinstance(element, (int, float, list, tuple)) and not isinstance(element, bool)
            self._add(f"{path}.{i}" if is_vector else path, element, depth + 1)

    def _count(self, path: str, reason: Reason) -> None:
        self._misfits.add(self._side, path[1:], reason)


@lru_cache(maxsize=1 << 14)  # the same levels come again and again
def token_hash(token: str, side: bytes) -> int:
    """Return 64 bits, the same in every process and on every machine. `side` is b"context" or b"item".

    The side is part of the hash, because the same words mean another thing in the context and in an item.
    """
    digest = blake2b(token.encode("utf-8", "surrogatepass"), digest_size=8, person=side)
    return int.from_bytes(digest.digest(), "little")


def add_own(hashes: Sequence[int], values: Sequence[float], out: Array) -> None:
    """Add each value into its hash's column of `out` (dims,), with its hash's sign."""
    dims = len(out)
    for h, value in zip(hashes, values, strict=True):
        out[(h & 0xFFFFFFFF) * dims >> 32] += -value if h >> 63 else value


def add_each(hashes: Array, values: Array, rows: Array, out: Array) -> None:
    """Add N values into their rows of `out` (n, dims) as `add_own` does: one by one, rounded as `out` is."""
    n, dims = out.shape
    at = rows * dims + ((hashes & _LOW) * np.array(dims, dtype=np.uint64) >> _32).view(np.int64)
    np.add.at(out.reshape(n * dims), at, np.where(hashes >= _TOP, -values, values))


def columns_of(hashes: Array, values: Array, dims: int) -> tuple[Array, Array]:
    """Return the columns (N,) into which N values are added, and the values with their hashes' signs (N,)."""
    column = ((hashes & _LOW) * np.array(dims, dtype=np.uint64) >> _32).astype(np.intp)
    return column, np.where(hashes >= _TOP, -values, values)


def mix(h: Array) -> Array:
    """uint64 → uint64, in place: the finaliser of splitmix64 (Steele et al. 2014), so that every bit depends on all."""
    h ^= h >> _30
    h *= _MIX_1
    h ^= h >> _27
    h *= _MIX_2
    h ^= h >> _31
    return h


def add_up(hashes: Array, values: Array, dims: int) -> Array:
    """Add each value into its hash's column, with its hash's sign; (n, m, t) hashes and values → (n, dims) float64.

    `bincount` adds one by one in order, so a row depends on nothing but its own tokens.
    """
    n = len(hashes)
    signed = (values.view(np.uint64) ^ (hashes & _TOP)).view(np.float64)
    flat = hashes & _LOW
    flat *= np.array(dims, dtype=np.uint64)
    flat >>= _32  # now each hash's column, in 0 .. dims - 1
    flat += np.arange(0, n * dims, dims, dtype=np.uint64)[:, None, None]
    return np.bincount(flat.view(np.int64).ravel(), signed.ravel(), n * dims).reshape(n, dims)
