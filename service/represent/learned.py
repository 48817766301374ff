"""A schema that was learned from a log, and the rows that it makes.

A *field* turns the value at a path into columns. A *block* is a pair of a context field and an item field, either of
them possibly the constant 1; its columns are the outer product of the two. A row has three layers:

    x = √(variance / 10) · [ blocks | columns for an item's own effects | columns for a user's own effects ]

With a prior precision of 0.1 on every weight, which is the default of the policies, a block's weights have the prior
variance that the schema says. The second layer holds context columns, the third item columns: a policy that knows of
layers keeps weights of their own for every item and every user (`policies/adaptive_layers.py`). Others see the blocks
alone.

Letters: **n** candidates, **d** columns of a row, **p** columns of one side.
"""

from __future__ import annotations

import json
import marshal
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, Field, StringConstraints, model_validator

from service.layout import Layout, Products, Rows
from service.represent.fields import CLOSED, MAX_LEVELS, MAX_SIZE, MAX_STRING
from service.represent.item_cache import ItemCache, Packed, rows_of
from service.represent.json_paths import ITEM_ID, is_vector, leaves, level_of, number_of
from service.represent.misfits import Misfits, Reason, Side
from service.represent.parts import Numbers, Parts, Shared
from service.represent.schema import MAX_COLUMNS

Array = NDArray[Any]

CODE = 1  # raise it with any change of what a row holds
RIDGE = 0.1  # prior precision of the policies, in which rows are measured


def _rising(numbers: list[float]) -> list[float]:
    if any(b <= a for a, b in pairwise(numbers)):
        raise ValueError("each number must be larger than the one before")
    return numbers


def _different(levels: list[str]) -> list[str]:
    for a, b in pairwise(sorted(levels)):
        if a == b:
            raise ValueError(f"level {a!r} is listed twice")
    return levels


Text = Annotated[str, StringConstraints(max_length=MAX_STRING)]
Rising = Annotated[list[float], Field(min_length=2, max_length=MAX_SIZE), AfterValidator(_rising)]
Different = Annotated[list[Text], Field(max_length=MAX_LEVELS), AfterValidator(_different)]


class Levels(BaseModel):
    """One column a level, and one for all others where the log held some."""

    model_config = CLOSED

    type: Literal["levels"] = "levels"
    path: Text
    levels: Different
    others: bool = False

    @property
    def columns(self) -> list[str]:
        return [*(f"={level}" for level in self.levels), *(["=<other>"] if self.others else [])]

    @cached_property
    def _position(self) -> dict[str, int]:
        return {level: at for at, level in enumerate(self.levels)}

    def write(self, value: Any, out: Array) -> Reason | None:
        if isinstance(value, list):
            return "wrong_type"
        at = self._position.get(level_of(value))
        if at is not None:
            out[at] = 1.0
            return None
        if self.others:
            out[-1] = 1.0
        return "unknown_level"


class FormerUnit(BaseModel):
    """The unit in which a number came before, as the values of the unit of now that have the same places.

    A number is taken for one of the former unit where it lies in its range. Where the ranges of both units overlap, the
    narrower one has it: hardly a number of the wider one lies there.
    """

    model_config = CLOSED

    values: Rising
    as_now: Annotated[list[float], Field(min_length=2, max_length=MAX_SIZE)]  # of the values; interpolated

    @model_validator(mode="after")
    def _matched(self) -> FormerUnit:
        if len(self.as_now) != len(self.values):
            raise ValueError(f"{len(self.values)} values are {len(self.as_now)} of now; each needs one")
        return self

    def in_unit_of_now(self, numbers: Array) -> Array:
        """Return numbers (B,), those of the former unit in the unit of now."""
        values, as_now = self._arrays
        low, high, low_now, high_now = values[0], values[-1], as_now.min(), as_now.max()
        former = (numbers >= low) & (numbers <= high)
        if high_now - low_now < high - low:
            former &= (numbers < low_now) | (numbers > high_now)
        return np.where(former, np.interp(numbers, values, as_now), numbers)

    @cached_property
    def _arrays(self) -> tuple[Array, Array]:
        return np.array(self.values), np.array(self.as_now)


