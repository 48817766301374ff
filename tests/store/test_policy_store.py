"""Policies in Redis: whole or not at all, one writer each, versions kept and pinned."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from service.errors import Conflict, NotFound, StaleEpoch, UnreadableRecord
from service.records import LoopRecord, PolicyRecord
from service.store import loop_store, policy_store
from service.store.codec import FORMAT, NewerFormat
from service.store.keys import Keys
from service.store.policy_store import (
    Lease,
    create_policy,
    delete_policy,
    kept_versions,
    latest_versions,
    pin_version,
    policy_names,
    read_policy,
    read_snapshot,
    read_state,
    version_position,
)
from tests.builders import policy_of

pytestmark = pytest.mark.anyio


async def publish(redis: Redis, keys: Keys, record: PolicyRecord, versions: int, *, budget: int = 10**6) -> Lease:
    """Publish so many versions under a lease, and keep the lease."""
    lease = Lease(redis, keys, record.name)
    assert await lease.acquire()
    for version in range(1, versions + 1):
        now = replace(record, version=version, position=f"{version}-0", events=version)
        assert await lease.publish(now, state=b"state", snapshot=b"%d" % version, budget=budget, new_alarms=())
    return lease


async def written(redis: Redis, keys: Keys) -> set[bytes]:
    """Return the loop's keys, but for what any worker on this server notes of itself."""
    return set(await redis.keys(keys.home + "*")) - {keys.adopted.encode()}


async def seen(redis: Redis, keys: Keys) -> LoopRecord:
    return await loop_store.read_loop(redis, keys.loop)


# ---- making and deleting


async def test_a_policy_comes_back_and_raises_the_epoch(redis: Redis, keys: Keys) -> None:
    record = policy_of(alpha=0.5, retention=5000)
    assert await create_policy(redis, keys, record) == 2
    assert replace(await read_policy(redis, keys, "linucb"), alarms=()) == record
    assert await policy_names(redis, keys) == ["linucb"]
    assert (await seen(redis, keys)).epoch == 2


async def test_a_name_that_is_taken_changes_nothing(redis: Redis, keys: Keys) -> None:
    record = policy_of()
    await create_policy(redis, keys, record)
    with pytest.raises(Conflict, match="policy 'linucb' exists"):
        await create_policy(redis, keys, policy_of(alpha=0.1))
    assert (await read_policy(redis, keys, "linucb")).id == record.id
    assert (await seen(redis, keys)).epoch == 2


async def test_the_first_policy_can_be_given_all_the_traffic(redis: Redis, keys: Keys) -> None:
    await create_policy(redis, keys, policy_of("random"))
    assert (await seen(redis, keys)).traffic == {}
    await create_policy(redis, keys, policy_of("linucb"), serve_alone=True)
    assert (await seen(redis, keys)).traffic == {"linucb": 1.0}
    await create_policy(redis, keys, policy_of("lin_ts"), serve_alone=True)
    assert (await seen(redis, keys)).traffic == {"linucb": 1.0}


@pytest.mark.parametrize("other", ["never", "another id"])
async def test_no_policy_is_made_in_a_loop_that_is_gone(redis: Redis, keys: Keys, other: str) -> None:
    gone = Keys("never", keys.id) if other == "never" else Keys(keys.loop, "another")
    with pytest.raises(NotFound, match="PUT /loops/"):
        await create_policy(redis, gone, policy_of())
    assert not await redis.exists(gone.policy("linucb"), gone.policies)


