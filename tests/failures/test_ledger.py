"""The ledger against a model of it: hypothesis looks for the story in which they differ.

The service's own use cases, scripts, sweeper and learner work on a real Redis. Time passes as the model says, for open
time is the time of Redis less what stands there as closed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from service.admin.audit import audit_learning
from service.decide.active import ActiveLoop
from service.errors import ReboundError
from service.learn.sweeper import Sweeper
from service.records import START, Event
from service.serve.feedback import FeedbackJoiner
from service.serve.misfit_counter import MisfitCounter
from service.serve.recommend import Recommender
from service.serve.release_counter import ReleaseCounter
from service.settings import Settings
from service.store import event_log, policy_store
from service.store.connection import connect
from service.store.decisions import DecisionWriter
from service.store.group_commit import GroupCommit
from service.store.keys import OPEN
from tests.builders import loop_of, policy_of, store_loop
from tests.decide.builders import ENCODER, active_of
from tests.learn.running import opened
from tests.serve.stand_ins import Follows, NoActivity, NoLimits

T = TypeVar("T")

AGGREGATIONS = ("first", "sum", "max", "last")
POLICY = "popularity"
SETTINGS = Settings(publish_period_ms=60_000)
WAIT, EARLY, DEFAULT = 602.5, 62.5, 0.125
LOOP: dict[str, Any] = {"wait_time": WAIT, "early_time": EARLY, "default_reward": DEFAULT}
STEPS = (30.0, 65.0, 605.0)  # no sum of them comes near WAIT or EARLY, however slow the machine is


class Sent(NamedTuple):
    """One report, or, without a reward, a display."""

    item: str | None = None
    reward: float | None = None
    key: str | None = None
    replaces: str | None = None


# ---- the model


@dataclass
class Made:
    """A decision, and what came of it."""

    slate: Sequence[str]
    aggregation: str
    displayed: bool
    deadline: float
    settled: bool = False
    keys: dict[str, Sent] = field(default_factory=dict)  # of all reports seen
    items: set[str] = field(default_factory=set)  # on which reports were seen
    turns: list[Sent] = field(default_factory=list)  # the reports that count, a correction in the place of its report
    learned: set[str] = field(default_factory=set)  # items


class Model:
    """What docs/api.md promises, in the plainest words."""

    def __init__(self) -> None:
        self.now = 1e6
        self.made: dict[str, Made] = {}
        self.early: dict[str, list[tuple[float, Sent]]] = {}  # with the time at which each is given up
        self.events: Counter[tuple[str, str, float, str]] = Counter()
        self.counts: Counter[str] = Counter()

    def decide(self, name: str, slate: Sequence[str], aggregation: str, displayed: bool) -> None:
        if name in self.made:
            return
        made = self.made[name] = Made(slate, aggregation, displayed, self.now + WAIT)
        self.counts["decisions"] += 1
        self._give_up(name)
        waiting = [sent for _, sent in self.early.pop(name, [])]
        while waiting:  # a correction waits for what it corrects
            ready = (sent for sent in waiting if sent.replaces is None or sent.replaces in made.keys)
            waiting.remove(sent := next(ready, waiting[0]))
            self.tell(name, sent)

    def tell(self, name: str, sent: Sent) -> str:
        if name not in self.made:
            self.early.setdefault(name, []).append((self.now + EARLY, sent))
            answer = "early"
        elif sent.reward is None:
            return self._display(self.made[name])
        else:
            answer = self._report(name, self.made[name], sent)
        self.counts[answer if answer in ("early", "accepted", "duplicate", "late") else "rejected"] += 1
        return answer

    def _over(self, made: Made) -> bool:
        return made.settled or self.now > made.deadline

    def _display(self, made: Made) -> str:
        if not made.displayed:
            if self._over(made):
                return "display_too_late"
            made.displayed, made.deadline = True, self.now + WAIT
        return "displayed"

    def _report(self, name: str, made: Made, sent: Sent) -> str:
        first, late = made.aggregation == "first", self._over(made)
        if sent.item not in (None, *made.slate):
            return "invalid_request"
        if sent.key in made.keys:
            return "duplicate"
        if sent.replaces is not None:
            if first or late:
                return "already_learned"
            if (former := made.keys.get(sent.replaces)) is None:
                return "unknown_feedback"
            if former not in made.turns:
                return "already_replaced"
            if sent.item not in (None, former.item):
                return "invalid_request"
            sent = sent._replace(item=former.item)
            made.turns[made.turns.index(former)] = sent
            self.counts["replaced"] += 1
        else:
            sent = sent._replace(item=sent.item or made.slate[0])
            if first and ((sent.item in made.learned and not late) or (sent.key is None and sent.item in made.items)):
                return "duplicate"
            if not late:
                self._display(made)
                made.turns.append(sent)
        assert sent.item is not None
        made.items.add(sent.item)
        if sent.key is not None:
            made.keys[sent.key] = sent
        if first and not late:
            self._learn(name, sent.item)
        return "late" if late else "accepted"

    def _learn(self, name: str, item: str) -> None:
        made = self.made[name]
        rewards = [sent.reward for sent in made.turns if sent.item == item and sent.reward is not None]
        reward = DEFAULT
        if rewards:
            one = {"first": rewards[0], "sum": min(sum(rewards), 1.0), "max": max(rewards), "last": rewards[-1]}
            reward = one[made.aggregation]
        self.events[name, item, reward, "feedback" if rewards else "default"] += 1
        made.learned.add(item)

    def sweep(self) -> None:
        for name, made in self.made.items():
            if self._over(made) and not made.settled:
                made.settled = True
                self.counts["undisplayed"] += not made.displayed
                for item in made.slate if made.displayed else ():
                    if item not in made.learned:
                        self._learn(name, item)
        for name in self.early:
            self._give_up(name)

    def _give_up(self, name: str) -> None:
        kept = self.early.get(name, [])
        self.early[name] = [one for one in kept if self.now <= one[0]]
        self.counts["unknown"] += len(kept) - len(self.early[name])


# ---- the service


class Worker:
    """Takes requests as an API worker does, over a connection and a group commit of its own."""

    def __init__(self, redis_url: str) -> None:
        self.redis = connect(redis_url, name="test", timeout_s=5)
        self._commit = GroupCommit(self.redis)

    def follow(self, active: ActiveLoop) -> None:
        follower, writer = Follows(active), DecisionWriter(self._commit, buffer=0)
        misfits, released = MisfitCounter(self.redis), ReleaseCounter(self.redis)
        self._recommender = Recommender(follower, writer, misfits, NoActivity(), NoLimits(), released, SETTINGS)
        self._joiner, self._loop = FeedbackJoiner(follower, self._commit), active.name

    async def decide(self, name: str, k: int, displayed: bool) -> list[str]:
        """Return the slate."""
        decision, degraded = await self._recommender.recommend(self._loop, decision_id=name, k=k, displayed=displayed)
        assert not degraded
        return [item.id for item in decision.items]

    async def tell(self, name: str, sent: Sent) -> str:
        """Return the answer, or the code of the error."""
        item, reward, key, replaces = sent
        try:
            if reward is None:
                return await self._joiner.display(name, loop=self._loop)
            return await self._joiner.join(
                name, reward, item_id=item, feedback_id=key, replaces=replaces, loop=self._loop
            )
        except ReboundError as error:
            return error.code


NAMES = st.sampled_from(["d", "d", "e"])
ITEMS = st.sampled_from([None, None, "p0", "p1", "p2"])
REWARDS = st.sampled_from([0.25, 0.5, 1.0])
REPORTS = st.builds(Sent, ITEMS, REWARDS, st.sampled_from([None, "f", "g"]), st.none())
CORRECTIONS = st.builds(Sent, ITEMS, REWARDS, st.sampled_from(["g", "h"]), st.just("f"))
LATER_CORRECTIONS = st.builds(Sent, st.none(), REWARDS, st.just("h"), st.just("g"))
SENT = st.one_of(REPORTS, REPORTS, CORRECTIONS, LATER_CORRECTIONS, st.just(Sent()))


async def at_once(*work: Awaitable[Any]) -> list[Any]:
    return list(await asyncio.gather(*work))


class Ledger(RuleBasedStateMachine):
    """Each step is done by the service and by the model; what is answered must be the same."""

    runner: asyncio.Runner
    workers: tuple[Worker, Worker]

    def __init__(self) -> None:
        super().__init__()
        self.model, self.redis, self.agreed = Model(), self.workers[0].redis, True

    def do(self, work: Awaitable[T]) -> T:
        return self.runner.run(self._at_its_time(work))

    async def _at_its_time(self, work: Awaitable[T]) -> T:
        seconds, micros = await self.redis.time()
        await self.redis.hset(OPEN, "closed", round(1000 * (seconds + micros / 1e6 - self.model.now)))
        return await work

    def check(self, found: object, expected: object) -> None:
        self.agreed = found == expected
        assert found == expected

    @initialize(displayed=st.booleans(), aggregation=st.sampled_from(AGGREGATIONS))
    def begin(self, displayed: bool, aggregation: str) -> None:
        self.runner.run(self._begin())
        self.decide("d", 2, displayed, aggregation)

    async def _begin(self) -> None:
        record = replace(loop_of(d=ENCODER.d, **LOOP), encoder=ENCODER.version)
        self.keys = await store_loop(self.redis, record)
        await policy_store.create_policy(self.redis, self.keys, policy_of(POLICY))
        self.learner = await opened(self.redis, self.keys, SETTINGS, POLICY)

    def follow(self, aggregation: str) -> None:
        self.aggregation = aggregation
        active = active_of(3, name=self.keys.loop, **{**LOOP, "aggregation": aggregation})
        for worker in self.workers:
            worker.follow(replace(active, id=self.keys.id))

    @rule(name=NAMES, k=st.integers(1, 2), displayed=st.booleans(), aggregation=st.sampled_from(AGGREGATIONS))
    def decide(self, name: str, k: int, displayed: bool, aggregation: str) -> None:
        """By other settings each time; a decision keeps those under which it was made."""
        self.follow(aggregation)
        slate = self.do(self.workers[0].decide(name, k, displayed))
        self.model.decide(name, slate, aggregation, displayed)
        self.check(slate, self.model.made[name].slate)

    @rule(name=NAMES, several=st.lists(SENT, min_size=1, max_size=5))
    def tell(self, name: str, several: list[Sent]) -> None:
        answers = self.do(at_once(*(self.workers[0].tell(name, sent) for sent in several)))
        self.check(answers, [self.model.tell(name, sent) for sent in several])

    @rule(name=NAMES, sent=SENT)
    def tell_two_workers(self, name: str, sent: Sent) -> None:
        answers = self.do(at_once(*(worker.tell(name, sent) for worker in self.workers)))
        self.check(Counter(answers), Counter(self.model.tell(name, sent) for _ in self.workers))

    @rule(name=NAMES, displayed=st.booleans(), sent=SENT)
    def decide_and_tell_at_once(self, name: str, displayed: bool, sent: Sent) -> None:
        one, other = self.workers
        slate, answer = self.do(at_once(one.decide(name, 2, displayed), other.tell(name, sent)))
        if answer == "early":
            self.check(answer, self.model.tell(name, sent))
        self.model.decide(name, slate, self.aggregation, displayed)
        if answer != "early":
            self.check(answer, self.model.tell(name, sent))

    @rule(seconds=st.sampled_from(STEPS), forget=st.booleans(), crash=st.booleans())
    def wait_and_sweep(self, seconds: float, forget: bool, crash: bool) -> None:
        """Two sweep at once, as while one learner takes over from another. Then what is in the log is learned."""
        self.wait(seconds)
        self.do(at_once(*(Sweeper(worker.redis, self.keys).step() for worker in self.workers)))
        self.model.sweep()
        if forget:
            self._forget()
        if not crash:
            self.do(self.learner.drain())
        elif self.do(event_log.read(self.redis, self.keys, self.learner._trainer.position)):
            self.do(self.learner.step())  # without a checkpoint
            self.learner = self.do(opened(self.redis, self.keys, SETTINGS, POLICY))

    @rule(seconds=st.sampled_from(STEPS))
    def wait(self, seconds: float) -> None:
        self.model.now += seconds

    def _forget(self) -> None:
        """The ledger time of what is settled is over."""
        for name in [name for name, made in self.model.made.items() if made.settled]:
            key = self.keys.partition().decision(name)
            assert self.do(self.redis.pttl(key)) > 0
            self.do(self.redis.delete(key))
            del self.model.made[name]

    def teardown(self) -> None:
        if self.agreed:
            self.runner.run(self._end())

    async def _end(self) -> None:
        """All is settled and learned; then log, counters and what was learned are as the model says."""
        self.model.now += WAIT + EARLY
        await self._at_its_time(Sweeper(self.redis, self.keys).step())
        self.model.sweep()
        await self.learner.drain()
        events = [one for one in await event_log.read(self.redis, self.keys, START) if isinstance(one, Event)]
        assert Counter((one.decision_id, one.item, one.reward, one.source) for one in events) == self.model.events
        assert sorted(one.slate_position or 0 for one in events) == list(range(len(events)))
        counts = await event_log.read_stats(self.redis, self.keys)
        expected = {"joined" if name == "accepted" else name: count for name, count in self.model.counts.items()}
        expected |= {"events": len(events), "defaulted": sum(one.source == "default" for one in events)}
        assert {name: counts.get(name, 0) for name in expected} == expected
        assert (counts["pending"], counts["early_waiting"]) == (0, 0)
        part = self.keys.partition()
        assert not await self.redis.exists(part.pending, part.early_due, *map(part.early, self.model.early))
        learned = await policy_store.read_policy(self.redis, self.keys, POLICY)
        assert learned.events == len(events)
        assert await audit_learning(self.redis, self.keys.loop) == {POLICY: True}


def test_no_story_makes_the_ledger_differ_from_its_model(quiet_redis_url: str, size: float) -> None:
    with asyncio.Runner() as runner:
        workers = (Worker(quiet_redis_url), Worker(quiet_redis_url))
        machine = type("On", (Ledger,), {"runner": runner, "workers": workers})
        examples = 1000 if size >= 1 else 20
        run_state_machine_as_test(machine, settings=hypothesis.settings(max_examples=examples, stateful_step_count=30))
        for worker in workers:
            runner.run(worker.redis.aclose())
