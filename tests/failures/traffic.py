"""Mixed traffic with the faults of real clients, and the account of what must have come of it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass
class Account:
    """What the service has acknowledged."""

    decided: set[str] = field(default_factory=set)
    rewards: dict[str, float] = field(default_factory=dict)  # decision -> reward acknowledged in time
    late: set[str] = field(default_factory=set)
    answers: Counter[str] = field(default_factory=Counter)
    lost: int = 0  # reports acknowledged as early whose decisions never come
    retries: int = 0
    activity: Counter[str] = field(default_factory=Counter)  # user -> his activities that were acknowledged


class Traffic:
    """n decisions with ids of our own, and their feedback: 20 % sent twice, 10 % long after (out of order), 5 % before
    their decision, 5 % for decisions that never come (half of them could), 5 % malformed, and for one decision in ten
    none at all. What is not acknowledged is sent again. Before each decision its user does something: late, twice, and
    out of order.
    """

    def __init__(self, url: str, loop: str, n: int, *, seed: int = 0, at_once: int = 32) -> None:
        self._url, self._loop, self.n, self._random = url, loop, n, random.Random(seed)
        self._at_once = asyncio.Semaphore(at_once)
        self.account = Account()
        self.done = 0
        self._delayed: list[tuple[str, float]] = []

    async def run(self) -> Account:
        """All decisions, then what was held back."""
        plan = [(f"d{i}", self._random.random(), self._random.random()) for i in range(self.n)]
        async with httpx.AsyncClient(base_url=self._url, timeout=10) as self._client:
            await asyncio.gather(*(self._guarded(self._one(*step)) for step in plan))
            self._random.shuffle(self._delayed)
            await asyncio.gather(*(self._guarded(self._report(*late)) for late in self._delayed))
        return self.account

    async def _guarded(self, work: Awaitable[None]) -> None:
        async with self._at_once:
            await work

    async def _one(self, decision_id: str, fate: float, reward: float) -> None:
        body = {"loop": self._loop, "user_id": f"u{int(decision_id[1:]) % 97}", "decision_id": decision_id}
        if 0.50 <= fate < 0.55:
            await self._report(decision_id, float(reward < 0.3))
        await self._browse(body["user_id"], decision_id, fate)
        reply = await self._insist(lambda: self._client.post("/recommend", json={**body, "context": {"c": fate < 0.5}}))
        assert reply.status_code == 200, reply.text
        self.account.decided.add(decision_id)
        self.done += 1
        reward = float(reward < 0.3)
        if fate < 0.10:
            return  # never reported
        if fate < 0.20:
            self._delayed.append((decision_id, reward))
            return
        if not 0.50 <= fate < 0.55:
            await self._report(decision_id, reward)
        if fate < 0.40:
            await self._report(decision_id, reward)
        elif fate < 0.425:
            await self._send(
                {"decision_id": f"01JBX8E9Z3T4V5W6X7Y8Z9A0B1.0.{self._loop}", "reward": reward}, expect=404
            )
        elif fate < 0.45:
            kept = await self._send({"decision_id": f"unknown-{decision_id}", "reward": reward})
            assert kept.json() == {"status": "early"}
            self.account.lost += 1
        elif fate < 0.50:
            await self._send({"decision_id": decision_id, "reward": "a lot"}, expect=422)

    async def _browse(self, user: str, decision_id: str, fate: float) -> None:
        """Send two activities, one of them of long ago, and now and then once more."""
        done = [
            {"user_id": user, "item_id": f"p{int(1000 * fate) % 12}", "type": kind, "at": at, "activity_id": name}
            for kind, at, name in (("click", 2e9, decision_id), ("view", 1e9 + 1e7 * fate, f"{decision_id}-late"))
        ]
        for sent in (done, done[::-1])[: 1 + (fate < 0.3)]:
            body = {"loop": self._loop, "activity": sent}
            reply = await self._insist(lambda body=body: self._client.post("/activity", json=body))  # type: ignore[misc]
            assert {one["status"] for one in reply.json()["results"]} <= {"accepted", "duplicate"}, reply.text
        self.account.activity[user] += len(done)

    async def _report(self, decision_id: str, reward: float) -> None:
        sent = {"decision_id": decision_id, "reward": reward, "feedback_id": f"f-{decision_id}"}
        status = (await self._send(sent)).json()["status"]
        self.account.answers[status] += 1
        if status == "late":
            self.account.late.add(decision_id)
        elif decision_id not in self.account.late:
            self.account.rewards[decision_id] = reward

    async def _send(self, feedback: dict[str, Any], *, expect: int | None = None) -> httpx.Response:
        reply = await self._insist(lambda: self._client.post("/feedback", json={"loop": self._loop, **feedback}))
        assert reply.status_code == expect or (expect is None and reply.status_code in (200, 202)), reply.text
        if expect is not None:
            self.account.answers[str(expect)] += 1
        return reply

    async def _insist(self, send: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
        """Send until it is answered: refused connections, cut ones, time-outs and 503 are tried again.

        A decision that was answered from memory (degraded) is not stored yet, so it is asked for again as well.
        """
        while True:
            try:
                reply = await send()
            except httpx.TransportError:
                reply = None
            if reply is not None and reply.status_code != 503 and not _degraded(reply):
                return reply
            self.account.retries += 1
            await asyncio.sleep(0.05)


def _degraded(reply: httpx.Response) -> bool:
    return reply.status_code == 200 and bool(reply.json().get("degraded"))