async def test_a_deleted_policy_leaves_no_key(redis: Redis, keys: Keys) -> None:
    await create_policy(redis, keys, policy_of("lin_ts"))
    await create_policy(redis, keys, policy_of())
    before = await written(redis, keys)
    await publish(redis, keys, await read_policy(redis, keys, "linucb"), 3)
    await pin_version(redis, await seen(redis, keys), "linucb", 2)
    await pin_version(redis, await seen(redis, keys), "linucb", 3)
    await delete_policy(redis, await seen(redis, keys), "linucb")
    assert await written(redis, keys) == before - {keys.policy("linucb").encode()}
    assert await policy_names(redis, keys) == ["lin_ts"]
    assert (await seen(redis, keys)).pins == {}
    with pytest.raises(NotFound):
        await read_policy(redis, keys, "linucb")
    await create_policy(redis, keys, policy_of())
    assert (await read_policy(redis, keys, "linucb")).version == 0


async def test_the_pins_of_other_policies_stay(redis: Redis, keys: Keys) -> None:
    for kind in ("linucb", "lin_ts"):
        await create_policy(redis, keys, policy_of(kind))
        await publish(redis, keys, await read_policy(redis, keys, kind), 1)
        await pin_version(redis, await seen(redis, keys), kind, 1)
    await delete_policy(redis, await seen(redis, keys), "linucb")
    assert (await seen(redis, keys)).pins == {"lin_ts": 1}


async def test_a_policy_is_not_deleted_by_who_did_not_see_the_last_change(redis: Redis, keys: Keys) -> None:
    """It may have been given traffic meanwhile."""
    await create_policy(redis, keys, policy_of())
    before = await seen(redis, keys)
    await loop_store.change_loop(redis, before, {"traffic": '{"linucb":1.0}'})
    with pytest.raises(StaleEpoch):
        await delete_policy(redis, before, "linucb")
    assert await policy_names(redis, keys) == ["linucb"]


async def test_a_policy_of_a_newer_version_is_not_read(redis: Redis, keys: Keys) -> None:
    await create_policy(redis, keys, policy_of())
    await redis.hset(keys.policy("linucb"), "v", FORMAT + 1)
    with pytest.raises(NewerFormat, match="policy 'linucb' has format 3"):
        await read_policy(redis, keys, "linucb")


@pytest.mark.parametrize("change", [{"version": "many"}, {"params": "{"}, {"position": ""}, {"alarms": "?"}])
async def test_a_policy_that_cannot_be_read_can_be_deleted(redis: Redis, keys: Keys, change: dict[str, str]) -> None:
    await create_policy(redis, keys, policy_of())
    await redis.hset(keys.policy("linucb"), mapping=change)
    if change == {"position": ""}:
        await redis.hdel(keys.policy("linucb"), "position")
    with pytest.raises(UnreadableRecord, match="DELETE /policies/linucb removes the policy"):
        await read_policy(redis, keys, "linucb")
    await delete_policy(redis, await seen(redis, keys), "linucb")
    await create_policy(redis, keys, policy_of())
    assert (await read_policy(redis, keys, "linucb")).version == 0


# ---- versions


async def test_versions_their_snapshots_and_positions(redis: Redis, keys: Keys) -> None:
    record = policy_of()
    await create_policy(redis, keys, record)
    assert await latest_versions(redis, keys, ["linucb", "never"]) == {"linucb": (record.id, 0)}
    assert await read_state(redis, keys, "linucb") is None
    await publish(redis, keys, record, 3)
    assert await kept_versions(redis, keys, "linucb") == [1, 2, 3]
    assert [await read_snapshot(redis, keys, "linucb", version) for version in (0, 1, 3, 4)] == [None, b"1", b"3", None]
    assert [await version_position(redis, keys, "linucb", version) for version in (1, 3, 4)] == ["1-0", "3-0", None]
    assert await latest_versions(redis, keys, ["linucb", "never"]) == {"linucb": (record.id, 3)}
    assert await read_state(redis, keys, "linucb") == b"state"
    found = await read_policy(redis, keys, "linucb")
    assert (found.version, found.position, found.events, found.bytes, found.kept) == (3, "3-0", 3, 6, 3)
    assert found.published is not None


