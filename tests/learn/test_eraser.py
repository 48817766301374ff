"""Erasures on a real Redis: what is deleted, what policies hold afterwards, and who goes on after a crash."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from redis.asyncio import Redis

from service.admin.audit import audit_learning
from service.admin.dead_letters import dead_letters
from service.admin.status import loop_status
from service.admin.users import all_of_user, erase_user, lines_of
from service.errors import Conflict, NotFound
from service.learn.eraser import Eraser
from service.learn.graph_keeper import GraphKeeper
from service.learn.profiler import Profiler
from service.learn.trainer import Trainer
from service.loop import LoopSettings
from service.policies import KINDS
from service.records import Event, order
from service.represent.encoder import Encoder
from service.represent.schema import FeatureSchema
from service.settings import Settings
from service.store import encoders, erasure_store, event_log, loop_rows, loop_store, policy_store, users
from service.store.activity import Sent, take_activity
from service.store.codec import experiments_bytes, unpack
from service.store.connection import script
from service.store.edges import SentEdge, take_edges
from service.store.erasure_store import ErasureRecord
from service.store.group_commit import GroupCommit
from service.store.keys import Keys
from tests.builders import decision_of, event_of, experiment_of, import_of, policy_of, store_decisions
from tests.learn.recorder import Recorder
from tests.learn.running import opened
from tests.learn.test_dead_letters import Brittle

pytestmark = pytest.mark.anyio

USER = 'u-17 "é"'  # spelled in several ways
KINDS_HERE = ("linucb", "popularity", "adaptive", "recorder")


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "recorder", Recorder)
    monkeypatch.setitem(KINDS, "brittle", Brittle)


def of_users(n: int, *, first: int = 0, only: str | None = None) -> list[Event]:
    """Build n events, every third of which is the user's."""
    users_of = [only or (USER if number % 3 == 0 else f"other-{number % 5}") for number in range(first, first + n)]
    return [
        event_of(number, user=user, context={"page": "home"}, features={"price": number % 7})
        for number, user in enumerate(users_of, first)
    ]


async def append(redis: Redis, keys: Keys, events: Sequence[Event]) -> None:
    assert await event_log.append_imported(redis, keys, import_of(events), remember=10_000) == len(events)


async def make(redis: Redis, keys: Keys, *kinds: str) -> None:
    """Make policies; a batch-trained one trains when it is asked to."""
    for kind in kinds:
        await policy_store.create_policy(redis, keys, policy_of(kind))


async def learn(redis: Redis, keys: Keys, settings: Settings, *names: str) -> None:
    """Have policies, profile and graph learn all that the log holds."""
    for name in names:
        await (await opened(redis, keys, settings, name)).drain()
    await redis.delete(keys.lease("@profile"))
    await redis.delete(keys.lease("@graph"))
    for fold in (Profiler(redis, keys), GraphKeeper(redis, keys)):
        assert await fold.open()
        await fold.drain()


async def know(redis: Redis, keys: Keys, *edges: tuple[str, str]) -> None:
    """Write edges; their second step is taken by whoever comes next."""
    await loop_store.begin(redis, keys, "edges")
    sent = {user: [SentEdge(user, to, "friend", 1.0) for one, to in edges if one == user] for user, _ in edges}
    await take_edges(GroupCommit(redis), keys, LoopSettings(), sent)


@pytest.fixture
def redis(quiet_redis: Redis) -> Redis:
    """A Redis on which no learner of the session is at work: it would take up erasures of any loop."""
    return quiet_redis


@pytest.fixture
def settings(quiet_redis_url: str) -> Settings:
    return Settings(redis_url=quiet_redis_url, publish_period_ms=20)


async def go_on(redis: Redis, keys: Keys) -> ErasureRecord:
    """Let an eraser, as if the one before had died, take the loop's erasures as far as they go; return the newest."""
    await redis.delete(keys.lease("@erasure"))
    eraser = Eraser(redis)
    for _ in range(1000):
        await eraser.step(asyncio.Event())
        found = await erasure_store.list_erasures(redis, keys)
        if all(one.step != "files" for one in found):
            return found[0]
        await asyncio.sleep(0.01)  # Redis writes its files
    raise AssertionError("Redis does not rewrite its files")


