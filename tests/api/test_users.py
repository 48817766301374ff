"""`GET` and `DELETE /users/{id}` on a service at work, and a search of everything afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from redis import Redis
from typer.testing import CliRunner

from service.cli import app
from tests.waiting import until

JSON = dict[str, Any]


@pytest.fixture
def store(redis_url: str) -> Iterator[Redis]:
    """The session's Redis, whose files are not compressed: what is in them can be found."""
    with Redis.from_url(redis_url) as redis:
        redis.config_set("rdbcompression", "no")
        yield redis
        redis.config_set("rdbcompression", "yes")


def decide(client: httpx.Client, loop: str, user: str) -> str:
    """Ask for a decision; return its id."""
    asked = {"loop": loop, "user_id": user, "context": {"hour": 3}}
    decision: str = client.post("/recommend", json=asked).raise_for_status().json()["decision_id"]
    return decision


def all_of(client: httpx.Client, loop: str, user: str) -> JSON:
    """Return all pages of a user as one."""
    page: JSON = client.get(f"/users/{user}", params={"loop": loop}).raise_for_status().json()
    found = page
    while page["next"] is not None:
        page = client.get(f"/users/{user}", params={"loop": loop, "after": page["next"]}).raise_for_status().json()
        found["decisions"] += page["decisions"]
        found["events"] += page["events"]
    return found


def found_in(redis: Redis, folder: Path, text: bytes) -> list[str]:
    """Return the keys and files that hold a text."""
    keys = [key.decode() for key in redis.scan_iter(count=1000) if text in key or text in (redis.dump(key) or b"")]
    return keys + [str(path) for path in folder.rglob("*") if path.is_file() and text in path.read_bytes()]


def test_a_user_is_shown_and_erased_and_his_id_is_nowhere(
    client: httpx.Client, make_loop: Callable[..., str], store: Redis, redis_url: str
) -> None:
    caps = {"impressions": [{"most": 99, "within": 60.0}], "taken": {"activity": ["buy", "view"], "within": 60.0}}
    user, loop = f"u/{uuid4().hex}", make_loop(items=4, caps=caps)
    path, params = f"/users/{user.replace('/', '%2F')}", {"loop": loop}
    for number in range(6):
        for name in (user, "another"):
            decision = decide(client, loop, name)
            if number:  # the first waits
                client.post("/feedback", json={"decision_id": decision, "reward": number % 2}).raise_for_status()
    sent = [{"user_id": name, "item_id": "p001", "type": "buy"} for name in (user, "another")]
    client.post("/activity", json={"loop": loop, "activity": sent}).raise_for_status()

    def policy() -> JSON:
        found: JSON = client.get("/policies/linucb", params=params).json()
        return found

    def status() -> JSON:
        found: JSON = client.get("/status").json()["loops"][loop]
        return found

    until(lambda: policy()["events"] == status()["profiled"] == 10, "all is learned and counted")
    shown = all_of(client, loop, user.replace("/", "%2F"))
    assert [one["item_id"] for one in shown["activity"]] == ["p001"]
    assert [one["number"] for one in shown["activity_log"]] == [1]
    assert (len(shown["shown"]), [one["item_id"] for one in shown["taken"]]) == (6, ["p001"])
    assert shown["state"]["last"] == {"category": "b", "price": 1}
    assert {one["decision"]["user_id"] for one in shown["decisions"]} == {user}
    assert sorted(one["status"] for one in shown["decisions"]) == ["pending", *["rewarded"] * 5]
    assert [one["reward"] for one in shown["events"]] == [1.0, 0.0, 1.0, 0.0, 1.0]
    assert {one["context"]["hour"] for one in shown["events"]} == {3}
    exported = CliRunner().invoke(app, ["users", "export", user, "--loop", loop, "--redis", redis_url]).output
    lines = [json.loads(line) for line in exported.splitlines()]
    counted = [*["shown"] * 6, "taken"]
    rest = [*["decision"] * 6, *["event"] * 5, "logged"]
    assert [next(iter(line)) for line in lines] == ["state", "activity", *counted, *rest]
    folder = Path(store.config_get("dir")["dir"])
    assert found_in(store, folder, user.encode()), "it can be found"

    reply = client.delete(path, params=params)
    assert reply.status_code == 202
    erasure = reply.json()
    assert (erasure["ended"], erasure["step"] in ("decisions", "activity")) == (None, True)

    def ended() -> bool:
        erasure.update(client.get(f"/erasures/{erasure['id']}", params=params).json())
        return erasure["ended"] is not None

    until(ended, "he is erased")
    assert (erasure["decisions"], erasure["activity"], erasure["events"]) == (6, 1, 5)
    assert (erasure["step"], erasure["waits_for"], erasure["remains"]) == ("done", [], [])
    until(lambda: not found_in(store, folder, user.encode()), "his id is nowhere")
    gone = all_of(client, loop, user.replace("/", "%2F"))
    assert (gone["activity"], gone["state"], gone["decisions"], gone["events"]) == ([], {}, [], [])
    assert gone["activity_log"] == []
    assert (gone["shown"], gone["taken"]) == ([], [])
    assert len(all_of(client, loop, "another")["decisions"]) == 6, "others are not touched"

    counts = status()
    assert (counts["events"], counts["erased"], counts["erased_pending"], counts["pending"]) == (10, 5, 1, 1)
    assert (policy()["events"], policy()["lag"], counts["profiled"]) == (5, 0, 5)
    version = policy()["version"]
    assert policy()["kept_versions"][0] > 1
    until(lambda: client.get("/status").json()["this_worker"]["serves"][loop] == {"linucb": version}, "it serves")
    refused = client.post("/policies/linucb/rollback", params=params, json={"version": 1})
    assert (refused.status_code, refused.json()["code"]) == (409, "version_erased")
    change = client.get("/changes", params=params).json()["changes"][0]
    assert (change["what"], change["after"]) == (
        "erase user",
        {"erasure": erasure["id"], "digest": erasure["digest"]},
    )
    [listed] = client.get("/erasures", params=params).json()["erasures"]
    assert listed == erasure
    assert f'rebound_events_erased_total{{loop="{loop}"}} 5.0' in client.get("/metrics").text
    audited = CliRunner().invoke(app, ["audit", "--loop", loop, "--redis", redis_url])
    assert audited.exit_code == 0, audited.output
    assert "0 different" in audited.output, "what a version decided that is gone is past checking"


def test_what_is_not_there(client: httpx.Client, make_loop: Callable[..., str]) -> None:
    loop = make_loop(items=0, policy=None)
    assert all_of(client, loop, "nobody")["events"] == []
    for after in ("x", "events:x", "events:1-99999999999999999999", "decisions:-1", "decisions:"):
        reply = client.get("/users/nobody", params={"loop": loop, "after": after})
        assert (reply.status_code, reply.json()["errors"][0]["field"]) == (422, "after"), after
    assert client.get("/users/nobody", params={"loop": "no-loop"}).json()["code"] == "unknown_loop"
    assert client.delete("/users/nobody", params={"loop": "no-loop"}).json()["code"] == "unknown_loop"
    assert client.get("/erasures/none", params={"loop": loop}).json()["code"] == "unknown_erasure"
