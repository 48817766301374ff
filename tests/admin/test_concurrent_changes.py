"""Administrative changes from many clients at once, with kills in between: none is lost, none is left half done."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.processes import Served
from tests.waiting import until

LOOP = "shop"
CLIENTS = 10
CHANGES = 20  # of each client
UNSURE = object()  # a change that got no answer: it may or may not have been made


@dataclass
class Client:
    """One administrator, who changes things of his own beside the one thing that all share: the traffic."""

    number: int
    url: str
    items: dict[str, Any] = field(default_factory=dict)  # id -> features, None (deleted) or UNSURE
    policies: dict[str, Any] = field(default_factory=dict)  # name -> True, False (deleted) or UNSURE
    loops: dict[str, Any] = field(default_factory=dict)
    pins: dict[str, Any] = field(default_factory=dict)  # policy -> version or UNSURE
    traffic: list[dict[str, float]] = field(default_factory=list)  # every split that was asked for
    answers: list[int] = field(default_factory=list)
    error: BaseException | None = None

    def run(self) -> None:
        """Make the changes, one after the other."""
        try:
            with httpx.Client(base_url=self.url, timeout=20) as http:
                self._http = http
                plan = random.Random(self.number)
                for step in range(CHANGES):
                    plan.choice((self._item, self._policy, self._pin, self._traffic, self._own_loop))(step)
        except BaseException as error:
            self.error = error

    def _send(self, method: str, path: str, body: Any = None, *, loop: str | None = LOOP) -> int | None:
        """The status; None where no answer came."""
        try:
            reply = self._http.request(method, path, params={"loop": loop} if loop else {}, json=body)
        except httpx.TransportError:
            self.answers.append(0)
            until(self._answers, "the service answers again", within_s=90)
            return None
        self.answers.append(reply.status_code)
        if reply.status_code == 503:  # not acknowledged; part of it may have been done
            return None
        assert reply.status_code in (200, 201, 204, 404, 409), (method, path, reply.text)
        return reply.status_code

    def _answers(self) -> bool:
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def _remember(self, where: dict[str, Any], name: str, status: int | None, done: Any, *, absent: Any) -> None:
        """What must be true of `name` now: `done` after a 2xx, `absent` after a 404, nothing sure without an answer."""
        if status is None:
            where[name] = UNSURE
        elif status < 300:
            where[name] = done
        elif status == 404:
            where[name] = absent

    def _item(self, step: int) -> None:
        name = f"c{self.number}/item-{step % 4}"
        if isinstance(self.items.get(name), dict):
            self._remember(
                self.items, name, self._send("DELETE", f"/items/{name.replace('/', '%2F')}"), None, absent=None
            )
        else:
            features = {"step": step}
            body = {"items": [{"id": name, "features": features}]}
            self._remember(self.items, name, self._send("POST", "/items", body), features, absent=UNSURE)

    def _policy(self, step: int) -> None:
        name = f"c{self.number}-p{step % 3}"
        if self.policies.get(name) is True:
            status = self._send("DELETE", f"/policies/{name}")
            if status != 409:  # it has traffic
                self._remember(self.policies, name, status, False, absent=False)
                self.pins.pop(name, None)
        else:
            status = self._send("POST", "/policies", {"name": name, "kind": "popularity"})
            self._remember(self.policies, name, True if status is None else status, True, absent=UNSURE)
            if status is None or status == 409:  # 409: an earlier try that got no answer was carried out
                self.policies[name] = UNSURE if status is None else True

    def _pin(self, step: int) -> None:
        name = f"own-{self.number}"
        try:
            kept = self._http.get(f"/policies/{name}", params={"loop": LOOP}).json().get("kept_versions")
        except httpx.TransportError:
            return
        if kept:
            version = kept[step % len(kept)]
            status = self._send("POST", f"/policies/{name}/rollback", {"version": version})
            self._remember(self.pins, name, status, version, absent=UNSURE)

    def _traffic(self, step: int) -> None:
        share = round((1 + self.number + step / 100) / 20, 4)
        split = {f"own-{self.number}": share, f"own-{(self.number + 1) % CLIENTS}": round(1 - share, 4)}
        self.traffic.append(split)
        self._send("PUT", "/traffic", split)

    def _own_loop(self, step: int) -> None:
        name = f"loop-{self.number}-{step % 2}"
        if self.loops.get(name) is True:
            self._remember(self.loops, name, self._send("DELETE", f"/loops/{name}", loop=None), False, absent=False)
        else:
            self._remember(self.loops, name, self._send("PUT", f"/loops/{name}", {}, loop=None), True, absent=UNSURE)


@pytest.fixture
def served(data: Path) -> Iterator[Served]:
    served = Served(data, workers=2, REBOUND_FSYNC="always")
    served.start()
    yield served
    if served.process.poll() is None:
        assert served.stop() == 0


def prepare(url: str) -> None:
    """A loop with a policy for each client, each with versions to roll back to."""
    with httpx.Client(base_url=url, timeout=30) as http:
        http.put(f"/loops/{LOOP}", json={}).raise_for_status()
        for number in range(CLIENTS):
            http.post("/policies", params={"loop": LOOP}, json={"name": f"own-{number}", "kind": "popularity"})
        for batch in range(3):
            events = [{"event_id": f"{batch}-{i}", "item_id": f"i{i}", "reward": i % 2} for i in range(10)]
            http.post("/events", params={"loop": LOOP}, json={"events": events}).raise_for_status()

            def learned(n: int = 10 * (batch + 1)) -> bool:
                found = http.get("/status").json()["loops"][LOOP]["policies"]
                return all(policy["events"] == n and policy["version"] for policy in found.values())

            until(learned, "all policies learned the import", within_s=60)


@pytest.mark.slow
def test_no_change_is_lost(served: Served) -> None:
    prepare(served.url)
    clients = [Client(number, served.url) for number in range(CLIENTS)]
    threads = [threading.Thread(target=client.run) for client in clients]
    for thread in threads:
        thread.start()

    def made(mark: int) -> bool:
        return sum(len(client.answers) for client in clients) >= mark or not running()

    def running() -> bool:
        return any(thread.is_alive() for thread in threads)

    for kill, victim in enumerate(("-m service api", "-m service learn", "everything", "-m service api")):
        mark = (kill + 1) * CLIENTS * CHANGES // 12
        until(partial(made, mark), "changes are being made", within_s=120)
        assert [client.error for client in clients] == [None] * CLIENTS
        assert running(), "the changes ended before the kills did"
        if victim == "everything":
            served.kill_everything()
            served.start()
        else:
            served.kill(victim)
    for thread in threads:
        thread.join(timeout=120)
    assert [client.error for client in clients] == [None] * CLIENTS
    until(served.ready, "the service is ready", within_s=60)
    answers = [answer for client in clients for answer in client.answers]
    print(f"{len(answers)} changes, {answers.count(0)} without an answer, {answers.count(503)} refused for now")
    assert len(answers) >= CLIENTS * CHANGES * 0.7

    with httpx.Client(base_url=served.url, timeout=30) as http:
        check(http, clients)
        everything_is_usable_or_deletable(http, clients)


def check(http: httpx.Client, clients: list[Client]) -> None:
    """What was acknowledged is there, and what nobody asked for is not."""
    items = {
        item["id"]: item["features"]
        for item in http.get("/items", params={"loop": LOOP, "limit": 1000}).json()["items"]
    }
    for name, features in ((n, f) for client in clients for n, f in client.items.items() if f is not UNSURE):
        assert items.get(name) == features, name
    found = {policy["name"]: policy for policy in http.get("/policies", params={"loop": LOOP}).json()["policies"]}
    for name, there in ((n, t) for client in clients for n, t in client.policies.items() if t is not UNSURE):
        assert (name in found) == there, name
    for name, version in ((n, v) for client in clients for n, v in client.pins.items() if v is not UNSURE):
        assert found[name]["pinned"] == version, name
    traffic = http.get("/traffic", params={"loop": LOOP}).json()
    splits = [split for client in clients for split in client.traffic]
    assert not splits or traffic in splits
    loops = http.get("/loops").json()["loops"]
    for name, there in ((n, t) for client in clients for n, t in client.loops.items() if t is not UNSURE):
        assert (name in loops) == there, name


def everything_is_usable_or_deletable(http: httpx.Client, clients: list[Client]) -> None:
    """Also the names whose last change got no answer."""
    for name in [name for client in clients for name in client.loops]:
        assert http.put(f"/loops/{name}", json={}).status_code in (200, 201)
        assert http.post("/recommend", json={"loop": name, "candidates": ["a"]}).status_code == 200
        assert http.delete(f"/loops/{name}").status_code == 204
        assert http.get(f"/loops/{name}").status_code == 404
    http.put("/traffic", params={"loop": LOOP}, json={"own-0": 1.0}).raise_for_status()
    for name in [name for client in clients for name in client.policies]:
        made = http.post("/policies", params={"loop": LOOP}, json={"name": name, "kind": "popularity"})
        assert made.status_code in (201, 409)
        assert http.delete(f"/policies/{name}", params={"loop": LOOP}).status_code == 204
    for name in [name.replace("/", "%2F") for client in clients for name in client.items]:
        assert http.put(f"/items/{name}", params={"loop": LOOP}, json={}).status_code == 200
        assert http.delete(f"/items/{name}", params={"loop": LOOP}).status_code == 204
    assert http.post("/recommend", json={"loop": LOOP, "candidates": ["a"]}).json()["policy"] == "own-0"