class _Number(BaseModel):
    """What fields of a number share: its path, and the unit in which it came before, if it came in another."""

    model_config = CLOSED

    path: Text
    former: Annotated[FormerUnit | None, Field(exclude_if=lambda former: former is None)] = None

    def number(self, value: Any) -> float | None:
        """Return a value as a number in the unit of now; None where it is no number."""
        v = number_of(value)
        return v if v is None or self.former is None else float(self.former.in_unit_of_now(np.array([v]))[0])

    def numbers(self, numbers: Array) -> Array:
        """Return numbers (B,) in the unit of now."""
        return numbers if self.former is None else self.former.in_unit_of_now(numbers)


class Line(_Number):
    """A number as its place among the quantiles of what was seen, from -1 to 1; scale and outliers do not matter."""

    type: Literal["line"] = "line"
    values: Rising
    places: Annotated[list[Annotated[float, Field(ge=-1, le=1)]], Field(min_length=2)]  # of the values; interpolated

    @model_validator(mode="after")
    def _placed(self) -> Line:
        if len(self.places) != len(self.values):
            raise ValueError(f"{len(self.values)} values have {len(self.places)} places; each needs one")
        return self

    @property
    def columns(self) -> list[str]:
        return [""]

    def write(self, value: Any, out: Array) -> Reason | None:
        v = self.number(value)
        if v is None:
            return "wrong_type"
        out[0] = np.interp(v, *self._arrays)
        return None

    def write_numbers(self, numbers: Array, out: Array) -> None:
        """Write numbers (B,) into `out` (B, 1)."""
        out[:, 0] = np.interp(self.numbers(numbers), *self._arrays)

    @cached_property
    def _arrays(self) -> tuple[Array, Array]:
        return np.array(self.values), np.array(self.places)


class Bend(_Number):
    """A number as hats: weights of the two knots beside it, which sum to 1. So it may matter in the middle only."""

    type: Literal["bend"] = "bend"
    knots: Rising

    @property
    def columns(self) -> list[str]:
        return [f"[{knot}]" for knot in self.knots]

    def write(self, value: Any, out: Array) -> Reason | None:
        v = self.number(value)
        if v is None:
            return "wrong_type"
        at = float(np.interp(v, *self._arrays))
        low = min(int(at), len(self.knots) - 2)
        out[low], out[low + 1] = low + 1 - at, at - low
        return None

    def write_numbers(self, numbers: Array, out: Array) -> None:
        """Write numbers (B,) into the zeros of `out` (B, columns)."""
        at = np.interp(self.numbers(numbers), *self._arrays)
        low, row = np.minimum(at.astype(np.intp), len(self.knots) - 2), np.arange(len(numbers))
        out[row, low], out[row, low + 1] = low + 1 - at, at - low

    @cached_property
    def _arrays(self) -> tuple[Array, Array]:
        return np.array(self.knots), np.arange(len(self.knots), dtype=np.float64)


class Words(BaseModel):
    """A list of words: a column for each of the frequent ones."""

    model_config = CLOSED

    type: Literal["words"] = "words"
    path: Text
    levels: Different

    @property
    def columns(self) -> list[str]:
        return [f"={level}" for level in self.levels]

    @cached_property
    def _position(self) -> dict[str, int]:
        return {level: at for at, level in enumerate(self.levels)}

    def write(self, value: Any, out: Array) -> Reason | None:
        unknown = False
        for word in value if isinstance(value, list) else [value]:
            at = self._position.get(level_of(word))
            if at is not None:
                out[at] = 1.0
            unknown |= at is None
        return "unknown_level" if unknown else None