async def test_a_version_that_is_not_kept_is_not_pinned(redis: Redis, keys: Keys) -> None:
    await create_policy(redis, keys, policy_of())
    with pytest.raises(NotFound, match="kept are none"):
        await pin_version(redis, await seen(redis, keys), "linucb", 1)
    await publish(redis, keys, await read_policy(redis, keys, "linucb"), 5, budget=3)
    with pytest.raises(NotFound, match="version 2 of policy 'linucb' is not kept; kept are 3 to 5"):
        await pin_version(redis, await seen(redis, keys), "linucb", 2)
    before = await seen(redis, keys)
    assert before.pins == {}
    assert await pin_version(redis, before, "linucb", 4) == before.epoch + 1
    with pytest.raises(StaleEpoch):
        await pin_version(redis, before, "linucb", 3)
    assert (await seen(redis, keys)).pins == {"linucb": 4}


# ---- the lease


async def test_one_holds_the_lease_and_the_next_has_a_higher_token(redis: Redis, keys: Keys) -> None:
    first, second = Lease(redis, keys, "p"), Lease(redis, keys, "p")
    assert await first.acquire()
    assert not await second.acquire()
    assert await first.renew()
    await first.release()
    async with asyncio.timeout(2):
        while not await second.acquire():
            pass
    assert first.token is None
    assert second.token is not None
    assert not await first.renew()
    assert second.token > 1


async def test_of_many_that_ask_one_gets_it(redis: Redis, keys: Keys) -> None:
    leases = [Lease(redis, keys, "p") for _ in range(20)]
    assert sum(await asyncio.gather(*(lease.acquire() for lease in leases))) == 1


async def test_a_lease_ends_by_itself_and_its_holder_writes_no_more(redis: Redis, keys: Keys) -> None:
    record = policy_of()
    await create_policy(redis, keys, record)
    old, new = Lease(redis, keys, "linucb", ttl_ms=1), Lease(redis, keys, "linucb")
    assert await old.acquire()
    async with asyncio.timeout(20):
        while not await new.acquire():
            pass
    assert not await old.publish(record, state=b"old", snapshot=b"old", budget=1, new_alarms=())
    assert not await old.renew()
    assert await new.publish(record, state=b"new", snapshot=b"", budget=1, new_alarms=())
    assert await read_state(redis, keys, "linucb") == b"new"


async def test_a_lease_that_is_renewed_lasts(redis: Redis, keys: Keys) -> None:
    lease = Lease(redis, keys, "p", ttl_ms=60_000)
    assert await lease.acquire()
    await redis.pexpire(keys.lease("p"), 500)
    assert await lease.renew()
    assert await redis.pttl(keys.lease("p")) > 500


@pytest.mark.parametrize("gone", ["policy", "loop"])
async def test_nothing_is_published_of_what_is_gone(redis: Redis, keys: Keys, gone: str) -> None:
    record = policy_of()
    await create_policy(redis, keys, record)
    lease = await publish(redis, keys, record, 1)
    await redis.delete(keys.policy("linucb") if gone == "policy" else keys.record)
    before = {key: await redis.dump(key) for key in await written(redis, keys)}
    assert not await lease.publish(record, state=b"late", snapshot=b"late", budget=10, new_alarms=({"number": 1},))
    assert {key: await redis.dump(key) for key in await written(redis, keys)} == before


async def test_a_checkpoint_without_a_snapshot_makes_no_version(redis: Redis, keys: Keys) -> None:
    record = policy_of()
    await create_policy(redis, keys, record)
    lease = Lease(redis, keys, "linucb")
    await lease.acquire()
    now = replace(record, position="7-0", events=7)
    assert await lease.publish(now, state=b"state", snapshot=b"", budget=10, new_alarms=())
    found = await read_policy(redis, keys, "linucb")
    assert (found.version, found.position, found.events) == (0, "7-0", 7)
    assert await policy_store.kept_versions(redis, keys, "linucb") == []
