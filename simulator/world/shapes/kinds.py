"""Segments and kinds: each segment likes the items of one kind. Then what is sent beside them, and in which form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from simulator.world._base import Array, Catalogue, Item
from simulator.world.shapes._base import Arrival, Revenue, Shape, ShapedWorld, Signed, levels, pick

SEGMENT, ROBOT, REQUEST, REQUEST_LOW, SESSION, TIME, NOISE = range(7)  # columns of the uniform numbers
MOST_NOISE = 120  # fields
SESSION_REQUESTS, OPEN_REQUESTS = 8, 40  # requests of a session, and how far apart they may lie
STARTED, PACE_S = datetime(2026, 3, 2, 8, tzinfo=UTC), 30  # the first request; seconds from one to the next, at most


@dataclass(frozen=True, kw_only=True)
class Kinds(Shape):
    """Constants of a world of segments and kinds. Each seed draws which kind each segment likes.

    Args:
        segments: values of the context's field; each is as frequent as the others.
        kinds: values of the items' field, in turn; None: items have no features, and each is its own kind.
        items: on offer.
        matched, unmatched: probabilities of a reward.
        context_field, item_field: names of the two fields.
        later: values of the segments from step `later_from` on; None: they stay.
        appears_from: step from which on the field of the segments is sent.
        alias: name of a second field that tells the segment, as one of the integers 10, 20, …; None: there is none.
        vanishes_from: step from which on the field of the segments is no longer sent; None: it is always.
        noise: further context fields, uniform over `noise_levels` levels each.
        item_noise: further item fields, likewise, fixed for each item.
        numeric_noise: further context fields, uniform numbers in [0, 1000).
        traces: names of context fields that are new in (nearly) each request: `request_id` (a random 60-bit integer),
            `token` (the same as 15 hexadecimal digits), `session` (about 8 requests each), `time` (ISO 8601),
            `at_ms` (Unix time in milliseconds), `url` (a path that ends in a number).
        robots: share of the requests that come from robots, which get a reward with `robot_clicks` whatever is shown.
    """

    segments: tuple[Any, ...] = ("s0", "s1", "s2", "s3")
    kinds: tuple[Any, ...] | None = ("k0", "k1", "k2", "k3")
    items: int = 12
    matched: float = 0.6
    unmatched: float = 0.2
    context_field: str = "seg"
    item_field: str = "kind"
    later: tuple[Any, ...] | None = None
    later_from: int = 1500
    appears_from: int = 0
    alias: str | None = None
    vanishes_from: int | None = None
    noise: int = 0
    noise_levels: int = 5
    item_noise: int = 0
    numeric_noise: int = 0
    traces: tuple[str, ...] = ()
    robots: float = 0.0
    robot_clicks: float = 0.5

    @property
    def number_of_kinds(self) -> int:
        return self.items if self.kinds is None else len(self.kinds)

    @property
    def changes_at(self) -> int | None:
        return self.later_from if self.later is not None else self.vanishes_from or self.appears_from or None


@dataclass(frozen=True, eq=False)
class Matching:
    """The hidden state."""

    liked: Array  # (segments,): the kind that each segment likes
    amount: Array  # (kinds,): what is paid for an item of the kind
    catalogue: Catalogue


class KindsWorld(ShapedWorld[Matching, Kinds]):
    """A reward has the probability `matched` if the item is of the kind that the segment likes, else `unmatched`."""

    columns: ClassVar[int] = NOISE + MOST_NOISE

    def initial(self) -> Matching:
        shape, generator = self.shape, self.generator()
        kinds, segments = shape.number_of_kinds, len(shape.segments)
        liked = generator.permutation(max(kinds, segments))[:segments] % kinds
        amount = np.ones(kinds)
        if isinstance(shape.reward, Revenue):
            amount = generator.uniform(*shape.reward.amounts, kinds)
        noise = generator.integers(shape.noise_levels, size=(shape.items, shape.item_noise)).tolist()
        items = (Item(f"i{slot}", slot, self._features(slot, noise[slot])) for slot in range(shape.items))
        return Matching(liked, amount, Catalogue(tuple(items)))

    def _features(self, slot: int, noise: list[int]) -> Mapping[str, Any]:
        shape = self.shape
        own: dict[str, Any] = {} if shape.kinds is None else {shape.item_field: shape.kinds[slot % len(shape.kinds)]}
        if self.declared:
            return own or {"name": f"i{slot}"}
        return own | {f"tag{number}": f"t{level}" for number, level in enumerate(noise)}

    def catalogue(self, step: int) -> Catalogue:
        return self.state(step).catalogue

    @cached_property
    def _kind(self) -> Array:
        """(n,): the number of each item's kind."""
        return np.arange(self.shape.items) % self.shape.number_of_kinds

    def reference(self) -> Mapping[str, Any]:
        shape = self.shape
        field = "name" if shape.kinds is None else shape.item_field
        of = [f"i{slot}" for slot in range(shape.items)] if shape.kinds is None else shape.kinds
        return {
            "context": {shape.context_field: levels(shape.segments)},
            "item": {field: levels(of)},
            "crosses": [[shape.context_field, field]],
        }

    def arrive(self, state: Matching, catalogue: Catalogue, step: int, user: int, drawn: Array) -> Arrival:
        shape = self.shape
        segment = pick(drawn[SEGMENT], len(shape.segments))
        person = bool(drawn[ROBOT] >= shape.robots)
        if person:
            p = np.where(self._kind == state.liked[segment], shape.matched, shape.unmatched)
        else:
            p = np.full(shape.items, shape.robot_clicks)
        return Arrival(self._context(step, segment, drawn), p, state.amount[self._kind], person)

    def _context(self, step: int, segment: int, drawn: Array) -> Mapping[str, Any]:
        shape = self.shape
        if self.declared:
            return {shape.context_field: str(shape.segments[segment])} if step >= shape.appears_from else {}
        values = shape.segments if shape.later is None or step < shape.later_from else shape.later
        context: dict[str, Any] = {}
        if shape.appears_from <= step < (shape.steps if shape.vanishes_from is None else shape.vanishes_from):
            context[shape.context_field] = values[segment]
        if shape.alias is not None:
            context[shape.alias] = 10 * (segment + 1)
        for number, u in enumerate(drawn[NOISE : NOISE + shape.noise].tolist()):
            context[f"n{number}"] = f"v{pick(u, shape.noise_levels)}"
        start = NOISE + shape.noise
        for number, u in enumerate(drawn[start : start + shape.numeric_noise].tolist()):
            context[f"x{number}"] = round(1000 * u, 2)
        return context | {trace: _trace(trace, step, drawn) for trace in shape.traces}