async def places(redis: Redis, keys: Keys, text: str) -> list[str]:
    """Return the keys of a loop that hold a text, in their names or their values as Redis would dump them."""
    spelled = {text.encode(), *users.spellings(text)}
    found = set()
    async for row in loop_rows.read_rows(redis, keys):
        if any(one in repr(row).encode() or one in row.key.encode() for one in spelled):
            found.add(row.key)
    async for key in redis.scan_iter(match=f"*{keys.id}*", count=1000):
        dumped = await redis.dump(key) or b""
        if any(one in key or one in dumped for one in spelled):
            found.add(key.decode())
    return sorted(found)


async def test_a_user_is_gone_from_everything_and_policies_are_as_if_he_had_never_come(
    redis: Redis, keys: Keys, settings: Settings
) -> None:
    await make(redis, keys, *KINDS_HERE)
    experiment = experiment_of(starts=1e12)
    await redis.hset(keys.record, "experiments", experiments_bytes({experiment.name: experiment}))
    sums_of_users = keys.experiment_units(experiment.id, experiment.version)
    events = of_users(60)
    await append(redis, keys, events[:40])
    trained = await policy_store.read_policy(redis, keys, "recorder")
    await event_log.append_training(redis, keys, trained.name, trained.id)
    await append(redis, keys, events[40:])
    commit = GroupCommit(redis)
    await take_activity(commit, keys, LoopSettings(), {user: [Sent(user, "p1", "view")] for user in (USER, "other-1")})
    await know(redis, keys, (USER, "other-1"), (USER, "other-2"), ("other-1", USER), ("other-3", "other-1"))
    await store_decisions(
        redis, keys, decision_of("his", user_id=USER), decision_of("another", user_id="other-1", context={"x": USER})
    )
    await learn(redis, keys, settings, *KINDS_HERE)
    await redis.hset(sums_of_users, mapping={experiment.digest(user): b"" for user in (USER, "other-1")})
    before = await policy_store.read_policy(redis, keys, "linucb")
    shown = [line async for page in all_of_user(redis, keys.loop, USER) for line in lines_of(page)]
    assert [next(iter(line)) for line in shown] == [
        *("state", "activity", "edge", "edge", "known_by", "graph", *["took"] * 5, "decision"),
        *["event"] * 20,
        "logged",
    ]
    assert await places(redis, keys, USER)

    asked = await erase_user(redis, keys.loop, USER, by="test")
    assert await erase_user(redis, keys.loop, USER, by="test") == asked, "one at a time"
    waiting = await go_on(redis, keys)
    assert (waiting.step, waiting.decisions, waiting.activity, waiting.events) == ("learning", 1, 1, 20)
    assert waiting.edges == 3
    assert waiting.waits_for == (*sorted(KINDS_HERE), "the profile", "the graph")
    assert await redis.hkeys(sums_of_users) == [experiment.digest("other-1")]
    with pytest.raises(Conflict, match=asked.id):
        await audit_learning(redis, keys.loop)
    await learn(redis, keys, settings, *KINDS_HERE)
    done = await go_on(redis, keys)
    assert (done.step, done.user, done.waits_for) == ("done", None, ())
    assert [line.split(":")[0] for line in done.remains] == ["decision (2)"], "record and event of another user"

    await redis.delete(keys.partition().decision("another"))
    assert await places(redis, keys, USER) == []
    status = await loop_status(redis, keys.loop)
    assert (status.events, status.erased, status.erased_pending, status.erasures) == (60, 20, 1, 0)
    assert {policy.lag for policy in status.policies.values()} == {0}
    assert {policy.events for policy in status.policies.values()} == {40}
    assert status.profiled == 40
    # A replay of the log gives the same states, byte for byte; and so does a log in which he never was.
    assert set((await audit_learning(redis, keys.loop)).values()) == {True}
    never = Trainer.of(await loop_store.read_loop(redis, keys.loop), before)
    never.apply([replace(event, position=f"{n + 1}-0") for n, event in enumerate(events) if event.user != USER])
    state = unpack(await policy_store.read_state(redis, keys, "linucb") or b"")
    for name, array in never.policy.state().items():
        np.testing.assert_allclose(state[name].astype(float), array.astype(float), rtol=0, atol=1e-9)
    again = [line async for page in all_of_user(redis, keys.loop, USER) for line in lines_of(page)]
    assert again == []

    # What was learned before is gone for good, and told as such.
    after = await policy_store.read_policy(redis, keys, "linucb")
    assert await policy_store.kept_versions(redis, keys, "linucb") == [after.version] == [before.version + 1]
    loop = await loop_store.read_loop(redis, keys.loop)
    with pytest.raises(Conflict, match="a user was erased") as refused:
        await policy_store.pin_version(redis, loop, "linucb", before.version)
    assert refused.value.code == "version_erased"