class Components(BaseModel):
    """A vector as its principal components, (value - mean) · axes, of mean square 1 together."""

    model_config = CLOSED

    type: Literal["components"] = "components"
    path: Text
    mean: Annotated[list[float], Field(min_length=1, max_length=MAX_SIZE)]
    axes: Annotated[list[list[float]], Field(min_length=1, max_length=MAX_SIZE)]

    @model_validator(mode="after")
    def _of_one_size(self) -> Components:
        if wrong := [at for at, axis in enumerate(self.axes) if len(axis) != len(self.mean)]:
            raise ValueError(f"axis {wrong[0]} has {len(self.axes[wrong[0]])} numbers, the mean has {len(self.mean)}")
        return self

    @property
    def columns(self) -> list[str]:
        return [f"[{at}]" for at in range(len(self.axes))]

    @cached_property
    def _arrays(self) -> tuple[Array, Array]:
        return np.array(self.mean), np.array(self.axes)

    def write(self, value: Any, out: Array) -> Reason | None:
        if not (isinstance(value, list) and is_vector(value)):
            return "wrong_type"
        if len(value) != len(self.mean):
            return "wrong_size"
        numbers = [number_of(part) for part in value]
        if None in numbers:
            return "not_finite"
        mean, axes = self._arrays
        with np.errstate(over="ignore", invalid="ignore"):
            out[:] = np.nan_to_num(np.clip(axes @ (np.array(numbers, dtype=np.float64) - mean), -8.0, 8.0))
        return None


AnyLearned = Annotated[Levels | Line | Bend | Words | Components, Field(discriminator="type")]


class Block(BaseModel):
    """The products of a context field and an item field; null is the constant 1."""

    model_config = CLOSED

    context: str | None
    item: str | None
    variance: float = Field(gt=0, le=1e6)


class LearnedSchema(BaseModel):
    """Fields of both sides, the blocks, and the fields of the items' and the users' own effects, with variances."""

    model_config = CLOSED

    context: dict[str, AnyLearned] = {}
    item: dict[str, AnyLearned] = {}
    blocks: list[Block]
    own_of_items: list[Block] = []  # context fields; `item` is null
    own_of_users: list[Block] = []  # item fields; `context` is null
    reward_range: tuple[float, float] | None = None  # of what was seen; None: the loop's

    @property
    def d(self) -> int:
        """Columns of a row, in all layers."""

        def width(fields: Mapping[str, AnyLearned], name: str | None) -> int:
            return 1 if name is None else len(fields[name].columns)

        every = (*self.blocks, *self.own_of_items, *self.own_of_users)
        return sum(width(self.context, block.context) * width(self.item, block.item) for block in every)

    @property
    def declares(self) -> bool:
        """Whether it says anything about the features: always, unlike a `FeatureSchema`."""
        return True

    @model_validator(mode="after")
    def _consistent(self) -> LearnedSchema:
        for blocks in (self.blocks, self.own_of_items, self.own_of_users):
            seen: set[tuple[str | None, str | None]] = set()
            for block in blocks:
                pair = (block.context, block.item)
                if block.context not in {None, *self.context} or block.item not in {None, *self.item}:
                    raise ValueError(f"block {list(pair)} names a field that is not there")
                if pair in seen:
                    raise ValueError(f"block {list(pair)} is listed twice")
                seen.add(pair)
        if self.reward_range is not None and not self.reward_range[0] < self.reward_range[1]:
            raise ValueError("reward_range: the lower end must be below the upper end")
        if (d := self.d) > MAX_COLUMNS:
            raise ValueError(f"the schema has {d} columns; at most {MAX_COLUMNS} are allowed")
        if any(block.item is not None for block in self.own_of_items):
            raise ValueError("own_of_items: a block has context fields alone, its `item` is null")
        if any(block.context is not None for block in self.own_of_users):
            raise ValueError("own_of_users: a block has item fields alone, its `context` is null")
        return self


@dataclass(frozen=True, slots=True, eq=False)
class ItemColumns:
    """n items' columns, the constant first, read-only."""

    version: str
    z: Array  # (n, 1 + p) float64, of numbers that float32 holds

    def __post_init__(self) -> None:
        self.z.flags.writeable = False

    def __len__(self) -> int:
        return len(self.z)

    def take(self, indices: Sequence[int] | Array) -> ItemColumns:
        return ItemColumns(self.version, self.z[np.asarray(indices, dtype=np.intp)])

    @staticmethod
    def concat(blocks: Sequence[ItemColumns]) -> ItemColumns:
        """Join blocks of one encoder, one after the other."""
        return ItemColumns(blocks[0].version, np.concatenate([block.z for block in blocks]))

    def packed(self) -> list[Packed]:
        """Copy each item's arrays."""
        return [(z,) for z in rows_of(self.z)]


