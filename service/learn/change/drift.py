"""Wraps any policy with forgetting and change detection.

A policy's parameters `half_life`, `half_life_s` and `detect_change` are acted on here, by calls of its `forget`. They
come after every BLOCK-th event, counted from the policy's first, so the batches in which events come do not matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from service.learn.change.cusum import IMPATIENT, Cusum, log_ratio
from service.policies import KINDS, Array, Arrays, Batch, Policy, same_arrays

BLOCK = 16  # to forget a little at every event would cost as much as to learn from it
MEMORY = 2048  # half-life of what a successor knows, in events
FADE = MEMORY // 8  # it forgets after so many events, a multiple of BLOCK
REMEMBERED = 4  # former models that are kept
REFERENCE, SUCCESSOR, FORMER = "drift.reference.", "drift.successor.", "drift.former."  # of names of arrays

Reaction: TypeAlias = Literal["reset", "succession", "recall", "none"]


class Drift:
    """Learns a policy's events, and forgets what its parameters say is out of date.

    A model is watched: the policy itself if it expects anything, else a reference that does, which learns the same
    events. It has rivals if it can be compared with others of its kind (`Policy.comparable`):

    - a successor, which learns the same with a short memory. A world that drifts slowly never lets rewards fall short:
      the model learns averages of what was and what is, expects what it gets, and stays mediocre. Its successor knows
      what is, and takes over when it predicts better;
    - if it is the policy itself: former models, as they were when an alarm ended their time. When their world comes
      back, with the season, the end of a price war or of an outage of feedback, one of them is recalled.
    """

    def __init__(self, policy: Policy[Any]) -> None:
        self.policy = policy
        self.expected: Array | None = None  # of the events of the last `update`, before they were learned
        params = policy.params
        self._acts = params.half_life is not None or params.half_life_s is not None or params.detect_change
        self._events, self._forgot_at = 0, math.nan
        self._cusum = Cusum(1 + REMEMBERED) if params.detect_change else None
        self._reference: Policy[Any] | None = None
        self._successor: Policy[Any] | None = None  # None until it first forgets: it knows what the watched model knows
        self._former: list[Policy[Any]] = []  # the newest last

    def parts(self, size: int) -> Iterator[slice]:
        """So many events as pieces for `update`, none of which goes beyond the end of a block."""
        start = 0
        while start < size:
            stop = min(size, start + BLOCK - self._events % BLOCK) if self._acts else size
            yield slice(start, stop)
            start = stop

    def update(self, batch: Batch, at: float, slate_positions: Sequence[int | None] | None = None) -> Reaction | None:
        """Learn one part.

        Args:
            at: when the last of the events happened, in unix seconds.
            slate_positions: of the B events, in the order of decisions; left out, the events are in that order.

        Returns:
            What was done about an alarm in which the part ended. "reset": all was forgotten; "succession": the policy
            knows now what its successor did, and no more; "recall": it knows what a former model did; "none": it learns
            in trainings only.

        Raises:
            NumericalError: nothing was changed.
        """
        self.expected = expected = self.policy.update(batch)
        self._events += len(batch.item)
        if self._cusum is not None:
            self._observe(self._cusum, batch, expected, slate_positions or [None] * len(batch.item))
        return self._end_block(at) if self._acts and self._events % BLOCK == 0 else None

    def pass_over(self, slate_positions: Sequence[int | None]) -> None:
        """Note events that the policy does not learn, before it learns what comes next."""
        for position in slate_positions:
            if self._cusum is not None and position is not None:
                self._cusum.pass_over(position)

    def go_on(self) -> None:
        """Wait for no event of the decisions so far: some of them were not told of."""
        if self._cusum is not None:
            self._cusum.order.restart()

    def _observe(
        self, cusum: Cusum, batch: Batch, expected: Array | None, slate_positions: Sequence[int | None]
    ) -> None:
        """Give the CUSUM what the model and its rivals expected, each before it learned the event."""
        if expected is None:
            if self._reference is None:
                self._reference = reference_of(self.policy)
                self._successor = None
            expected = self._reference.update(batch)
        assert expected is not None
        reward = np.clip(batch.reward, 0.0, 1.0)
        rivals = [log_ratio(expected, q, reward) for q in self._rivals(batch, expected)]
        ratios = np.stack(rivals, axis=1).tolist() if rivals else [()] * len(reward)
        seen = zip(np.clip(expected, 0.0, 1.0).tolist(), reward.tolist(), ratios, slate_positions, strict=True)
        for event in seen:
            cusum.observe(*event)

    def _rivals(self, batch: Batch, expected: Array) -> Iterator[Array]:
        """What each of them expects (B,), where the model expects this: the successor, then the former models."""
        if self._has_successor:
            own = expected if self._successor is None else self._successor.update(batch)
            assert own is not None
            yield own
        for former in self._former:
            yield former.expected(batch)

    def _end_block(self, at: float) -> Reaction | None:
        if self._cusum is not None and (rival := self._cusum.alarm) is not None:
            self._cusum.restart()
            return self._react(rival)
        half_lives = 0.0
        if self.policy.params.half_life is not None:
            half_lives += BLOCK / self.policy.params.half_life
        if self.policy.params.half_life_s is not None:
            if not math.isnan(self._forgot_at):
                half_lives += max(0.0, at - self._forgot_at) / self.policy.params.half_life_s
            self._forgot_at = at
        if half_lives:
            for model in (self.policy, self._reference, self._successor):
                if model is not None:
                    model.forget(0.5**half_lives)
        if self._has_successor and self._events % FADE == 0:
            if self._successor is None:
                self._successor = copy(self._watched)
            self._successor.forget(0.5 ** (FADE / MEMORY))
        return None

    def _react(self, rival: int) -> Reaction:
        """To an alarm in favour of this rival model, or of none of them (-1)."""
        policy, reaction = self.policy, self._reaction(rival)
        recalled = self._former.pop(rival - 1 - IMPATIENT) if reaction == "recall" else None
        if policy.comparable:
            self._former = [*self._former, copy(policy)][-REMEMBERED:]
        if recalled is not None:
            policy.load(recalled.state())
        elif reaction == "succession" and self._successor is not None:
            policy.load(self._successor.state())
        else:
            policy.forget(0.0)
        self._reference = None
        self._successor = None
        return reaction

    @property
    def _watched(self) -> Policy[Any]:
        """The model whose expectations are compared with what happens."""
        return self._reference or self.policy

    @property
    def _has_successor(self) -> bool:
        return self._cusum is not None and self._watched.comparable

    def _reaction(self, rival: int) -> Reaction:
        if self.policy.batch_trained:
            return "none"
        if rival < 0 or self._reference is not None:
            return "reset"
        return "succession" if rival == IMPATIENT else "recall"

    def forget_items(self, gone: Sequence[str]) -> None:
        """Drop all that the policy, and every model beside it, knows of these items."""
        for model in (self.policy, self._reference, self._successor, *self._former):
            if model is not None:
                model.forget_items(gone)

    def state(self) -> Arrays:
        """The policy's state, and beside it (under `drift.`) what is known here."""
        state = self.policy.state()
        if self._acts:
            state["drift.events"] = np.array([self._events, self._forgot_at])
        if self._cusum is not None:
            state |= {"drift.watch": self._cusum.state(), "drift.order": self._cusum.order.state()}
        if self._reference is not None:
            state |= prefixed(REFERENCE, self._reference.state())
        if self._has_successor:
            state |= prefixed(SUCCESSOR, (self._successor or self._watched).state())
        for number, former in enumerate(self._former):
            state |= prefixed(f"{FORMER}{number}.", former.state())
        return state

    def load(self, state: Arrays) -> None:
        """Take up a `state()` of the same policy."""
        self.policy.load({name: array for name, array in state.items() if not name.startswith("drift.")})
        if self._acts:
            events, self._forgot_at = state["drift.events"].tolist()
            self._events = int(events)
        if self._cusum is None:
            return
        if "drift.watch" in state:  # an older version's state has none: it is watched from here on
            self._cusum.load(state["drift.watch"])
            self._cusum.order.load(state["drift.order"])
        self._reference = None
        if reference := named(state, REFERENCE):
            self._reference = reference_of(self.policy)
            self._reference.load(reference)
        self._successor = None
        successor = named(state, SUCCESSOR)
        if self._has_successor and successor and not same_arrays(successor, self._watched.state()):
            self._successor = copy(self._watched)
            self._successor.load(successor)
        self._former = []
        while former := named(state, f"{FORMER}{len(self._former)}."):
            self._former.append(copy(self.policy))
            self._former[-1].load(former)


def reference_of(policy: Policy[Any]) -> Policy[Any]:
    """Make a model of the same rows that says what it expects, for a policy that does not."""
    return KINDS["adaptive"](policy.d, KINDS["adaptive"].Params())


def copy(policy: Policy[Any]) -> Policy[Any]:
    """Make another one that knows the same."""
    other = policy.fresh()
    other.load(policy.state())
    return other


def prefixed(prefix: str, arrays: Arrays) -> Arrays:
    """Return the arrays under longer names."""
    return {prefix + name: array for name, array in arrays.items()}


def named(state: Arrays, prefix: str) -> Arrays:
    """Return the arrays whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
