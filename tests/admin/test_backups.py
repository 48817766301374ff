"""Backups: what is written under traffic comes back whole, under any name; damaged or hostile files change nothing."""

from __future__ import annotations

import asyncio
import gzip
import threading
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from redis.asyncio import Redis
from rich.console import Console
from typer.testing import CliRunner

from service.admin import backups
from service.admin.audit import audit_decisions, audit_learning
from service.admin.backups import MAGIC, read_head, restore_backup
from service.backup import backup
from service.cli import app
from service.errors import Conflict, InvalidRequest, NotFound, StoreUnavailable
from service.run.embedded import EmbeddedRedis
from service.store import loop_store
from service.store.codec import FORMAT, NewerFormat
from service.store.connection import connect
from service.store.keys import DELETED, Keys
from service.store.loop_rows import Row, read_rows
from tests.builders import loop_of
from tests.waiting import until

QUIET = Console(quiet=True)


class Traffic:
    """Decisions with a reward for most, from a thread, until it is stopped."""

    def __init__(self, url: str, loop: str) -> None:
        self.client, self.loop, self.sent = httpx.Client(base_url=url), loop, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            body = {"loop": self.loop, "user_id": f"u{self.sent % 7}", "context": {"hour": self.sent % 24}}
            decision = self.client.post("/recommend", json=body).json()
            if self.sent % 4:
                sent = {"decision_id": decision["decision_id"], "reward": self.sent % 2}
                self.client.post("/feedback", json=sent).raise_for_status()
            self.sent += 1

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.client.close()


@pytest.fixture
def shop(client: httpx.Client, make_loop: Any) -> str:
    loop: str = make_loop(wait_time=600)
    body = {"name": "adaptive", "kind": "adaptive"}
    client.post("/policies", params={"loop": loop}, json=body).raise_for_status()
    client.put("/traffic", params={"loop": loop}, json={"adaptive": 0.5, "linucb": 0.5}).raise_for_status()
    return loop


async def rows_of(redis: Redis, name: str) -> dict[tuple[str, str], list[Any]]:
    record = await loop_store.read_loop(redis, name)
    found: dict[tuple[str, str], list[Any]] = {}
    async for row in read_rows(redis, Keys(name, record.id)):
        found.setdefault((row.room, row.key), []).extend(row.value)
    return found


@pytest.mark.anyio
async def test_a_backup_under_traffic_comes_back_whole_under_another_name(
    client: httpx.Client, shop: str, redis: Redis, redis_url: str, quiet_redis: Redis, tmp_path: Path
) -> None:
    file = tmp_path / "shop.backup"
    with Traffic(str(client.base_url), shop) as traffic:
        until(lambda: traffic.sent >= 60, "there is traffic")
        [copied] = await in_thread(backup, redis_url, file, [shop], QUIET)
        sent = traffic.sent
        until(lambda: traffic.sent >= sent + 10, "traffic goes on")
    assert copied.loop == shop
    assert copied.policies == 2
    assert file.stat().st_mode & 0o077 == 0
    assert not list(tmp_path.glob(".*")), "nothing is left beside the file"

    [restored] = await restore_backup(quiet_redis, file, into="again")
    assert (restored.rows, restored.decisions, restored.policies) == (copied.rows, copied.decisions, copied.policies)
    found = await rows_of(quiet_redis, "again")
    stats = {name.decode(): int(n) for name, n in found["0", "stats"]}
    events = [place for place, parts in found["0", "events"] if parts[0] == b"e"]  # others are successors
    assert stats["decisions"] == copied.decisions <= sent
    assert stats["joined"] == stats["events"] == len(events)
    assert len(found["0", "pending"]) == stats["decisions"] - len(events)
    learned = await audit_learning(quiet_redis, "again")
    assert learned == {"adaptive": True, "linucb": True}
    replayed = await audit_decisions(quiet_redis, "again")
    assert replayed.different == []
    assert replayed.same == len(events)
    assert await quiet_redis.zcard(DELETED) == 0


