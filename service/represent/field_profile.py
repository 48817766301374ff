"""What was seen at one path: types, levels, numbers, and the newest values against earlier ones.

All is bounded: a path holds at most 128 levels (8 kB), two sketches (4 kB), its newest 256 values and three summaries.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from service.represent.fields import MAX_STRING
from service.represent.json_paths import BEGINNINGS, TYPES, Type, level_of, number_of, type_of
from service.represent.misfits import Side
from service.represent.sketches import LARGEST, Distinct, Levels, Quantiles

NEWEST = 256  # values of the window
BLOCK = 1024  # values after which earlier ones become the reference: a change is old after one to two blocks
HALF, QUARTER = 128, 64
MOST_ELEMENTS = 16  # of a set that are counted as levels
MOST_SIZES = 8
MOST_TEXT = 80  # characters of an example
SLOW = 0.1  # a field whose value changes more rarely
FEW = 12  # different numbers that say nothing of their spread
SCALE = 10.0  # times wider or narrower: another unit
SHARES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)  # of a window's numbers that lie below those of a summary
RARE = 0.01  # a type with a smaller share of the earlier values counts as new
LAG = 16  # values between two that are compared to see whether a text rises: rewards arrive a little out of order

NEW_TYPE, NEW_LEVEL, OUTSIDE = 1, 2, 4  # marks of one value
GROUPS = {"null": 0, "boolean": 1, "integer": 2, "number": 2, "text": 4, "vector": 8, "set": 16}  # as bits
_TYPE_CODES = {name: code for code, name in enumerate(TYPES)}


@dataclass(frozen=True, slots=True)
class Example:
    """One value, and when it was seen."""

    at: float  # unix seconds
    value: str  # JSON, at most 80 characters


@dataclass(slots=True)
class Mark:
    """How often something was seen since it began, first and last."""

    count: int
    first: Example
    last: Example


@dataclass(frozen=True, slots=True)
class Window:
    """A summary of consecutive values of one path."""

    n: int  # values, null among them
    types: dict[str, float]  # type → share
    low: float | None = None  # of the numbers; None: there were none
    high: float | None = None
    quantiles: tuple[float, ...] = ()  # .05, .25, .5, .75, .95
    levels: tuple[tuple[str, float], ...] = ()  # the eight most frequent that are still known → share
    distinct: int = 0
    changes: float = 0.0  # share of values that differ from the one before: small for a weekday or a campaign
    steps: float = 2.0  # von Neumann's ratio of the numbers: 2 if they come at random, near 0 for a temperature
    at_ends: float = 0.0  # share of the numbers that equal the lowest, or the highest: the larger of both
    size: int | None = None  # of the vectors, where all had the same
    serial: int = 0  # levels from here on were new afterwards
    settled: bool = False  # hardly a level was new in its second half

    @property
    def slow(self) -> bool:
        """Whether a value is much like the one before, so that later ones differ from these without any fault."""
        return self.changes < SLOW or self.steps < 1.0

    @property
    def is_spread(self) -> bool:
        """Whether the distance of the quartiles says something: many values, none of which is half of all."""
        return self.distinct > FEW and self.at_ends < 0.5 and not self.slow and self.spread > 0.0

    @property
    def spread(self) -> float:
        """The width between the quartiles, which a few outliers do not move; 0 where there are no numbers."""
        return self.quantiles[3] - self.quantiles[1] if self.quantiles else 0.0


@dataclass(slots=True)
class Reference:
    """What a value must be not to be marked."""

    groups: int  # types that were seen, or that a schema takes, as bits
    low: float
    high: float
    serial: int  # a level with this serial or a later one is new; 0: levels are not marked
    size: int | None = None  # of a vector; None: any
    levels: frozenset[str] | None = None  # of a schema: any other is marked
    declared: bool = False


@dataclass(slots=True)
class _Moments:
    """Sums for the correlation of numbers with time, by Welford's updates."""

    n: int = 0
    t: float = 0.0
    x: float = 0.0
    tt: float = 0.0
    xx: float = 0.0
    tx: float = 0.0

    def add(self, t: float, x: float) -> None:
        self.n += 1
        dt, dx = t - self.t, x - self.x
        self.t += dt / self.n
        self.x += dx / self.n
        self.tt += dt * (t - self.t)
        self.xx += dx * (x - self.x)
        self.tx += dt * (x - self.x)

    @property
    def correlation(self) -> float:
        scale = math.sqrt(self.tt) * math.sqrt(self.xx)
        found = self.tx / scale if scale > 0 and math.isfinite(scale) else 0.0
        return found if math.isfinite(found) else 0.0


