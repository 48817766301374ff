"""The log of administrative changes: who, when, what, before, after."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from rich.console import Console

from service.admin.backups import restore_backup
from service.admin.changes import list_changes
from service.backup import backup
from service.records import Change
from service.settings import Settings
from service.store import change_log, item_store, loop_store
from service.store.codec import MOST_OF_A_CHANGE
from service.store.keys import Keys
from tests.api.test_keys import digest, file_of
from tests.builders import loop_of, new_id, store_loop
from tests.conftest import Worker
from tests.waiting import until

ENTRIES = f"""
[ann]
role = "admin"
sha256 = ["{digest("hunter2-ann")}"]
[bob]
role = "admin"
sha256 = ["{digest("hunter2-bob")}"]
"""


@pytest.fixture(scope="module")
def keyed(settings: Settings, service: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a worker with the keys of two administrators. The learner is that of `service`."""
    keys_file = file_of(tmp_path_factory.mktemp("keys"), ENTRIES)
    with_keys = Settings(redis_url=settings.redis_url, keys_file=keys_file)
    with Worker(with_keys, learner=False) as url:
        yield url


@pytest.fixture
def name() -> str:
    """A name that no loop has had: deletions are remembered."""
    return f"t-{new_id()}"


@pytest.fixture
def ann(keyed: str, name: str) -> Iterator[httpx.Client]:
    headers = {"X-API-Key": "hunter2-ann"}
    with httpx.Client(base_url=keyed, headers=headers, params={"loop": name}, verify=False, timeout=30) as client:
        yield client
        client.delete(f"/loops/{name}")


def told(client: httpx.Client, **params: Any) -> list[tuple[str, str, Any, Any]]:
    """Return (by, what, before, after), newest first."""
    reply = client.get("/changes", params=params)
    assert reply.status_code == 200, reply.text
    return [(c["by"], c["what"], c["before"], c["after"]) for c in reply.json()["changes"]]


def test_each_change_is_written_down_with_what_was_there_before(ann: httpx.Client, name: str) -> None:
    def send(method: str, path: str, **more: Any) -> None:
        ann.request(method, path, **more).raise_for_status()

    began = time.time()
    send("PUT", f"/loops/{name}", json={"wait_time": 60})
    send("PUT", f"/loops/{name}", json={"wait_time": 90, "retention": 1000})
    send("PUT", f"/loops/{name}", json={"wait_time": 90})  # changes nothing
    send("POST", "/policies", json={"kind": "popularity", "params": {}})
    send("POST", "/policies", json={"name": "other", "kind": "random"})
    send("POST", "/policies/popularity/activate")
    send("PUT", "/traffic", json={"popularity": 0.5, "other": 0.5}, headers={"X-API-Key": "hunter2-bob"})
    send("POST", "/events", json={"events": [{"event_id": "e", "item_id": "a", "reward": 1}]})
    until(lambda: ann.get("/policies/popularity").json()["version"] >= 1, "a version is there")
    send("POST", "/policies/popularity/rollback", json={"version": 1})
    send("POST", "/policies/popularity/activate")
    send("DELETE", "/policies/other")
    send("PUT", f"/loops/{name}", json={"schema": {"context": {"hour": {"type": "numeric", "min": 0, "max": 23}}}})
    found = told(ann)
    assert [by for by, *_ in found] == ["ann"] * 4 + ["bob"] + ["ann"] * 5
    schema, deleted, active, back, split, first, other, made, settings, begun = [rest for _, *rest in found]
    assert (begun[0], begun[1], begun[2]["settings"]["wait_time"]) == ("make loop", None, 60)
    assert settings == [
        "change settings",
        {"wait_time": 60, "retention": 1_000_000},
        {"wait_time": 90, "retention": 1000},
    ]
    assert (made[0], made[1], made[2]["policy"], made[2]["kind"]) == ("make policy", None, "popularity", "popularity")
    assert other[2]["policy"] == "other"
    assert first == [
        "activate policy",
        {"traffic": {}, "pins": {}},
        {"traffic": {"popularity": 1.0}, "pins": {}},
    ]
    assert split == ["split traffic", {"popularity": 1.0}, {"popularity": 0.5, "other": 0.5}]
    assert back == [
        "roll back",
        {"policy": "popularity", "version": None},
        {"policy": "popularity", "version": 1},
    ]
    assert active[1]["pins"] == {"popularity": 1}
    assert (deleted[0], deleted[1]["policy"], deleted[1]["kind"], deleted[2]) == (
        "delete policy",
        "other",
        "random",
        None,
    )
    assert (schema[0], schema[1]["encoder"]) == ("declare schema", None)
    assert schema[2]["schema"]["context"]["hour"]["max"] == 23
    status = httpx.get(f"{ann.base_url}/status", headers=ann.headers).json()["loops"][name]
    assert (status["changes"], status["last_change"]["by"]) == (len(found), "ann")
    assert began - 5 < status["last_change"]["at"] < time.time() + 5
    assert told(ann, about="data") == [("ann", "import events", None, {"events": 1})]


def test_a_schema_of_a_loop_that_is_not_in_use_is_a_change_like_the_others(ann: httpx.Client, name: str) -> None:
    ann.put(f"/loops/{name}", json={}).raise_for_status()
    ann.put(f"/loops/{name}", json={"schema": {"hash_dims": 7}}).raise_for_status()
    _, what, before, after = told(ann)[0]
    assert (what, before["schema"]["hash_dims"], after["schema"]["hash_dims"]) == ("change settings", 31, 7)