async def in_thread(function: Any, *args: Any) -> Any:

    return await asyncio.to_thread(function, *args)


@pytest.mark.anyio
async def test_a_restored_loop_serves_and_learns(
    client: httpx.Client, shop: str, redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    open_decision = client.post("/recommend", json={"loop": shop}).json()["decision_id"]
    file, name = tmp_path / "shop.backup", f"{shop}-restored"
    await in_thread(backup, redis_url, file, [shop], QUIET)
    with pytest.raises(Conflict, match=shop):
        await restore_backup(redis, file)
    await restore_backup(redis, file, into=name)
    try:
        until(lambda: client.post("/recommend", json={"loop": name}).status_code == 200, "it serves")
        report = {"loop": name, "decision_id": open_decision, "reward": 1}
        assert client.post("/feedback", json=report).json()["status"] == "accepted"
        params = {"loop": name}
        until(lambda: client.get("/policies/linucb", params=params).json()["events"] >= 1, "it learns")
    finally:
        client.delete(f"/loops/{name}").raise_for_status()


@pytest.mark.anyio
async def test_every_type_of_key_comes_back(quiet_redis: Redis, quiet_redis_url: str, tmp_path: Path) -> None:
    """Also values that are no text, keys with more members than a row takes, and times to live."""
    record = loop_of()
    await loop_store.create_loop(quiet_redis, record)
    keys, bytes_ = Keys(record.name, record.id), bytes(range(256))
    many = [b"%04d" % i for i in range(1201)]
    prefix = keys.partition().prefix
    await quiet_redis.set(keys.state("a"), bytes_, px=10**9)
    await quiet_redis.hset(prefix + "h", mapping=dict.fromkeys(many, bytes_))
    await quiet_redis.rpush(prefix + "l", *many, bytes_)
    await quiet_redis.sadd(prefix + "s", *many)
    await quiet_redis.zadd(prefix + "z", {member: 0.1 + at for at, member in enumerate(many)})
    for at, member in enumerate(many):
        await quiet_redis.xadd(prefix + "x", {b"f": member, b"g": bytes_}, id=f"5-{at + 1}")
    await quiet_redis.set(keys.lease("a"), "of a learner")
    before = await rows_of(quiet_redis, record.name)
    await in_thread(backup, quiet_redis_url, tmp_path / "all", None, QUIET)
    await restore_backup(quiet_redis, tmp_path / "all", into="copy")
    assert await rows_of(quiet_redis, "copy") == before
    assert len(before) == 6, "a lease is nobody's but the learner's"
    copy = await loop_store.read_loop(quiet_redis, "copy")
    assert await quiet_redis.pttl(Keys("copy", copy.id).state("a")) > 10**9 - 60_000


@pytest.mark.anyio
async def test_deadlines_move_by_the_age_of_the_backup(quiet_redis: Redis, tmp_path: Path) -> None:
    age = 3600.0
    rows = [
        Row("0", "pending", "zset", None, [(b"d1", 5000.0)]),
        Row("0", "decision:d1", "hash", None, [(b"deadline", b"5000"), (b"status", b"pending")]),
        Row("0", "early-due", "zset", None, [(b"d2", 5000.0)]),
        Row("0", "early:d2", "list", None, [b'["5000","4000","","0.5","f",""]']),
    ]
    seconds, _ = await quiet_redis.time()
    await restore_backup(quiet_redis, write(tmp_path, rows, at=seconds - age))
    found = await rows_of(quiet_redis, "shop")
    [(_, deadline)] = found["0", "pending"]
    assert deadline == pytest.approx(5000 + 1000 * age, abs=5000)
    assert dict(found["0", "decision:d1"])[b"deadline"] == b"%d" % deadline
    assert found["0", "early-due"] == [(b"d2", deadline)]
    assert found["0", "early:d2"] == [b'["%d","4000","","0.5","f",""]' % deadline]


RECORD = {
    "v": str(FORMAT),
    "id": "0123456789ab",
    "settings": "{}",
    "schema": "{}",
    "d": "32",
    "encoder": "e",
    "epoch": "1",
    "catalogue": "0",
    "traffic": "{}",
    "pins": "{}",
    "newest": "null",
    "declared": "",
}


def write(folder: Path, rows: list[Row], *, at: float = 0.0, **changes: Any) -> Path:
    """Write a backup by hand, with a digest that fits it."""
    head = {"file": MAGIC, "v": FORMAT, "at": at, "loops": [{"name": "shop", "record": flat(RECORD)}], **changes}
    lines = [head]
    for row in rows:
        value = [[_text(part) for part in one] if isinstance(one, tuple) else _text(one) for one in row.value]
        lines.append({"loop": 0, **row._asdict(), "value": value})
    body = b"".join(orjson.dumps(line) + b"\n" for line in lines)
    end = orjson.dumps({"rows": len(rows), "blake2b": blake2b(body).hexdigest()}) + b"\n"
    path = folder / "made.backup"
    path.write_bytes(gzip.compress(body + end))
    return path


def _text(part: Any) -> Any:
    return part.decode() if isinstance(part, bytes) else part


def flat(record: dict[str, str]) -> list[str]:
    return [part for pair in record.items() for part in pair]


@pytest.fixture
def good(tmp_path: Path) -> bytes:
    return write(tmp_path, [Row("home", "policies", "hash", None, [(b"a", b"b")])]).read_bytes()


def damaged(good: bytes) -> Iterator[tuple[str, bytes]]:
    text = gzip.decompress(good)
    yield "empty", b""
    yield "no gzip", text
    yield "cut off", good[:-12]
    yield "a pickle", b"cos\nsystem\n(S'true'\ntR."
    yield "another value", gzip.compress(text.replace(b'"b"', b'"c"'))
    yield "a line less", gzip.compress(b"\n".join(text.split(b"\n")[:1] + text.split(b"\n")[2:]))
    yield "no end", gzip.compress(b"\n".join(text.split(b"\n")[:2]))


@pytest.mark.anyio
async def test_a_damaged_file_changes_nothing(quiet_redis: Redis, tmp_path: Path, good: bytes) -> None:
    for what, content in damaged(good):
        path = tmp_path / "damaged.backup"
        path.write_bytes(content)
        with pytest.raises(InvalidRequest):
            await restore_backup(quiet_redis, path)
        assert await quiet_redis.dbsize() == 0, what


@pytest.mark.parametrize("line", ["the head", "a row"])
def test_a_bomb_is_refused_in_bounded_memory(
    tmp_path: Path, good: bytes, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    """64 kB that unpack to one line of 64 MiB."""
    monkeypatch.setattr(backups, "LONGEST_HEAD", 1 << 18)
    monkeypatch.setattr(backups, "LONGEST_LINE", 1 << 20)
    head = gzip.decompress(good).split(b"\n")[0] + b"\n"
    path = tmp_path / "bomb.backup"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(head if line == "a row" else b"")
        for _ in range(64):
            file.write(b"[" * (1 << 20))
    tracemalloc.start()
    with pytest.raises(InvalidRequest, match="is no backup, or is damaged"):
        read_head(path)
    assert tracemalloc.get_traced_memory()[1] < (20 << 20), "a parser takes fifteen times the line"
    tracemalloc.stop()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "row",
    [
        Row("..", "x", "hash", None, [(b"a", b"b")]),
        Row("1", "x", "hash", None, [(b"a", b"b")]),
        Row("home", "x", "module", None, [(b"a", b"b")]),
        Row("home", "x", "zset", None, [(b"a", b"no number")]),
    ],
    ids=["room", "partition", "type", "score"],
)
async def test_a_hostile_row_makes_no_loop(quiet_redis: Redis, tmp_path: Path, row: Row) -> None:
    with pytest.raises((InvalidRequest, ValueError)):
        await restore_backup(quiet_redis, write(tmp_path, [row]))
    assert await loop_store.loop_names(quiet_redis) == []


@pytest.mark.anyio
async def test_keys_stay_inside_their_loop(quiet_redis: Redis, tmp_path: Path) -> None:
    """Whatever a row is called, its key begins with the prefix of the new loop."""
    row = Row("home", "../../rebound:store", "hash", None, [(b"a", b"b")])
    await restore_backup(quiet_redis, write(tmp_path, [row]))
    record = await loop_store.read_loop(quiet_redis, "shop")
    assert await quiet_redis.exists(Keys("shop", record.id).home + row.key) == 1
    assert await quiet_redis.exists("rebound:store") == 0


@pytest.mark.anyio
async def test_names_and_versions_are_checked(quiet_redis: Redis, tmp_path: Path) -> None:
    path = write(tmp_path, [])
    with pytest.raises(NotFound, match="it has shop"):
        await restore_backup(quiet_redis, path, loop="shoe")
    with pytest.raises(InvalidRequest, match="no name of a loop"):
        await restore_backup(quiet_redis, path, into="NO")
    with pytest.raises(InvalidRequest, match="no name of a loop"):
        read_head(write(tmp_path, [], loops=[{"name": "a{b}", "record": flat(RECORD)}]))
    with pytest.raises(InvalidRequest, match="head"):
        read_head(write(tmp_path, [], loops=[{"name": "shop", "record": []}]))
    with pytest.raises(NewerFormat):
        read_head(write(tmp_path, [], v=FORMAT + 1))
    assert await quiet_redis.dbsize() == 0


@pytest.mark.anyio
async def test_what_a_restore_leaves_when_it_is_cut_off_is_swept_one_day(quiet_redis: Redis, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="room"):
        await restore_backup(quiet_redis, write(tmp_path, [Row("9", "x", "hash", None, [(b"a", b"b")])]))
    [(member, when)] = await quiet_redis.zrange(DELETED, 0, -1, withscores=True)
    assert member.startswith(b"shop/")
    assert when > time.time() + 3600


@pytest.mark.anyio
@pytest.mark.parametrize("categories", [["+@read"], ["+@read", "+@connection"]])
async def test_a_redis_that_keeps_its_data_to_itself(
    quiet_redis: Redis, quiet_redis_url: str, tmp_path: Path, categories: list[str]
) -> None:
    await quiet_redis.acl_setuser("reader", enabled=True, passwords=["+pw"], keys=["*"], categories=categories)
    try:
        url = quiet_redis_url.replace("unix://", "unix://reader:pw@")
        with pytest.raises(StoreUnavailable, match=r"no permissions|NOPERM"):
            await in_thread(backup, url, tmp_path / "x", None, QUIET)
    finally:
        await quiet_redis.acl_deluser("reader")
    assert list(tmp_path.iterdir()) == []


def test_from_one_data_folder_to_another(tmp_path: Path) -> None:
    """No service runs. The loop comes over; a second time it is refused by name."""
    file = str(tmp_path / "all.backup")
    for name in ("old", "new"):
        with EmbeddedRedis(tmp_path / name) as redis:
            asyncio.run(make_a_loop(redis.url, f"loop-{name}"))
    run = CliRunner().invoke
    made = run(app, ["backup", file, "--data", str(tmp_path / "old")])
    assert (made.exit_code, "loop-old" in made.output) == (0, True), made.output
    done = run(app, ["restore", file, "--data", str(tmp_path / "new")])
    assert done.exit_code == 0, done.output
    again = run(app, ["restore", file, "--data", str(tmp_path / "new")])
    assert (again.exit_code, "restore it under another name" in again.output) == (1, True), again.output
    missing = run(app, ["backup", file, "--loop", "nobody", "--data", str(tmp_path / "old")])
    assert (missing.exit_code, "nobody" in missing.output) == (1, True), missing.output
    assert run(app, ["backup", file, "--data", str(tmp_path / "nowhere")]).exit_code == 1


async def make_a_loop(url: str, name: str) -> None:
    redis = connect(url, name="test", timeout_s=5)
    await loop_store.create_loop(redis, replace(loop_of(), name=name))
    await redis.aclose()
