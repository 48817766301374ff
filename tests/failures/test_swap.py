"""Hot swaps under load: no failed request, no reply by a policy that was not active, and an exact rollback."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from service.store.connection import connect
from service.store.policy_store import version_position
from tests.processes import Served
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
LOOP = "swaps"
KINDS = ("linucb", "popularity", "embedding_mlp")


@dataclass(frozen=True)
class Reply:
    """One answered request."""

    sent: float
    received: float
    decision_id: str
    policy: str
    version: int


async def hammer(url: str, stop: asyncio.Event, replies: list[Reply]) -> None:
    """One client: ask, report, ask again. Any failure ends the test."""
    async with httpx.AsyncClient(base_url=url, timeout=10) as client:
        number = 0
        while not stop.is_set():
            sent = time.monotonic()
            body = {"loop": LOOP, "user_id": f"u{number % 100}", "context": {"persona": "ab"[number % 2]}}
            reply = await client.post("/recommend", json=body)
            assert reply.status_code == 200, reply.text
            found = reply.json()
            assert found["degraded"] is False
            replies.append(Reply(sent, time.monotonic(), found["decision_id"], found["policy"], found["version"]))
            feedback = {"loop": LOOP, "decision_id": found["decision_id"], "reward": number % 2}
            assert (await client.post("/feedback", json=feedback)).status_code == 202
            number += 1


def prepare(url: str) -> None:
    with httpx.Client(base_url=url, timeout=60, params={"loop": LOOP}) as client:
        client.put(f"/loops/{LOOP}", json={}).raise_for_status()
        items = [{"id": f"p{i}", "features": {"category": "ab"[i % 2]}} for i in range(20)]
        client.post("/items", json={"items": items}).raise_for_status()
        events = [
            {"event_id": f"e{i}", "user_id": f"u{i % 100}", "item_id": f"p{i % 20}", "reward": i % 2}
            for i in range(1000)
        ]
        client.post("/events", json={"events": events}).raise_for_status()
        for kind in KINDS:
            client.post("/policies", json={"name": kind, "kind": kind}).raise_for_status()
        for kind in KINDS:
            until(lambda: client.get(f"/policies/{kind}").json()["version"] >= 1, f"{kind} is warm", within_s=90)  # noqa: B023
        client.post(f"/policies/{KINDS[0]}/activate").raise_for_status()


async def test_swaps_under_load(data: Path, size: float) -> None:
    swaps, many = max(9, round(100 * size)), 50 if size >= 1 else 12
    with Served(data, workers=2) as served:
        await asyncio.to_thread(prepare, served.url)
        stop = asyncio.Event()
        replies: list[Reply] = []
        clients = [asyncio.create_task(hammer(served.url, stop, replies)) for _ in range(many)]
        began: list[tuple[float, str]] = [(time.monotonic(), KINDS[0])]
        ended: list[float] = [began[0][0]]
        async with httpx.AsyncClient(base_url=served.url, timeout=30, params={"loop": LOOP}) as admin:
            for swap in range(swaps):
                name = KINDS[(swap + 1) % len(KINDS)]
                began.append((time.monotonic(), name))
                answer = (await admin.post(f"/policies/{name}/activate")).json()
                ended.append(time.monotonic())
                assert answer["adopted"], answer
                assert answer["workers"] == 2
                already = len(replies)
                while len(replies) < already + many:  # some traffic on every policy
                    assert not any(client.done() for client in clients), [c.exception() for c in clients if c.done()]
                    await asyncio.sleep(0.005)
            stop.set()
            await asyncio.gather(*clients)
            await check_replies(served, replies, began, ended)
            await check_rollback(admin, served, replies)
        took = sorted(end - start for (start, _), end in zip(began[1:], ended[1:], strict=True))
        print(f"{len(replies)} replies, {swaps} swaps of {1000 * took[len(took) // 2]:.0f} ms (median), none failed")


async def check_replies(
    served: Served, replies: list[Reply], began: list[tuple[float, str]], ended: list[float]
) -> None:
    """A policy may answer from the moment its activation is asked for until the next one's has returned."""
    windows: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for number, (start, name) in enumerate(began):
        windows[name].append((start, ended[number + 1] if number + 1 < len(ended) else float("inf")))
    assert {reply.policy for reply in replies} == set(KINDS)
    for reply in replies:
        active = any(start <= reply.received and reply.sent <= end for start, end in windows[reply.policy])
        assert active, f"{reply} was not active then"
    redis, keys = connect(served.redis_url, name="test", timeout_s=10), served.keys(LOOP)
    for policy, version in {(reply.policy, reply.version) for reply in replies}:
        assert await version_position(redis, keys, policy, version), f"{policy} {version} never existed"
    await redis.aclose()


async def check_rollback(admin: httpx.AsyncClient, served: Served, replies: list[Reply]) -> None:
    """Back to a version of then: the same requests get the same replies, bit for bit."""
    redis, keys = connect(served.redis_url, name="test", timeout_s=10), served.keys(LOOP)
    kept = set((await admin.get("/policies/linucb")).json()["kept_versions"])
    then = [reply for reply in replies if reply.policy == "linucb" and reply.version in kept]
    version = then[0].version
    chosen = [reply for reply in then if reply.version == version][:20]
    assert chosen
    assert (await admin.post("/policies/linucb/activate")).json()["adopted"]
    answer = await admin.post("/policies/linucb/rollback", json={"version": version})
    assert answer.json()["adopted"], answer.text
    for reply in chosen:
        stored = (await admin.get(f"/decisions/{reply.decision_id}")).json()["decision"]
        await redis.delete(keys.partition().decision(reply.decision_id))  # so that it is decided anew, not looked up
        body = {"loop": LOOP, "user_id": stored["user_id"], "context": stored["context"]}
        again = (await admin.post("/recommend", json={**body, "decision_id": reply.decision_id})).json()
        assert (again["policy"], again["version"], again["items"]) == ("linucb", version, stored["items"])
    assert (await admin.get("/policies/linucb")).json()["pinned"] == version
    assert (await admin.post("/policies/linucb/rollback", json={"version": 10**6})).status_code == 404
    await redis.aclose()
