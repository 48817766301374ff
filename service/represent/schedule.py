"""When schemas are fitted to a log: as it grows, and when its data change."""

from __future__ import annotations

from collections.abc import Iterable

from service.represent.misfits import Side
from service.represent.notices import Notice

FIRST = 40  # events before the first fit
GROWTH = 2  # of the log from one fit to the next
# Notices of what a new fit takes in. A field that vanished is none of them: its columns are zero by themselves.
CHANGES = ("unseen_field", "unseen_levels", "changed_type", "changed_scale", "wrong_size")
AGAIN = (0, 128, 1024)  # events after a change was told; one fit does not do, as it saw little of what is new
APART = 1.05  # growth of the log between two changes that are heeded: a fit costs as much as the log is long


class Schedule:
    """Says when fits of one log are due.

    Args:
        fitted_on: events of the newest fit; 0: none was made.
    """

    def __init__(self, fitted_on: int = 0) -> None:
        self._due = {_next_size(fitted_on)}
        self._told: set[tuple[str, Side | None, str | None]] = set()  # code, side and path
        self._heeded = 0  # events at the last change that was heeded

    def heed(self, notices: Iterable[Notice], events: int) -> None:
        """Take note of what is told of a log of so many events: what was not told before calls for fits."""
        told = {(notice.code, notice.side, notice.path) for notice in notices if notice.code in CHANGES}
        if events < APART * self._heeded:
            told &= self._told  # what is new is heeded later, if it lasts
        elif told - self._told:
            self._heeded = events
            self._due.update(events + after for after in AGAIN)
        self._told = told

    def is_due(self, events: int) -> bool:
        """Return whether so many events call for a fit."""
        return events >= min(self._due)

    def fitted(self, events: int) -> None:
        """Take note of a fit that was made of so many events."""
        self._due = {due for due in self._due if due > events} | {_next_size(events)}


def _next_size(events: int) -> int:
    """Return at how many events a growing log is fitted next, when the last fit was made on so many; 0: on none."""
    due = FIRST
    while due <= events:
        due *= GROWTH
    return due