def test_items_are_written_down_apart_with_their_features(ann: httpx.Client, name: str) -> None:
    ann.put(f"/loops/{name}", json={}).raise_for_status()
    ann.post("/items", json={"items": [{"id": 'a/"b', "features": {"price": 0.1}}]}).raise_for_status()
    ann.put("/items/a%2F%22b", json={"features": {"price": 12345678901.25}}).raise_for_status()
    ann.delete("/items/a%2F%22b").raise_for_status()
    large = {"items": [{"id": f"i{n}", "features": {"text": "x" * 200}} for n in range(100)]}
    ann.post("/items", json=large).raise_for_status()
    ann.post("/items", json=large).raise_for_status()
    again, made, deleted, changed, first = [rest for _, *rest in told(ann, about="data")]
    assert first == ["change items", {'a/"b': None}, {'a/"b': {"price": 0.1}}]
    assert changed == ["change items", {'a/"b': {"price": 0.1}}, {'a/"b': {"price": 12345678901.25}}]
    assert deleted == ["delete item", {'a/"b': {"price": 12345678901.25}}, {'a/"b': None}]
    assert set(made[1].values()) == {None}
    assert again[1].keys() == again[2].keys() == made[2].keys() == {"left_out"}
    assert told(ann, about="loop")[0][1] == "make loop"


def test_a_refused_change_leaves_nothing(ann: httpx.Client, name: str) -> None:
    ann.put(f"/loops/{name}", json={}).raise_for_status()
    for method, path, body in (
        ("PUT", "/traffic", {"none": 1.0}),
        ("POST", "/policies", {"kind": "none"}),
        ("POST", "/policies/none/activate", None),
        ("DELETE", "/items/none", None),
        ("PUT", f"/loops/{name}", {"wait_time": -1}),
    ):
        assert ann.request(method, path, json=body).is_client_error
    assert [what for _, what, *_ in told(ann)] == ["make loop"]
    assert told(ann, about="data") == []


def test_a_deletion_outlives_its_loop(ann: httpx.Client, name: str) -> None:
    assert ann.get("/changes", params={"loop": "never-there"}).status_code == 404
    ann.put(f"/loops/{name}", json={"wait_time": 61}).raise_for_status()
    ann.delete(f"/loops/{name}").raise_for_status()
    (by, what, before, after), *_ = told(ann)
    assert (by, what, before["settings"]["wait_time"], after) == ("ann", "delete loop", 61, None)
    assert ann.get("/changes", params={"about": "data"}).status_code == 404
    ann.put(f"/loops/{name}", json={}).raise_for_status()
    assert [what for _, what, *_ in told(ann)][:2] == ["make loop", "delete loop"]


def test_pages_fit_together(ann: httpx.Client, name: str) -> None:
    ann.put(f"/loops/{name}", json={}).raise_for_status()
    for wait in range(70, 75):
        ann.put(f"/loops/{name}", json={"wait_time": wait}).raise_for_status()
    whole = ann.get("/changes").json()["changes"]
    parts: list[Any] = []
    before = None
    while before is not None or not parts:
        page = ann.get("/changes", params={"limit": 2, **({"before": before} if before else {})}).json()
        parts += page["changes"]
        before = page["next"]
    assert parts == whole
    assert len(whole) >= 6
    assert ann.get("/changes", params={"before": "yesterday"}).status_code == 422
    assert ann.get("/changes", params={"about": "users"}).status_code == 422


@pytest.mark.anyio
async def test_the_log_is_bounded_and_so_is_an_entry(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_log, "MOST", 100)  # Redis drops whole nodes of a hundred
    record = loop_of()
    keys = await store_loop(redis, record)
    large = Change("k", "w", {"x": "y" * MOST_OF_A_CHANGE}, "z")
    for _ in range(210):
        await change_log.append(redis, keys.change_log, large)
        await item_store.change_items(redis, keys, {"a": {"b": "c"}}, change=large)
    assert 100 <= await redis.xlen(keys.change_log) <= 200
    assert 100 <= await redis.xlen(keys.data_changes) <= 200
    found = await change_log.read(redis, keys.change_log, before=None, most=3)
    assert [(change.before.keys(), change.after) for _, change in found] == [({"left_out"}, "z")] * 3
    await redis.delete(keys.record)
    await loop_store.remove_keys(redis, keys)


@pytest.mark.anyio
async def test_a_backup_holds_the_log_and_a_restore_is_written_into_it(
    quiet_redis: Redis, quiet_redis_url: str, tmp_path: Path
) -> None:
    record = loop_of()
    await loop_store.create_loop(quiet_redis, record, Change("ann", "make loop", None, {}))
    await asyncio.to_thread(backup, quiet_redis_url, tmp_path / "b", [record.name], Console(quiet=True))
    await restore_backup(quiet_redis, tmp_path / "b", into="again")
    found = await list_changes(quiet_redis, "again", data=False, before=None, most=10)
    assert [(change.by, change.what) for _, change in found] == [
        ("rebound restore", "restore loop"),
        ("ann", "make loop"),
    ]
    assert found[0][1].after["loop"] == record.name


@pytest.mark.anyio
async def test_a_change_that_meets_another_is_written_down_once(redis: Redis) -> None:
    record = loop_of()
    keys: Keys = await store_loop(redis, record)
    await loop_store.change_loop(redis, record, {"traffic": "{}"}, Change("a", "x", 1, 2))
    with pytest.raises(Exception, match="at the same moment"):
        await loop_store.change_loop(redis, record, {"traffic": "{}"}, Change("b", "x", 1, 2))
    assert [change.by for _, change in await change_log.read(redis, keys.change_log, before=None, most=9)] == ["a"]
    await redis.delete(keys.record)
    await loop_store.remove_keys(redis, keys)
