"""Swaps of the encoder under load, with the learner killed in the middle of them: nothing fails, nothing is mixed."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from service.admin.audit import audit_decisions, audit_learning, audit_propensities
from service.records import Event
from service.represent.encoder import Encoder
from service.represent.schema import FeatureSchema
from service.store import encoders, event_log, loop_store, policy_store
from service.store.connection import connect
from tests.processes import Served, alive
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
LOOP = "encoders"
POLICIES = ("adaptive", "linucb", "popularity")
BLIND = {"hash_dims": 0}  # what the loop begins with: the rows tell nothing
SEEING: dict[str, Any] = {
    "context": {"persona": {"type": "categorical", "levels": ["a", "b"]}},
    "item": {"kind": {"type": "categorical", "levels": ["x", "y"]}},
    "crosses": [["persona", "kind"]],
}
# What persons declare, one after the other, in the middle of the traffic.
DECLARED: list[dict[str, Any]] = [{**SEEING, "hash_dims": 4}, {"hash_dims": 16}, {**SEEING, "hash_dims": 0}, {}]


@dataclass
class Crowd:
    """Clients that ask and report. Persona `a` likes kind `x`, `b` likes `y`. Any failure ends the test."""

    url: str
    pause_s: float  # of each client between a report and his next request
    replies: int = 0
    slowest: float = 0.0
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def client(self, who: int) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=30) as http:
            number = 0
            while not self.stop.is_set():
                persona = "ab"[number % 2]
                body = {
                    "loop": LOOP,
                    "user_id": f"u{who}-{number % 30}",
                    "context": {"persona": persona},
                    "k": 1 + number % 2,
                }
                sent = time.monotonic()
                reply = await http.post("/recommend", json=body)
                self.slowest = max(self.slowest, time.monotonic() - sent)
                assert reply.status_code == 200, reply.text
                found = reply.json()
                assert found["degraded"] is False
                for item in found["items"]:
                    likes = (persona == "a") == (int(item["id"][1:]) % 2 == 0)
                    feedback = {
                        "loop": LOOP,
                        "decision_id": found["decision_id"],
                        "item_id": item["id"],
                        "reward": int(likes and number % 5 > 0),
                    }
                    assert (await http.post("/feedback", json=feedback)).status_code == 202
                self.replies += 1
                number += 1
                await asyncio.sleep(self.pause_s)


def status(url: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{url}/status", timeout=30).json()["loops"][LOOP]
    return found


def crowd_of(size: float) -> tuple[int, float]:
    """Number of clients, and their pause in seconds. A small run has few, who rest: they ask while a swap goes on."""
    return (8, 0.0) if size >= 1 else (2, 0.01)


def prepare(url: str, schema: dict[str, Any]) -> None:
    with httpx.Client(base_url=url, timeout=60, params={"loop": LOOP}) as client:
        client.put(f"/loops/{LOOP}", json={"exploration_floor": 0.1, "schema": schema}).raise_for_status()
        items = [{"id": f"p{i}", "features": {"kind": "xy"[i % 2]}} for i in range(8)]
        client.post("/items", json={"items": items}).raise_for_status()
        events = [
            {
                "event_id": f"e{i}",
                "user_id": f"u{i % 20}",
                "item_id": f"p{i % 8}",
                "context": {"persona": "ab"[i // 8 % 2]},
                "reward": int((i // 8 % 2 == 0) == (i % 2 == 0)),
            }
            for i in range(400)
        ]
        client.post("/events", json={"events": events}).raise_for_status()
        for kind in POLICIES:
            client.post("/policies", json={"name": kind, "kind": kind}).raise_for_status()
        client.put("/traffic", json=dict.fromkeys(POLICIES, 1 / len(POLICIES))).raise_for_status()


async def kill_learner(served: Served) -> None:
    """SIGKILL; the supervisor starts another."""
    await asyncio.to_thread(until, lambda: served.children("-m service learn"), "the learner is there")
    pid = served.kill("-m service learn")
    await asyncio.to_thread(until, lambda: not alive(pid), "the learner is dead")


async def moved(served: Served, version: str, names: tuple[str, ...] = POLICIES) -> None:
    """Wait until these policies have published a version through this encoder."""

    def there() -> bool:
        told = status(served.url)["policies"]
        return all(told[name]["encoder"] == version for name in names)

    await asyncio.to_thread(until, there, f"all policies are on encoder {version}", within_s=90)


async def settled(served: Served) -> None:
    def there() -> bool:
        now = status(served.url)
        return not now["pending"] and all(told["events"] == now["events"] for told in now["policies"].values())

    await asyncio.to_thread(until, there, "all events are learned", within_s=90)


async def check(served: Served, least: int) -> None:
    """The audit, and every event's row: through the encoder that it names, from its raw record."""
    redis, keys = connect(served.redis_url, name="test", timeout_s=60), served.keys(LOOP)
    record = await loop_store.read_loop(redis, LOOP)
    schemas = {**await encoders.read_schemas(redis, keys), record.encoder: record.schema}
    made = {version: Encoder(FeatureSchema.model_validate(schema)) for version, schema in schemas.items()}
    rows: dict[str, int] = {}
    async for entries in event_log.scan(redis, keys):
        for event in entries:
            if isinstance(event, Event) and event.encoder in made:
                encoder = made[event.encoder]
                assert event.features is not None
                [row] = encoder.encode(event.context, encoder.items([event.features], [event.item]))
                assert row.tobytes() == event.x.tobytes()
                rows[event.encoder] = rows.get(event.encoder, 0) + 1
    assert await audit_learning(redis, LOOP) == dict.fromkeys(POLICIES, True)
    again = await audit_decisions(redis, LOOP, most=30_000)
    assert (again.different, again.gone) == ([], 0)
    assert again.same >= least
    assert all(found.passed for found in (await audit_propensities(redis, LOOP, confidence=0.99999)).values())
    print(f"{again.same} decisions the same; events through each encoder: {rows}")
    assert len(rows) >= 3
    await redis.aclose()


