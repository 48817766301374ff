"""Non-stationarity as a part, not a policy: forgetting and change detection around any policy's update.

What a policy's `half_life`, `half_life_s` and `detect_change` ask for is done here, by calling its `forget`: after
every BLOCK-th event, counted from the policy's first, so that it does not matter in which batches they came.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

import numpy as np

from service.learn.order import InOrder
from service.policies import KINDS, Arrays, Batch, Policy
from service.policies._base import Array

BLOCK = 16  # to forget a little at every event would cost as much as to learn from it
UNLIKELY = 12.0  # log-likelihood ratio at which a change is certain enough
DECLINES = (0.6, 0.8)  # the changes looked for: rewards are these shares of what was expected
ARMED_EVENTS, ARMED_REWARD = 500, 30.0  # before these many events, and this much reward, nobody knows what to expect
CALIBRATION = 5000  # events over which expectations are compared with rewards
MEMORY = 2048  # half-life of what a successor knows, in events
FADE = MEMORY // 8  # it forgets after so many events, a multiple of BLOCK
REFERENCE, SUCCESSOR = "drift.reference.", "drift.successor."  # what the names of their arrays begin with

Reaction: TypeAlias = Literal["reset", "succession", "none"]


class ChangeDetector:
    """Page's CUSUM (1954, Biometrika 41) on the log-likelihood ratio of "rewards are a share a of what was expected".

    For each a in DECLINES, with e the calibrated expectation and r the reward in [0, 1]:

        S ← max(0, S + r log a + (1 - r) log((1 - a e) / (1 - e))),   alarm at S ≥ UNLIKELY.

    Expectations are calibrated first, by the ratio of past rewards to past expectations: of the items that a policy
    chooses, it expects too much on average (the winner's curse), and that is no change of the world.
    """

    EVIDENCE = 3 + len(DECLINES)  # events, their rewards, what was expected of them, the ratio of each decline

    def __init__(self, order: InOrder) -> None:
        self._order = order
        self._statistics = np.zeros(len(DECLINES))
        self._events, self._reward = 0, 0.0
        self._recent_reward, self._recent_expected = 0.0, 0.0

    def observe(self, expected: float, reward: float, place: int | None = None) -> None:
        """One event: both in [0, 1], and its decision's place in the order of decisions, if it has one."""
        calibration = self._recent_reward / max(self._recent_expected, 1e-12)  # a policy may expect nothing, ever
        e = min(max(expected * calibration, 1e-6), 0.99)
        ratios = [reward * math.log(a) + (1.0 - reward) * math.log((1.0 - a * e) / (1.0 - e)) for a in DECLINES]
        for sums in self._order.add(place, (1.0, reward, expected, *ratios)):
            self._judge(sums)

    def _judge(self, sums: Array) -> None:
        events, reward, expected = sums[:3].tolist()
        self._events += int(events)
        self._reward += reward
        fade = (1.0 - 1.0 / min(self._events + 1, CALIBRATION)) ** events
        self._recent_reward = fade * self._recent_reward + reward
        self._recent_expected = fade * self._recent_expected + expected
        if self._armed:
            self._statistics = np.maximum(0.0, self._statistics + sums[3:])

    @property
    def _armed(self) -> bool:
        return self._events > ARMED_EVENTS and self._reward > ARMED_REWARD

    @property
    def alarmed(self) -> bool:
        return self._armed and bool((self._statistics + self._order.begun[3:]).max() >= UNLIKELY)

    def state(self) -> Array:
        """All that it knows, as float64, but for what `order` holds."""
        recent = (self._recent_reward, self._recent_expected)
        return np.array([self._events, self._reward, *recent, *self._statistics])

    def load(self, state: Array) -> None:
        self._events = int(state[0])
        self._reward, self._recent_reward, self._recent_expected = state[1:4].tolist()
        self._statistics = state[4:].copy()


class Successor:
    """A second model of the same events with a short memory, to take over from the first when it predicts better.

    A detector waits for rewards that fall short, and a world that drifts slowly never lets them: the model learns
    averages of what was and what is, expects what it gets, and stays mediocre. Its successor knows what is. For each
    event, with p expected by the model, q by its successor, both before they learned it, and r the reward:

        S ← max(0, S + r log(q / p) + (1 - r) log((1 - q) / (1 - p))),   alarm at S ≥ UNLIKELY.

    While the world stands still the model, which remembers more, predicts better, and S stays near 0.
    """

    def __init__(self, model: Policy) -> None:
        self.model = type(model)(model.d, model.params, seed=model.seed)
        self.model.load(model.state())
        self._statistic = 0.0

    def update(self, batch: Batch, expected: Array, *, orderly: bool) -> None:
        """Learn B events, and compare what was expected of them with the model's `expected` (B,).

        Nothing is compared in a log that is not in the order of the decisions: clicks that come before the silence of
        their neighbours are waves, and whoever forgets soon rides them better in whatever world.
        """
        own = self.model.update(batch)
        assert own is not None
        for p, q, r in zip(expected.tolist(), own.tolist(), batch.reward.tolist(), strict=True):
            p, q, r = min(max(p, 1e-3), 0.999), min(max(q, 1e-3), 0.999), min(max(r, 0.0), 1.0)
            ratio = r * math.log(q / p) + (1.0 - r) * math.log((1.0 - q) / (1.0 - p))
            self._statistic = max(0.0, self._statistic + ratio) if orderly else 0.0

    @property
    def alarmed(self) -> bool:
        return self._statistic >= UNLIKELY

    def state(self) -> Arrays:
        """The model's state, and `statistic`."""
        return {**self.model.state(), "statistic": np.array([self._statistic])}

    def load(self, state: Arrays) -> None:
        [self._statistic] = state["statistic"].tolist()
        self.model.load({name: array for name, array in state.items() if name != "statistic"})


class Drift:
    """Learns a policy's events, and forgets what its parameters say is out of date.

    A policy that expects nothing by itself is given a reference that does, which learns the same events. Whichever of
    the two is watched, policy or reference, has a successor if two of its kind can be compared (`Policy.comparable`).
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        params = policy.params
        self._acts = params.half_life is not None or params.half_life_s is not None or params.detect_change
        self._events, self._forgot_at = 0, math.nan
        self._order = InOrder(ChangeDetector.EVIDENCE)
        self._detector: ChangeDetector | None = None
        self._reference: Policy | None = None
        self._successor: Successor | None = None
        if params.detect_change:
            self._watch_anew()

    def parts(self, size: int) -> Iterator[slice]:
        """So many events as pieces for `update`, none of which goes beyond the end of a block."""
        start = 0
        while start < size:
            stop = min(size, start + BLOCK - self._events % BLOCK) if self._acts else size
            yield slice(start, stop)
            start = stop

    def update(self, batch: Batch, at: float, places: Sequence[int | None] | None = None) -> Reaction | None:
        """Learn one part.

        Args:
            at: when the last of the events entered the log, in seconds.
            places: of the B events' decisions in the order of decisions; left out, the events are in that order.

        Returns:
            What was done about an alarm in which the part ended. "reset": all was forgotten; "succession": the policy
            knows now what its successor did, and no more; "none": it learns in trainings only.

        Raises:
            NumericalError: nothing was changed.
        """
        expected = self.policy.update(batch)
        self._events += len(batch.item)
        if self._detector is not None:
            self._watch(self._detector, batch, expected, places or [None] * len(batch.item))
        return self._end_block(at) if self._acts and self._events % BLOCK == 0 else None

    def _watch_anew(self) -> None:
        self._order.restart()
        self._detector, self._reference = ChangeDetector(self._order), None
        self._successor = Successor(self.policy) if self.policy.comparable else None

    def _watch(
        self, detector: ChangeDetector, batch: Batch, expected: Array | None, places: Sequence[int | None]
    ) -> None:
        if expected is None:
            if self._reference is None:
                self._reference = self._new_reference()
                self._successor = Successor(self._reference)
            expected = self._reference.update(batch)
        assert expected is not None
        for e, r, place in zip(expected.tolist(), batch.reward.tolist(), places, strict=True):
            detector.observe(min(max(e, 0.0), 1.0), min(max(r, 0.0), 1.0), place)
        if self._successor is not None:
            self._successor.update(batch, expected, orderly=self._order.orderly)

    def _end_block(self, at: float) -> Reaction | None:
        if self._detector is not None and self._detector.alarmed:
            return self._reset()
        if self._successor is not None and self._successor.alarmed:
            return self._succeed(self._successor) if self._reference is None else self._reset()
        half_lives = 0.0
        if self.policy.params.half_life is not None:
            half_lives += BLOCK / self.policy.params.half_life
        if self.policy.params.half_life_s is not None:
            if not math.isnan(self._forgot_at):
                half_lives += max(0.0, at - self._forgot_at) / self.policy.params.half_life_s
            self._forgot_at = at
        if half_lives:
            for model in self._models():
                model.forget(0.5**half_lives)
        if self._successor is not None and self._events % FADE == 0:
            self._successor.model.forget(0.5 ** (FADE / MEMORY))
        return None

    def _models(self) -> Iterator[Policy]:
        yield self.policy
        if self._reference is not None:
            yield self._reference
        if self._successor is not None:
            yield self._successor.model

    def _reset(self) -> Reaction:
        self.policy.forget(0.0)
        self._watch_anew()
        return "none" if self.policy.batch_trained else "reset"

    def _succeed(self, successor: Successor) -> Reaction:
        self.policy.load(successor.model.state())
        self._watch_anew()
        return "succession"

    def state(self) -> Arrays:
        """The policy's state, and beside it (under `drift.`) what is known here."""
        state = self.policy.state()
        if self._acts:
            state["drift.events"] = np.array([self._events, self._forgot_at])
        if self._detector is not None:
            state["drift.detector"] = self._detector.state()
            state["drift.order"] = self._order.state()
        if self._reference is not None:
            state |= {REFERENCE + name: array for name, array in self._reference.state().items()}
        if self._successor is not None:
            state |= {SUCCESSOR + name: array for name, array in self._successor.state().items()}
        return state

    def load(self, state: Arrays) -> None:
        """Take up a `state()` of the same policy."""
        self.policy.load({name: array for name, array in state.items() if not name.startswith("drift.")})
        if self._acts:
            events, self._forgot_at = state["drift.events"].tolist()
            self._events = int(events)
        if self._detector is None:
            return
        self._watch_anew()
        self._detector.load(state["drift.detector"])
        if "drift.order" in state:  # not in states from before decisions had places
            self._order.load(state["drift.order"])
        if reference := named(state, REFERENCE):
            self._reference = self._new_reference()
            self._reference.load(reference)
            self._successor = Successor(self._reference)
        # A state from before there were successors has none: the one that starts here knows what the model knows.
        if self._successor is not None and (successor := named(state, SUCCESSOR)):
            self._successor.load(successor)

    def _new_reference(self) -> Policy:
        return KINDS["adaptive"](self.policy.d, KINDS["adaptive"].Params())


def named(state: Arrays, prefix: str) -> Arrays:
    """The arrays whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
