"""`rebound export` and `rebound import` on a real service: nothing is lost, and a file with a fault changes nothing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import duckdb
import httpx
import numpy as np
import orjson
import polars as pl
import pytest
from redis.asyncio import Redis
from rich.console import Console
from typer.testing import CliRunner, Result

from service import cli
from service.admin import imports
from service.admin.audit import audit_propensities
from service.settings import Settings
from service.store import event_log, loop_store
from service.store.connection import connect
from service.store.keys import Keys

T = TypeVar("T")
GIVEN = ["position", "source", "slate_position", "encoder", "x"]  # what a loop gives to an event itself


@dataclass
class Shop:
    """A loop with ten imported events, 40 decisions of one item, five of two, and one that waits. p0 is clicked."""

    name: str
    client: httpx.Client
    redis_url: str

    def run(self, *words: str, loop: str = "") -> Result:
        words = (words[0], "--loop", loop or self.name, "--redis", self.redis_url, *words[1:])
        return CliRunner().invoke(cli.app, list(words))

    def asked(self, question: Callable[[Redis, Keys], Awaitable[T]], loop: str = "") -> T:
        """Ask Redis about a loop."""

        async def ask() -> T:
            async with connect(self.redis_url, name="test", timeout_s=5) as redis:
                record = await loop_store.read_loop(redis, loop or self.name)
                return await question(redis, Keys(record.name, record.id))

        return asyncio.run(ask())

    def size(self, loop: str) -> int:
        """Return how many events the loop has had."""
        return self.asked(event_log.read_stats, loop).get("events", 0)


@pytest.fixture(scope="module")
def shop(service: str, settings: Settings) -> Iterator[Shop]:
    with httpx.Client(base_url=service, timeout=30, verify=False) as client:
        name = f"t-{uuid4().hex[:12]}"
        client.put(f"/loops/{name}", json={"fit_schema": False}).raise_for_status()
        loop = {"loop": name}
        items = [{"id": f"p{i}", "features": {"price": i, "tags": ["a", "b"][: i % 3]}} for i in range(5)]
        client.post("/items", params=loop, json={"items": items}).raise_for_status()
        client.post("/policies", params=loop, json={"kind": "linucb"}).raise_for_status()
        past = [
            {"event_id": f"h{i}", "item_id": "p1", "reward": i % 2, "at": 86_400 * (i // 4), "user_id": "u1"}
            for i in range(10)
        ]
        client.post("/events", params=loop, json={"events": past}).raise_for_status()
        for number in range(45):
            context = {"hour": number % 24, "segment": "abc"[number % 3], "likes": ["x", "y"], "deep": {"none": None}}
            body = loop | {"user_id": f"u{number % 7}", "context": context, "k": 1 + (number >= 40)}
            if number % 2:
                body["candidates"] = ["p0", {"id": "q1", "features": {"price": 9.5}}, "p2"]
            decision = client.post("/recommend", json=body).raise_for_status().json()
            for item in decision["items"]:
                sent = loop | {
                    "decision_id": decision["decision_id"],
                    "item_id": item["id"],
                    "reward": float(item["id"] == "p0"),
                }
                client.post("/feedback", json=sent).raise_for_status()
        client.post("/recommend", json=loop).raise_for_status()
        yield Shop(name, client, str(settings.redis_url))
        client.delete(f"/loops/{name}")


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "console", Console(width=250))


@pytest.fixture(scope="module")
def folder(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "log"
    done = shop.run("export", str(folder))
    assert done.exit_code == 0, done.output
    assert "60 events, 45 decisions" in done.output
    return folder


def test_duckdb_and_polars_read_the_folder(folder: Path) -> None:
    table = f"read_parquet('{folder}/%s/*/*.parquet', hive_partitioning = true)"
    found = duckdb.sql(
        f"SELECT count(*), sum(reward), min(e.day)::VARCHAR, count(DISTINCT d.user_id) FROM {table % 'events'} e"
        f" LEFT JOIN {table % 'decisions'} d USING (decision_id)"
    )
    assert found is not None
    [(count, rewards, day, users)] = found.fetchall()
    assert (count, day, users) == (60, "1970-01-01", 7)
    assert rewards > 5
    events = pl.read_parquet(folder / "events", hive_partitioning=True)
    assert events.filter(pl.col("source") == "import").height == 10
    assert events["day"].n_unique() == 4
    assert pl.read_parquet(folder / "policies.parquet")["kind"].to_list() == ["linucb"]


def test_activity_is_a_table_that_joins_decisions_by_the_order_of_acceptance(
    shop: Shop, make_loop: Callable[..., str], tmp_path: Path
) -> None:
    name = make_loop(items=4)
    acts = [
        {"user_id": "u é", "item_id": f"p00{i}", "type": "view", "at": 1.6e9 - 86_400 * i, "activity_id": f"a{i}"}
        for i in range(3)
    ]
    for act in acts:
        for sent in ([act], [act, {**act, "user_id": "v", "activity_id": None}]):  # the first one twice
            shop.client.post("/activity", json={"loop": name, "activity": sent}).raise_for_status()
        decision = shop.client.post("/recommend", json={"loop": name, "user_id": "u é"}).raise_for_status().json()
        report = {"decision_id": decision["decision_id"], "reward": 1}
        shop.client.post("/feedback", json=report).raise_for_status()
    done = shop.run("export", str(tmp_path / "shop-log"), loop=name)
    assert "3 events, 3 decisions, 6 activities" in done.output
    table = pl.read_parquet(tmp_path / "shop-log" / "activity", hive_partitioning=True)
    assert table["day"].n_unique() == 1, "by the day of acceptance, not of what happened"
    his = table.filter(pl.col("user_id") == "u é")
    assert [(row["number"], row["item_id"], row["at"].timestamp()) for row in his.to_dicts()] == [
        (i + 1, f"p00{i}", 1.6e9 - 86_400 * i) for i in range(3)
    ]
    page = (Path(__file__).parents[2] / "docs" / "exchange.md").read_text()
    [question] = [one for one in re.findall(r"```sql\n(.+?)```", page, re.DOTALL) if "activity/" in one]
    found = duckdb.sql(
        f"SELECT item_id, count(*) FROM ({question.replace('shop-log', f'{tmp_path}/shop-log')}) GROUP BY ALL"
    )
    assert found is not None
    assert sorted(found.fetchall()) == [("p000", 3), ("p001", 2), ("p002", 1)]


def events_of(folder: Path) -> list[dict[str, Any]]:
    events = pl.read_parquet(folder / "events").drop(GIVEN)
    return events.sort("time", "decision_id", "item_id").to_dicts()


def test_what_was_exported_and_imported_is_exported_the_same(
    shop: Shop, folder: Path, make_loop: Callable[..., str], tmp_path: Path
) -> None:
    """Also by way of DSJSON, but for what has no propensity; and to import it again changes nothing."""
    other = make_loop(items=0, policy="popularity")
    for _ in range(2):
        done = shop.run("import", str(folder), loop=other)
        assert done.exit_code == 0, done.output
    assert "0 events imported; 60 were there before" in done.output
    assert shop.run("export", str(tmp_path / "again"), loop=other).exit_code == 0
    assert events_of(tmp_path / "again") == events_of(folder)

    third = make_loop(items=0, policy=None)
    done = shop.run("export", str(tmp_path / "log.dsjson"), loop=other)
    assert "50 events, 0 with all candidates; left out: 10 without a propensity" in done.output
    assert shop.run("import", str(tmp_path / "log.dsjson"), loop=third).exit_code == 0
    assert shop.run("export", str(tmp_path / "third"), loop=third).exit_code == 0
    assert events_of(tmp_path / "third") == [row for row in events_of(folder) if row["propensity"] is not None]

    async def checks(redis: Redis, keys: Keys) -> object:
        return await audit_propensities(redis, keys.loop)

    assert shop.asked(checks, other) == {}, "what was not drawn here is not checked here"


def test_vowpal_wabbit_learns_from_the_export(shop: Shop, tmp_path: Path) -> None:
    """It comes to choose the item that is clicked."""
    file = tmp_path / "log.dsjson"
    done = shop.run("export", str(file))
    assert "50 events, 50 with all candidates; left out: 10" in done.output
    assert file.stat().st_mode & 0o077 == 0
    lines = file.read_text().splitlines()
    vw = pytest.importorskip("vowpalwabbit").Workspace("--cb_explore_adf --dsjson -q :: --quiet")
    sizes, right = set(), 0
    for line in lines:
        examples = vw.parse(line)
        sizes.add(len(examples) - 1)
        chosen = int(np.argmax(vw.predict(examples)))
        actions = [action["_tag"] for action in orjson.loads(line)["c"]["_multi"]]
        right += actions[chosen] == "p0"
        vw.learn(examples)
        vw.finish_example(examples)
    print(f"progressive loss of Vowpal Wabbit: {vw.get_sum_loss() / len(lines):.4f} over {len(lines)} events")
    vw.finish()
    assert sizes == {5, 4, 3, 2}, "places of slates have one candidate fewer"
    assert right > 20, "of 45 to 50 lines with p0"


# ---- what changes nothing


def refused(shop: Shop, loop: str, path: Path) -> str:
    """Return why an import was refused; it must have changed nothing."""
    before = shop.size(loop)
    done = shop.run("import", str(path), loop=loop)
    assert done.exit_code == 1, done.output
    assert shop.size(loop) == before
    return " ".join(done.output.split())


def lines_of(rewards: list[float], times: list[float | None]) -> bytes:
    told = enumerate(zip(rewards, times, strict=True))
    own = [{"item_id": "a", "reward": r, "propensity": 0.5} | ({} if at is None else {"t": at}) for _, (r, at) in told]
    return b"\n".join(
        orjson.dumps({"EventId": f"e{n}", "Timestamp": one.pop("t", None), "rebound": one}) for n, one in enumerate(own)
    )


def test_a_fault_in_the_last_row_changes_nothing(
    shop: Shop, make_loop: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "BATCH", 50)
    loop = make_loop(items=0, policy=None)
    file = tmp_path / "log.dsjson"
    faults: list[tuple[list[float], list[float | None], str]] = [
        ([1.0] * 150 + [2.0], [None] * 151, "line 151, reward: 2 lies outside the loop's reward range [0, 1]"),
        ([1.0] * 3, [1.0, 3.0, 2.0], "line 3, time: is older than the row before"),
        ([1.0] * 2, [1.0, None], "line 2, time: give every event its time"),
        ([1.0] * 2, [1.0, 9e9], "line 2, time: lies more than a year ahead"),
    ]
    for rewards, times, why in faults:
        file.write_bytes(lines_of(rewards, times))
        assert why in refused(shop, loop, file)
    file.write_bytes(lines_of([1.0] * 151, [float(n) for n in range(151)]))
    assert shop.run("import", str(file), loop=loop).exit_code == 0
    assert shop.size(loop) == 151
    np.savez(tmp_path / "log.npz", action=[1], reward=[1], pscore=[0.5])
    (tmp_path / "old.csv").write_text("action,reward,pscore,timestamp\n1,1,0.5,1970-01-01 00:00:02\n")
    assert "line 2: events are learned in the order of their times" in refused(shop, loop, tmp_path / "old.csv")
    assert shop.run("import", str(tmp_path / "log.npz"), loop=loop).exit_code == 0


def test_a_loop_does_not_import_its_own_export(shop: Shop, folder: Path) -> None:
    assert "has these events already" in refused(shop, shop.name, folder)


def test_files_that_are_there_or_are_not_are_told(shop: Shop, folder: Path, tmp_path: Path) -> None:
    for path in (folder, tmp_path / "log.dsjson"):
        path.touch()
        done = shop.run("export", str(path))
        assert done.exit_code == 1
        assert "is there already" in " ".join(done.output.split())
    assert "a name that ends in" in refused(shop, shop.name, tmp_path / "log.txt")
    assert "holds no Parquet file" in refused(shop, shop.name, tmp_path)
    assert "No such file" in refused(shop, shop.name, tmp_path / "gone.csv")
    assert shop.run("export", str(tmp_path / "x"), loop="nobody").exit_code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.dsjson"], "nothing is left behind"


async def garble(redis: Redis, keys: Keys) -> object:
    return await redis.xadd(keys.partition().events, {"e": b"{"})


def test_entries_that_cannot_be_read_are_counted(shop: Shop, make_loop: Callable[..., str], tmp_path: Path) -> None:
    loop = make_loop(items=0, policy=None)
    shop.asked(garble, loop)
    done = shop.run("export", str(tmp_path / "log"), loop=loop)
    assert "0 events, 0 decisions; left out: 1 unreadable" in done.output
