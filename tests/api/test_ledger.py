"""Every row of the table of feedback in docs/api.md: over HTTP, with each aggregation, on a real Redis.

A row is a story. Each of its steps says what is answered, and at the end stands what is in the log, what the counters
say, and that they balance. Time passes by moving the times in Redis back.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from redis import Redis

from service.learn.sweeper import Sweeper
from service.records import START, Event
from service.run.embedded import EmbeddedRedis
from service.settings import Settings
from service.store import event_log
from service.store.connection import connect
from service.store.keys import Keys, loop_record
from tests.conftest import Worker
from tests.ledger import pass_time

AGGREGATIONS = ("first", "sum", "max", "last")
WAIT, EARLY, DEFAULT = 600, 60, 0.125
EXPIRED = "01JBX8E9Z3T4V5W6X7Y8Z9A0B1.0."  # begins an id of 2024
API = Path(__file__).parents[2] / "docs/api.md"

Answer = str  # the status of the reply, and before it, unless it is 2xx, the HTTP status: `409 already_learned`


class Story:
    """One loop, in which a row is played."""

    def __init__(self, client: httpx.Client, redis_url: str, aggregation: str) -> None:
        self._client, self._redis_url, self.aggregation = client, redis_url, aggregation
        self.loop = f"t-{uuid4().hex[:12]}"
        settings = {"wait_time": WAIT, "early_time": EARLY, "default_reward": DEFAULT, "aggregation": aggregation}
        client.put(f"/loops/{self.loop}", json=settings).raise_for_status()
        self._redis = Redis.from_url(redis_url)
        stored: bytes = self._redis.hget(loop_record(self.loop), "id")
        self.keys = Keys(self.loop, stored.decode())
        self.slates: dict[str, list[str]] = {}

    def decide(self, decision: str, k: int = 1, **body: object) -> None:
        sent = {"loop": self.loop, "decision_id": decision, "candidates": ["a", "b"], "k": k, **body}
        reply = self._client.post("/recommend", json=sent)
        assert reply.status_code == 200, reply.text
        self.slates[decision] = [item["id"] for item in reply.json()["items"]]

    def report(self, decision: str, reward: float, *, place: int | None = None, **body: object) -> Answer:
        sent = {"loop": self.loop, "decision_id": decision, "reward": reward, **body}
        if place is not None:
            sent["item_id"] = self.slates[decision][place]
        return answer(self._client.post("/feedback", json=sent))

    def batch(self, *reports: tuple[str, float]) -> list[Answer]:
        sent = [{"decision_id": decision, "reward": reward} for decision, reward in reports]
        reply = self._client.post("/feedback", json={"loop": self.loop, "feedback": sent})
        return [str(found["status"]) for found in reply.json()["results"]]

    def display(self, decision: str) -> Answer:
        return answer(self._client.post(f"/decisions/{decision}/display", params={"loop": self.loop}))

    def ledger(self, decision: str) -> dict[str, Any]:
        found: dict[str, Any] = self._client.get(f"/decisions/{decision}", params={"loop": self.loop}).json()
        return found

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self._client.get("/status").json()["loops"][self.loop]
        return found

    def later(self, seconds: float) -> None:
        """Let time pass, then sweep."""
        pass_time(self._redis, self.keys, seconds)
        asyncio.run(self._sweep())

    async def _sweep(self) -> None:
        redis = connect(self._redis_url, name="test", timeout_s=5)
        await Sweeper(redis, self.keys).step()
        await redis.aclose()

    def events(self) -> list[Event]:
        return asyncio.run(self._events())

    async def _events(self) -> list[Event]:
        redis = connect(self._redis_url, name="test", timeout_s=5)
        found = await event_log.read(redis, self.keys, START)
        await redis.aclose()
        return [event for event in found if isinstance(event, Event)]


def answer(reply: httpx.Response) -> Answer:
    found = reply.json()
    assert reply.status_code == (202 if found.get("status") in ("accepted", "early") else reply.status_code)
    if reply.status_code >= 400:
        return f"{reply.status_code} {found['code']}"
    return str(found["status"])


def by(story: Story, first: Answer, others: Answer) -> Answer:
    """Return what is expected of this story's aggregation."""
    return first if story.aggregation == "first" else others


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        says: its first cell.
        play: the story.
        learned: by aggregation (or `all`, or `others` than `first`), the events (decision, place, reward).
        counters: of /status, at the end, beside those that are 0.
    """

    says: str
    play: Callable[[Story], None]
    learned: Mapping[str, Sequence[tuple[str, int, float]]]
    counters: Mapping[str, int] = field(default_factory=dict)


ROWS: list[Row] = []


def row(
    says: str, learned: Mapping[str, Sequence[tuple[str, int, float]]], **counters: int
) -> Callable[[Callable[[Story], None]], None]:
    def add(play: Callable[[Story], None]) -> None:
        ROWS.append(Row(says, play, learned, counters))

    return add


def combined(a: float, b: float) -> dict[str, list[tuple[str, int, float]]]:
    """Return what is learned of `d` from two reports."""
    rewards = {"first": a, "sum": a + b, "max": max(a, b), "last": b}
    return {name: [("d", 0, reward)] for name, reward in rewards.items()}


NOTHING: dict[str, list[tuple[str, int, float]]] = {"all": []}
HALF = {"all": [("d", 0, 0.5)]}
DEFAULTED = {"all": [("d", 0, DEFAULT)]}


@row("one report in time", HALF, joined=1)
def _(story: Story) -> None:
    story.decide("d")
    assert story.report("d", 0.5) == "accepted"
    assert story.ledger("d")["status"] == "rewarded"


@row("none", DEFAULTED, defaulted=1)
def _(story: Story) -> None:
    story.decide("d")
    story.later(WAIT + 1)
    assert story.ledger("d")["status"] == "defaulted"


@row("a second one with another key", combined(0.25, 0.5))
def _(story: Story) -> None:
    story.decide("d")
    assert story.report("d", 0.25, feedback_id="f") == "accepted"
    assert story.report("d", 0.5, feedback_id="g") == by(story, "duplicate", "accepted")


@row("a second one without a key", combined(0.5, 0.25))
def _(story: Story) -> None:
    story.decide("d")
    assert story.report("d", 0.5) == "accepted"
    assert story.report("d", 0.25) == by(story, "duplicate", "accepted")


@row("the same key again, whatever else it says", {"all": [("d", 0, 0.5), ("d", 1, DEFAULT)]}, joined=1, duplicate=3)
def _(story: Story) -> None:
    story.decide("d", k=2)
    assert story.report("d", 0.5, feedback_id="f") == "accepted"
    assert story.report("d", 0.5, feedback_id="f") == "duplicate"
    assert story.report("d", 1.0, feedback_id="f") == "duplicate"
    assert story.report("d", 1.0, feedback_id="f", place=1) == "duplicate"
    [seen] = story.ledger("d")["feedback"]
    assert (seen["reward"], seen["item_id"]) == (0.5, story.slates["d"][0])


@row("the same key many times at once", HALF, joined=1, duplicate=15)
def _(story: Story) -> None:
    story.decide("d")
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: story.report("d", 0.5, feedback_id="f"), range(16)))
    assert Counter(answers) == {"accepted": 1, "duplicate": 15}


@row("the same key at another decision", {"all": [("d", 0, 0.5), ("e", 0, 1.0)]}, joined=2)
def _(story: Story) -> None:
    story.decide("d")
    story.decide("e")
    assert story.report("d", 0.5, feedback_id="f") == "accepted"
    assert story.report("e", 1.0, feedback_id="f") == "accepted"


@row("on several items of a slate, in any order", {"all": [("d", 0, 0.5), ("d", 1, 1.0)]}, joined=2)
def _(story: Story) -> None:
    story.decide("d", k=2)
    assert story.report("d", 1.0, place=1, feedback_id="g") == "accepted"
    assert story.report("d", 0.5, place=0, feedback_id="f") == "accepted"


@row("on some items of a slate", {"all": [("d", 0, DEFAULT), ("d", 1, 1.0)]}, joined=1, defaulted=1)
def _(story: Story) -> None:
    story.decide("d", k=2)
    assert story.report("d", 1.0, place=1) == "accepted"
    story.later(WAIT + 1)
    assert story.ledger("d")["status"] == "rewarded"


@row("on an item that is not in the slate", DEFAULTED, defaulted=1, rejected=1)
def _(story: Story) -> None:
    story.decide("d")
    assert story.report("d", 0.5, item_id="c") == "422 invalid_request"


@row("late", DEFAULTED, defaulted=1, late=1)
def _(story: Story) -> None:
    story.decide("d")
    story.later(WAIT + 1)
    assert story.report("d", 0.5, feedback_id="f") == "late"
    assert story.ledger("d")["status"] == "late"


@row("late, before the sweeper has come", DEFAULTED, defaulted=1, late=1)
def _(story: Story) -> None:
    story.decide("d")
    pass_time(story._redis, story.keys, WAIT + 1)
    assert story.report("d", 0.5, feedback_id="f") == "late"


@row("late, beside one in time", HALF, joined=1, late=1)
def _(story: Story) -> None:
    story.decide("d")
    assert story.report("d", 0.5, feedback_id="f") == "accepted"
    story.later(WAIT + 1)
    assert story.report("d", 1.0, feedback_id="g") == "late"
    assert story.ledger("d")["status"] == "rewarded"


@row("late, the same key again", DEFAULTED, defaulted=1, late=1, duplicate=1)
def _(story: Story) -> None:
    story.decide("d")
    story.later(WAIT + 1)
    assert story.report("d", 0.5, feedback_id="f") == "late"
    assert story.report("d", 0.5, feedback_id="f") == "duplicate"


@row("early, in any number", combined(0.25, 0.5), early=2)
def _(story: Story) -> None:
    assert story.report("d", 0.25, feedback_id="f") == "early"
    assert story.report("d", 0.5, feedback_id="g") == "early"
    assert story.status()["early_waiting"] == 2
    story.decide("d")
    assert story.status()["early_waiting"] == 0
    assert story.ledger("d")["status"] == "rewarded"


@row("early, in a batch beside one in time", {"all": [("d", 0, 0.5), ("e", 0, 1.0)]}, early=1, joined=2)
def _(story: Story) -> None:
    story.decide("d")
    assert story.batch(("e", 1.0), ("d", 0.5)) == ["early", "accepted"]
    story.decide("e")


@row("early, the same key again", HALF, early=2, joined=1, duplicate=2)
def _(story: Story) -> None:
    assert story.report("d", 0.5, feedback_id="f") == "early"
    assert story.report("d", 1.0, feedback_id="f") == "early"
    story.decide("d")
    assert story.report("d", 1.0, feedback_id="f") == "duplicate"


@row("early, the same key many times at once, while the decision comes", HALF, joined=1, decisions=1)
def _(story: Story) -> None:
    def step(number: int) -> Answer:
        if number != 8:
            return story.report("d", 0.5, feedback_id="f")
        story.decide("d")
        return "decided"

    with ThreadPoolExecutor(8) as threads:
        answers = Counter(threads.map(step, range(16)))
    assert answers["accepted"] == (answers["early"] == 0)
    assert answers["early"] + answers["accepted"] + answers["duplicate"] == 15
    assert story.status()["duplicate"] == 14


@row("early, on an item that turns out not to be in the slate", DEFAULTED, early=1, rejected=1, defaulted=1)
def _(story: Story) -> None:
    assert story.report("d", 0.5, item_id="c") == "early"
    story.decide("d")


@row("early, and the decision does not come in time", DEFAULTED, early=1, unknown=1, defaulted=1)
def _(story: Story) -> None:
    assert story.report("d", 0.5) == "early"
    story.later(EARLY + 1)
    assert story.status()["unknown"] == 1
    story.decide("d")


@row("early, and the decision comes too late, before the sweeper", DEFAULTED, early=1, unknown=1, defaulted=1)
def _(story: Story) -> None:
    assert story.report("d", 0.5) == "early"
    pass_time(story._redis, story.keys, EARLY + 1)
    story.decide("d")


@row("for a decision that cannot come", NOTHING, rejected=4)
def _(story: Story) -> None:
    for decision in (EXPIRED + story.loop, "7" + "Z" * 25 + ".0." + story.loop, "8" + "Z" * 25 + ".0." + story.loop):
        assert story.report(decision, 0.5) == "404 unknown_decision"
    assert story.report(f"{EXPIRED}other", 0.5) == "404 unknown_decision"


@row("deferred, and nothing comes", NOTHING, undisplayed=1)
def _(story: Story) -> None:
    story.decide("d", k=2, displayed=False)
    story.later(WAIT + 1)
    assert story.ledger("d")["status"] == "undisplayed"


@row("deferred, displayed, then reported", HALF, joined=1)
def _(story: Story) -> None:
    story.decide("d", displayed=False)
    assert story.ledger("d")["status"] == "undisplayed"
    story.later(WAIT - 1)
    assert story.display("d") == "displayed"
    story.later(WAIT - 1)
    assert story.ledger("d")["status"] == "pending"
    assert story.report("d", 0.5) == "accepted"


@row("deferred, displayed, then nothing", DEFAULTED, defaulted=1)
def _(story: Story) -> None:
    story.decide("d", displayed=False)
    assert story.display("d") == "displayed"
    story.later(WAIT + 1)
    assert story.ledger("d")["status"] == "defaulted"


@row("deferred, reported without a display", {"all": [("d", 0, DEFAULT), ("d", 1, 0.5)]}, joined=1, defaulted=1)
def _(story: Story) -> None:
    story.decide("d", k=2, displayed=False)
    assert story.report("d", 0.5, place=1) == "accepted"
    assert story.display("d") == "displayed"


@row("deferred, displayed or reported too late", NOTHING, undisplayed=1, late=1)
def _(story: Story) -> None:
    story.decide("d", displayed=False)
    pass_time(story._redis, story.keys, WAIT + 1)
    assert story.display("d") == "409 display_too_late"
    story.later(0)
    assert story.display("d") == "409 display_too_late"
    assert story.report("d", 0.5) == "late"
    assert story.ledger("d")["status"] == "undisplayed"


@row("displayed again, or not deferred", DEFAULTED, defaulted=1)
def _(story: Story) -> None:
    story.decide("d")
    deadline = story.ledger("d")["deadline"]
    assert story.display("d") == story.display("d") == "displayed"
    assert story.ledger("d")["deadline"] == deadline


@row("displayed early", {"all": [("d", 0, DEFAULT), ("e", 0, 0.5)]}, early=3, joined=1, defaulted=1)
def _(story: Story) -> None:
    assert story.display("d") == "early"
    story.decide("d", displayed=False)
    assert story.ledger("d")["status"] == "pending"
    assert story.report("e", 0.5) == "early"
    assert story.display("e") == "early"
    story.decide("e", displayed=False)


@row(
    "a correction in time",
    {name: [("d", 0, reward)] for name, reward in {"first": 0.5, "sum": 0.375, "max": 0.25, "last": 0.25}.items()},
)
def _(story: Story) -> None:
    """It takes the turn of what it replaces: with `last`, the report after that one still counts."""
    story.decide("d")
    story.report("d", 0.5, feedback_id="f")
    story.report("d", 0.25, feedback_id="g")
    for expected in ("accepted", "duplicate"):
        found = story.report("d", 0.125, feedback_id="h", replaces="f")
        assert found == by(story, "409 already_learned", expected)
    if story.aggregation != "first":
        seen = [(one["status"], one["replaces"]) for one in story.ledger("d")["feedback"]]
        assert seen == [("replaced", None), ("accepted", None), ("accepted", "f")]
        assert story.status()["replaced"] == 1


@row(
    "a correction of a correction",
    {"first": [("d", 0, 0.5), ("d", 1, DEFAULT)], "others": [("d", 0, DEFAULT), ("d", 1, 1.0)]},
)
def _(story: Story) -> None:
    """Its item is that of the report."""
    story.decide("d", k=2)
    story.report("d", 0.5, feedback_id="f", place=0 if story.aggregation == "first" else 1)
    for key, former, expected in (("g", "f", "accepted"), ("h", "f", "409 already_replaced"), ("i", "g", "accepted")):
        found = story.report("d", 1.0, feedback_id=key, replaces=former)
        assert found == by(story, "409 already_learned", expected)


@row("a correction when the wait is over", HALF, joined=1, rejected=2)
def _(story: Story) -> None:
    story.decide("d")
    story.report("d", 0.5, feedback_id="f")
    pass_time(story._redis, story.keys, WAIT + 1)
    assert story.report("d", 1.0, feedback_id="g", replaces="f") == "409 already_learned"
    story.later(0)
    assert story.report("d", 1.0, feedback_id="g", replaces="f") == "409 already_learned"


@row("a correction of what was not reported", HALF, joined=1, rejected=1)
def _(story: Story) -> None:
    story.decide("d")
    assert story.report("d", 1.0, feedback_id="g", replaces="f") == by(
        story, "409 already_learned", "404 unknown_feedback"
    )
    story.report("d", 0.5, feedback_id="f")


@row("a correction that names another item", {"all": [("d", 0, 0.5), ("d", 1, DEFAULT)]}, rejected=1)
def _(story: Story) -> None:
    story.decide("d", k=2)
    story.report("d", 0.5, feedback_id="f")
    assert story.report("d", 1.0, feedback_id="g", replaces="f", place=1) == by(
        story, "409 already_learned", "422 invalid_request"
    )


@row("a correction on a deferred decision", NOTHING, undisplayed=1, rejected=1)
def _(story: Story) -> None:
    """There is nothing to correct, so it displays nothing."""
    story.decide("d", displayed=False)
    assert story.report("d", 1.0, feedback_id="g", replaces="f") == by(
        story, "409 already_learned", "404 unknown_feedback"
    )


@row(
    "an early correction",
    {"first": [("d", 0, 0.5)], "others": [("d", 0, 1.0)]},
    early=2,
)
def _(story: Story) -> None:
    assert story.report("d", 0.5, feedback_id="f") == "early"
    assert story.report("d", 1.0, feedback_id="g", replaces="f") == "early"
    story.decide("d")


@row("early corrections, before what they correct", {"first": [("d", 0, 0.5)], "others": [("d", 0, 0.25)]}, early=4)
def _(story: Story) -> None:
    """They wait for it. What they correct nothing of is refused when the decision comes."""
    for reward, key, former in ((0.25, "h", "g"), (1.0, "g", "f"), (0.125, "i", "never")):
        assert story.report("d", reward, feedback_id=key, replaces=former) == "early"
    assert story.report("d", 0.5, feedback_id="f") == "early"
    story.decide("d")
    assert story.status()["rejected"] == (3 if story.aggregation == "first" else 1)


@row("a decision that was made under another aggregation", {"all": [("d", 0, 0.5), ("e", 0, 0.5)]}, joined=2)
def _(story: Story) -> None:
    """It is joined by the rules of then."""
    story.decide("d")
    other = "last" if story.aggregation == "first" else "first"
    story._client.put(f"/loops/{story.loop}", json={"aggregation": other}).raise_for_status()
    story.decide("e")
    for decision, first in (("d", story.aggregation == "first"), ("e", other == "first")):
        assert story.report(decision, 0.5) == "accepted"
        assert len([event for event in story.events() if event.decision_id == decision]) == first


# ---- the service, and the checks that hold for every row


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, str]]:
    """A client of a worker whose Redis no learner sweeps, and the address of that Redis."""
    with (
        EmbeddedRedis(tmp_path_factory.mktemp("ledger")) as redis,
        Worker(Settings(redis_url=redis.url), learner=False) as url,
        httpx.Client(base_url=url, timeout=30, verify=False) as client,
    ):
        yield client, redis.url


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.says)
def test_a_row_of_the_table(alone: tuple[httpx.Client, str], row: Row, aggregation: str) -> None:
    story = Story(*alone, aggregation)
    row.play(story)
    story.later(WAIT + 1)
    expected = next(row.learned[name] for name in (aggregation, "others", "all") if name in row.learned)
    found = sorted((e.decision_id, story.slates[e.decision_id].index(e.item), e.reward) for e in story.events())
    assert found == sorted(expected)
    counters = story.status()
    for name, count in row.counters.items():
        assert counters[name] == count, name
    check_balance(counters, story.events())
    alone[0].delete(f"/loops/{story.loop}").raise_for_status()


def check_balance(counters: Mapping[str, int], events: Sequence[Event]) -> None:
    """Nothing lost, nothing counted twice."""
    assert counters["events"] == len(events) == len({(event.decision_id, event.item) for event in events})
    assert counters["defaulted"] == sum(event.source == "default" for event in events)
    assert sorted(event.slate_position or 0 for event in events) == list(range(len(events)))
    assert (counters["pending"], counters["early_waiting"]) == (0, 0)


def test_every_row_of_the_table_is_played_and_the_other_way_round() -> None:
    table = API.read_text().split("<!-- ledger -->")[1].split("<!-- end -->")[0]
    told = [line.split("|")[1].strip() for line in table.strip().splitlines()[2:]]
    assert told == [row.says for row in ROWS]