def _trace(name: str, step: int, drawn: Array) -> Any:
    """Return the value of a field that is new in nearly each request."""
    request = (pick(drawn[REQUEST], 2**30) << 30) + pick(drawn[REQUEST_LOW], 2**30)
    session = (step + pick(drawn[SESSION], OPEN_REQUESTS)) // SESSION_REQUESTS
    at = STARTED + timedelta(seconds=PACE_S * (step + float(drawn[TIME])))
    values: dict[str, Any] = {
        "request_id": request,
        "token": f"{request:015x}",
        "session": f"s-{session * 2_654_435_761 % 2**32:08x}",
        "time": at.isoformat(timespec="milliseconds"),
        "at_ms": int(at.timestamp() * 1000),
        "url": f"/visit/{request % 10**9}",
    }
    return values[name]


S8 = tuple(f"s{number}" for number in range(8))
K8 = tuple(f"k{number}" for number in range(8))
CODES = (0, 1, 2, 3)
THOUSANDS = (1001, 1002, 1003, 1004)
TRACES = ("request_id", "session", "time")

WORLDS: Mapping[str, Kinds] = {
    "ids": Kinds(about="four items known by their ids alone", kinds=None, items=4, inline=True),
    "ids-8": Kinds(about="eight ids, three segments", near="ids", kinds=None, items=8, segments=("a", "b", "c")),
    "ids-30": Kinds(about="thirty ids, six segments", near="ids", kinds=None, items=30, segments=S8[:6], steps=6000),
    "ids-noise": Kinds(
        about="four ids, five fields of noise", near="ids", kinds=None, items=4, noise=5, inline=True, matched=0.5
    ),
    "kinds": Kinds(about="a segment and a kind, as text"),
    "kinds-8": Kinds(about="eight segments, eight kinds, 40 items", near="kinds", segments=S8, kinds=K8, items=40),
    "kinds-close": Kinds(about="rates that are close", near="kinds", matched=0.45, unmatched=0.25),
    "kinds-few": Kinds(
        about="two segments, three kinds, seven items, other names",
        near="kinds",
        segments=("new", "returning"),
        kinds=("Shoes & Socks", "Hats", "Coats"),
        items=7,
        context_field="customer type",
        item_field="department",
    ),
    "codes": Kinds(about="segment and kind are the integers 0 to 3", segments=CODES, kinds=CODES),
    "codes-9": Kinds(
        about="nine codes from 1 on, five kinds",
        near="codes",
        segments=tuple(range(1, 10)),
        kinds=(*CODES, 4),
        items=15,
    ),
    "codes-signed": Kinds(about="codes from -1 to 2", near="codes", segments=(-1, 0, 1, 2), kinds=(-1, 0, 1, 2)),
    "codes-hundreds": Kinds(
        about="one side is a code, the other text",
        near="codes",
        segments=(100, 200, 300, 400, 500),
        kinds=K8[:5],
        items=15,
    ),
    "codes-1001": Kinds(about="segment and kind are 1001 to 1004", segments=THOUSANDS, kinds=THOUSANDS),
    "codes-postal": Kinds(
        about="postal codes, far from each other",
        near="codes-1001",
        segments=(10115, 20095, 50667, 80331),
        kinds=THOUSANDS,
    ),
    "codes-huge": Kinds(
        about="account numbers of twelve digits",
        near="codes-1001",
        segments=tuple(400_000_000_000 + 7 * number for number in range(6)),
        kinds=(1, 2, 3, 4, 5, 6),
    ),
    "codes-floats": Kinds(
        about="codes as 1001.0 to 1004.0", near="codes-1001", segments=(1001.0, 1002.0, 1003.0, 1004.0), kinds=THOUSANDS
    ),
    "noise-15": Kinds(about="15 fields of noise beside the segment", noise=15),
    "noise-5": Kinds(about="five fields of noise", near="noise-15", noise=5),
    "noise-50": Kinds(about="50 fields of noise", near="noise-15", noise=50),
    "noise-levels": Kinds(about="ten fields of 40 levels each", near="noise-15", noise=10, noise_levels=40),
    "noise-both": Kinds(
        about="noise as text and numbers, and on the items", near="noise-15", noise=5, numeric_noise=5, item_noise=3
    ),
    "request-ids": Kinds(about="a request id, a session and a time beside the segment", traces=TRACES),
    "request-tokens": Kinds(
        about="a token, a time in ms and a URL beside the segment", near="request-ids", traces=("token", "at_ms", "url")
    ),
    "request-all": Kinds(
        about="six traces and three fields of noise",
        near="request-ids",
        traces=(*TRACES, "token", "at_ms", "url"),
        noise=3,
    ),
    "request-session": Kinds(
        about="ids alone, and a session", near="request-ids", kinds=None, items=5, traces=("session",), inline=True
    ),
    "type-change": Kinds(
        about="the segment's text becomes a number half way", segments=("1", "2", "3", "4"), later=(1, 2, 3, 4)
    ),
    "type-change-back": Kinds(
        about="numbers become text at a third",
        near="type-change",
        segments=(10, 20, 30, 40),
        later=("10", "20", "30", "40"),
        later_from=1000,
    ),
    "type-change-float": Kinds(
        about="integers become floats half way", near="type-change", segments=(1, 2, 3, 4), later=(1.0, 2.0, 3.0, 4.0)
    ),
    "type-change-ids": Kinds(
        about="the same with ids alone, at two thirds",
        near="type-change",
        kinds=None,
        items=6,
        segments=("7", "8", "9"),
        later=(7, 8, 9),
        later_from=2000,
    ),
    "field-appears": Kinds(about="the segment is sent from a third on", near="type-change", appears_from=1000),
    "field-vanishes": Kinds(
        about="two fields tell the segment; one is gone half way", near="type-change", alias="code", vanishes_from=1500
    ),
    "revenue": Kinds(about="revenue up to 78 in a range of [0, 1000]", reward=Revenue()),
    "revenue-small": Kinds(
        about="revenue up to 0.13 in a range of [0, 100]",
        near="revenue",
        reward=Revenue(range=(0, 100), used=(0, 0.13), amounts=(0.05, 0.1)),
    ),
    "revenue-wide": Kinds(
        about="amounts between 5 and 400 in a range of [0, 100000]",
        near="revenue",
        reward=Revenue(range=(0, 100_000), used=(0, 520), amounts=(5, 400)),
    ),
    "revenue-ids": Kinds(
        about="revenue of ids alone, in [-100, 1000]",
        near="revenue",
        kinds=None,
        items=5,
        inline=True,
        reward=Revenue(range=(-100, 1000), used=(0, 80)),
    ),
    "negative": Kinds(about="-1, 0 and 1 in a range of [-10, 1]", reward=Signed()),
    "negative-stars": Kinds(
        about="-2, 0 and 3 in a range of [-100, 100]",
        near="negative",
        reward=Signed(range=(-100, 100), used=(-2, 3), against=0.5, liked=3, disliked=-2),
    ),
    "negative-costs": Kinds(
        about="rewards of -5 and 0 alone, in a range of [-5, 5]",
        near="negative",
        reward=Signed(range=(-5, 5), used=(-5, 0), against=1, liked=0, disliked=-5),
    ),
    "negative-ids": Kinds(
        about="-1, 0 and 1 in a range of [-1, 20], of ids alone",
        near="negative",
        kinds=None,
        items=4,
        inline=True,
        reward=Signed(range=(-1, 20), used=(-1, 1)),
    ),
    "robots": Kinds(about="three requests of ten come from robots", robots=0.3),
    "robots-half": Kinds(about="every second request comes from a robot", near="robots", robots=0.5),
    "robots-all-clicks": Kinds(about="robots click all they see", near="robots", robots=0.3, robot_clicks=1.0),
    "robots-silent": Kinds(
        about="robots click nothing", near="robots", robots=0.4, robot_clicks=0.0, kinds=None, items=5
    ),
    "rare-clicks": Kinds(about="one click in 33, else in 100", matched=0.03, unmatched=0.01, steps=8000),
    "rare-clicks-fewer": Kinds(
        about="1.5 and .4 clicks in 100, 16 000 decisions",
        near="rare-clicks",
        matched=0.015,
        unmatched=0.004,
        steps=16000,
    ),
    "rare-clicks-ids": Kinds(
        about="rare clicks on six ids",
        near="rare-clicks",
        kinds=None,
        items=6,
        matched=0.04,
        unmatched=0.01,
        steps=8000,
    ),
    "rare-clicks-noise": Kinds(
        about="rare clicks and five fields of noise",
        near="rare-clicks",
        matched=0.05,
        unmatched=0.01,
        noise=5,
        steps=8000,
    ),
}
