"""Erasures, each step on a real Redis: what is deleted, what policies hold afterwards, and what stops nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from redis.asyncio import Redis

from service.admin.audit import audit_learning
from service.admin.status import loop_status
from service.admin.users import all_of_user, erase_user, lines_of
from service.errors import Conflict
from service.learn.eraser import Eraser
from service.learn.profiler import Profiler
from service.learn.trainer import Trainer
from service.loop import LoopSettings
from service.policies import KINDS
from service.records import Event
from service.settings import Settings
from service.store import erasure_store, event_log, loop_rows, loop_store, policy_store, users
from service.store.activity import Sent, take_activity
from service.store.codec import unpack
from service.store.erasure_store import ErasureRecord
from service.store.group_commit import GroupCommit
from service.store.keys import Keys
from tests.builders import decision_of, event_of, import_of, policy_of, store_decisions
from tests.learn.recorder import Recorder
from tests.learn.running import opened

pytestmark = pytest.mark.anyio

USER = 'u-17 "é"'  # spelled in several ways
KINDS_HERE = ("linucb", "linucb_hybrid", "lin_ts", "popularity", "adaptive", "recorder")


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "recorder", Recorder)


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
    """Have policies and profile learn all that the log holds."""
    for name in names:
        await (await opened(redis, keys, settings, name)).drain()
    await redis.delete(keys.lease("@profile"))
    profiler = Profiler(redis, keys)
    assert await profiler.open()
    await profiler.drain()


async def go_on(redis: Redis, keys: Keys) -> ErasureRecord:
    """Let an eraser, as if the one before had died, take the loop's erasures as far as they go; return the newest."""
    await redis.delete(keys.lease("@erasure"))
    eraser = Eraser(redis)
    for _ in range(1000):
        await eraser.step(asyncio.Event())
        newest = (await erasure_store.list_erasures(redis, keys))[0]
        if newest.step != "files":
            return newest
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
    events = of_users(60)
    await append(redis, keys, events[:40])
    trained = await policy_store.read_policy(redis, keys, "recorder")
    await event_log.append_training(redis, keys, trained.name, trained.id)
    await append(redis, keys, events[40:])
    commit = GroupCommit(redis)
    await take_activity(commit, keys, LoopSettings(), {user: [Sent(user, "p1", "view")] for user in (USER, "other-1")})
    await store_decisions(
        redis, keys, decision_of("his", user_id=USER), decision_of("another", user_id="other-1", context={"x": USER})
    )
    await learn(redis, keys, settings, *KINDS_HERE)
    before = await policy_store.read_policy(redis, keys, "linucb")
    shown = [line async for page in all_of_user(redis, keys.loop, USER) for line in lines_of(page)]
    assert [next(iter(line)) for line in shown] == ["state", "activity", "decision", *["event"] * 20]
    assert await places(redis, keys, USER)

    asked = await erase_user(redis, keys.loop, USER, by="test")
    assert await erase_user(redis, keys.loop, USER, by="test") == asked, "one at a time"
    waiting = await go_on(redis, keys)
    assert (waiting.step, waiting.decisions, waiting.activity, waiting.events) == ("learning", 1, 1, 20)
    assert waiting.waits_for == (*sorted(KINDS_HERE), "the profile")
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