async def log_of(redis: Redis, keys: Keys) -> list[tuple[str, str | None]]:
    """Return (decision, user) of the events in the log."""
    entries = [entry async for part in event_log.scan(redis, keys) for entry in part]
    return [(entry.decision_id, entry.user) for entry in entries if isinstance(entry, Event)]


async def test_whoever_dies_at_whatever_step_the_next_one_goes_on_and_each_thing_counts_once(
    redis: Redis, keys: Keys, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(redis, keys, "linucb")
    await append(redis, keys, of_users(30))
    await take_activity(GroupCommit(redis), keys, LoopSettings(), {USER: [Sent(USER, "p1", "view")] * 3})
    await redis.hset(keys.partition().rewarded, USER, '1 ["p1","reward"]\n')
    await store_decisions(redis, keys, *(decision_of(f"his-{number}", user_id=USER) for number in range(4)))
    await learn(redis, keys, settings, "linucb")
    asked = await erase_user(redis, keys.loop, USER, by="test")
    written = erasure_store.change_erasure

    class Killed(BaseException):
        """As SIGKILL: nobody catches it."""

    async def dies(*args: Any, **fields: Any) -> ErasureRecord:
        raise Killed

    steps = []
    while (record := await erasure_store.read_erasure(redis, keys, asked.id)).step != "done":
        steps.append(record.step)
        if record.step == "learning":
            await learn(redis, keys, settings, "linucb")
        with monkeypatch.context() as patch:
            patch.setattr(erasure_store, "change_erasure", dies)  # the step is done, and not written down
            with pytest.raises(Killed):
                await go_on(redis, keys)

        async def once(*args: Any, **fields: Any) -> ErasureRecord:
            done = await written(*args, **fields)
            if "step" in fields:
                raise Killed
            return done

        with monkeypatch.context() as patch:
            patch.setattr(erasure_store, "change_erasure", once)
            with pytest.raises(Killed):
                await go_on(redis, keys)
    assert tuple(steps) == erasure_store.STEPS[:-1]
    done = await go_on(redis, keys)
    assert (done.decisions, done.activity, done.events, done.remains) == (4, 3, 10, ())
    stats = await event_log.read_stats(redis, keys)
    assert (stats["events"], stats["erased"], stats["erased_pending"], stats["pending"]) == (30, 10, 4, 0)
    assert {user for _, user in await log_of(redis, keys)} == {f"other-{number}" for number in range(5)}
    assert await places(redis, keys, USER) == []
    assert await audit_learning(redis, keys.loop) == {"linucb": True}


async def test_the_log_goes_on_while_it_is_copied(redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is appended and trimmed meanwhile counts as such; of two that copy, one is the last."""
    monkeypatch.setattr(users, "ENTRIES_AT_ONCE", 4)
    events = of_users(40)
    await append(redis, keys, events)
    part = keys.partition()
    positions = [position.decode() for position, _ in await redis.xrange(part.events)]
    batches = 0

    def counted(name: str) -> Any:
        async def call(redis: Redis, places: Sequence[str], args: Sequence[Any]) -> Any:
            nonlocal batches
            batches += name == "erase_events"
            answer = await script(name)(redis, places, args)
            if name == "erase_events" and batches == 3:
                await event_log.trim(redis, keys, keep=35, read_to=[positions[-1]])  # 5, 2 of them his
                await append(redis, keys, of_users(6, first=40))
            if name == "erase_events" and batches == 5:
                assert await users.erase_events(redis, keys, "e2", "other-1") is True, "another one overtakes"
            return answer

        return call

    monkeypatch.setattr(users, "script", counted)
    assert await users.erase_events(redis, keys, "e1", USER) is False
    stats = await event_log.read_stats(redis, keys)
    others = [event.decision_id for event in of_users(46)[5:] if event.user == "other-1"]
    kept = [(event.decision_id, event.user) for event in of_users(46)[5:] if event.user != "other-1"]
    assert await log_of(redis, keys) == kept
    assert (stats["events"], stats["trimmed"], stats["erased"]) == (46, 5, len(others))
    assert await users.erase_events(redis, keys, "e1", USER) is True
    stats = await event_log.read_stats(redis, keys)
    assert stats["events"] == stats["trimmed"] + stats["erased"] + len(await log_of(redis, keys))
    assert [one.decode() async for one in redis.scan_iter(match=f"*{keys.id}*events*")] == [part.events]
    known = {member.decode() for member in await redis.zrange(part.imported, 0, -1)}
    assert known == {event.decision_id for event in of_users(46) if event.user not in (USER, "other-1")} | {"d1"}


async def test_erasures_that_come_together_are_learned_together(redis: Redis, keys: Keys, settings: Settings) -> None:
    await make(redis, keys, "linucb")
    await append(redis, keys, of_users(12))
    await learn(redis, keys, settings, "linucb")
    for user in (USER, "other-1", "nobody"):
        await erase_user(redis, keys.loop, user, by="test")
    await go_on(redis, keys)
    steps = [one.step for one in await erasure_store.list_erasures(redis, keys)]
    assert steps == ["done", "learning", "learning"], "the newest first"
    await learn(redis, keys, settings, "linucb")
    assert (await policy_store.read_policy(redis, keys, "linucb")).version == 2, "the log was learned anew once"
    await go_on(redis, keys)
    ended = await erasure_store.list_erasures(redis, keys)
    assert [(one.step, one.user, one.events) for one in ended] == [("done", None, count) for count in (0, 2, 4)]
    assert [name async for name, _ in redis.hscan_iter(keys.partition().erasure)] == [b"newest"], "no count is left"
    assert await audit_learning(redis, keys.loop) == {"linucb": True}


async def test_a_log_of_one_user_keeps_its_place(redis: Redis, keys: Keys, settings: Settings) -> None:
    await make(redis, keys, "linucb")
    await append(redis, keys, of_users(5, only=USER))
    await learn(redis, keys, settings, "linucb")
    position = (await policy_store.read_policy(redis, keys, "linucb")).position
    await erase_user(redis, keys.loop, USER, by="test")
    await go_on(redis, keys)
    await learn(redis, keys, settings, "linucb")
    assert (await go_on(redis, keys)).step == "done"
    policy = await policy_store.read_policy(redis, keys, "linucb")
    assert order(policy.position) > order(position)
    assert (policy.events, policy.skipped) == (0, 5)
    await append(redis, keys, of_users(3, first=5))
    await learn(redis, keys, settings, "linucb")
    assert (await policy_store.read_policy(redis, keys, "linucb")).events == 3
    assert (await loop_status(redis, keys.loop)).policies["linucb"].lag == 0


async def test_a_runner_that_dies_while_it_learns_anew_leaves_the_checkpoint_of_before(
    redis: Redis, keys: Keys, settings: Settings
) -> None:
    await make(redis, keys, "linucb", "recorder")
    events = of_users(20)
    await append(redis, keys, events)
    await append(redis, keys, [event_of(n, item="poison", user=user) for n, user in ((90, USER), (91, "other-1"))])
    await learn(redis, keys, settings, "linucb", "recorder")
    letters = await dead_letters(redis, keys.loop)
    assert [letter.policy for letter in letters] == ["recorder", "recorder"]
    loop = await loop_store.read_loop(redis, keys.loop)
    await policy_store.pin_version(redis, loop, "linucb", 1)
    before = await policy_store.read_policy(redis, keys, "linucb")
    await erase_user(redis, keys.loop, USER, by="test")
    await go_on(redis, keys)
    at_work = await opened(redis, keys, settings)
    await at_work.step()  # it meets the erasure, and begins anew
    assert await policy_store.read_policy(redis, keys, "linucb") == before
    await learn(redis, keys, settings, "linucb", "recorder")
    after = await policy_store.read_policy(redis, keys, "linucb")
    assert (after.version, after.erased, after.events) == (2, 1, 13 + 1)
    assert (await loop_store.read_loop(redis, keys.loop)).pins == {}, "the pinned version is gone"
    assert (await go_on(redis, keys)).step == "done"
    assert await dead_letters(redis, keys.loop) == letters[1:], "that of another user is still left out"
    assert await redis.hkeys(keys.partition().dead) == [letters[1].position.encode()]
    assert await audit_learning(redis, keys.loop) == {"linucb": True, "recorder": True}


async def test_events_that_make_a_policy_raise_are_set_aside_while_it_learns_anew(
    redis: Redis, keys: Keys, settings: Settings
) -> None:
    await make(redis, keys, "brittle")
    await append(redis, keys, of_users(6))
    await learn(redis, keys, settings, "brittle")
    await append(redis, keys, [event_of(80, item="bad-0", user="other-1")])
    await erase_user(redis, keys.loop, USER, by="test")
    await go_on(redis, keys)
    await append(redis, keys, [event_of(n, item=f"bad-{n}", user="other-1") for n in (81, 82)])
    await learn(redis, keys, settings, "brittle")
    policy = await policy_store.read_policy(redis, keys, "brittle")
    assert (policy.events, policy.set_aside) == (4 + 3, 3)
    assert (await go_on(redis, keys)).step == "done"
    assert await audit_learning(redis, keys.loop) == {"brittle": True}


async def test_an_encoder_that_was_fitted_to_the_id_goes_and_one_that_a_policy_began_with_is_told_of(
    redis: Redis, keys: Keys, settings: Settings
) -> None:
    def schema(*levels: str) -> dict[str, Any]:
        return FeatureSchema.model_validate(
            {"context": {"who": {"type": "categorical", "levels": levels}}, "hash_dims": 0}
        ).model_dump(mode="json")

    async def fit(said: dict[str, Any], events: int) -> str:
        version = Encoder(FeatureSchema.model_validate(said)).version
        assert await encoders.append_successor(redis, keys, said, encoder=version, events=events, why="a test")
        return version

    await make(redis, keys, "linucb")
    await append(redis, keys, of_users(12))
    stays = await fit(schema("others"), 40)
    his = await fit(schema(USER, "others"), 80)
    await learn(redis, keys, settings, "linucb")
    assert (await policy_store.read_policy(redis, keys, "linucb")).encoding["trial"]["encoder"] == his  # type: ignore[index]
    await erase_user(redis, keys.loop, USER, by="test")
    await go_on(redis, keys)
    loop = await loop_store.read_loop(redis, keys.loop)
    assert (loop.newest, await encoders.fitted_on(redis, keys)) == (None, 0), "another one may be fitted"
    await learn(redis, keys, settings, "linucb")
    done = await go_on(redis, keys)
    assert (done.step, done.events, done.remains) == ("done", 4, ())
    assert (await event_log.read_stats(redis, keys))["erased"] == 4, "an encoder is no event"
    assert await places(redis, keys, USER) == []
    assert (await policy_store.read_policy(redis, keys, "linucb")).encoding["trial"]["encoder"] == stays  # type: ignore[index]
    assert await audit_learning(redis, keys.loop) == {"linucb": True}

    await fit(schema(USER), 160)
    begun = (await loop_store.read_loop(redis, keys.loop)).newest
    await policy_store.create_policy(redis, keys, replace(policy_of("popularity"), begun=begun))
    await append(redis, keys, of_users(3, first=12))
    await learn(redis, keys, settings, "linucb", "popularity")
    await erase_user(redis, keys.loop, USER, by="test")
    await go_on(redis, keys)
    await learn(redis, keys, settings, "linucb", "popularity")
    done = await go_on(redis, keys)
    told = [line.split(":")[0] for line in done.remains]
    assert (done.step, told) == ("done", ["encoders (1)", "events (1)", "state (2)"])
    assert await audit_learning(redis, keys.loop) == {"linucb": True, "popularity": True}


async def test_who_is_not_there_costs_nothing_and_who_is_remembered_is_forgotten(
    redis: Redis, keys: Keys, settings: Settings
) -> None:
    await make(redis, keys, "linucb")
    await append(redis, keys, of_users(9))
    await learn(redis, keys, settings, "linucb")
    before = await policy_store.read_policy(redis, keys, "linucb")
    await erase_user(redis, keys.loop, "nobody", by="test")
    done = await go_on(redis, keys)
    assert (done.step, done.events, done.remains) == ("done", 0, ())
    await learn(redis, keys, settings, "linucb")
    assert await policy_store.read_policy(redis, keys, "linucb") == before, "nothing was learned anew"

    await event_log.trim(redis, keys, keep=2, read_to=[before.position])  # the log holds none of his; the profile does
    await erase_user(redis, keys.loop, USER, by="test")
    assert (await go_on(redis, keys)).step == "learning"
    await learn(redis, keys, settings, "linucb")
    done = await go_on(redis, keys)
    assert (done.step, done.events, done.remains) == ("done", 0, ())
    after = await policy_store.read_policy(redis, keys, "linucb")
    assert (after.events, after.skipped, after.erased) == (2, 7, 1), "nor what the trimmed events had taught"
    assert await places(redis, keys, USER) == []


async def test_an_erasure_whose_loop_was_deleted_is_not_written_again(redis: Redis, keys: Keys) -> None:
    asked = await erase_user(redis, keys.loop, USER, by="test")
    await redis.delete(keys.erasure(asked.id))
    with pytest.raises(NotFound):
        await erasure_store.change_erasure(redis, keys, asked.id, remains=[])
    assert not await redis.exists(keys.erasure(asked.id))
