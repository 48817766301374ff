"""What becomes of a decision, by the scripts themselves: stored, joined, settled; and while Redis is gone, kept."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from service.errors import NotFound, StoreUnavailable
from service.loop import LoopSettings
from service.records import START, Decision, Event
from service.store import event_log
from service.store.codec import FORMAT, NewerFormat, read_decision
from service.store.decisions import (
    DecisionWriter,
    PendingDecision,
    join_feedback,
    read_ledger,
    read_stored_decision,
    settle_due,
)
from service.store.group_commit import GroupCommit
from service.store.keys import Keys
from tests.builders import D, decision_of, loop_of, store_decisions, store_loop
from tests.waiting import until_async

pytestmark = pytest.mark.anyio
FIRST = LoopSettings()


def pending(keys: Keys, decision: Decision, wait_ms: int = 60_000) -> PendingDecision:
    return PendingDecision(
        keys, decision, np.zeros((len(decision.items), D), np.float32), [{}] * len(decision.items), wait_ms
    )


async def logged(redis: Redis, keys: Keys) -> list[Event]:
    return [event for event in await event_log.read(redis, keys, START) if isinstance(event, Event)]


async def settle(redis: Redis, keys: Keys, n: int, settings: LoopSettings = FIRST) -> None:
    """Settle until n events were appended."""
    commit, appended = GroupCommit(redis), 0
    async with asyncio.timeout(20):
        while appended < n:
            appended += await settle_due(redis, commit, keys, settings)


async def join(
    redis: Redis,
    keys: Keys,
    decision_id: str,
    reward: float,
    *,
    item: str = "",
    feedback_id: str = "",
    settings: LoopSettings = FIRST,
    **more: Any,
) -> str:
    return await join_feedback(
        GroupCommit(redis),
        keys,
        settings,
        decision_id=decision_id,
        item=item,
        reward=reward,
        feedback_id=feedback_id,
        **more,
    )


# ---- what is in the log


async def test_events_know_the_order_in_which_items_were_shown(redis: Redis, keys: Keys) -> None:
    for name, items in (("first", "ab"), ("second", "c"), ("first", "ab"), ("third", "abc")):  # one of them twice
        await store_decisions(redis, keys, decision_of(name, items), wait_ms=1 if name == "second" else 300)
    for name, item in (("third", "b"), ("first", "a")):
        assert await join(redis, keys, name, 1.0, item=item, feedback_id=f"{name}-{item}") == "accepted"
    await settle(redis, keys, 4)
    found = [(event.decision_id, event.item, event.source, event.slate_position) for event in await logged(redis, keys)]
    assert [event for event in found if event[2] == "feedback"] == [
        ("third", "b", "feedback", 4),
        ("first", "a", "feedback", 0),
    ]
    assert sorted(event for event in found if event[2] == "default") == [
        ("first", "b", "default", 1),
        ("second", "c", "default", 2),
        ("third", "a", "default", 3),
        ("third", "c", "default", 5),
    ]


async def test_an_event_carries_all_that_learning_needs(redis: Redis, keys: Keys) -> None:
    decision = decision_of("d", "ab", user_id="u", context={"hour": 3}, policy="linucb", version=7)
    rows = np.arange(2 * D, dtype=np.float32).reshape(2, D)
    await DecisionWriter(GroupCommit(redis), buffer=0).append(
        PendingDecision(keys, decision, rows, [{}, {"price": 0.1 + 0.2}], 60_000)
    )
    assert await join(redis, keys, "d", 0.1 + 0.2, item="b") == "accepted"
    [event] = await logged(redis, keys)
    assert (event.item, event.user, event.context, event.policy, event.version) == ("b", "u", {"hour": 3}, "linucb", 7)
    assert event.n == 8, "of the nine candidates one was gone when the second place was drawn"
    assert event.reward == 0.1 + 0.2
    assert event.x.tolist() == rows[1].tolist()
    assert (event.features, event.encoder) == ({"price": 0.1 + 0.2}, decision.encoder)


async def test_decisions_from_before_there_were_slate_positions_are_joined_and_settled(
    redis: Redis, keys: Keys
) -> None:
    for name, wait_ms in (("joined", 60_000), ("settled", 1)):
        await store_decisions(redis, keys, decision_of(name), wait_ms=wait_ms)
        await redis.hdel(keys.partition().decision(name), "place")
    await join(redis, keys, "joined", 1.0)
    await settle(redis, keys, 1)
    found = [(event.decision_id, event.source, event.slate_position) for event in await logged(redis, keys)]
    assert found == [("joined", "feedback", None), ("settled", "default", None)]


# ---- feedback


async def test_every_answer_that_feedback_can_get(redis: Redis, keys: Keys) -> None:
    await store_decisions(redis, keys, decision_of("d", "ab"))
    await store_decisions(redis, keys, decision_of("over"), wait_ms=0)
    await settle(redis, keys, 1)
    assert await join(redis, keys, "d", 1.0, feedback_id="f") == "accepted"
    assert await join(redis, keys, "d", 1.0, feedback_id="f") == "duplicate"
    assert await join(redis, keys, "d", 1.0) == "duplicate"
    assert await join(redis, keys, "d", 1.0, item="b") == "accepted"
    assert await join(redis, keys, "d", 1.0, item="c") == "not_in_slate"
    assert await join(redis, keys, "never", 1.0) == "unknown"
    assert await join(redis, keys, "over", 1.0, feedback_id="f") == "late"
    assert await join(redis, keys, "over", 1.0, feedback_id="f") == "duplicate"
    stats = await event_log.read_stats(redis, keys)
    assert {name: stats[name] for name in ("joined", "duplicate", "late", "rejected", "defaulted", "events")} == {
        "joined": 2,
        "duplicate": 3,
        "late": 1,
        "rejected": 2,
        "defaulted": 1,
        "events": 3,
    }
    assert [(event.decision_id, event.source) for event in await logged(redis, keys)] == [
        ("over", "default"),
        ("d", "feedback"),
        ("d", "feedback"),
    ]


async def test_feedback_beyond_a_thousand_is_refused(redis: Redis, keys: Keys) -> None:
    settings = LoopSettings(aggregation="last")
    await store_decisions(redis, keys, decision_of("d"), aggregation="last")
    commit = GroupCommit(redis)
    answers = await asyncio.gather(
        *(
            join_feedback(commit, keys, settings, decision_id="d", item="", reward=1.0, feedback_id=f"f{number}")
            for number in range(1001)
        )
    )
    assert (answers.count("accepted"), answers.count("too_many")) == (1000, 1)


async def test_early_reports_are_kept_up_to_a_bound(redis: Redis, keys: Keys) -> None:
    part = keys.partition()

    async def early(name: str) -> str:
        return await join(redis, keys, name, 1.0, early_ms=60_000)

    await redis.rpush(part.early("d"), *["kept"] * 999)
    assert [await early("d"), await early("d"), await early("e")] == ["early", "too_many", "early"]
    await redis.hset(part.stats, "early", 10_000 - 1)
    assert [await early("e"), await early("e")] == ["early", "too_many_early"]
    await redis.hset(part.stats, mapping={"found": 600, "unknown": 400})
    assert await early("e") == "early"
    assert (await event_log.read_stats(redis, keys))["rejected"] == 2


@pytest.mark.parametrize("counted", [None, 1])
async def test_a_report_is_found_by_its_key_whatever_version_wrote_it(
    redis: Redis, keys: Keys, counted: int | None
) -> None:
    """Versions before counted no reports: they wrote 1 under each key."""
    await store_decisions(redis, keys, decision_of("d"), aggregation="sum")
    for number in range(4):
        assert await join(redis, keys, "d", 0.125, feedback_id=f"f{number}") == "accepted"
        if counted is not None:
            await redis.hset(keys.partition().decision("d"), f"id:f{number}", counted)
    for number in (3, 0):
        answer = await join(redis, keys, "d", 0.5, feedback_id=f"c{number}", replaces=f"f{number}")
        assert answer == "accepted"
    seen = (await read_ledger(redis, keys, "d"))["feedback"]
    assert [one["status"] for one in seen] == ["replaced", "accepted", "accepted", "replaced", "accepted", "accepted"]
    assert await join(redis, keys, "d", 0.5, feedback_id="x", replaces="f4") == "unknown_feedback"


async def test_early_corrections_are_joined_in_time_that_grows_with_their_number(quiet_redis: Redis) -> None:
    """Each corrects the one before: Redis serves nobody else meanwhile."""
    n, keys = 200, await store_loop(quiet_redis, loop_of())

    async def reads() -> int:
        return int((await quiet_redis.info("commandstats")).get("cmdstat_hget", {"calls": 0})["calls"])

    for number in range(n):
        await join(
            quiet_redis,
            keys,
            "d",
            0.5,
            feedback_id=f"f{number}",
            replaces=f"f{number - 1}" if number else "",
            early_ms=60_000,
        )
    before = await reads()
    await store_decisions(quiet_redis, keys, decision_of("d"), aggregation="sum")
    assert (await event_log.read_stats(quiet_redis, keys))["replaced"] == n - 1
    assert await reads() - before < 5 * n


@pytest.mark.parametrize(
    ("aggregation", "rewards", "reward"),
    [
        ("sum", [0.1, 0.2, 0.3], 0.1 + 0.2 + 0.3),
        ("sum", [4.0, 4.0], 5.0),  # kept within the loop's range
        ("max", [1.0, 3.0, 2.0], 3.0),
        ("last", [1.0, 3.0, 2.0], 2.0),
    ],
)
async def test_several_rewards_become_one_when_the_wait_is_over(
    redis: Redis, keys: Keys, aggregation: str, rewards: Sequence[float], reward: float
) -> None:
    settings = LoopSettings(reward_range=(0, 5), aggregation=aggregation)
    await store_decisions(redis, keys, decision_of("d", "ab"), wait_ms=1000, aggregation=aggregation)
    for number, one in enumerate(rewards):
        assert await join(redis, keys, "d", one, feedback_id=f"f{number}", settings=settings) == "accepted"
    assert await logged(redis, keys) == []
    await settle(redis, keys, 2, settings)
    assert [(event.item, event.reward, event.source) for event in await logged(redis, keys)] == [
        ("a", reward, "feedback"),
        ("b", 0.0, "default"),
    ]


# ---- the ledger


async def test_the_ledger_tells_what_became_of_a_decision(redis: Redis, keys: Keys) -> None:
    await store_decisions(redis, keys, decision_of("d", "ab"))
    assert (await read_ledger(redis, keys, "d"))["status"] == "pending"
    await join(redis, keys, "d", 0.5, item="b", feedback_id="f")
    await join(redis, keys, "d", 0.25)
    found = await read_ledger(redis, keys, "d")
    assert found["status"] == "rewarded"
    assert found["decision"]["decision_id"] == "d"
    told = [{name: value for name, value in one.items() if name != "at"} for one in found["feedback"]]
    assert told == [
        {"item_id": "b", "reward": 0.5, "feedback_id": "f", "status": "accepted"},
        {"item_id": "a", "reward": 0.25, "feedback_id": None, "status": "accepted"},
    ]
    assert await read_stored_decision(redis, keys, "d") == decision_of("d", "ab")


async def test_a_decision_goes_from_the_ledger_after_its_time(redis: Redis, keys: Keys) -> None:
    settings = LoopSettings(ledger_time=0.05)
    await store_decisions(redis, keys, decision_of("joined"), wait_ms=50)
    await store_decisions(redis, keys, decision_of("settled"), wait_ms=1)
    await join(redis, keys, "joined", 1.0, settings=settings)
    await settle(redis, keys, 1, settings)

    async def gone() -> bool:
        part = keys.partition()
        return not await redis.exists(part.decision("joined"), part.decision("settled"))

    await until_async(gone, "both are gone")
    for name in ("joined", "settled"):
        with pytest.raises(NotFound):
            await read_ledger(redis, keys, name)
        with pytest.raises(NotFound):
            await read_stored_decision(redis, keys, name)


async def test_a_decision_of_a_newer_version_is_not_read(redis: Redis, keys: Keys) -> None:
    await store_decisions(redis, keys, decision_of("d"))
    key = keys.partition().decision("d")
    record = orjson.loads(await redis.hget(key, "record"))
    await redis.hset(key, "record", orjson.dumps({**record, "v": FORMAT + 1}))
    with pytest.raises(NewerFormat):
        await read_stored_decision(redis, keys, "d")
    with pytest.raises(NewerFormat):
        await DecisionWriter(GroupCommit(redis), buffer=0).append(pending(keys, decision_of("d")))
    assert await join(redis, keys, "d", 1.0) == "accepted", "its feedback needs nothing of the record"


# ---- the writer


class Commit:
    """Stands in for a group commit; a test says what it answers."""

    def __init__(self) -> None:
        self.answer: Any = None
        self.stored: list[str] = []
        self.rungs: list[str] = []

    async def run(self, script: object, keys: Sequence[str], args: Sequence[Any], *, uses: str) -> Any:
        answer = self.answer(args[0]) if callable(self.answer) else self.answer
        if isinstance(answer, Exception):
            raise answer
        self.stored.append(args[0])
        self.rungs.append(read_decision(args[1]).rung)
        return answer


def writer_of(commit: Commit, **options: Any) -> DecisionWriter:
    return DecisionWriter(commit, **options)  # type: ignore[arg-type]


async def test_a_repeated_id_gets_the_stored_decision(redis: Redis, keys: Keys) -> None:
    writer = DecisionWriter(GroupCommit(redis), buffer=0)
    first, again = decision_of("d", "a"), decision_of("d", "b")
    assert await writer.append(pending(keys, first)) == (first, False)
    assert await writer.append(pending(keys, again)) == (first, False)
    assert (await event_log.read_stats(redis, keys))["decisions"] == 1


async def test_while_the_store_is_gone_decisions_wait_in_order_up_to_a_bound(keys: Keys) -> None:
    commit = Commit()
    commit.answer = StoreUnavailable("gone")
    writer = writer_of(commit, buffer=3)
    for number in range(5):
        decision = decision_of(f"d{number}")
        assert await writer.append(pending(keys, decision)) == (decision, True)
    assert (writer.buffered, writer.degraded, writer.dropped) == (3, 5, 2)
    commit.answer = None
    await writer.close(within_s=20)
    assert commit.stored == ["d0", "d1", "d2"]
    assert writer.buffered == 0
    assert await writer.append(pending(keys, decision_of("after"))) == (decision_of("after"), False)
    assert commit.rungs == ["store_down"] * 3 + ["ok"], "its record says that it was answered from memory"


async def test_while_older_ones_wait_a_decision_waits_too(keys: Keys) -> None:
    commit = Commit()
    commit.answer = StoreUnavailable("gone")
    writer = writer_of(commit, buffer=3)
    await writer.append(pending(keys, decision_of("first")))
    commit.answer = None
    _, degraded = await writer.append(pending(keys, decision_of("second")))
    assert degraded
    await writer.close(within_s=20)
    assert commit.stored == ["first", "second"]


async def test_nothing_is_written_to_a_store_that_lost_its_data(keys: Keys) -> None:
    commit, usable = Commit(), False
    writer = writer_of(commit, buffer=3, usable=lambda: usable)
    _, degraded = await writer.append(pending(keys, decision_of("d")))
    assert degraded
    await writer.close(within_s=0.2)
    assert (commit.stored, writer.buffered) == ([], 1)
    usable = True
    await writer.append(pending(keys, decision_of("e")))
    await writer.close(within_s=20)
    assert commit.stored == ["d", "e"]


async def test_a_waiting_decision_that_the_store_refuses_is_counted_and_holds_up_none(keys: Keys) -> None:
    commit = Commit()
    commit.answer = StoreUnavailable("gone")
    writer = writer_of(commit, buffer=10)
    for number in range(4):
        await writer.append(pending(keys, decision_of(f"d{number}")))
    commit.answer = lambda name: ResponseError("WRONGTYPE") if name == "d1" else None
    await writer.close(within_s=20)
    assert commit.stored == ["d0", "d2", "d3"]
    assert (writer.buffered, writer.dropped) == (0, 1)