async def test_swaps_of_the_encoder_under_load(data: Path, size: float) -> None:
    """A trial that is won, then declared schemas, four at full size; the learner is killed in each of them."""
    each, kills = (1600, 2) if size >= 1 else (60, 1)
    declared = DECLARED if size >= 1 else DECLARED[::3]
    with Served(data, workers=2) as served:
        await asyncio.to_thread(prepare, served.url, BLIND)
        many, pause_s = crowd_of(size)
        crowd = Crowd(served.url, pause_s)
        clients = [asyncio.create_task(crowd.client(who)) for who in range(many)]

        async def some() -> None:
            already = crowd.replies
            while crowd.replies < already + each:
                assert not any(client.done() for client in clients), [c.exception() for c in clients if c.done()]
                await asyncio.sleep(0.01)

        await some()
        first = status(served.url)["policies"]["adaptive"]
        tried = Encoder(FeatureSchema.model_validate({**SEEING, "hash_dims": 8}))
        redis, keys = connect(served.redis_url, name="test", timeout_s=10), served.keys(LOOP)
        said: dict[str, Any] = {"encoder": tried.version, "events": 10**9, "why": "a test"}
        schema = orjson.loads(orjson.dumps(tried.schema.model_dump(mode="json")))
        found = await asyncio.gather(*(encoders.append_successor(redis, keys, schema, **said) for _ in range(4)))
        assert [position is not None for position in found].count(True) == 1, "of four that append the same, one does"
        for _ in range(kills):
            await kill_learner(served)
        await moved(served, tried.version)
        told = status(served.url)["policies"]["adaptive"]
        assert told["encoder_since"]["trial"]["loss"] < told["encoder_since"]["trial"]["loss_before"]
        async with httpx.AsyncClient(base_url=served.url, timeout=60, params={"loop": LOOP}) as admin:
            for schema in declared:
                reply = await admin.put(f"/loops/{LOOP}", json={"schema": schema})
                assert reply.status_code == 200, reply.text
                for _ in range(kills):
                    await kill_learner(served)
                    await some()
                await moved(served, reply.json()["encoder"])
                await some()
            assert {told["encoder_swaps"] for told in status(served.url)["policies"].values()} == {1 + len(declared)}
            await back_to_the_first_encoder(served, admin, first["encoder"], some)
        crowd.stop.set()
        await asyncio.gather(*clients)
        await settled(served)
        print(f"{crowd.replies} replies, none failed, the slowest took {crowd.slowest:.2f} s")
        await check(served, crowd.replies)
        await redis.aclose()


