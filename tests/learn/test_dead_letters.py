"""Events that make a policy raise: set aside, counted, left out by every replay, learned again after a fix."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner

from service.admin.audit import audit_learning
from service.admin.dead_letters import Listed, dead_letters, retry
from service.admin.status import loop_status
from service.cli import app
from service.errors import NotFound
from service.learn import runner
from service.policies import KINDS, Batch
from service.records import PolicyRecord
from service.settings import Settings
from service.store import event_log, loop_store, policy_store
from service.store.codec import unpack
from service.store.keys import Keys
from service.store.loop_rows import read_rows
from tests.builders import event_of, import_of, policy_of
from tests.learn.recorder import Recorder
from tests.learn.running import opened
from tests.waiting import until_async

pytestmark = pytest.mark.anyio

POISON = (3, 4, 9)  # numbers of events


class Brittle(Recorder):
    """Raises at items `bad-…`, after it has changed by half. A test mends it."""

    kind = "brittle"
    broken = True

    def update(self, batch: Batch) -> None:
        for item in batch.item:
            self.said.append(f"got {item}")
            if self.broken and item.startswith("bad"):
                raise KeyError(item)


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "brittle", Brittle)
    monkeypatch.setattr(Brittle, "broken", True)


async def append(redis: Redis, keys: Keys, n: int = 12) -> list[str]:
    """Import events, some of which are poison; return their items."""
    items = [f"{'bad' if number in POISON else 'good'}-{number}" for number in range(n)]
    rows = import_of([event_of(number, item=item) for number, item in enumerate(items)])
    assert await event_log.append_imported(redis, keys, rows, remember=10_000) == n
    return items


async def said(redis: Redis, keys: Keys) -> list[str]:
    """Return the items that the policy has learned, in order."""
    state: Any = unpack(await policy_store.read_state(redis, keys, "brittle") or b"")
    return [line.removeprefix("got ") for line in state["said"].tobytes().decode().split("\n")]


async def counts(redis: Redis, keys: Keys) -> tuple[int, int]:
    """Return how many events were learned, and how many of them are set aside."""
    found: PolicyRecord = await policy_store.read_policy(redis, keys, "brittle")
    return found.events, found.set_aside


async def test_an_event_that_makes_a_policy_raise_is_set_aside_and_learned_after_a_fix(
    redis: Redis, keys: Keys, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("brittle", "popularity"):
        await policy_store.create_policy(redis, keys, policy_of(kind))
    items = await append(redis, keys)
    good, bad = ([item for item in items if item.startswith(word)] for word in ("good", "bad"))
    for kind in ("brittle", "popularity"):
        await (await opened(redis, keys, settings, kind)).drain()
    assert (await counts(redis, keys), await said(redis, keys)) == ((12, 3), good)
    found = await dead_letters(redis, keys.loop)
    assert [(letter.policy, letter.why) for letter in found] == [("brittle", f"KeyError: '{item}'") for item in bad]
    assert await audit_learning(redis, keys.loop) == {"brittle": True, "popularity": True}
    assert any(row.key == "letters:brittle" for row in [row async for row in read_rows(redis, keys)]), "in a backup"

    assert await retry(redis, keys.loop, None, [found[0].position]) == 1
    at_work = await opened(redis, keys, settings, "brittle")
    await at_work.drain()
    assert (await counts(redis, keys), await said(redis, keys)) == ((12, 3), good), "it fails again"
    assert await dead_letters(redis, keys.loop) == found
    assert await audit_learning(redis, keys.loop) == {"brittle": True, "popularity": True}

    monkeypatch.setattr(Brittle, "broken", False)
    assert await audit_learning(redis, keys.loop) == {"brittle": True, "popularity": True}, "the mended code follows"
    assert await retry(redis, keys.loop, "brittle", [letter.position for letter in found[1:]]) == 2
    assert await retry(redis, keys.loop, None, None) == 3, "two are asked for twice"
    for kind in ("brittle", "popularity"):
        await (await opened(redis, keys, settings, kind)).drain()
    assert (await counts(redis, keys), await said(redis, keys)) == ((12, 0), [*good, *bad[1:], bad[0]])
    assert await dead_letters(redis, keys.loop) == []
    assert await audit_learning(redis, keys.loop) == {"brittle": True, "popularity": True}
    status = (await loop_status(redis, keys.loop)).policies
    assert [(one.events, one.set_aside, one.lag) for one in status.values()] == [(12, 0, 0)] * 2


async def test_a_training_sees_what_was_learned_and_no_more(
    redis: Redis, keys: Keys, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = policy_of("brittle")
    await policy_store.create_policy(redis, keys, record)
    await append(redis, keys)
    await event_log.append_training(redis, keys, "brittle", record.id)
    await (await opened(redis, keys, settings, "brittle")).drain()
    monkeypatch.setattr(Brittle, "broken", False)
    await retry(redis, keys.loop, None, None)
    await event_log.append_training(redis, keys, "brittle", record.id)
    await (await opened(redis, keys, settings, "brittle")).drain()
    assert [line for line in await said(redis, keys) if line.startswith("train")] == ["train on 9", "train on 12"]
    assert await audit_learning(redis, keys.loop) == {"brittle": True}


async def test_a_crash_on_the_way_changes_nothing(redis: Redis, keys: Keys, settings: Settings) -> None:
    await policy_store.create_policy(redis, keys, policy_of("brittle"))
    items = await append(redis, keys)
    for _ in range(len(POISON) + 1):  # each learner dies after it has set one event aside
        at_work = await opened(redis, keys, settings, "brittle")
        await at_work.step()
        await at_work.step()
    assert await said(redis, keys) == [item for item in items if item.startswith("good")]
    assert await counts(redis, keys) == (12, 3)
    assert await audit_learning(redis, keys.loop) == {"brittle": True}


async def test_a_policy_that_raises_at_everything_stands_still_until_it_is_mended(
    redis: Redis, keys: Keys, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "MOST_LETTERS", 2)
    await policy_store.create_policy(redis, keys, policy_of("brittle"))
    items = await append(redis, keys)
    with pytest.raises(RuntimeError, match="until the policy is mended"):
        await (await opened(redis, keys, settings, "brittle")).drain()
    assert await counts(redis, keys) == (5, 2), "the checkpoint stands behind the second"
    monkeypatch.setattr(Brittle, "broken", False)
    await (await opened(redis, keys, settings, "brittle")).drain()
    assert await said(redis, keys) == [item for item in items if item not in ("bad-3", "bad-4")]
    assert await audit_learning(redis, keys.loop) == {"brittle": True}


async def test_letters_go_with_their_entries_and_with_their_policy(
    redis: Redis, keys: Keys, settings: Settings
) -> None:
    await policy_store.create_policy(redis, keys, policy_of("brittle"))
    await append(redis, keys)
    await (await opened(redis, keys, settings, "brittle")).drain()
    first, *_ = await dead_letters(redis, keys.loop)
    await redis.xtrim(keys.partition().events, minid=await _after(redis, keys, first), approximate=False)
    assert len(await dead_letters(redis, keys.loop)) == 2
    with pytest.raises(NotFound, match=first.position):
        await retry(redis, keys.loop, None, [first.position])
    await policy_store.delete_policy(redis, await loop_store.read_loop(redis, keys.loop), "brittle")
    assert not await redis.exists(keys.letters("brittle"))


async def _after(redis: Redis, keys: Keys, letter: Listed) -> str:
    ((position, _),) = await redis.xrange(keys.partition().events, min=f"({letter.position}", count=1)
    return str(position.decode())


async def command(*words: str) -> str:
    """Run `rebound dead-letters …`; return what it prints."""
    done = await asyncio.to_thread(CliRunner().invoke, app, ["dead-letters", *words])
    assert done.exit_code == 0, done.output
    return done.output


async def test_over_http_while_a_learner_is_at_work(
    service: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The routes; and the other policy of the loop is not held up."""
    loop = "letters-over-http"
    async with httpx.AsyncClient(base_url=service, timeout=30) as client:
        (await client.put(f"/loops/{loop}", json={})).raise_for_status()
        (await client.post(f"/policies?loop={loop}", json={"kind": "brittle"})).raise_for_status()
        events = [{"event_id": f"{n}", "item_id": f"bad-{n}", "reward": 1.0} for n in range(2)]
        (await client.post(f"/events?loop={loop}", json={"events": events})).raise_for_status()

        async def policies() -> Any:
            return (await client.get("/status")).json()["loops"][loop]["policies"]

        async def aside() -> bool:
            found = await policies()
            return all(one["events"] == 2 for one in found.values()) and found["brittle"]["set_aside"] == 2

        await until_async(aside, "both events are set aside, and the other policy has learned them")
        assert (
            f'rebound_policy_set_aside_events{{loop="{loop}",policy="brittle"}} 2.0'
            in (await client.get("/metrics")).text
        )
        letters = (await client.get(f"/dead-letters?loop={loop}")).json()["dead_letters"]
        assert [(one["policy"], one["why"]) for one in letters] == [
            ("brittle", "KeyError: 'bad-0'"),
            ("brittle", "KeyError: 'bad-1'"),
        ]
        unknown = await client.post(f"/dead-letters/retry?loop={loop}", json={"positions": ["1-1"]})
        assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_dead_letter")
        assert (await client.get("/dead-letters", params={"loop": loop, "policy": "nobody"})).status_code == 404
        listed = await command("list", "--loop", loop, "--redis", redis_url)
        assert "KeyError: 'bad-1'" in listed
        assert "brittle" in listed
        assert "1 to be learned" in await command(
            "retry", "--loop", loop, "--policy", "brittle", "--position", letters[0]["position"], "--redis", redis_url
        )
        monkeypatch.setattr(Brittle, "broken", False)
        answer = await client.post(f"/dead-letters/retry?loop={loop}", json={})
        assert (answer.status_code, answer.json()) == (202, {"retried": 2})

        async def learned() -> bool:
            return bool((await policies())["brittle"]["set_aside"] == 0)

        await until_async(learned, "they are learned")
        assert (await client.get(f"/dead-letters?loop={loop}")).json() == {"dead_letters": []}
