"""Non-stationarity as a part, not a policy: forgetting and change detection around any policy's update.

What a policy's `half_life`, `half_life_s` and `detect_change` ask for is done here, by calling its `forget`: after
every BLOCK-th event, counted from the policy's first, so that it does not matter in which batches they came.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from service.policies import KINDS, Arrays, Batch, Policy
from service.policies._base import Array

BLOCK = 16  # to forget a little at every event would cost as much as to learn from it
UNLIKELY = 12.0  # log-likelihood ratio at which a change is certain enough
DECLINES = (0.6, 0.8)  # the changes looked for: rewards are these shares of what was expected
ARMED_EVENTS, ARMED_REWARD = 500, 30.0  # before these many events, and this much reward, nobody knows what to expect
REFERENCE = "drift.reference."  # what the names of its arrays begin with
CALIBRATION = 5000  # events over which expectations are compared with rewards


class ChangeDetector:
    """Page's CUSUM (1954, Biometrika 41) on the log-likelihood ratio of "rewards are a share a of what was expected".

    For each a in DECLINES, with e the calibrated expectation and r the reward in [0, 1]:

        S ← max(0, S + r log a + (1 - r) log((1 - a e) / (1 - e))),   alarm at S ≥ UNLIKELY.

    Expectations are calibrated first, by the ratio of past rewards to past expectations: of the items that a policy
    chooses, it expects too much on average (the winner's curse), and that is no change of the world.
    """

    def __init__(self) -> None:
        self._statistics = [0.0] * len(DECLINES)
        self._events, self._reward = 0, 0.0
        self._recent_reward, self._recent_expected = 0.0, 0.0

    def observe(self, expected: float, reward: float) -> None:
        """One event: both in [0, 1]."""
        self._events += 1
        self._reward += reward
        calibration = self._recent_reward / max(self._recent_expected, 1e-12)  # a policy may expect nothing, ever
        e = min(max(expected * calibration, 1e-6), 0.99)
        fade = 1.0 - 1.0 / min(self._events + 1, CALIBRATION)
        self._recent_reward = fade * self._recent_reward + reward
        self._recent_expected = fade * self._recent_expected + expected
        if self._armed:
            for k, a in enumerate(DECLINES):
                ratio = reward * math.log(a) + (1.0 - reward) * math.log((1.0 - a * e) / (1.0 - e))
                self._statistics[k] = max(0.0, self._statistics[k] + ratio)

    @property
    def _armed(self) -> bool:
        return self._events > ARMED_EVENTS and self._reward > ARMED_REWARD

    @property
    def alarmed(self) -> bool:
        return max(self._statistics) >= UNLIKELY

    def state(self) -> Array:
        """All that it knows, as float64."""
        recent = (self._recent_reward, self._recent_expected)
        return np.array([self._events, self._reward, *recent, *self._statistics])

    def load(self, state: Array) -> None:
        self._events = int(state[0])
        self._reward, self._recent_reward, self._recent_expected, *self._statistics = state[1:].tolist()


class Drift:
    """Learns a policy's events, and forgets what its parameters say is out of date.

    A policy that expects nothing by itself is given a reference that does, which learns the same events.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        params = policy.params
        self._acts = params.half_life is not None or params.half_life_s is not None or params.detect_change
        self._detector = ChangeDetector() if params.detect_change else None
        self._reference: Policy | None = None
        self._events, self._forgot_at = 0, math.nan

    def parts(self, size: int) -> Iterator[slice]:
        """So many events as pieces for `update`, none of which goes beyond the end of a block."""
        start = 0
        while start < size:
            stop = min(size, start + BLOCK - self._events % BLOCK) if self._acts else size
            yield slice(start, stop)
            start = stop

    def update(self, batch: Batch, at: float) -> bool:
        """Learn one part; True when it ended in an alarm, upon which all was forgotten.

        Args:
            at: when the last of the events entered the log, in seconds.

        Raises:
            NumericalError: nothing was changed.
        """
        expected = self.policy.update(batch)
        self._events += len(batch.item)
        if self._detector is not None:
            if expected is None:
                self._reference = self._reference or self._new_reference()
                expected = self._reference.update(batch)
            assert expected is not None
            for e, r in zip(expected.tolist(), batch.reward.tolist(), strict=True):
                self._detector.observe(min(max(e, 0.0), 1.0), min(max(r, 0.0), 1.0))
        return self._acts and self._events % BLOCK == 0 and self._end_block(at)

    def _end_block(self, at: float) -> bool:
        if self._detector is not None and self._detector.alarmed:
            self.policy.forget(0.0)
            self._detector, self._reference = ChangeDetector(), None
            return True
        half_lives = 0.0
        if self.policy.params.half_life is not None:
            half_lives += BLOCK / self.policy.params.half_life
        if self.policy.params.half_life_s is not None:
            if not math.isnan(self._forgot_at):
                half_lives += max(0.0, at - self._forgot_at) / self.policy.params.half_life_s
            self._forgot_at = at
        if half_lives:
            self.policy.forget(0.5**half_lives)
        return False

    def state(self) -> Arrays:
        """The policy's state, and beside it (under `drift.`) what is known here."""
        state = self.policy.state()
        if self._acts:
            state["drift.events"] = np.array([self._events, self._forgot_at])
        if self._detector is not None:
            state["drift.detector"] = self._detector.state()
        if self._reference is not None:
            state |= {REFERENCE + name: array for name, array in self._reference.state().items()}
        return state

    def load(self, state: Arrays) -> None:
        """Take up a `state()` of the same policy."""
        self.policy.load({name: array for name, array in state.items() if not name.startswith("drift.")})
        if self._acts:
            events, self._forgot_at = state["drift.events"].tolist()
            self._events = int(events)
        if self._detector is not None:
            self._detector.load(state["drift.detector"])
        known = {name.removeprefix(REFERENCE): array for name, array in state.items() if name.startswith(REFERENCE)}
        self._reference = self._new_reference() if known else None
        if self._reference is not None:
            self._reference.load(known)

    def _new_reference(self) -> Policy:
        return KINDS["adaptive"](self.policy.d, KINDS["adaptive"].Params())
