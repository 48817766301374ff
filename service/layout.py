"""Where the layers of a row lie."""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray


class Layout(NamedTuple):
    """The number of columns of each layer, in the order in which they stand in a row."""

    shared: int  # weights that all items share
    of_item: int  # columns on which every item has weights of its own
    of_user: int  # columns on which every user has weights of their own

    @property
    def d(self) -> int:
        """Columns of a row."""
        return self.shared + self.of_item + self.of_user

    def split(self, x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return the three layers of rows (..., d), as views."""
        start, end = self.shared, self.shared + self.of_item
        return x[..., :start], x[..., start:end], x[..., end:]