async def back_to_the_first_encoder(served: Served, admin: httpx.AsyncClient, first: str, some: Any) -> None:
    """A version of a former encoder serves with that encoder, and the policy learns on meanwhile."""
    redis, keys = connect(served.redis_url, name="test", timeout_s=10), served.keys(LOOP)
    kept = await policy_store.kept_encoders(redis, keys, "adaptive")
    version = min(kept)
    record = await loop_store.read_loop(redis, LOOP)
    assert (kept[version] or record.encoder) == first
    before = status(served.url)["policies"]["adaptive"]
    answer = await admin.post("/policies/adaptive/rollback", json={"version": version})
    assert answer.json()["adopted"], answer.text
    body: dict[str, Any] = {"loop": LOOP, "user_id": "u", "context": {"persona": "a"}}
    served_by = ""
    while served_by != "adaptive":
        reply = (await admin.post("/recommend", json=body)).json()
        served_by, body["user_id"] = reply["policy"], body["user_id"] + "u"
        feedback = {"loop": LOOP, "decision_id": reply["decision_id"], "reward": 0}
        assert (await admin.post("/feedback", json=feedback)).status_code == 202
    assert reply["version"] == version
    stored = (await admin.get(f"/decisions/{reply['decision_id']}")).json()["decision"]
    assert stored["encoder"] == first
    await some()
    await asyncio.to_thread(
        until, lambda: status(served.url)["policies"]["adaptive"]["events"] > before["events"], "it learns on"
    )
    assert (await admin.post("/policies/adaptive/activate")).json()["adopted"]
    assert (await admin.put("/traffic", json=dict.fromkeys(POLICIES, 1 / len(POLICIES)))).json()["adopted"]
    await redis.aclose()


async def test_what_the_service_fits_by_itself_is_replayed_too(data: Path, size: float) -> None:
    """Nobody declares anything: successors come as the log grows, and the learner is killed among them."""
    each = 3500 if size >= 1 else 220
    with Served(data, workers=2) as served:
        await asyncio.to_thread(prepare, served.url, {})
        many, pause_s = crowd_of(size)
        crowd = Crowd(served.url, pause_s)
        clients = [asyncio.create_task(crowd.client(who)) for who in range(many)]
        for _ in range(3 if size >= 1 else 2):
            already = crowd.replies
            while crowd.replies < already + each:
                assert not any(client.done() for client in clients), [c.exception() for c in clients if c.done()]
                await asyncio.sleep(0.01)
            await kill_learner(served)
        crowd.stop.set()
        await asyncio.gather(*clients)
        await settled(served)
        redis = connect(served.redis_url, name="test", timeout_s=60)
        swaps = {name: told["encoder_swaps"] for name, told in status(served.url)["policies"].items()}
        assert swaps["adaptive"] + swaps["popularity"] > 0
        again = await audit_decisions(redis, LOOP, most=30_000)
        assert (again.different, again.gone) == ([], 0)
        assert again.same >= crowd.replies
        deadline = time.monotonic() + 30
        while not all((await audit_learning(redis, LOOP)).values()):  # it may read between two checkpoints of a trial
            assert time.monotonic() < deadline
            await asyncio.sleep(1)
        await redis.aclose()