class Columns:
    """The fields of the context or of an item, beside the constant in column 0."""

    def __init__(self, side: Side, fields: Mapping[str, AnyLearned]) -> None:
        self._side: Side = side
        self.fields = dict(sorted(fields.items()))
        self.at: dict[str | None, slice] = {None: slice(0, 1)}
        start = 1
        for name, field in self.fields.items():
            self.at[name] = slice(start, start + len(field.columns))
            start += len(field.columns)
        self.size = start
        # Bound once: a model's attributes and slices cost as much as what is written.
        self._writes = [(field.path, field.write, self.at[name]) for name, field in self.fields.items()]
        named = [f"{side}.{name}{suffix}" for name, field in self.fields.items() for suffix in field.columns]
        self.names = ["1", *named]

    def path_of(self, field: str | None) -> str | None:
        """Return where a field's values are found; None: it is the constant."""
        return None if field is None else self.fields[field].path

    def encode_all(
        self, features: Sequence[Mapping[str, Any]], out: Array, items: Sequence[str] | None = None
    ) -> Array:
        """Write the columns of B JSON objects, and of their items' ids, into `out` (B, size), which holds zeros.

        Each row is the one that `encode` writes. What cannot be used is not counted.

        Returns:
            `out`.
        """
        out[:, 0] = 1.0
        if not self.fields:
            return out
        values = [dict(leaves(one)[0]) for one in features]
        for one, item in zip(values, items or (), strict=items is not None):
            one[ITEM_ID] = item
        for name, field in self.fields.items():
            _write_all(field, [one.get(field.path) for one in values], out[:, self.at[name]])
        return out

    def encode(self, features: Mapping[str, Any], out: Array, misfits: Misfits, item: str | None = None) -> None:
        """Write the columns of a JSON object, and of an item's id, into `out` (size,), which holds zeros."""
        out[0] = 1.0
        if not self.fields:
            return
        values = dict(leaves(features)[0])
        if item is not None:
            values[ITEM_ID] = item
        for path, write, columns in self._writes:
            value = values.get(path)
            if value is not None:
                reason = write(value, out[columns])
                if reason is not None and path != ITEM_ID:
                    misfits.add(self._side, path, reason)


def _write_all(field: AnyLearned, values: Sequence[Any], out: Array) -> None:
    """Write B values, None where there is none, into `out` (B, columns), which holds zeros: each as `write` does."""
    if isinstance(field, (Line, Bend)):
        numbers = [number_of(value) for value in values]
        known = [at for at, number in enumerate(numbers) if number is not None]
        rows = np.zeros((len(known), out.shape[1]), dtype=out.dtype)
        field.write_numbers(np.array([number for number in numbers if number is not None]), rows)
        out[known] = rows
        return
    for value, row in zip(values, out, strict=True):
        if value is not None:
            field.write(value, row)


