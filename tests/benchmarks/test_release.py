"""Plays releases: how long a harmful policy serves before it goes back, and a good one before it has all the traffic.

    make bench ARGS=tests/benchmarks/test_release.py

Users differ in how readily they click (Beta) and in how often they come (exponential). The policy adds its effect to
every user's click rate. The same verdicts, sums and shares as in the service; a look after every LOOK decisions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from service.evaluate.comparison import together
from service.evaluate.release import BUCKETS, Guard, ReleaseSums, Serving, look, steps_with_others

USERS, RATE, ALIKE = 20_000, 0.3, 4.0  # number, mean click rate, and the Beta's sum of parameters
STEPS = (0.05, 0.2, 0.5, 1.0)
MOST = 300_000  # decisions
LOOK = 500
DROP = 0.02
EFFECTS = (-0.15, -0.10, -0.05, -0.02, 0.0, 0.02, 0.05, 0.10)


@dataclass(frozen=True)
class Played:
    """What became of one release."""

    end: str  # done | rolled back | still running
    decisions: int  # of all users, until then
    exposed: int  # users whom the policy served
    lost: float  # expected clicks, by the policy's effect


def play(seed: int, effect: float, most: int) -> Played:
    """Play one release of a policy that adds `effect` to each user's click rate."""
    rng = np.random.default_rng(seed)
    place = rng.random(USERS)  # the policy serves those below its share
    rate = rng.beta(RATE * ALIKE, (1 - RATE) * ALIKE, USERS)
    cell = rng.integers(BUCKETS, size=USERS)
    often = rng.exponential(size=USERS)
    user = rng.choice(USERS, size=most, p=often / often.sum())
    luck = rng.random(most)
    with_it = np.clip(rate + effect, 0, 1)
    guard, error = Guard(reward_drop=DROP, lag=0), 1 - together(0.95, steps_with_others(STEPS))
    exposed, lost, shown = np.zeros(USERS, bool), 0.0, 0
    for share in STEPS[:-1]:
        sums = ReleaseSums("new", ["old"], start=shown)
        course = "wait"
        while course == "wait" and shown < most:
            these = slice(shown, shown + LOOK)
            who = user[these]
            new = place[who] < share
            reward = luck[these] < np.where(new, with_it[who], rate[who])
            exposed[who[new]] = True
            lost += float((rate - with_it)[who[new]].sum())
            sums.count(shown + np.arange(len(who)), (~new).astype(int), cell[who], reward.astype(float))
            shown += len(who)
            sums.begin(shown)
            sums.settle(shown)
            course = look(sums, guard, Serving(), error=error).course
        if course != "go on":
            end = "rolled back" if course == "go back" else "still running"
            return Played(end, shown, int(exposed.sum()), lost)
    return Played("done", shown, int(exposed.sum()), lost)


@pytest.mark.parametrize("effect", EFFECTS)
def test_releases(effect: float, quick: bool) -> None:
    runs = [play(seed, effect, 20_000 if quick else MOST) for seed in range(3 if quick else 200)]
    ends = {end: [run for run in runs if run.end == end] for end in ("rolled back", "done", "still running")}
    row = [f"{effect:+.2f}", *(f"{100 * len(some) / len(runs):.1f} %" for some in ends.values())]
    for end in ("rolled back", "done"):
        some = ends[end]
        of_these: list[list[float]] = [
            [run.decisions for run in some],
            [run.exposed for run in some],
            [run.lost for run in some],
        ]
        row += ["/".join(f"{np.quantile(x, q):,.0f}" for q in (0.5, 0.9)) if some else "-" for x in of_these]
    print("| " + " | ".join(row) + " |")
    if quick:
        return
    if effect >= 0:
        assert len(ends["rolled back"]) <= 0.05 * len(runs), "an equal policy goes back by chance too often"
    if effect <= -DROP:
        assert len(ends["done"]) <= 0.05 * len(runs), "a harmful policy gets through too often"
    if effect <= -0.1:
        assert len(ends["rolled back"]) == len(runs)
    if effect >= 0.05:
        assert len(ends["done"]) >= 0.95 * len(runs)  # the few users of the first step may be unlike the others
