"""`POST /evaluations`: done by a process of its own, kept, listed, cancelled, and not lost when processes die."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from redis.asyncio import Redis
from rich.console import Console

from service import evaluation
from service.admin import evaluations as administration
from service.admin import judge
from service.admin.evaluation import described, evaluate, target_of
from service.admin.status import read_status
from service.errors import Conflict, ReboundError
from service.evaluation import evaluate_there
from service.learn.evaluations import TRIES, Evaluator
from service.records import LoopRecord
from service.serve.follower import Follower
from service.settings import Settings
from service.store import evaluation_store, loop_store
from service.store.connection import connect
from service.store.decisions import DecisionWriter
from service.store.evaluation_store import UNFINISHED, EvaluationRecord
from service.store.group_commit import GroupCommit
from service.store.keys import EVALUATIONS, Keys
from service.store.loop_rows import read_rows, write_rows
from tests.builders import loop_of
from tests.waiting import until_async

Reply = dict[str, Any]
REQUEST = {
    "targets": [{"kind": "random"}],
    "estimator": "ips",
    "interval": "bootstrap",
    "confidence": 0.95,
    "segment": None,
    "decisions": 1000,
}


# ---- over HTTP


def decide(client: httpx.Client, loop: str, decisions: int) -> None:
    """Make decisions, each of another user; p000 is clicked."""
    for number in range(decisions):
        body = {"loop": loop, "user_id": f"u{number}", "context": {"all": 1}}
        decision = client.post("/recommend", json=body).raise_for_status().json()
        reward = float(decision["items"][0]["id"] == "p000")
        sent = {"loop": loop, "decision_id": decision["decision_id"], "reward": reward}
        client.post("/feedback", json=sent).raise_for_status()


async def judged(url: str, loop: str, *kinds: str) -> Reply:
    async with connect(url, name="test", timeout_s=5) as redis:
        found = described(await evaluate(redis, loop, [target_of(kind=kind) for kind in kinds], segment="all"))
        reply: Reply = orjson.loads(orjson.dumps(found))
        return reply


def test_an_evaluation_is_done_kept_and_listed(
    service: str, client: httpx.Client, make_loop: Callable[..., str], settings: Settings
) -> None:
    """Its answer is that of `rebound evaluate`, and the best target comes first."""
    loop = make_loop(policy=None, items=2, fit_schema=False)
    params = {"loop": loop}
    decide(client, loop, 130)
    request = REQUEST | {"targets": [{"kind": "random"}, {"kind": "popularity"}], "segment": "all"}
    result = evaluate_there(service, None, loop, request, Console(quiet=True))
    assert [answer["target"] for answer in result["answers"]] == ["popularity", "random"]
    assert [one["segment"] for one in result["answers"][0]["segments"]] == ["all = 1"]
    assert result["confidence"] == pytest.approx(0.975)
    assert result == asyncio.run(judged(str(settings.redis_url), loop, "random", "popularity"))
    [found] = client.get("/evaluations", params=params).json()["evaluations"]
    assert (found["status"], found["result"]) == ("done", result)
    assert found["created"] <= found["started"] <= found["ended"]
    path = f"/evaluations/{found['id']}"
    assert client.get(path, params=params).json() == found
    assert client.post(f"{path}/cancel", params=params).json() == found, "it has ended"
    assert not [one for one in client.get("/status").json()["evaluations"] if one["loop"] == loop]


def test_a_service_that_does_not_answer_the_question_says_why(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = Console(quiet=True)
    with pytest.raises(ReboundError, match="there is no kind 'magic'"):
        evaluate_there(service, None, "default", REQUEST | {"targets": [{"kind": "magic"}]}, quiet)
    ended = {"id": "x", "status": "failed", "error": {"detail": "it broke"}, "done": 0, "total": None}
    monkeypatch.setattr(evaluation, "call", lambda *_: ended)
    with pytest.raises(ReboundError, match="it was failed: it broke"):
        evaluate_there(service, None, "default", REQUEST, quiet)


def test_an_interrupted_command_cancels_what_it_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []

    def call(*told: object) -> Reply:
        calls.append(told)
        if told[0] == "GET":
            raise KeyboardInterrupt
        return {"id": "x", "status": "waiting", "error": None, "done": 0, "total": None}

    monkeypatch.setattr(evaluation, "call", call)
    monkeypatch.setattr(evaluation, "LOOK_S", 0)
    with pytest.raises(KeyboardInterrupt):
        evaluate_there("http://there", "key", "shop", REQUEST, Console(quiet=True))
    assert calls[-1] == ("POST", "http://there/evaluations/x/cancel?loop=shop", "key")


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"targets": []}, 422, "targets"),
        ({"targets": [{}]}, 422, "targets.0"),
        ({"targets": [{"kind": "random"}, {"kind": "random", "policy": "x"}]}, 422, "targets.1"),
        ({"targets": [{"kind": "magic"}]}, 422, "kind"),
        ({"targets": [{"kind": "popularity", "params": {"wings": 2}}]}, 422, "params.wings"),
        ({"targets": [{"kind": "random", "version": 2}]}, 422, "targets.0.version"),
        ({"targets": [{"policy": "linucb", "params": {"alpha": 1}}]}, 422, "targets.0.params"),
        ({"targets": [{"policy": "nobody"}]}, 404, "nobody"),
        ({"targets": [{"kind": "random"}], "estimator": "magic"}, 422, "estimator"),
        ({"targets": [{"kind": "random"}], "interval": "magic"}, 422, "interval"),
        ({"targets": [{"kind": "random"}], "interval": "anytime", "estimator": "dr"}, 422, "interval"),
        ({"targets": [{"kind": "random"}], "confidence": 1}, 422, "confidence"),
        ({"targets": [{"kind": "random"}], "segment": ""}, 422, "segment"),
    ],
)
def test_what_cannot_be_judged_is_refused_at_once(client: httpx.Client, body: Reply, status: int, named: str) -> None:
    reply = client.post("/evaluations", json=body)
    assert reply.status_code == status
    assert named in reply.text
    assert client.get("/evaluations/nothing").json()["code"] == "unknown_evaluation"


# ---- by parts, where no learner is at work

pytestmark = pytest.mark.anyio


@pytest.fixture
async def shop(quiet_redis: Redis) -> LoopRecord:
    record = loop_of("shop")
    await loop_store.create_loop(quiet_redis, record)
    return record


def keys_of(record: LoopRecord) -> Keys:
    return Keys(record.name, record.id)


async def ask(redis: Redis) -> EvaluationRecord:
    return await administration.create_evaluation(redis, "shop", REQUEST)


async def look(redis: Redis, made: EvaluationRecord) -> EvaluationRecord:
    return await administration.read_evaluation(redis, "shop", made.id)


async def test_at_most_so_many_wait_and_are_kept(
    quiet_redis: Redis, shop: LoopRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation_store, "KEPT", 7)
    made = [await ask(quiet_redis) for _ in range(UNFINISHED)]
    with pytest.raises(Conflict, match="have not ended"):
        await ask(quiet_redis)
    assert [one.id for one in await administration.unfinished(quiet_redis)] == [one.id for one in made]
    for _ in range(9):
        await administration.cancel_evaluation(quiet_redis, "shop", made[-1].id)
        made.append(await ask(quiet_redis))
    kept = await administration.list_evaluations(quiet_redis, "shop")
    assert len(kept) == 7
    assert {one.id for one in made[:4]} <= {one.id for one in kept}, "those that have not ended stay"
    assert await quiet_redis.zcard(EVALUATIONS) == UNFINISHED
    assert len(await quiet_redis.keys("*:evaluation:*")) == 7


async def test_an_answer_is_stored_once_and_only_by_who_has_the_lease(quiet_redis: Redis, shop: LoopRecord) -> None:
    made, keys = await ask(quiet_redis), keys_of(shop)
    assert await evaluation_store.take_lease(quiet_redis, keys, made.id, "mine")
    assert not await evaluation_store.take_lease(quiet_redis, keys, made.id, "another")
    await judge.run_evaluation(quiet_redis, keys, made.id, "another")
    assert (await look(quiet_redis, made)).status == "running"
    await judge.run_evaluation(quiet_redis, keys, made.id, "mine")
    done = await look(quiet_redis, made)
    assert done.result is not None
    assert done.result["answers"][0]["refusal"]["code"] == "no_decisions"
    await judge.run_evaluation(quiet_redis, keys, made.id, "mine")
    assert await look(quiet_redis, made) == done
    assert await evaluation_store.queued(quiet_redis) == []


async def test_what_fails_says_why(quiet_redis: Redis, shop: LoopRecord) -> None:
    made, keys = await ask(quiet_redis), keys_of(shop)
    gone = orjson.dumps({**REQUEST, "targets": [{"policy": "gone"}]})
    await quiet_redis.hset(keys.evaluation(made.id), "request", gone)
    await judge.run_evaluation(quiet_redis, keys, made.id, "mine")
    found = await look(quiet_redis, made)
    assert (found.status, found.error and found.error["code"]) == ("failed", "unknown_policy")


async def test_a_running_evaluation_tells_how_far_it_is_and_ends_when_cancelled(
    quiet_redis: Redis, shop: LoopRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = asyncio.Event()

    async def endless(*_: object, progress: Callable[[int, int], None], **__: object) -> None:
        progress(7, 100)
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    monkeypatch.setattr(judge, "evaluate", endless)
    monkeypatch.setattr(judge, "PERIOD_S", 0.01)
    made = await ask(quiet_redis)
    work = asyncio.create_task(judge.run_evaluation(quiet_redis, keys_of(shop), made.id, "mine"))

    async def begun() -> bool:
        [found] = await administration.unfinished(quiet_redis)
        return (found.status, found.done, found.total) == ("running", 7, 100)

    await until_async(begun, "its progress shows")
    await administration.cancel_evaluation(quiet_redis, "shop", made.id)
    await work
    await ended.wait()
    assert (await look(quiet_redis, made)).status == "cancelled"


async def test_it_survives_a_backup_and_goes_on(quiet_redis: Redis, shop: LoopRecord) -> None:
    """The queue is no part of a loop: who looks at an evaluation queues it."""
    made = await ask(quiet_redis)
    rows = [row async for row in read_rows(quiet_redis, keys_of(shop))]
    await quiet_redis.flushall()
    copy = loop_of("shop")
    await write_rows(quiet_redis, keys_of(copy), rows, later_ms=0)
    await loop_store.create_loop(quiet_redis, copy)
    assert asdict(await look(quiet_redis, made)) == asdict(made)
    assert await evaluation_store.queued(quiet_redis) == [(keys_of(copy), made.id)]


# ---- the learner's part


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Replaces the process that does an evaluation."""

    def put(text: str) -> None:
        script = tmp_path / "program"
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(script))

    return put


