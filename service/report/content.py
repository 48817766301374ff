"""What a report holds, whichever way it is written: sentences, charts of intervals, tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Tone = Literal["good", "bad", "open"]


@dataclass(frozen=True)
class Bar:
    """An estimate with its interval, one line of a chart."""

    label: str
    estimate: float
    low: float
    high: float
    tone: Tone


@dataclass(frozen=True)
class Chart:
    """Intervals one below the other, with a line at 0."""

    title: str
    note: str  # how to read it
    bars: Sequence[Bar]
    percent: bool = False  # values are shares, and written as such
    band: float | None = None  # ±: a difference within it does not matter

    def written(self, value: float) -> str:
        """Write a value with its sign."""
        return f"{100 * value:+.1f} %" if self.percent else f"{value:+.4f}"

    @property
    def reach(self) -> tuple[float, float]:
        """The values that it shows: all intervals, 0, and some room."""
        ends = [0.0, *(bar.low for bar in self.bars), *(bar.high for bar in self.bars)]
        if self.band is not None:
            ends += [-self.band, self.band]
        low, high = min(ends), max(ends)
        room = 0.05 * (high - low) or 1.0
        return low - room, high + room


@dataclass(frozen=True)
class Table:
    """Rows of text under their headings; the first column names the row."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Report:
    """A report."""

    title: str
    headline: str
    tone: Tone
    to_do: Sequence[str]  # sentences
    charts: Sequence[Chart]
    tables: Sequence[Table]
    notes: Sequence[str]  # what it stands on, and when not to believe it
    made: str  # when, and by which command


def tone_of(low: float, high: float) -> Tone:
    """Return what an interval shows."""
    return "good" if low > 0 else "bad" if high < 0 else "open"
