"""Arrays as bytes: safetensors. No pickle anywhere."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save


def pack(arrays: Mapping[str, NDArray[np.generic]]) -> bytes:
    """Arrays by name; the same arrays always give the same bytes."""
    return save({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)})


def unpack(packed: bytes) -> dict[str, NDArray[np.generic]]:
    """The inverse of `pack`.

    Raises:
        ValueError: these bytes are no arrays.
    """
    try:
        return dict(load(packed))
    except SafetensorError as error:
        raise ValueError(f"not a set of arrays: {error}") from error