class LearnedEncoder:
    """A pure function of (schema, context, item); an item's row does not depend on the items beside it."""

    def __init__(self, schema: LearnedSchema) -> None:
        self.schema = schema
        canonical = json.dumps({"code": CODE, "learned": schema.model_dump()}, sort_keys=True)
        self.version = blake2b(canonical.encode(), digest_size=6).hexdigest()
        self._context, self._item = Columns("context", schema.context), Columns("item", schema.item)
        left: list[int] = []
        right: list[int] = []
        scale: list[float] = []
        sizes = []
        self._numbers, of_column = Numbers(), []
        for blocks in (schema.blocks, schema.own_of_items, schema.own_of_users):
            before = len(scale)
            for block in blocks:
                c, z = self._context.at[block.context], self._item.at[block.item]
                pair = self._numbers.of(self._context.path_of(block.context), self._item.path_of(block.item))
                of_column += [pair] * ((c.stop - c.start) * (z.stop - z.start))
                for i in range(c.start, c.stop):
                    for j in range(z.start, z.stop):
                        left.append(i)
                        right.append(j)
                        scale.append(math.sqrt(block.variance * RIDGE))
            sizes.append(len(scale) - before)
        self.layout: Layout | None = Layout(*sizes)
        self.reward_range = schema.reward_range
        self.d = len(scale)
        self._of_column = np.array(of_column, dtype=np.intp)
        self._left, self._right = np.array(left, dtype=np.intp), np.array(right, dtype=np.intp)
        self._scale = np.array(scale, dtype=np.float32)
        self.products: Products | None = Products(self._left, self._right, self._scale)
        self._sent = ItemCache(lambda features, ids, misfits: self.items(features, ids, misfits=misfits), self._joined)
        names = ((self._context.names[i], self._item.names[j]) for i, j in zip(left, right, strict=True))
        self.columns: tuple[str, ...] = tuple(" × ".join(name for name in pair if name != "1") or "1" for pair in names)

    def items(
        self, features: Sequence[Mapping[str, Any]], ids: Sequence[str] | None = None, *, misfits: Misfits | None = None
    ) -> ItemColumns:
        """Encode n items, once for all contexts."""
        misfits = Misfits() if misfits is None else misfits
        z = np.zeros((len(features), self._item.size), dtype=np.float32)
        for row, item, item_id in zip(z, features, [None] * len(features) if ids is None else ids, strict=True):
            self._item.encode(item, row, misfits, item_id)
        return ItemColumns(self.version, z.astype(np.float64))

    def sent(
        self, features: Sequence[Mapping[str, Any]], ids: Sequence[str], *, misfits: Misfits | None = None
    ) -> ItemColumns:
        """Encode n items that a client sent, as `items` does; those that were sent before are found again."""
        return self._sent.items(features, ids, Misfits() if misfits is None else misfits)

    def _joined(self, packed: Sequence[Packed]) -> ItemColumns:
        z = np.frombuffer(b"".join([z for (z,) in packed])).reshape(len(packed), self._item.size)
        return ItemColumns(self.version, z)

    def encode(self, context: Mapping[str, Any], items: ItemColumns, *, misfits: Misfits | None = None) -> Array:
        """Encode one context with each of n items: X (n, d) float32.

        Raises:
            ValueError: `items` comes from another encoder.
        """
        return self.rows(context, items, misfits=misfits).dense()

    def rows(self, context: Mapping[str, Any], items: ItemColumns, *, misfits: Misfits | None = None) -> Rows:
        """Encode one context with each of n items as `encode` does, without multiplying the rows out.

        Raises:
            ValueError: `items` comes from another encoder.
        """
        if items.version != self.version:
            raise ValueError(f"items of encoder {items.version} given to encoder {self.version}")
        c = np.zeros(self._context.size, dtype=np.float32)
        self._context.encode(context, c, Misfits() if misfits is None else misfits)
        return Rows(items.z, self._right, c[self._left] * self._scale, items.z.shape[1], c)

    def pairs(
        self, contexts: Sequence[Mapping[str, Any]], features: Sequence[Mapping[str, Any]], ids: Sequence[str]
    ) -> Array:
        """Encode B pairs of a context and an item: (B, d) float32, each row as `encode` makes it."""
        c = self._context.encode_all(contexts, np.zeros((len(contexts), self._context.size), dtype=np.float32))
        known: dict[tuple[str, bytes], int] = {}  # an item that is as it was is encoded once
        firsts: list[int] = []
        at = []
        for event, (item, its) in enumerate(zip(ids, features, strict=True)):
            same = (item, marshal.dumps(dict(its), 2))  # `==` takes true for 1
            if same not in known:
                known[same] = len(firsts)
                firsts.append(event)
            at.append(known[same])
        z = self._item.encode_all(
            [features[event] for event in firsts],
            np.zeros((len(firsts), self._item.size), dtype=np.float32),
            [ids[event] for event in firsts],
        )
        x: Array = z[:, self._right][at] * (c[:, self._left] * self._scale)
        return x

    def parts(self, context: Mapping[str, Any], features: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> Parts:
        """Return what each field, and each pair of fields, wrote into the rows of one context with n > 0 items."""
        x = self.encode(context, self.items(features, ids)).astype(np.float64)
        return Parts([*self._numbers.pairs], x, self._of_column, Shared.joined(()))
