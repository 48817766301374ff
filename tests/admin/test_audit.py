"""`rebound audit` on real traffic, and that it can fail."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest
from redis.asyncio import Redis

from service.admin.audit import audit_decisions, audit_graph, audit_learning, audit_propensities, audit_states
from service.admin.encoders import encoder_for
from service.policies import KINDS
from service.records import START, Event
from service.store import event_log, loop_store
from service.store.connection import connect
from service.store.keys import Keys
from tests.processes import Served
from tests.waiting import until_async

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("audit") / "data") as served:
        yield served


async def traffic(url: str, kind: str, n: int, *, fits: bool = True) -> None:
    """n decisions by one policy in a loop of its own, half of them with a clicked first item.

    Args:
        fits: whether schemas are fitted, and the policy moves from one encoder to the next.
    """
    async with httpx.AsyncClient(base_url=url, timeout=30, params={"loop": kind}) as client:
        (await client.put(f"/loops/{kind}", json={"exploration_floor": 0.1, "fit_schema": fits})).raise_for_status()
        items = [{"id": f"p{i}", "features": {"category": "abc"[i % 3]}} for i in range(12)]
        (await client.post("/items", json={"items": items})).raise_for_status()
        history = [
            {"event_id": f"e{i}", "user_id": f"u{i % 10}", "item_id": f"p{i % 12}", "reward": int(i % 3 == 0)}
            for i in range(300)
        ]
        (await client.post("/events", json={"events": history})).raise_for_status()
        made = await client.post("/policies", json={"name": kind, "kind": kind})
        assert made.status_code in (201, 409), made.text  # 409: from the test before
        (await client.post(f"/policies/{kind}/activate")).raise_for_status()
        turn = asyncio.Semaphore(16)

        async def one(number: int) -> None:
            async with turn:
                body = {
                    "loop": kind,
                    "user_id": f"u{number % 10}",
                    "context": {"hour": number % 24},
                    "k": 1 + number % 2,
                }
                decision = (await client.post("/recommend", json=body)).json()
                sent = {"loop": kind, "decision_id": decision["decision_id"]}
                shown = [item["id"] for item in decision["items"]]
                reports = [{**sent, "item_id": item, "reward": float(item in ("p1", "p4"))} for item in shown]
                told = (await client.post("/feedback", json={"feedback": reports})).raise_for_status().json()
                assert [one["status"] for one in told["results"]] == ["accepted"] * len(shown)

        await asyncio.gather(*map(one, range(n)))

        async def lag() -> int:
            found: int = (await client.get(f"/policies/{kind}")).json()["lag"]
            return found

        while await lag():
            await asyncio.sleep(0.05)


FITTED = ("adaptive", "linucb", "neural_ucb", "popularity")  # kinds that move between encoders in the small run, too


@pytest.mark.parametrize("kind", KINDS)
async def test_the_audit_passes_on_real_traffic(served: Served, kind: str, size: float) -> None:
    n, fits = (20_000, True) if size >= 1 else (200, kind in FITTED)
    await asyncio.wait_for(traffic(served.url, kind, n, fits=fits), 1200)
    redis = connect(served.redis_url, name="test", timeout_s=30)
    try:
        # A dozen policies, each run: a test may not fail one time in 10.
        checks = await audit_propensities(redis, kind, confidence=0.99999)
        again = await audit_decisions(redis, kind)
        learned = await audit_learning(redis, kind)
    finally:
        await redis.aclose()
    print(f"{kind}: {checks}, {again.same} decisions the same, {learned}")
    assert checks.keys() >= {kind}
    assert all(check.passed for check in checks.values())
    assert (again.different, again.gone) == ([], 0)
    assert again.same >= 200
    assert learned == {kind: True}


FOLDS = {
    "context": {"hour": {"type": "numeric", "min": 0, "max": 23}},
    "item": {"category": {"type": "categorical", "levels": ["a", "b", "c"]}},
    "crosses": [["hour", "category"]],
    "hash_dims": 0,
}


async def test_decisions_are_made_again_by_the_fold_where_they_were_made_by_it(served: Served) -> None:
    """While versions and catalogues change; a record that names the other way is found out."""
    async with httpx.AsyncClient(base_url=served.url, timeout=30) as client:
        of = {"loop": "folds"}
        (await client.put("/loops/folds", json={"schema": FOLDS, "exploration_floor": 0.1})).raise_for_status()
        items = [{"id": f"p{i}", "features": {"category": "abc"[i % 3]}} for i in range(12)]
        (await client.post("/items", params=of, json={"items": items})).raise_for_status()
        (await client.post("/policies", params=of, json={"name": "p", "kind": "linucb"})).raise_for_status()
        (await client.post("/policies/p/activate", params=of)).raise_for_status()
        ways: dict[str, Any] = {"all": {}, "exclude": {"exclude": ["p3"]}, "ids": {"candidates": ["p1", "p4"]}}
        ways["own"] = {"candidates": ["p1", {"id": "new", "features": {"category": "a"}}]}
        made: dict[str, str] = {}
        for number in range(40):
            way = list(ways)[number % 4]
            asked = {**of, "context": {"hour": number % 24}, **ways[way]}
            decision = (await client.post("/recommend", json=asked)).json()
            made[decision["decision_id"]] = way
            report = {
                **of,
                "decision_id": decision["decision_id"],
                "reward": number % 7 / 7,
            }  # so that sums are rounded
            (await client.post("/feedback", json=report)).raise_for_status()
            if number % 10 == 9:
                (await client.put(f"/items/p{number}", params=of, json={"features": {}})).raise_for_status()
            if number % 8 == 7:
                await until_async(lambda: caught_up(client), "the API serves what was learned")
    redis = connect(served.redis_url, name="test", timeout_s=10)
    try:
        keys = served.keys("folds")
        found = {name: orjson.loads(await redis.hget(keys.partition().decision(name), "record")) for name in made}
        learned = {name: way for name, way in made.items() if found[name]["version"]}
        assert len({record["version"] for record in found.values()}) > 3
        assert {record["catalogue"] for record in found.values()} == {1, 2, 3, 4}
        assert all(found[name].get("folded", False) is (way != "own") for name, way in learned.items())
        again = await audit_decisions(redis, "folds")
        assert (again.same, again.different, again.gone) == (40, [], 0)
        for name in (name for name, way in learned.items() if way == "all"):
            del found[name]["folded"]
            await redis.hset(keys.partition().decision(name), "record", orjson.dumps(found[name]))
        different = (await audit_decisions(redis, "folds")).different
        assert different, "the two ways round alike"
        assert {made[name] for name in different} == {"all"}
    finally:
        await redis.aclose()


async def caught_up(client: httpx.AsyncClient) -> bool:
    """Return whether the policy has learned all events, and the API serves what it learned."""
    policy = (await client.get("/policies/p", params={"loop": "folds"})).json()
    status = (await client.get("/status")).json()
    return (policy["lag"], policy["version"]) == (0, status["this_worker"]["serves"]["folds"]["p"])


async def browse(url: str, loop: str, n: int) -> None:
    """n decisions of users who browse at the same time, whose activity also comes late, twice and out of order."""
    draws = random.Random(1)
    async with httpx.AsyncClient(base_url=url, timeout=30, params={"loop": loop}) as client:
        (await client.put(f"/loops/{loop}", json={"activity_kept": 60})).raise_for_status()
        items = [{"id": f"p{i}", "features": {"category": "abc"[i % 3], "price": i}} for i in range(12)]
        (await client.post("/items", json={"items": items})).raise_for_status()

        async def visit(number: int) -> None:
            user = f"u{number % 8}"
            done = [
                {
                    "user_id": user,
                    "item_id": f"p{draws.randrange(14)}",  # two of them are not in the catalogue
                    "type": draws.choice(["view", "click", "buy"]),
                    "at": 1.7e9 + draws.randrange(10**6),
                    "activity_id": f"{user}-{draws.randrange(n)}",
                }
                for _ in range(3)
            ]
            for sent in (done, done[::-1]):
                (await client.post("/activity", json={"activity": sent})).raise_for_status()
                asked = {"loop": loop, "user_id": user, "context": {"hour": number % 24}}
                decision = (await client.post("/recommend", json=asked)).json()
                report = {"loop": loop, "decision_id": decision["decision_id"], "reward": 1}
                (await client.post("/feedback", json=report)).raise_for_status()

        for start in range(0, n, 16):
            await asyncio.gather(*map(visit, range(start, min(start + 16, n))))
            (await client.put(f"/items/p{start % 12}", json={"features": {"category": "d"}})).raise_for_status()


async def forge(redis: Redis, keys: Keys) -> None:
    """Plant a state that saw activity accepted after its decision, and a decision that missed it: each is found."""
    events = keys.partition().events
    entries = [(place, fields) for place, fields in await redis.xrange(events) if b"e" in fields]
    read = [orjson.loads(fields[b"e"]) for _, fields in entries]
    first, last = read[0], [one for one in read if one["user"] == read[0]["user"]][-1]
    assert last["context"]["@user"]["count"] > first["context"]["@user"]["count"]
    for context in (last["context"], {"hour": 0}):
        planted = {b"e": orjson.dumps({**first, "context": context})}
        await redis.delete(events)
        for place, fields in [(entries[0][0], {**entries[0][1], **planted}), *entries[1:]]:
            await redis.xadd(events, fields, id=place)
        assert (await audit_states(redis, "browse")).different == [first["decision_id"]]
    await redis.delete(events)
    for place, fields in entries:
        await redis.xadd(events, fields, id=place)
    assert (await audit_states(redis, "browse")).different == []


async def test_a_state_is_what_the_activity_that_was_kept_folds_to(served: Served) -> None:
    await browse(served.url, "browse", 32)
    redis = connect(served.redis_url, name="test", timeout_s=30)
    try:
        found = await audit_states(redis, "browse")
        again = await audit_decisions(redis, "browse")
        assert (found.same, found.different, found.gone) == (64, [], 0)
        assert (again.same, again.different, again.gone) == (64, [], 0)

        record = await loop_store.read_loop(redis, "browse")
        keys = Keys("browse", record.id)
        entries = await event_log.read(redis, keys, START)
        assert all("@user" in entry.context for entry in entries if isinstance(entry, Event))
        await forge(redis, keys)
        part = keys.partition()
        logged = await redis.xrange(part.activity_log)
        at = next(at for at, (_, fields) in enumerate(logged) if fields[b"u"] == b'"u3"')
        await redis.delete(part.activity_log)
        for number, (position, fields) in enumerate(logged):  # another activity stands where his first one stood
            forged = {b"a": b'1 9999999999999 ["forged","buy"]'} if number == at else {}  # the last of all by its time
            await redis.xadd(part.activity_log, {**fields, **forged}, id=position)
        assert len((await audit_states(redis, "browse")).different) == 8
        await redis.xtrim(part.activity_log, minid=logged[at + 1][0], approximate=False)  # it is no longer kept
        await redis.hincrby(part.stats, "activity_trimmed", at + 1)
        found = await audit_states(redis, "browse")
        assert found.different == []
        assert found.gone >= 8
    finally:
        await redis.aclose()


async def test_fields_of_a_neighbourhood_are_those_that_were_published(served: Served) -> None:
    loop, users = "circle", ["u1", "u2", "u3"]
    async with httpx.AsyncClient(base_url=served.url, timeout=30) as client:
        (await client.put(f"/loops/{loop}", json={})).raise_for_status()
        items = [{"id": f"p{i}", "features": {"category": "abc"[i % 3]}} for i in range(6)]
        (await client.post("/items", params={"loop": loop}, json={"items": items})).raise_for_status()
        edges = [{"from": one, "to": other} for one in users for other in users if one != other]
        (await client.post("/edges", json={"loop": loop, "edges": edges})).raise_for_status()
        done = [{"user_id": user, "item_id": f"p{at}", "type": "buy"} for at, user in enumerate(users)]
        (await client.post("/activity", json={"loop": loop, "activity": done})).raise_for_status()

        async def computed() -> bool:
            told = (await client.get("/status")).json()["loops"][loop]
            return (told["edges"], told["edges_pending"], told["graph_stale"]) == (6, 0, 0)

        await until_async(computed, "all fields are computed")
        for user in users:
            decision = (await client.post("/recommend", json={"loop": loop, "user_id": user})).json()
            report = {"loop": loop, "decision_id": decision["decision_id"], "reward": 0}
            (await client.post("/feedback", json=report)).raise_for_status()
    redis = connect(served.redis_url, name="test", timeout_s=30)
    try:
        found = await audit_graph(redis, loop)
        assert (found.same, found.different, found.gone) == (3, [], 0)
        stored = served.keys(loop).partition().graph("u2")
        fields = orjson.loads(await redis.get(stored))
        assert (fields["triangles"], sorted(fields["circle"]["category"])) == (1, ["a", "c"])
        await redis.set(stored, orjson.dumps({**fields, "triangles": 0}))  # forged
        assert len((await audit_graph(redis, loop)).different) == 1
        await redis.set(stored, orjson.dumps({**fields, "version": 10**6}))  # a newer one
        assert (await audit_graph(redis, loop)).gone == 1
    finally:
        await redis.aclose()


async def test_an_event_holds_its_raw_record(served: Served) -> None:
    """What the log says of an event, encoded anew, is the row that was served, bit for bit."""
    await traffic(served.url, "random", 60)
    redis = connect(served.redis_url, name="test", timeout_s=10)
    record = await loop_store.read_loop(redis, "random")
    entries = await event_log.read(redis, served.keys("random"), START)
    versions = {entry.encoder for entry in entries if isinstance(entry, Event)}
    encoders = {version: await encoder_for(redis, record, version) for version in versions}
    await redis.aclose()
    events = [entry for entry in entries if isinstance(entry, Event)]
    assert {event.source for event in events} == {"import", "feedback"}
    for event in events:
        assert event.features
        encoder = encoders[event.encoder]
        [row] = encoder.encode(event.context, encoder.items([event.features], [event.item]))
        assert row.tobytes() == event.x.tobytes()


async def test_the_command_says_what_it_found_and_where(served: Served) -> None:
    await traffic(served.url, "popularity", 50)
    command = [sys.executable, "-m", "service", "audit", "--loop", "popularity", "--data", str(served.data)]
    done = await asyncio.to_thread(
        subprocess.run, [*command, "--confidence", "0.99999"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"auditing loop popularity in {served.redis_url}" in done.stdout.replace("\n", "")
    assert "0 different" in done.stdout
    assert "after a replay of the log" in done.stdout
    missing = await asyncio.to_thread(
        subprocess.run, [*command[:-3], "nowhere", *command[-2:]], capture_output=True, text=True
    )
    assert missing.returncode == 1
    assert "there is no loop 'nowhere'" in missing.stderr


async def test_the_audit_fails_on_a_false_log(served: Served) -> None:
    """Log 1/n for every draw of a greedy policy, as some do, and claim another score: both are found out."""
    await traffic(served.url, "linucb", 500)
    redis = connect(served.redis_url, name="test", timeout_s=10)
    part = served.keys("linucb").partition()
    entries = await redis.xrange(part.events)
    await redis.delete(part.events)
    for _, fields in entries:
        if b"e" not in fields:  # a schema that was fitted
            await redis.xadd(part.events, fields)
            continue
        e = orjson.loads(fields[b"e"])
        if e["n"]:
            e["propensity"] = min(1.0, 2 * e["propensity"])
        await redis.xadd(part.events, {**fields, b"e": orjson.dumps(e)})
    assert not (await audit_propensities(redis, "linucb"))["linucb"].passed
    decision = next(orjson.loads(f[b"e"])["decision_id"] for _, f in reversed(entries) if b"e" in f)
    record = orjson.loads(await redis.hget(part.decision(decision), "record"))
    record["items"][0]["score"] += 1e-12
    await redis.hset(part.decision(decision), "record", orjson.dumps(record))
    assert (await audit_decisions(redis, "linucb", most=50)).different == [decision]
    await redis.aclose()
