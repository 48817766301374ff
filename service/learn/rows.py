"""Gives events their rows through one encoder: as they were served, or encoded anew from the raw record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from service.layout import Layout
from service.policies import Array, Batch, columns_for
from service.records import Event, Features
from service.represent.learned import LearnedSchema
from service.represent.stored import AnyEncoder, make_encoder, schema_of, stored_encoder

NO_ITEMS: Mapping[str, Features] = {}


class Rows:
    """The rows of a loop's events through one of its encoders.

    Args:
        version: of the encoder.
        native: version of the encoder of events that name none.
        d: columns of a row.
        kind: of the policy that learns them; it may be given the first columns only.
        schema: of the encoder; None: every event has its row, and none is encoded.
    """

    def __init__(self, version: str, *, native: str, d: int, kind: str, schema: Mapping[str, Any] | None) -> None:
        self.version, self.native, self.d, self.schema = version, native, d, schema
        self.layout: Layout | None = None
        self.columns = d  # that the policy is given
        self._kind = kind
        self._reward_range: tuple[float, float] | None = None
        self.stand_ins = NO_ITEMS  # item -> its features, where an event does not say them
        self._made: AnyEncoder | None = None

    @classmethod
    def through(cls, version: str, schema: Mapping[str, Any], *, native: str, kind: str) -> Rows:
        """Make the rows of an encoder that is known by its schema.

        Raises:
            ValueError: this code makes another encoder of the schema.
        """
        encoder = stored_encoder(version, schema)
        rows = cls(version, native=native, d=encoder.d, kind=kind, schema=schema)
        rows.layout, rows._reward_range, rows._made = encoder.layout, encoder.reward_range, encoder
        rows.columns = columns_for(kind, encoder.d, encoder.layout)
        return rows

    @property
    def encoder(self) -> AnyEncoder:
        """The encoder, made when it is first needed.

        Raises:
            ValueError: its schema is not known.
        """
        if self._made is None:
            if self.schema is None:
                raise ValueError(f"there is no schema of encoder {self.version!r}")
            self._made = make_encoder(schema_of(self.schema))
        return self._made

    @property
    def tells_items_apart(self) -> bool:
        """Whether a column of the layer that all items share depends on the item; of a declared schema: true."""
        schema = self.encoder.schema
        return not isinstance(schema, LearnedSchema) or any(block.item is not None for block in schema.blocks)

    def has(self, event: Event) -> bool:
        """Return whether the event holds its row through this encoder."""
        return (event.encoder or self.native) == self.version

    def of(self, events: Sequence[Event]) -> Array:
        """Return the rows of B > 0 events as the policy is given them: (B, columns) float32."""
        missing = [at for at, event in enumerate(events) if not self.has(event)]
        if not missing:
            return np.stack([event.x for event in events])[:, : self.columns]
        x = np.empty((len(events), self.columns), dtype=np.float32)
        for at, event in enumerate(events):
            if self.has(event):
                x[at] = event.x[: self.columns]
        raw = [events[at] for at in missing]
        features = [self.stand_ins.get(one.item, {}) if one.features is None else one.features for one in raw]
        made = self.encoder.pairs([one.context for one in raw], features, [one.item for one in raw])
        x[missing] = made[:, : self.columns]
        return x

    def range_of(self, reward_range: tuple[float, float]) -> tuple[float, float]:
        """Return the rewards that the policy sees as 0 and 1: those of the schema, else the loop's range."""
        return self._reward_range or reward_range

    def batch(self, events: Sequence[Event], reward_range: tuple[float, float]) -> Batch:
        """Make the batch of events, with rewards as shares of their range."""
        low, high = self.range_of(reward_range)
        reward = np.array([event.reward for event in events], dtype=np.float64)
        return Batch(
            x=self.of(events),
            item=[event.item for event in events],
            user=[event.user for event in events],
            reward=(reward - low) / (high - low),
            propensity=np.array([np.nan if event.propensity is None else event.propensity for event in events]),
        )
