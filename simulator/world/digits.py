"""Handwritten digits: a user is an image, the items are ten arms, and one arm is right for each label.

The images are scikit-learn's: 1 797 of 8 × 8 pixels, from the UCI set "Optical Recognition of Handwritten Digits"
(Alpaydin & Kaynak 1998).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from simulator.errors import InvalidExperiment
from simulator.world._base import Array, Catalogue, Item, UserWorld, Visit

LABELS, PIXELS = 10, 64
DARKEST = 16  # the largest value of a pixel
ARMS = tuple(f"arm-{arm}" for arm in range(LABELS))


@dataclass(frozen=True, eq=False)
class Labelling:
    """The hidden state: the right arm of each label."""

    arm: tuple[int, ...]  # (labels,)
    catalogue: Catalogue
    rates: Array = field(init=False)  # (labels, arms): 1 for the right arm, else 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "rates", np.eye(LABELS)[list(self.arm)])


@lru_cache(maxsize=1)
def _images() -> tuple[tuple[Visit, ...], tuple[int, ...]]:
    """Load all images, as visits, and their labels."""
    try:
        from sklearn.datasets import load_digits  # takes a second, and with SciPy 200 MB of disk
    except ImportError as error:
        raise InvalidExperiment("the digits come from scikit-learn: pip install 'rebound[digits]'") from error
    pixels, labels = load_digits(return_X_y=True)
    rows = (pixels / DARKEST).tolist()
    return tuple(Visit(f"image-{i}", {"pixels": row}) for i, row in enumerate(rows)), tuple(labels.tolist())


class Digits(UserWorld[Labelling]):
    """Each step shows one image, drawn uniformly. The right arm earns 1, all others 0, a random one .1.

    Raises:
        InvalidExperiment: scikit-learn, which holds the images, is not installed.
    """

    name = "digits"
    schema: Mapping[str, Any] = {
        "context": {"pixels": {"type": "vector", "size": PIXELS}},
        "item": {"arm": {"type": "categorical", "levels": list(ARMS)}},
        "crosses": [["pixels", "arm"]],
        "hash_dims": 0,
    }

    def initial(self) -> Labelling:
        _images()
        return Labelling(
            tuple(range(LABELS)), Catalogue(tuple(Item(arm, slot, {"arm": arm}) for slot, arm in enumerate(ARMS)))
        )

    def catalogue_of(self, state: Labelling) -> Catalogue:
        return state.catalogue

    def user_of(self, uniform: float) -> int:
        return int(uniform * len(_images()[0]))

    def visit_of(self, user: int) -> Visit:
        return _images()[0][user]

    def rates_of(self, state: Labelling, user: int) -> Array:
        rates: Array = state.rates[_images()[1][user]]
        return rates
