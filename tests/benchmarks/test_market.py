"""Measures the funnel in the world `market` beside the exact scoring of all items, before and after two shocks.

make bench ARGS='tests/benchmarks/test_market.py'   # 10 000 items, 3 seeds, 1 000 decisions
make bench ARGS='tests/benchmarks/test_market.py --items 100000 --steps 50000 --seeds 1-5'

In one process, without HTTP and Redis: see `in_process.py`. A decision is a page of 10 items. Decisions are spread over
the day as in the world. Snapshots of the policy and counts of the funnel are made every 25 decisions; rewards are 25 to
50 decisions late. Tastes move at two fifths of the run, a tenth of the catalogue is replaced at seven tenths.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np
import orjson
import pytest
from rich.console import Console
from rich.table import Table

from service.decide.active import ActiveLoop
from service.decide.catalogue import Catalogue
from service.decide.decision import Request, decide
from service.funnel import Funnel
from service.learn.trainer import Trainer
from service.loop import LoopSettings
from service.policies import Array
from service.records import Decision, Event, ItemChange, PolicyRecord
from service.represent.encoder import Encoder
from service.represent.schema import FeatureSchema
from service.retrieve.counts import Counts
from service.retrieve.retriever import Retriever
from simulator.shocks import find_shock
from simulator.world.market import SLATE, TURNOVER, Market, sized
from tests.benchmarks.in_process import LOOP, apply, in_parallel, timed
from tests.benchmarks.test_shapes_of_data import chosen_seeds

ITEMS, STEPS, SEEDS = 10_000, 1000, (1, 2, 3)
QUICK_ITEMS, QUICK_STEPS = 1000, 300
BATCH = 25
DAY_S = 86_400
MOVE, RENEWAL = 0.4, 0.7  # of the run
PARTS = ("before", "its last fifth", "tastes moved", "its last fifth", "renewed", "its last fifth")


class Arm(NamedTuple):
    """One column of the comparison."""

    kind: str
    params: Mapping[str, Any] = {}
    sources: tuple[str, ...] = ()  # of the world's funnel; none: every item is scored
    floor: float = 0.01


# A further arm, such as a funnel with learned embeddings, is a line here.
ARMS = {
    "funnel": Arm("adaptive", sources=("popular", "fresh", "random", "ann")),
    "funnel, no vectors": Arm("adaptive", sources=("popular", "fresh", "random")),
    "funnel, no exploration": Arm("adaptive", {"alpha": 0.0}, ("popular", "ann"), floor=0.0),
    "popularity": Arm("popularity"),
    "exact": Arm("adaptive"),
}


class Job(NamedTuple):
    """One run."""

    arm: str
    seed: int
    items: int
    steps: int


class Outcome(NamedTuple):
    """What became of a run."""

    gains: list[float]  # of PARTS
    shares: list[float]  # of the oracle
    new_shown: float  # share of the new items that were shown within their first day
    new_pages: float  # share of all places that went to items in their first day
    new_rate: float  # mean click rate where they did
    rate: float  # mean click rate of all that was shown
    decide_us: float  # microseconds of CPU a decision


class Shop:
    """A loop that serves one arm, with what lies between decisions and learning simulated."""

    def __init__(self, arm: Arm, world: Market) -> None:
        self._arm, self._world = arm, world
        self._encoder = Encoder(FeatureSchema.model_validate(world.schema))
        self._record = PolicyRecord(name=arm.kind, id=arm.kind, kind=arm.kind, params=arm.params, seed=world.seed)
        self._trainer = Trainer(
            self._record,
            d=self._encoder.d,
            reward_range=(0.0, 1.0),
            encoder=self._encoder.version,
            schema=self._encoder.schema.model_dump(mode="json"),
        )
        sources = [one for one in world.funnel["sources"] if one["source"] in arm.sources]
        self._funnel = Funnel.model_validate({"sources": sources, "cut": world.funnel["cut"]})
        self._counts, self._version, self._changed = Counts(), 1, list[str]()
        self._on_offer = world.catalogue(0)
        served, _ = timed(self._record, 1, self._trainer)
        written = {item.id: orjson.dumps(item.features) for item in self._on_offer.items}
        self._active = ActiveLoop(
            name=LOOP,
            id=LOOP,
            settings=LoopSettings(exploration_floor=arm.floor),
            encoder=self._encoder,
            catalogue=Catalogue.written(1, written, [self._encoder]),
            traffic={arm.kind: 1.0},
            served={arm.kind: served},
            epoch=1,
        )
        assert len(self._active.catalogue.whole) == world.n  # every change is put together from now on
        self._retrieve(changed=None)
        self.seconds = 0.0

    def learn(self, events: list[Event]) -> None:
        """Take rewards, and serve what they teach."""
        self._version += 1
        apply(self._trainer, events, 0)
        served, _ = timed(self._record, self._version, self._trainer)
        self._active = replace(self._active, served={self._arm.kind: served})
        self._counts.add(events)
        self._retrieve(changed=())

    def stock(self, step: int) -> list[str]:
        """Take the changes of the catalogue; return the new items."""
        offered = self._world.catalogue(step)
        if offered is self._on_offer:
            return []
        before, self._on_offer = self._on_offer, offered
        new = [item for row, item in enumerate(offered.items.ids) if before.items.ids[row] != item]  # type: ignore[attr-defined]
        gone = [item for row, item in enumerate(before.items.ids) if offered.items.ids[row] != item]  # type: ignore[attr-defined]
        version = self._active.catalogue.version + 1
        changes: dict[str, bytes | None] = dict.fromkeys(gone)
        changes |= {item: orjson.dumps(offered.items[offered.row[item]].features) for item in new}
        self._active = replace(
            self._active, catalogue=self._active.catalogue.changed(version, changes, [self._encoder])
        )
        self._counts.follow(
            [ItemChange(version, item, was=text is None, now=text is not None) for item, text in changes.items()]
        )
        self._retrieve(changed=list(changes))
        return new

    def decide(self, step: int) -> tuple[Decision, Array]:
        """Make a page."""
        visit = self._world.visit_of(self._world.user_at(step))
        asked = Request(f"{self._world.seed}-{step}", visit.user_id, visit.context, None, (), SLATE)
        started = time.process_time()
        found = decide(asked, self._active, at=step * DAY_S / self._world.day)
        self.seconds += time.process_time() - started
        return found

    def _retrieve(self, changed: list[str] | tuple[str, ...] | None) -> None:
        if not self._funnel:
            return
        catalogue = self._active.catalogue
        made = Retriever.of(
            self._funnel,
            catalogue.ids,
            catalogue.features,
            self._counts,
            version=self._version,
            catalogue=catalogue.version,
            former=self._active.retriever,
            changed=changed,
        )
        self._active = replace(self._active, retriever=made)


def world_of(job: Job) -> Market:
    at = {"taste-move": MOVE, "renewal": RENEWAL}
    shocks = [(int(share * job.steps), find_shock("market", name)) for name, share in at.items()]
    return sized(job.items)(job.seed, shocks)


def play(job: Job) -> Outcome:
    world = world_of(job)
    shop, shown = Shop(ARMS[job.arm], world), np.zeros((job.steps, SLATE))
    waiting: list[list[Event]] = [[], []]  # of the last two batches
    born: dict[str, int] = {}  # new items, and the step
    seen: set[str] = set()
    is_new = np.zeros((job.steps, SLATE), dtype=np.bool_)
    for step in range(job.steps):
        if step % BATCH == 0:
            due, *waiting = [*waiting, []]
            if due:
                shop.learn(due)
        fresh = shop.stock(step)
        if step % world.day == 0:  # a shock's are left out: they are too many for a day
            born |= dict.fromkeys(fresh, step)
        decision, rows = shop.decide(step)
        moment = world.at(step)
        ms = int(1000 * DAY_S * (step + BATCH) / world.day)
        for place, (item, row) in enumerate(zip(decision.items, rows, strict=True)):
            shown[step, place], reward = moment.outcome(item.id)
            if step < born.get(item.id, -world.day) + world.day:
                is_new[step, place] = True
                seen.add(item.id)
            waiting[-1].append(event_of(decision, place, row, reward, ms))
    best, chance = world.bounds(0, job.steps)
    pages = shown.mean(axis=1)
    parts = parts_of(job.steps)
    whole_day = {item for item, step in born.items() if step + world.day <= job.steps}
    return Outcome(
        [float((pages[of] - chance[of]).sum() / (best[of] - chance[of]).sum()) for of in parts],
        [float(pages[of].sum() / best[of].sum()) for of in parts],
        len(seen & whole_day) / max(1, len(whole_day)),
        float(is_new[world.day :].mean()) if job.steps > world.day else 0.0,
        float(shown[is_new].mean()) if is_new.any() else float("nan"),
        float(pages.mean()),
        1e6 * shop.seconds / job.steps,
    )


def event_of(decision: Decision, place: int, row: Array, reward: float, ms: int) -> Event:
    item = decision.items[place]
    return Event(
        position=f"{ms}-{place}",
        decision_id=decision.decision_id,
        item=item.id,
        user=decision.user_id,
        context=decision.context,
        x=row,
        n=decision.n,
        propensity=item.propensity,
        policy=decision.policy,
        version=decision.version,
        reward=reward,
        source="feedback",
        slate_position=place,
        encoder=decision.encoder,
    )


def parts_of(steps: int) -> list[slice]:
    """Return the steps of PARTS."""
    ends = [0, int(MOVE * steps), int(RENEWAL * steps), steps]
    found = []
    for start, end in pairwise(ends):
        found += [slice(start, end), slice(end - (end - start) // 5, end)]
    return found


def spread(values: list[float]) -> str:
    return f"{np.median(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def test_market(quick: bool, request: pytest.FixtureRequest) -> None:
    option = request.config.getoption
    items = QUICK_ITEMS if quick else option("--items") or ITEMS
    steps = QUICK_STEPS if quick else option("--steps") or STEPS
    seeds = SEEDS[:1] if quick else chosen_seeds(option("--seeds")) if option("--seeds") else SEEDS
    arms = option("--arm") or list(ARMS)
    jobs = [
        Job(arm, seed, items, steps) for arm, seed in product(reversed(arms), seeds)
    ]  # those that take longest first
    console, found = Console(width=150), dict[Job, Outcome]()
    for job, outcome in in_parallel(play, jobs, processes=option("--processes")):
        found[job] = outcome
        print(job, outcome, flush=True)  # a full run takes hours
    of_arm = {arm: [found[Job(arm, seed, items, steps)] for seed in seeds] for arm in arms}
    for what in ("gains", "shares"):
        table = Table("arm", *PARTS, title=f"{what}, medians of {len(seeds)} seeds (smallest-largest)")
        for arm, outcomes in of_arm.items():
            rows = np.array([getattr(one, what) for one in outcomes]).T.tolist()
            table.add_row(arm, *map(spread, rows))
        console.print(table)
    allowed = sized(items).day * SLATE / (items // TURNOVER)
    console.print(f"impressions of a day for each new item, if all went to these: {allowed:.0f}")
    table = Table("arm", "new items shown in their first day", "places they got", "their rate", "rate of all", "ms")
    for arm, outcomes in of_arm.items():
        of_new = [spread([getattr(one, name) for one in outcomes]) for name in Outcome._fields[2:6]]
        table.add_row(arm, *of_new, f"{np.median([one.decide_us for one in outcomes]) / 1000:.2f}")
    console.print(table)
    if {"exact", "popularity", "funnel"} <= of_arm.keys():
        exact, popularity, funnel = (
            np.median([one.gains for one in of_arm[arm]], axis=0) for arm in ("exact", "popularity", "funnel")
        )
        console.print(f"the funnel's gain is {funnel[0] / exact[0]:.3f} of the reference's before the shock,")
        console.print(", ".join(f"{ratio:.3f} {part}" for ratio, part in zip(funnel / exact, PARTS, strict=True)))
        if not quick:
            assert exact[1] >= 0.3, "the costly reference learns too little: the comparison does not count"
            assert exact[1] >= 2 * popularity[1], "popularity is too good: the comparison does not count"
