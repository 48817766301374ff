"""A policy on trial: it learns through a successor's encoder, beside the policy that serves.

Both learn the same events. Of each event after the successor's place in the log, both say first what they expect, and
the logarithmic losses of the two are added up: neither had learned any of these events. The challenger takes over as
soon as it is ahead by more than MARGIN nats, at one of the looks, one every LOOK events. If the policy of before tells
the truth, this happens by chance with a probability of at most e^-MARGIN, however often one looks (Ville 1939). That is
not small: a successor that is no better does no harm, one that waits does. A challenger that comes while another is on
trial begins with that one's lead, if it has one. Where both expect the same of every event, but for rounding, the rows
do not matter to the policy, and it moves at the first look. The trial is given up PATIENCE events after there were as
many as the successor was fitted on, or where a newer successor comes.

A policy that does not say what it expects is judged by two references, one for each encoder, that learn what it learns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from service.learn.change.drift import Drift, named, prefixed, reference_of
from service.learn.rows import Rows
from service.policies import Array, Arrays, Batch, NumericalError, Policy, part
from service.records import Event, Successor

MARGIN = 1.0  # nats
LOOK = 25  # events from one look to the next
PATIENCE = 500  # events
SAME = 1e-9  # of a loss: rounding, where the same is computed in another order
CERTAIN = 1e-3  # nobody is surer of a reward, or of none
DRIFT, REFERENCE, BASELINE = "drift-of.", "reference.", "baseline."  # of names of arrays


class Challenger:
    """One trial.

    Args:
        policy: has learned nothing; its d is that of `rows`.
        rows: through the successor's encoder.
        against: the policy that serves, in case it needs a reference.
        before: the rows of that policy.
    """

    def __init__(
        self, successor: Successor, policy: Policy[Any], rows: Rows, *, against: Policy[Any], before: Rows
    ) -> None:
        self.position, self.fitted, self.why = successor.position, successor.events, successor.why
        self.rows, self.drift = rows, Drift(policy)
        self.events = 0  # since the successor
        self.loss = self.loss_before = 0.0  # nats, of the challenger and of the policy that serves
        self.lead = 0.0  # nats by which the challengers before it were ahead of that policy
        self._next_look = LOOK
        self._against, self._before = against, before
        self._references: tuple[Policy[Any], Policy[Any]] | None = None  # of the challenger; of the one that serves

    @property
    def until_look(self) -> int:
        """Events until the next look, at least 1."""
        return self._next_look - self.events

    @property
    def look_due(self) -> bool:
        return self.events == self._next_look

    @property
    def ahead(self) -> float:
        """Nats by which it, and those whose lead it has, expected better than the policy that serves."""
        return self.lead + self.loss_before - self.loss

    def look(self) -> bool | None:
        """Return whether the challenger takes over now, None where the trial goes on."""
        self._next_look += LOOK
        if self.ahead > MARGIN or abs(self.loss_before - self.loss) <= SAME * self.loss:
            return True
        return False if self.events >= self.fitted + PATIENCE else None

    def relearn(self, parts: Iterable[Sequence[Event]], before: Rows, reward_range: tuple[float, float]) -> None:
        """Learn the log up to the successor. An event that cannot be learned is passed over.

        Args:
            before: the rows of the policy that serves.

        Raises:
            NumericalError: a training failed.
        """
        trained_on = []
        for events in parts:
            batch = self.rows.batch(events, reward_range)
            for rows in self.drift.parts(len(events)):
                self._relearn(events[rows], part(batch, rows), before, reward_range)
            if self.drift.policy.batch_trained:
                trained_on.append(batch)
        if self.drift.policy.batch_trained:
            self.drift.policy.train(trained_on)

    def _relearn(self, events: Sequence[Event], batch: Batch, before: Rows, reward_range: tuple[float, float]) -> None:
        try:
            if self._update(events, batch) is None:
                self._judge(batch, before.batch(events, reward_range))
        except NumericalError:
            if len(events) > 1:
                for at in range(len(events)):
                    one = slice(at, at + 1)
                    self._relearn(events[one], part(batch, one), before, reward_range)

    def learn(
        self, events: Sequence[Event], before: Batch, expected: Array | None, reward_range: tuple[float, float]
    ) -> None:
        """Learn events after the successor, and add up the losses.

        Args:
            before: the same events, in the rows of the policy that serves.
            expected: what that policy expected of them, (B,).

        Raises:
            NumericalError: the challenger cannot learn them.
        """
        batch = self.rows.batch(events, reward_range)
        said = []
        for rows in self.drift.parts(len(events)):
            found = self._update(events[rows], part(batch, rows))
            said += [] if found is None else [found]
        if said and expected is not None:
            own = np.concatenate(said)
        else:
            own, expected = self._judge(batch, before)
        expected = self._in_own_unit(expected, reward_range)
        self.events += len(events)
        for mine, other in zip(_losses(own, batch.reward), _losses(expected, batch.reward), strict=True):
            self.loss += mine  # one by one: the sum may not depend on the batches
            self.loss_before += other

    def _in_own_unit(self, expected: Array, reward_range: tuple[float, float]) -> Array:
        """Return what the other expects in the challenger's unit of reward, so that losses can be compared."""
        (low, high), (other_low, other_high) = self.rows.range_of(reward_range), self._before.range_of(reward_range)
        if (low, high) == (other_low, other_high):
            return expected
        in_reward = other_low + expected * (other_high - other_low)
        in_own_unit: Array = (in_reward - low) / (high - low)
        return in_own_unit

    def _update(self, events: Sequence[Event], batch: Batch) -> Array | None:
        """Learn events up to the end of a block; return what the policy expected of them, if it says so."""
        self.drift.update(batch, events[-1].time, [event.slate_position for event in events])
        return self.drift.expected

    def _judge(self, batch: Batch, before: Batch) -> tuple[Array, Array]:
        """Return what the references of both expected of these events, which they then learn."""
        if self._references is None:
            self._references = reference_of(self.drift.policy), reference_of(self._against)
        own, other = self._references
        expected, expected_before = own.update(batch), other.update(before)
        assert expected is not None
        assert expected_before is not None
        return expected, expected_before

    def forget_items(self, gone: Sequence[str]) -> None:
        """Drop all that is known of these items."""
        self.drift.forget_items(gone)
        for reference in self._references or ():
            reference.forget_items(gone)

    def describe(self) -> dict[str, Any]:
        """Say how the trial stands, as JSON."""
        return {
            "encoder": self.rows.version,
            "d": self.rows.d,
            "position": self.position,
            "fitted": self.fitted,
            "why": self.why,
            "events": self.events,
            "loss": self.loss,
            "loss_before": self.loss_before,
            "lead": self.lead,
        }

    def state(self) -> Arrays:
        """Return all that was learned; `describe` and the schema hold the rest."""
        arrays = prefixed(DRIFT, self.drift.state())
        arrays["next_look"] = np.array([self._next_look])
        if self._references is not None:
            own, other = self._references
            arrays |= prefixed(REFERENCE, own.state()) | prefixed(BASELINE, other.state())
        return arrays

    def load(self, said: Mapping[str, Any], state: Arrays) -> None:
        """Take up what `describe` and `state` gave."""
        self.events, self.loss, self.loss_before = said["events"], said["loss"], said["loss_before"]
        self.lead = said.get("lead", 0.0)  # a checkpoint of before leads were kept has none
        self._next_look = int(state["next_look"][0])
        self.drift.load(named(state, DRIFT))
        if reference := named(state, REFERENCE):
            self._references = reference_of(self.drift.policy), reference_of(self._against)
            self._references[0].load(reference)
            self._references[1].load(named(state, BASELINE))


def _losses(expected: Array, reward: Array) -> list[float]:
    """Compute the logarithmic loss of each event, in nats."""
    p, r = np.clip(expected, CERTAIN, 1.0 - CERTAIN), np.clip(reward, 0.0, 1.0)
    losses: list[float] = (-(r * np.log(p) + (1.0 - r) * np.log1p(-p))).tolist()
    return losses