async def test_one_whose_processes_die_fails(
    quiet_redis: Redis, settings: Settings, shop: LoopRecord, program: Callable[[str], None]
) -> None:
    program("exit 3")
    made = await ask(quiet_redis)
    for _ in range(TRIES):
        assert (await look(quiet_redis, made)).status == "waiting"
        await Evaluator(quiet_redis, settings).step(asyncio.Event())
    found = await look(quiet_redis, made)
    assert found.status == "failed"
    assert found.error == {"code": "died", "detail": "3 processes died over it, the last with code 3"}


async def test_a_learner_that_stops_ends_the_process_and_another_does_it_again(
    quiet_redis: Redis, settings: Settings, shop: LoopRecord, program: Callable[[str], None], tmp_path: Path
) -> None:
    program(f"touch {tmp_path}/begun; exec sleep 60")
    made, stop = await ask(quiet_redis), asyncio.Event()
    work = asyncio.create_task(Evaluator(quiet_redis, settings).step(stop))

    async def begun() -> bool:
        return (tmp_path / "begun").exists()

    await until_async(begun, "the process begins")
    other = Evaluator(quiet_redis, settings)
    await other.step(asyncio.Event())  # nothing is left to do for another learner
    stop.set()
    await work
    found = await look(quiet_redis, made)
    assert (found.status, found.tries) == ("waiting", 0)
    assert await evaluation_store.take_lease(quiet_redis, keys_of(shop), made.id, "another")


