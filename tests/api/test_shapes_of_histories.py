"""Shapes of historical logs that users import, and of catalogues whose items live once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from random import Random
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from service.store.keys import Keys
from service.store.loop_store import read_loop
from tests.waiting import until

Make = Callable[..., str]
Row = dict[str, Any]
SHORT = {"half_life": 40, "prior_clicks": 0, "prior_impressions": 0.1}
START = datetime(2026, 1, 1, tzinfo=UTC)


def history(rows: int, *, swap: bool = True, first: int = 0) -> list[Row]:
    """Return rows a minute apart, oldest first: `a` is rewarded in the first half, `b` in the second."""
    return [
        {
            "event_id": f"e{number}",
            "item_id": "ab"[number % 2],
            "reward": int((number % 2 == 1) == (swap and number >= first + rows // 2)),
            "at": (START + timedelta(minutes=number)).isoformat(),
        }
        for number in range(first, first + rows)
    ]


def send(client: httpx.Client, loop: str, rows: list[Row]) -> httpx.Response:
    return client.post("/events", params={"loop": loop}, json={"events": rows})


def rates(client: httpx.Client, loop: str, events: int) -> dict[str, float]:
    """Return the discounted reward rate of each item, once `popularity` has learned so many events."""

    def policy() -> Row:
        found: Row = client.get("/policies/popularity", params={"loop": loop}).json()
        return found

    until(lambda: policy()["events"] == events and policy()["lag"] == 0, f"{events} events are learned")
    return {item: found["discounted_rate"] for item, found in policy()["summary"]["items"].items()}


# ---- the order of an import

ZONES = (UTC, timezone(timedelta(hours=9)), timezone(-timedelta(hours=8)))
ORDERS: dict[str, Callable[[int, Row], Row]] = {  # how a row is written, by its place from the newest
    "as it is": lambda _, row: row,
    "unix seconds": lambda _, row: {**row, "at": datetime.fromisoformat(row["at"]).timestamp()},
    "unix milliseconds": lambda _, row: {**row, "at": 1000 * int(datetime.fromisoformat(row["at"]).timestamp())},
    "no zone: UTC": lambda _, row: {**row, "at": row["at"].removesuffix("+00:00")},
    "zones mixed": lambda n, row: {
        **row,
        "at": datetime.fromisoformat(row["at"]).astimezone(ZONES[n % 3]).isoformat(),
    },
    "zones and none mixed": lambda n, row: {**row, "at": row["at"][: 19 if n % 2 else None]},
}


@pytest.mark.parametrize("written", ORDERS)
def test_an_import_is_learned_in_the_order_of_its_times(client: httpx.Client, make_loop: Make, written: str) -> None:
    """400 rows, newest first, and tastes swap in the middle: the winner of the second half is the winner."""
    loop = make_loop(items=0, policy="popularity", params=SHORT)
    rows = [ORDERS[written](number, row) for number, row in enumerate(history(400)[::-1])]
    assert send(client, loop, rows).json() == {"imported": 400, "duplicates": 0}
    found = rates(client, loop, 400)
    assert found["b"] > 0.85 > 0.15 > found["a"]
    assert send(client, loop, rows[::2]).json() == {"imported": 0, "duplicates": 200}


def test_an_older_request_is_refused_with_what_to_do(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(items=0, policy="popularity", params=SHORT)
    rows = history(400)
    assert send(client, loop, rows[200:]).status_code == 200
    reply = send(client, loop, rows[:200])
    assert (reply.status_code, reply.json()["code"]) == (409, "out_of_order")
    assert "oldest first" in reply.json()["detail"]
    assert rates(client, loop, 200)["b"] > 0.85
    assert send(client, loop, [*rows[150:250]]).status_code == 409, "all or nothing: half of it is new and older"
    assert send(client, loop, rows[300:]).json() == {"imported": 0, "duplicates": 100}
    assert send(client, loop, [{**rows[-1], "event_id": "same time"}]).json()["imported"] == 1
    untimed = [{"event_id": "no time", "item_id": "a", "reward": 1}]
    assert send(client, loop, untimed).json()["imported"] == 1
    assert client.get("/status").json()["loops"][loop]["events"] == 202


def test_a_request_without_times_is_learned_as_it_was_sent(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(items=0, policy="popularity", params=SHORT)
    rows = [{**row, "at": None} for row in history(400)[::-1]]
    send(client, loop, rows).raise_for_status()
    assert rates(client, loop, 400)["a"] > 0.85


def test_age_counts_from_the_time_of_the_event(client: httpx.Client, make_loop: Make) -> None:
    """Rewards of a year ago are all but forgotten by a half-life of a day, though they are imported at once."""
    loop = make_loop(items=0, policy="popularity", params={**SHORT, "half_life": None, "half_life_s": 86_400})
    year = timedelta(days=365)
    rows = [
        {**row, "reward": int(row["item_id"] == ("a" if number < 320 else "b"))}
        | {"at": (START + timedelta(minutes=number) + (year if number >= 320 else timedelta())).isoformat()}
        for number, row in enumerate(history(400))
    ]
    send(client, loop, rows[::-1]).raise_for_status()
    found = rates(client, loop, 400)
    assert found["b"] > 0.85 > 0.15 > found["a"]


@pytest.mark.parametrize(
    "at", [True, "yesterday", "2026-13-01T00:00:00Z", [1], {}, 1e300, "2026-01-01T00:00:00+99:00", ""]
)
def test_what_is_no_time_is_refused(client: httpx.Client, make_loop: Make, at: object) -> None:
    loop = make_loop(items=0, policy=None)
    reply = send(client, loop, [history(1)[0], {**history(2)[1], "at": at}])
    assert (reply.status_code, [error["field"] for error in reply.json()["errors"]]) == (422, ["events.1.at"])
    assert client.get("/status").json()["loops"][loop]["events"] == 0


def test_times_for_all_or_for_none(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(items=0, policy=None)
    rows = history(10)
    reply = send(client, loop, [*rows[:5], {**rows[5], "at": None}, *rows[6:]])
    assert (reply.status_code, reply.json()["errors"][0]["field"]) == (422, "events.5.at")


def test_a_log_sent_twice_is_learned_once(client: httpx.Client, make_loop: Make) -> None:
    """3 000 rows with contexts and propensities: the rates of the items are the log's."""
    loop = make_loop(items=0, policy="popularity")
    draw = Random(1)
    rows = [
        {
            "event_id": f"{number}",
            "user_id": number % 97,
            "context": {"position": draw.choice("123"), "segment": draw.randrange(5)},
            "item_id": draw.randrange(30),
            "reward": float(draw.random() < 0.1),
            "propensity": 1 / 30,
            "at": (START + timedelta(seconds=number // 3)).isoformat(),
        }
        for number in range(3000)
    ]
    for first in range(0, 3000, 1000):
        part = rows[first : first + 1000]
        assert send(client, loop, part).json() == {"imported": 1000, "duplicates": 0}
        assert send(client, loop, part).json() == {"imported": 0, "duplicates": 1000}
    rates(client, loop, 3000)
    shown = Counter(str(row["item_id"]) for row in rows)
    clicks = Counter(str(row["item_id"]) for row in rows if row["reward"])
    summary = client.get("/policies/popularity", params={"loop": loop}).json()["summary"]["items"]
    assert {item: found["rate"] for item, found in summary.items()} == {
        item: clicks[item] / shown[item] for item in shown
    }
    assert sum(clicks.values()) > 100


# ---- what is bounded by retention


async def remembered(redis: Redis, loop: str) -> int:
    """Return how many event ids of imports Redis holds."""
    record = await read_loop(redis, loop)
    return int(await redis.zcard(Keys(loop, record.id).partition().imported))


@pytest.mark.anyio
async def test_the_set_of_event_ids_is_bounded(client: httpx.Client, make_loop: Make, redis: Redis) -> None:
    loop = make_loop(items=0, policy="popularity", retention=1000)
    rows = history(3500)
    for first in range(0, 3500, 1000):
        part = rows[first : first + 1000]
        assert send(client, loop, part).json() == {"imported": len(part), "duplicates": 0}
        assert await remembered(redis, loop) == 1000
        assert send(client, loop, part).json() == {"imported": 0, "duplicates": len(part)}
    assert send(client, loop, rows[2600:3500]).json() == {"imported": 0, "duplicates": 900}
    forgotten = send(client, loop, rows[:1000])
    assert (forgotten.status_code, forgotten.json()["code"]) == (409, "out_of_order"), "it is not learned twice"
    twice = [{"event_id": "twice", "item_id": "a", "reward": 1}] * 2
    assert send(client, loop, twice).json() == {"imported": 1, "duplicates": 1}
    long = [{"event_id": f"{number:0128}", "item_id": "a", "reward": 1} for number in range(1000)]
    assert send(client, loop, long).json() == {"imported": 1000, "duplicates": 0}
    assert await remembered(redis, loop) == 1000
    rates(client, loop, 4501)


def test_items_that_no_retained_event_names_are_forgotten(client: httpx.Client, make_loop: Make) -> None:
    """3 000 items that live once, and one that is seen again and again."""
    loop = make_loop(items=0, policy="linucb", retention=1000, schema={"hash_dims": 7})
    params = {"loop": loop}
    for kind in ("popularity", "adaptive"):
        client.post("/policies", params=params, json={"kind": kind}).raise_for_status()
    sizes: dict[str, list[int]] = {"linucb": [], "popularity": [], "adaptive": []}
    for first in range(0, 3000, 500):
        rows = [
            {"event_id": f"e{number}", "item_id": "evergreen" if number % 100 == 0 else f"once-{number}", "reward": 1}
            for number in range(first, first + 500)
        ]
        send(client, loop, rows).raise_for_status()

        def learned(events: int = first + 500) -> bool:
            found = client.get("/policies", params=params).json()["policies"]
            return all(policy["events"] == events for policy in found)

        until(learned, "all is learned")
        for policy in client.get("/policies", params=params).json()["policies"]:
            sizes[policy["name"]].append(policy["bytes"])
    for kind, found in sizes.items():
        assert found[1] > 1.5 * found[0] or kind == "adaptive", "at first every item is kept"
        assert max(found[3:]) < 1.25 * found[2], f"{kind}: {found}"
    summary = client.get("/policies/popularity", params=params).json()["summary"]["items"]
    assert summary["evergreen"]["impressions"] == 30
    assert len(summary) < 1200
    assert "once-1" not in summary
    assert "once-2999" in summary
    last = client.post("/recommend", json={**params, "candidates": ["once-1", "once-2999", "new"], "k": 3}).json()
    assert all(isinstance(item["score"], float) for item in last["items"])


def test_items_that_live_once_are_forgotten_from_traffic_too(client: httpx.Client, make_loop: Make) -> None:
    """The same from decisions and feedback, as a shop with listings of its users sends them."""
    loop = make_loop(items=0, policy="popularity", retention=1000)
    for first in range(0, 2400, 20):
        slate = [f"once-{number}" for number in range(first, first + 20)]
        decision = client.post("/recommend", json={"loop": loop, "candidates": slate, "k": 20}).json()["decision_id"]
        batch = {"feedback": [{"decision_id": decision, "item_id": item, "reward": 1} for item in slate]}
        assert {found["status"] for found in client.post("/feedback", json=batch).json()["results"]} == {"accepted"}
    assert len(rates(client, loop, 2400)) < 1200
