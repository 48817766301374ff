"""Detects that a model is no longer right: the evidence against it is a likelihood ratio, summed by Page's CUSUM.

Page (1954), "Continuous inspection schemes", Biometrika 41. For each rival hypothesis, with p what the model expected
of an event before it learned it, q what the rival did, and r the reward in [0, 1]:

    S ← max(0, S + r log(q / p) + (1 - r) log((1 - q) / (1 - p))),   alarm at S ≥ UNLIKELY.

The rivals are "rewards are a share a of what was expected", for each a of DECLINES, and other models of the same events
(`drift.py`). Events count in the order of their decisions (`decision_order.py`).

Wherever S is 0, evidence begins anew, and each beginning may reach S by chance with a probability of e^-S. Rivals that
are close to the model are seldom at 0. Former models are far from it, most of them, and would begin at every event: so
their S is raised to 0 once in GROUP events only (figures in docs/policies.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from service.learn.change.decision_order import GROUP, DecisionOrder
from service.policies import Array

UNLIKELY = 12.0  # log-likelihood ratio at which a change is certain enough
UNLIKELY_RETURN = 10.0  # the same for former models, for which evidence seldom begins anew
DECLINES = (0.6, 0.8)
LOG_DECLINES = [(a, math.log(a)) for a in DECLINES]
ARMED_EVENTS, ARMED_REWARD = 500, 30.0  # before these many events, and this much reward, nobody knows what to expect
CALIBRATION = 5000  # events over which expectations are compared with rewards
IMPATIENT = 0  # the rival model that learns in the log's order, too, with a shorter memory


class Cusum:
    """Declines, and `rivals` other models, against one model.

    For declines, expectations are calibrated by the ratio of past rewards to past expectations: of the items that a
    policy chooses, it expects too much on average (the winner's curse), and that is no change of the world.
    """

    def __init__(self, rivals: int) -> None:
        self._rivals = rivals
        # The statistics: of declines, of the rival that learns along, of former models.
        self._former = slice(len(DECLINES) + 1 + IMPATIENT, None)
        self._unlikely = np.full(len(DECLINES) + rivals, UNLIKELY)
        self._unlikely[self._former] = UNLIKELY_RETURN
        self.order = DecisionOrder(2 + len(DECLINES) + rivals)  # rewards and what was expected; the ratios
        self._clear()

    def _clear(self) -> None:
        self._statistics = np.zeros(len(DECLINES) + self._rivals)
        self._events, self._reward = 0, 0.0
        self._recent_reward, self._recent_expected = 0.0, 0.0

    def restart(self) -> None:
        """There is a new model, or new rivals; decisions go on where they were."""
        self._clear()
        self.order.restart()

    def observe(
        self, expected: float, reward: float, ratios: Sequence[float] = (), slate_position: int | None = None
    ) -> None:
        """One event.

        Args:
            expected: by the model, in [0, 1].
            reward: in [0, 1].
            ratios: log-likelihood ratio of each rival model to the model; those left out are 0.
            slate_position: in the order of decisions; None where that is the order of the log.
        """
        calibration = self._recent_reward / max(self._recent_expected, 1e-12)  # a policy may expect nothing, ever
        e = min(max(expected * calibration, 1e-6), 0.99)
        declines = [reward * log + (1.0 - reward) * math.log((1.0 - a * e) / (1.0 - e)) for a, log in LOG_DECLINES]
        missing = (0.0,) * (self._rivals - len(ratios))
        for group in self.order.add(slate_position, (reward, expected, *declines, *ratios, *missing)):
            self._judge(group)

    def pass_over(self, slate_position: int) -> None:
        """Note an event that is there, and says nothing of the model."""
        for group in self.order.pass_over(slate_position):
            self._judge(group)

    def _judge(self, group: Array) -> None:
        events, reward, expected = group[0, :3].tolist()
        self._events += int(events)
        self._reward += reward
        fade = (1.0 - 1.0 / min(self._events + 1, CALIBRATION)) ** events
        self._recent_reward = fade * self._recent_reward + reward
        self._recent_expected = fade * self._recent_expected + expected
        if self._armed:
            self._statistics = self._after(self._statistics, group)
        if self._events // GROUP > (self._events - int(events)) // GROUP:
            self._statistics[self._former].clip(min=0.0, out=self._statistics[self._former])

    def _after(self, statistics: Array, group: Array) -> Array:
        """These statistics after a group: as if event by event (Lindley's recursion) in a log that is in order.

        In any other, as if all of it came at once, for silence after clicks would make every group look like a decline.
        And other models are not compared: clicks before the silence of their neighbours are waves. A short memory rides
        them better, and what has just been reset knows clicks alone.
        """
        sums, cusums = group[:, 3:]
        after: Array = statistics + sums
        if self.order.orderly:
            learn_along = slice(self._former.start)
            after[learn_along] = np.maximum(after[learn_along], cusums[learn_along])
        else:
            after = np.maximum(after, 0.0)
            after[len(DECLINES) :] = 0.0
        return after

    @property
    def _armed(self) -> bool:
        return self._events > ARMED_EVENTS and self._reward > ARMED_REWARD

    @property
    def alarm(self) -> int | None:
        """Which rival model the evidence speaks for, -1 for a decline; None while nothing speaks against the model.

        A former model goes first, the newest of several, for it knows the most; then a decline, for it is the surest.
        """
        if not self._armed:
            return None
        likely = (np.flatnonzero(self._foreseen() >= self._unlikely) - len(DECLINES)).tolist()
        if likely and likely[-1] > IMPATIENT:
            return int(likely[-1])
        return max(int(likely[0]), -1) if likely else None

    def _foreseen(self) -> Array:
        """The statistics with what waits to be judged, of a log that is in order; of any other, it would mislead."""
        if not self.order.orderly:
            return self._statistics
        statistics = self._statistics
        for group in self.order.waiting:
            statistics = self._after(statistics, group)
        return statistics

    def state(self) -> Array:
        """All that it knows but for what `order` does, as float64."""
        recent = (self._recent_reward, self._recent_expected)
        return np.array([self._events, self._reward, *recent, *self._statistics])

    def load(self, state: Array) -> None:
        self._events = int(state[0])
        self._reward, self._recent_reward, self._recent_expected = state[1:4].tolist()
        self._statistics = state[4:].copy()


def log_ratio(p: Array, q: Array, reward: Array) -> Array:
    """Log-likelihood ratio of the probabilities q to p, each (B,), for the rewards (B,) in [0, 1]."""
    p, q = np.clip(p, 1e-3, 0.999), np.clip(q, 1e-3, 0.999)
    ratio: Array = reward * np.log(q / p) + (1.0 - reward) * np.log((1.0 - q) / (1.0 - p))
    return ratio