async def test_status_tells_of_evaluations_in_the_loops_that_a_key_may_touch(
    quiet_redis: Redis, shop: LoopRecord
) -> None:
    made = await ask(quiet_redis)
    follower, writer = Follower(quiet_redis, "w"), DecisionWriter(GroupCommit(quiet_redis), buffer=1)
    for only, told in ((None, [made.id]), ({"shop"}, [made.id]), ({"other"}, [])):
        found = await read_status(quiet_redis, follower, writer, only=only)
        assert [one.id for one in found.evaluations] == told


@pytest.mark.parametrize("garbled", [{"v": 99}, {"created": "soon"}, {"request": "{"}])
async def test_one_that_cannot_be_read_stops_no_others(
    quiet_redis: Redis, settings: Settings, shop: LoopRecord, program: Callable[[str], None], garbled: Reply
) -> None:
    program("exit 3")
    broken, made = await ask(quiet_redis), await ask(quiet_redis)
    await quiet_redis.hset(keys_of(shop).evaluation(broken.id), mapping=garbled)
    await Evaluator(quiet_redis, settings).step(asyncio.Event())
    assert [(one.id, one.tries) for one in await administration.list_evaluations(quiet_redis, "shop")] == [(made.id, 1)]
    assert [one.id for one in await administration.unfinished(quiet_redis)] == [made.id]
    with pytest.raises(Conflict, match=broken.id):
        await look(quiet_redis, broken)


async def test_evaluations_of_deleted_loops_leave_the_queue(
    quiet_redis: Redis, settings: Settings, shop: LoopRecord
) -> None:
    await ask(quiet_redis)
    await loop_store.remove_keys(quiet_redis, keys_of(shop))
    assert await administration.unfinished(quiet_redis) == []
    await Evaluator(quiet_redis, settings).step(asyncio.Event())
    assert await quiet_redis.zcard(EVALUATIONS) == 0