@dataclass(slots=True)
class FieldProfile:
    """One path of the context or of an item."""

    side: Side
    path: str
    born: int  # records of its side before the first that held it
    seen: int = 0  # values, null among them
    last: int = 0  # the record that held it last
    types: dict[str, int] = field(default_factory=dict)
    first_example: Example | None = None
    last_at: float = 0.0
    _last_value: Any = None
    levels: Levels = field(default_factory=Levels)
    distinct: Distinct = field(default_factory=Distinct)
    quantiles: Quantiles = field(default_factory=Quantiles)
    moments: _Moments = field(default_factory=_Moments)
    fractions: int = 0  # numbers that are no integers
    rising: int = 0  # texts that stand after the one 16 values before
    compared: int = 0
    sizes: dict[str, int] = field(default_factory=dict)  # of vectors → how often
    marks: dict[int, Mark] = field(default_factory=dict)
    reference: Reference | None = None
    first: Window | None = None
    before: Window | None = None  # what the newest values are compared with
    unit: tuple[float, ...] = ()  # the numbers at SHARES, in the unit of now; none where they tell no unit
    former_unit: tuple[float, ...] = ()  # and in the unit before it
    unit_from: int = 0  # value with which the unit of now began, about
    renewed: int = 0  # blocks in a row, up to now, that brought new levels
    _candidate: Window | None = None
    _declared: Reference | None = None
    _texts: list[str] = field(default_factory=list)  # the newest 16
    _half: int = 0  # serial when the present half began
    _type: list[int] = field(default_factory=lambda: [0] * NEWEST)
    _mark: list[int] = field(default_factory=lambda: [0] * NEWEST)
    _serial: list[int] = field(default_factory=lambda: [0] * NEWEST)
    _number: list[float] = field(default_factory=lambda: [math.nan] * NEWEST)

    def add(self, value: Any, *, at: float, record: int) -> None:
        """Add one value.

        Args:
            value: a scalar, null or a list.
            at: unix seconds.
            record: its number among the records of its side, from 1 on.
        """
        kind: Type = "text" if type(value) is str else type_of(value)
        types = self.types
        types[kind] = types.get(kind, 0) + 1
        place = self.seen % NEWEST
        self.seen += 1
        self.last, self.last_at = record, at
        if self.seen == 1:
            self.first_example = Example(at, brief(value))
        serial, number, mark = 0, None, 0
        reference = self.reference
        if kind == "vector" or kind == "set":
            self._last_value = brief(value)
            number = float(len(value))
            serial = self._add_list(value, kind)
        else:
            self._last_value = value
            if kind == "text":
                if len(value) > MOST_TEXT:
                    self._last_value = value[:MOST_TEXT]
                if value[:1] in BEGINNINGS:
                    serial, number = self._add_scalar(value, kind, at)
                else:
                    serial = self._add_level(value if len(value) <= MAX_STRING else value[:MAX_STRING])
            elif kind != "null":
                serial, number = self._add_scalar(value, kind, at)
        if reference is not None and kind != "null":
            mark = _compared(reference, kind, value, number, serial)
            if mark:
                self._note(mark, at, value)
        self._type[place], self._mark[place], self._serial[place] = _TYPE_CODES[kind], mark, serial
        self._number[place] = math.nan if number is None else number
        if self.seen % QUARTER == 0 and self.unit:
            self._look_at_unit()
        if self.seen % HALF == 0:
            self._turn()

    def _add_scalar(self, value: Any, kind: str, at: float) -> tuple[int, float | None]:
        """Count a level, or a number; return (serial of the level, number)."""
        number = number_of(value)
        if number is not None:
            number = min(max(number, -LARGEST), LARGEST)
            self.quantiles.add(number)
            self.moments.add(at, number)
            if not number.is_integer():
                self.fractions += 1
                self.distinct.add(level_of(value))
                return 0, number
            return self._add_level(level_of(value), rises=False), number
        return self._add_level(level_of(value), rises=kind == "text"), None

    def _add_level(self, text: str, *, rises: bool = True) -> int:
        """Count a level; return its serial."""
        serial, fresh = self.levels.add(text)
        if fresh:
            self.distinct.add(text)
            if rises:
                self._compare(text)
        return serial

    def _compare(self, text: str) -> None:
        """Note whether new texts rise, as texts of time do."""
        texts = self._texts
        if len(texts) == LAG:
            self.compared += 1
            self.rising += text > texts[0]
            texts.pop(0)
        texts.append(text[:64])

    def _add_list(self, values: Sequence[Any], kind: str) -> int:
        """Count the elements of a set, or of a short vector, which may be a set of codes; return the newest serial."""
        if kind == "vector":
            size = str(len(values))
            if size in self.sizes or len(self.sizes) < MOST_SIZES:
                self.sizes[size] = self.sizes.get(size, 0) + 1
            if len(values) > MOST_ELEMENTS:
                return 0
        newest = 0
        for element in values[:MOST_ELEMENTS]:
            if kind == "vector" and not float(element).is_integer():
                continue
            serial, fresh = self.levels.add(level_of(element))
            if fresh:
                self.distinct.add(level_of(element))
            newest = max(newest, serial)
        return newest

    def _note(self, mark: int, at: float, value: Any) -> None:
        example = Example(at, brief(value))
        for bit in (NEW_TYPE, NEW_LEVEL, OUTSIDE):
            if mark & bit:
                found = self.marks.get(bit)
                if found is None:
                    self.marks[bit] = Mark(1, example, example)
                else:
                    found.count += 1
                    found.last = example

    # ---- windows

    def _turn(self) -> None:
        """Move the reference on: called each 128 values."""
        if self.seen == NEWEST:
            self.first = self.before = self.newest()
            self._refer(self.first)
            self._find_unit(self.first)
        if self.seen % BLOCK == 0:
            renewed = self._is_renewed()
            self.before = self._candidate or self.first
            self._candidate = self.newest()
            self._find_unit(self._candidate)
            self.renewed = self.renewed + 1 if renewed else 0
            assert self.before is not None
            self._refer(self.before)
            for bit in [bit for bit in self.marks if not self.marked(bit)]:
                del self.marks[bit]  # over: the next one begins anew
        self._half = self.levels.next

    def _find_unit(self, window: Window) -> None:
        if not self.unit and window.is_spread:
            self.unit = self._summary(self._order(NEWEST))

    def _look_at_unit(self) -> None:
        """Begin the quantiles anew where the newest 64 numbers are in another unit than those before.

        Both halves of them must be: then the later half is in the new unit alone.
        """
        places = self._order(NEWEST)[-QUARTER:]
        early, late = self._summary(places[: QUARTER // 2]), self._summary(places[QUARTER // 2 :])
        if early and late and _is_other_unit(early, self.unit) and _is_other_unit(late, self.unit):
            self.former_unit, self.unit, self.unit_from = self.unit, late, self.seen - QUARTER // 2
            self.quantiles = Quantiles()
            for number in self._numbers(places[QUARTER // 2 :]):
                self.quantiles.add(number)

    def _numbers(self, places: Sequence[int]) -> list[float]:
        """Return the numbers at these places of the window; NaN marks what is none, types from 5 on are lists."""
        return [self._number[at] for at in places if self._number[at] == self._number[at] and self._type[at] < 5]

    def _summary(self, places: Sequence[int]) -> tuple[float, ...]:
        """Return the numbers at SHARES of those at these places of the window; none where they are few."""
        ordered = sorted(self._numbers(places))
        if len(ordered) < len(places) / 2 or len(set(ordered)) <= FEW:
            return ()
        return tuple(ordered[round(share * (len(ordered) - 1))] for share in SHARES)

    def _is_renewed(self) -> bool:
        """Whether one of 20 newest values is a level that is younger than those of `before`."""
        since = self.before.serial if self.before is not None else 0
        return sum(serial >= since for serial in self._serial if serial) >= NEWEST / 20

    def _refer(self, window: Window) -> None:
        if self._declared is not None:
            return
        low, high = -math.inf, math.inf
        if window.low is not None and window.high is not None and window.distinct > 12 and not window.slow:
            margin = max(window.high - window.low, 4 * window.spread)
            low, high = window.low - margin, window.high + margin
        groups = 0
        for name, share in window.types.items():
            groups |= GROUPS[name] if share >= RARE else 0
        # Levels that come and go all the time, such as pages of a newspaper, are the rule after two blocks.
        settled = window.settled and not window.slow and not self.levels.full and self.renewed < 2
        # After nothing but null any type may come: the field begins to speak, and that is no change of its type.
        self.reference = Reference(groups or 31, low, high, window.serial if settled else 0, window.size)

    def declare(self, reference: Reference | None) -> None:
        """Compare values with what a schema says of this path; None: with earlier values, as before."""
        if reference == self._declared:
            return
        self._declared = reference
        self.marks.clear()
        self._mark = [0] * NEWEST
        self.reference = reference
        if reference is None and self.before is not None:
            self._refer(self.before)

    def newest(self) -> Window:
        """Summarise the newest values, at most 256."""
        n = min(self.seen, NEWEST)
        if not n:
            return Window(0, {})
        kinds, serials = self._type[:n], self._serial[:n]
        numbers = [
            number for number, kind in zip(self._number[:n], kinds, strict=True) if number == number and kind < 5
        ]
        types = {name: kinds.count(code) / n for code, name in enumerate(TYPES) if code in kinds}
        known = self.levels.texts()
        counts: dict[int, int] = {}
        for serial in serials:
            if serial:
                counts[serial] = counts.get(serial, 0) + 1
        frequent = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        levels = [(known[serial], count / n) for serial, count in frequent if serial in known][:8]
        # With a half in the ring that is older than `_half`, the younger half says whether levels still come.
        young = self._young()
        fresh = sum(serial >= self._half for serial in young if serial)
        found: dict[str, Any] = {
            "n": n,
            "types": types,
            "levels": tuple(levels),
            "serial": self.levels.next,
            "changes": self._changes(n),
            "steps": self._steps(n),
            "settled": bool(self._half) and fresh <= len(young) / HALF,
        }
        if numbers:
            ordered = sorted(numbers)
            last = len(ordered) - 1
            found |= {
                "low": ordered[0],
                "high": ordered[-1],
                "quantiles": tuple(ordered[round(share * last)] for share in (0.05, 0.25, 0.5, 0.75, 0.95)),
                "at_ends": max(ordered.count(ordered[0]), ordered.count(ordered[-1])) / len(ordered),
            }
        sizes = {number for number, kind in zip(self._number[:n], kinds, strict=True) if kind == _TYPE_CODES["vector"]}
        if len(sizes) == 1:
            found["size"] = int(sizes.pop())
        fractions = {number for number, serial in zip(self._number[:n], serials, strict=True) if not serial}
        found["distinct"] = len(counts) + len({number for number in fractions if number == number})
        return Window(**found)

    def _order(self, n: int) -> list[int]:
        """Return the places of the newest n values, oldest first."""
        return [(self.seen - n + i) % NEWEST for i in range(n)]

    def _changes(self, n: int) -> float:
        values = [(self._serial[at], 0.0 if self._serial[at] else self._number[at]) for at in self._order(n)]
        return sum(a != b for a, b in pairwise(values)) / max(1, n - 1)

    def _steps(self, n: int) -> float:
        """Return von Neumann's ratio: the mean square of the steps over the variance."""
        order = self._order(n)
        numbers = [self._number[at] for at in order if self._number[at] == self._number[at] and self._type[at] < 5]
        if len(numbers) < HALF:
            return 2.0
        scale = max(map(abs, numbers)) or 1.0  # squares of huge numbers would overflow
        numbers = [number / scale for number in numbers]
        mean = sum(numbers) / len(numbers)
        variance = sum((number - mean) ** 2 for number in numbers)
        return sum((b - a) ** 2 for a, b in pairwise(numbers)) / variance if variance > 0 else 2.0

    def _young(self) -> list[int]:
        """Serials of the newest 128 values."""
        n = min(self.seen, HALF)
        return [self._serial[(self.seen - 1 - back) % NEWEST] for back in range(n)]

    def marked(self, bit: int) -> int:
        """Count the newest values that carry a mark."""
        return sum(1 for mark in self._mark[: min(self.seen, NEWEST)] if mark & bit)

    def rises(self) -> float:
        """Return the share of values that are larger than the one 16 before: near 1 for a clock or a counter."""
        if self.compared >= 2 * LAG:
            return self.rising / self.compared
        ring = [self._number[at] for at in self._order(min(self.seen, NEWEST))]
        pairs = [(a, b) for a, b in zip(ring, ring[LAG:], strict=False) if a == a and b == b]
        return sum(b > a for a, b in pairs) / len(pairs) if len(pairs) >= LAG else 0.0

    # ---- figures

    @property
    def values(self) -> int:
        """Values but null."""
        return self.seen - self.types.get("null", 0)

    def share(self, *types: str) -> float:
        """Return the share of values (but null) that have one of these types."""
        return sum(self.types.get(name, 0) for name in types) / max(1, self.values)

    def count_distinct(self) -> int:
        """Return how many different levels and numbers there were: exact up to 128 levels, else within about 2 %."""
        if self.fractions == 0 and not self.levels.full:
            return len(self.levels)
        return min(self.distinct.count(), self.values)

    @property
    def last_example(self) -> Example | None:
        """The newest value."""
        if not self.seen:
            return None
        value = self._last_value
        return Example(self.last_at, value if self._last_is_brief() else brief(value))

    def _last_is_brief(self) -> bool:
        return self._type[(self.seen - 1) % NEWEST] >= _TYPE_CODES["vector"]

    # ---- state

    def state(self) -> tuple[dict[str, Any], list[list[int]], list[float]]:
        """Return all that it takes to go on: JSON, the newest values' (type, mark, serial), and their numbers."""
        said = {
            "side": self.side,
            "path": self.path,
            "born": self.born,
            "seen": self.seen,
            "last": self.last,
            "types": self.types,
            "first_example": _of(self.first_example),
            "last_at": self.last_at,
            "last_value": self._last_value,
            "levels": self.levels.state(),
            "distinct": self.distinct.state(),
            "quantiles": self.quantiles.state(),
            "moments": list(asdict(self.moments).values()),
            "fractions": self.fractions,
            "rising": self.rising,
            "compared": self.compared,
            "sizes": self.sizes,
            "renewed": self.renewed,
            "marks": [[bit, m.count, _of(m.first), _of(m.last)] for bit, m in self.marks.items()],
            "reference": _of(self.reference),
            "declared": _of(self._declared),
            "first": _of(self.first),
            "before": _of(self.before),
            "candidate": _of(self._candidate),
            "texts": self._texts,
            "half": self._half,
            "units": [self.unit, self.former_unit, self.unit_from],
        }
        return said, [self._type, self._mark, self._serial], self._number

    @classmethod
    def of(cls, said: dict[str, Any], rings: Sequence[Sequence[int]], numbers: Sequence[float]) -> FieldProfile:
        """Go on from `state`."""
        found = cls(said["side"], said["path"], said["born"])
        for name in ("seen", "last", "types", "last_at", "fractions", "rising", "compared", "sizes", "renewed"):
            setattr(found, name, said[name])
        found.first_example = _example(said["first_example"])
        found._last_value, found._texts, found._half = said["last_value"], said["texts"], said["half"]
        found.levels, found.distinct = Levels.of(said["levels"]), Distinct.of(said["distinct"])
        found.quantiles, found.moments = Quantiles.of(said["quantiles"]), _Moments(*said["moments"])
        for bit, count, first, last in said["marks"]:
            found.marks[bit] = Mark(count, Example(**first), Example(**last))
        found.reference, found._declared = _reference(said["reference"]), _reference(said["declared"])
        found.first, found.before = _window(said["first"]), _window(said["before"])
        found._candidate = _window(said["candidate"])
        unit, former_unit, found.unit_from = said.get("units", ((), (), 0))  # a state of before units has none
        found.unit, found.former_unit = tuple(unit), tuple(former_unit)
        found._type, found._mark, found._serial = (list(map(int, ring)) for ring in rings)
        found._number = list(map(float, numbers))
        return found


def _compared(reference: Reference, kind: str, value: Any, number: float | None, serial: int) -> int:
    """Return the marks of a value that is not null."""
    mark = 0 if reference.groups & GROUPS[kind] else NEW_TYPE
    if kind == "vector":
        if reference.size is not None and number != reference.size:
            mark |= OUTSIDE
        return mark
    if (reference.serial and serial >= reference.serial) or (
        reference.levels is not None and level_of(value) not in reference.levels
    ):
        mark |= NEW_LEVEL
    if number is not None and kind != "set" and not reference.low <= number <= reference.high:
        mark |= OUTSIDE
    return mark


def brief(value: Any) -> str:
    """Return a value as JSON, cut to 80 characters."""
    if isinstance(value, (list, tuple)):
        shown = [brief(element) for element in value[:4]]
        text = f"[{', '.join(shown)}{', …' if len(value) > 4 else ''}]"
    elif isinstance(value, dict):
        text = "{…}" if value else "{}"
    elif isinstance(value, str):
        text = json.dumps(value[:MOST_TEXT], ensure_ascii=False)
    elif isinstance(value, int) and abs(value) >> 64:
        text = "a large integer"
    else:
        text = json.dumps(value)
    text = text.encode(errors="replace").decode()
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 1] + "…"


def _is_other_unit(found: tuple[float, ...], unit: tuple[float, ...]) -> bool:
    """Whether numbers spread ten times as wide as those of a unit, a tenth as wide, or lie wholly elsewhere."""
    spread, its = found[4] - found[2], unit[4] - unit[2]
    if not spread > 0.0 or not 1 / SCALE < spread / its < SCALE:
        return spread > 0.0
    return found[1] > unit[-1] + its or found[-2] < unit[0] - its


def _of(found: Any) -> Any:
    if found is None:
        return None
    said = asdict(found)
    if said.get("levels") is not None and isinstance(found, Reference):
        said["levels"] = sorted(said["levels"])
    return said


def _example(said: Any) -> Example | None:
    return None if said is None else Example(**said)


def _reference(said: Any) -> Reference | None:
    if said is None:
        return None
    return Reference(**{**said, "levels": None if said["levels"] is None else frozenset(said["levels"])})


def _window(said: Any) -> Window | None:
    if said is None:
        return None
    return Window(
        **{
            **said,
            "quantiles": tuple(said["quantiles"]),
            "levels": tuple((text, share) for text, share in said["levels"]),
        }
    )
