"""Measures what is worth knowing of a user's neighbourhood in the world `friends`, and where all friends are alike.

make bench ARGS=tests/benchmarks/test_friends.py     # 5 seeds, 8 and 4 arms, about 5 minutes on 2 cores

In `friends` a visitor wants what those two of his friends take who know each other. In `alike` all his friends share
one taste. At the half, other friends know each other in half of the circles. Batches of 25 decisions; snapshots,
rewards and the fields of neighbourhoods are 25 decisions late; exploration floor .01; no schema is declared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from service.represent.graph import Tie, graph_fields
from simulator.shocks import find_shock
from simulator.world.friends import CATEGORIES, Friends
from tests.benchmarks.in_process import Around, Describe, in_parallel, oracle, run_in_process, shares_of_halves

STEPS, SEEDS, BATCH = 2000, (1, 2, 3, 4, 5), 25
QUICK_STEPS = 400
WALKS, LENGTH = 200, 4  # that are drawn from each user, and the steps of one


class Alike(Friends):
    """The same world, in which all four friends of a block share one taste: plain homophily decides."""

    same_tastes = True


PLACES = {"friends": Friends, "alike": Alike}
COUNTS = ("friends", "triangles", "clustering")


def fields_of(user: str, around: Around) -> dict[str, Any]:
    """Return all that the service computes, with a version."""
    ties = [Tie(friend, "friend", 1.0, 0) for friend in around.knows[user]]
    return graph_fields(ties, around.knows, around.takes, around.items)


def parts(*names: str) -> Describe:
    """Show these of the service's fields."""

    def describe(user: str, around: Around) -> Mapping[str, Any]:
        return {name: value for name, value in fields_of(user, around).items() if name in names}

    return describe


def message_passing(user: str, around: Around) -> Mapping[str, Any]:
    """Return two layers of means over neighbours: of shares of categories in what they took, and of degrees.

    Of the user himself the first layer holds nothing but his degree: he took nothing.
    """

    @cache
    def own(one: str) -> np.ndarray[Any, Any]:
        """Return (10,): shares of the categories among a user's takes, whether he took anything, and his degree."""
        levels = [level for take in around.takes[one] for path, level in around.items[take.item][1]]
        shares = np.array([levels.count(category) for category in CATEGORIES], dtype=float)
        return np.append(shares / max(len(levels), 1), [bool(levels), len(around.knows[one])])

    def mean(of: Callable[[str], np.ndarray[Any, Any]], one: str) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = np.mean([of(other) for other in sorted(around.knows[one])], axis=0)
        return found

    first = mean(own, user)
    second = mean(lambda one: mean(own, one), user)
    names = (*CATEGORIES, "took", "degree")
    return {
        "degree": len(around.knows[user]),
        "first": dict(zip(names, first.round(4).tolist(), strict=True)),
        "second": dict(zip(names, second.round(4).tolist(), strict=True)),
    }


def walk_shares(user: str, around: Around) -> dict[str, float]:
    """Return the share of each anonymous walk of `LENGTH` steps from a user, such as `01203`, by drawing.

    A node of an anonymous walk is named by when it was first met (arXiv:2501.18739).
    """
    draws = np.random.Generator(np.random.Philox(key=[len(user), int(user.partition("-")[2])]))
    seen: Counter[str] = Counter()
    for choices in draws.random((WALKS, LENGTH)).tolist():
        walk = [user]
        for choice in choices:
            others = sorted(around.knows[walk[-1]])
            walk.append(others[int(choice * len(others))])
        met: dict[str, int] = {}
        seen["".join(str(met.setdefault(one, len(met))) for one in walk)] += 1
    return {name: count / WALKS for name, count in sorted(seen.items())}


def walks(user: str, around: Around) -> Mapping[str, Any]:
    """Return the shares of anonymous walks, and what friends took."""
    return {**parts("took")(user, around), "walks": walk_shares(user, around)}


ARMS: dict[str, Describe | None] = {
    "no graph": None,
    "counts": parts(*COUNTS),
    "what friends took": parts("took"),
    "counts, what friends took": parts(*COUNTS, "took"),
    "message passing, two layers": message_passing,
    "shares of anonymous walks, what friends took": walks,
    "what friends in triangles took": parts("circle"),
    "all, as the service does": fields_of,
}


ALIKE = ("no graph", "what friends took", "message passing, two layers", "all, as the service does")
OF_PLACES: dict[str, tuple[str, ...]] = {"friends": tuple(ARMS), "alike": ALIKE}


class Job(NamedTuple):
    """One run of `adaptive`."""

    place: str
    arm: str
    seed: int
    steps: int


def play(job: Job) -> list[float]:
    """Return the shares of the oracle: of the half before the ties are cut, its last fifth, and of the half after."""
    shock = job.steps // 2
    world = PLACES[job.place](job.seed, [(shock, find_shock("friends", "ties-cut"))])
    run = run_in_process(
        "adaptive",
        {},
        world=world,
        steps=job.steps,
        snapshot_period=BATCH,
        reward_delay=BATCH,
        fits=True,
        describe=ARMS[job.arm],
    )
    return shares_of_halves(run.expected, oracle(world, job.steps))


def table_of(found: Mapping[Job, list[float]], place: str, seeds: Collection[int], steps: int) -> Table:
    """Show means over the seeds, and standard deviations."""
    table = Table(f"{place}: fields of the neighbourhood", "before", "its last fifth", "after", "its last fifth")
    for arm in OF_PLACES[place]:
        shares = np.array([found[Job(place, arm, seed, steps)] for seed in seeds])  # (seeds, 4)
        cells = zip(shares.mean(axis=0), shares.std(axis=0), strict=True)
        table.add_row(arm, *(f"{mean:.3f} ± {sd:.3f}" for mean, sd in cells))
    return table


def test_share_of_the_oracle(quick: bool) -> None:
    steps = QUICK_STEPS if quick else STEPS
    seeds = SEEDS[:1] if quick else SEEDS
    found = dict(
        in_parallel(
            play, [Job(place, arm, seed, steps) for seed in seeds for place, arms in OF_PLACES.items() for arm in arms]
        )
    )
    for place in PLACES:
        Console(width=130).print(table_of(found, place, seeds, steps))

    def in_the_end(place: str, arm: str) -> float:
        return float(np.mean([found[Job(place, arm, seed, steps)][3] for seed in seeds]))

    if not quick:
        assert in_the_end("friends", "all, as the service does") > 1.3 * in_the_end("friends", "what friends took")
        assert in_the_end("alike", "what friends took") > 2 * in_the_end("alike", "no graph")
