"""Every script names each key that it touches in KEYS, and touches one hash tag: so the store works on a Redis Cluster.

A service does all that it can on a node with cluster mode on, which refuses keys of several slots in one command, and
MONITOR shows what the scripts touch.
"""

from __future__ import annotations

import ast
import re
import shlex
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import httpx
import pytest
from redis import Redis
from redis.exceptions import RedisError, ResponseError

from service.errors import StoreUnavailable
from service.learn import sweeper
from service.run.embedded import find_redis_server
from service.settings import Settings
from service.store.connection import script
from service.store.replica import fetch_data
from tests.conftest import Worker
from tests.processes import free_port
from tests.waiting import until

FILES = {path.name.removesuffix(".lua"): path.read_text() for path in (files("service.store") / "scripts").iterdir()}
INCLUDED = set(re.findall(r"^-- include (\w+)$", "\n".join(FILES.values()), re.MULTILINE))
SCRIPTS = {name: script(name).text for name in FILES if name not in INCLUDED}
CALL = re.compile(r"redis\.p?call\(\s*'(\w+)'\s*(?:,\s*(.+?)\s*(?=[,)]))?")
WITHOUT_A_KEY = ("TIME", "PUBLISH")
WORD = re.compile(rb'"((?:[^"\\]|\\.)*)"')
PASSWORD = "s3cret"
PAGE = Path(__file__).parents[2] / "docs/security.md"
RULES = re.search(r"^```acl\n(.+?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
assert RULES is not None, PAGE
USERS = {
    said.split()[0]: said.replace("PASSWORD", PASSWORD).split()[1:] for said in RULES[1].split("user ") if said.strip()
}
SERVICE = Path(__file__).parents[2] / "service"
ADMINISTRATORS = ("embedded.py", "supervisor.py")  # they speak to a Redis of their own, as its administrators
NAMES = {"delete": "del", "incr": "incrby", "client_list": "client", "memory_usage": "memory"}
NAMES |= {"scan_iter": "scan", "hscan_iter": "hscan", "sscan_iter": "sscan"}
BY_THE_CLIENT = {"client", "select", "unsubscribe"}  # redis-py sends them
MAY_BE_REFUSED = {"config", "client"}  # CONFIG GET save; CLIENT SETINFO, with which redis-py tells its version
NO_COMMANDS = {"pipeline", "pubsub", "execute", "get_message", "aclose", "config_get", "execute_command"}
NO_COMMANDS |= {"connect", "disconnect", "close", "send_packed_command", "send_command", "read_response"}
NO_COMMANDS |= {"makefile", "settimeout", "sendall"}  # of sockets
REDIS = {"redis", "_redis", "pipe", "channel", "connection", "r"}
AS_TEXT = re.compile(r'(?:packed|execute_command|_ask|send_command)\((?:redis, )?"([A-Z]+)"')


# ---- as they are written


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_builds_no_key(name: str) -> None:
    calls = CALL.findall(SCRIPTS[name])
    assert calls
    assert len(calls) == SCRIPTS[name].count("redis.call(")
    for command, key in calls:
        assert command in WITHOUT_A_KEY or re.fullmatch(r"KEYS\[(\d+|at)\]", key), f"{command} {key}"


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_which_keys_it_takes(name: str) -> None:
    head = SCRIPTS[name].split("\nlocal ")[0].split("\nif ")[0]
    assert all(line.startswith("-- ") for line in head.strip().splitlines())
    said = re.search(r"-- KEYS: ((?:.|\n)+?)\n-- ARGV", head)
    assert said
    named = said[1].replace("\n--", "").split(",")
    numbers = [int(number) for number in re.findall(r"KEYS\[(\d+)\]", SCRIPTS[name])]
    assert set(numbers) <= set(range(1, len(named) + 1))


def test_what_a_script_includes_is_a_part_of_its_text() -> None:
    assert {"accept", "budget", "ledger", "limits", "of_user", "open_time", "taken"} == INCLUDED
    for name, text in SCRIPTS.items():
        assert "-- include" not in text, name
        assert ("local function join(" in text) == ("-- include ledger" in FILES[name]), name
        assert ("local function of_user(" in text) == ("-- include of_user" in FILES[name]), name
        assert ("local function open(" in text) == ("-- include open_time" in FILES[name]) == script(name).timed, name


def test_the_check_can_fail() -> None:
    assert CALL.findall("redis.call('GET', ARGV[1] .. 'x')") == [("GET", "ARGV[1] .. 'x'")]
    assert CALL.findall("redis.call('DEL', prefix)") == [("DEL", "prefix")]


# ---- as they run


class ClusterNode:
    """A redis-server with cluster mode on that holds all slots."""

    def __init__(self, data: Path) -> None:
        self.port = next(port for port in iter(free_port, None) if _free(port + 10_000))  # the bus has that one
        self.socket = data / "redis.sock"
        command = [find_redis_server(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(data)]
        command += ["--unixsocket", str(self.socket), "--cluster-enabled", "yes", "--save", "", "--logfile", "log"]
        self.process = subprocess.Popen(command)
        self.url = f"unix://{self.socket}"
        self.redis = Redis.from_url(self.url)
        until(self._answers, "the node answers")
        self.redis.execute_command("CLUSTER", "ADDSLOTS", *range(16_384))
        until(lambda: b"cluster_state:ok" in self._info(), "the cluster is whole")
        for name, rules in USERS.items():
            self.redis.execute_command("ACL", "SETUSER", name, *rules)

    def url_of(self, user: str) -> str:
        """The URL with which one of the documented users connects."""
        return f"unix://{user}:{PASSWORD}@{self.socket}"

    def refused(self) -> list[str]:
        """Return what the documented users asked for and may not, the newest first, and forget it."""
        found = [entry["object"] for entry in self.redis.acl_log()]
        self.redis.acl_log_reset()
        return found

    def _answers(self) -> bool:
        try:
            return bool(self.redis.ping())
        except RedisError:
            return False

    def _info(self) -> bytes:
        info: bytes = self.redis.execute_command("CLUSTER", "INFO", **{"NEVER_DECODE": True})
        return info

    def close(self) -> None:
        self.redis.close()
        self.process.kill()
        self.process.wait()


def _free(port: int) -> bool:
    if port > 65_535:
        return False
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@dataclass
class Run:
    """One run of a script: the keys that it was given, and those that it touched."""

    sha: str
    given: list[bytes]
    touched: list[tuple[bytes, bytes]]  # command, key


class Monitor:
    """Reads what a Redis does."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rb")
        self._socket.sendall(b"MONITOR\r\n")
        assert self._file.readline() == b"+OK\r\n"

    def runs(self, redis: Redis) -> list[Run]:
        """Return all runs of scripts up to now."""
        redis.echo("that is all")
        found: list[Run] = []
        for line in self._file:
            words = WORD.findall(line)
            command = words[0].upper() if words else b""
            if command == b"ECHO" and words[1] == b"that is all":
                return found
            if re.match(rb"\+[\d.]+ \[\d+ lua\]", line):
                found[-1].touched.append((command, words[1] if len(words) > 1 else b""))
            elif command in (b"EVALSHA", b"EVAL"):
                sha = words[1].decode() if command == b"EVALSHA" else "by its text"
                found.append(Run(sha, words[3 : 3 + int(words[2])], []))
        raise AssertionError("the monitor ended")

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
        self._socket.close()


def tag(key: bytes) -> bytes:
    found = re.search(rb"\{(.+?)\}", key)
    return found[1] if found else key


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterNode]:
    node = ClusterNode(tmp_path_factory.mktemp("c"))
    yield node
    node.close()


def everything(url: str, node: ClusterNode) -> None:
    """Call whatever makes the service run a script."""
    with httpx.Client(base_url=url, timeout=30) as client:

        def call(
            method: str, path: str, body: object = None, *, expect: int = 200, asked: dict[str, str] | None = None
        ) -> dict[str, object]:
            params = None if path.startswith("/loops") else {"loop": "shop", **(asked or {})}
            reply = client.request(method, path, json=body, params=params)
            assert reply.status_code == expect, f"{method} {path}: {reply.status_code} {reply.text}"
            return reply.json() if reply.content else {}

        call("PUT", "/loops/shop", {"wait_time": 0.3, "aggregation": "sum", "retention": 1000}, expect=201)
        funnel = {"sources": [{"source": "fresh", "quota": 2}], "cut": 2}
        caps = {"impressions": [{"most": 9, "within": 60.0}], "taken": {"reward_above": 0.5, "within": 60.0}}
        limits = {"caps": caps, "budgets": {"p0": {"impressions": 100}, "p1": {"impressions": 100, "per": "day"}}}
        call("PUT", "/loops/shop", {"exploration_floor": 0.1, "early_time": 0.2, "funnel": funnel, **limits})
        call("POST", "/items", {"items": [{"id": f"p{i}", "features": {"kind": "ab"[i % 2]}} for i in range(4)]})
        call("DELETE", "/items/p3", expect=204)
        for kind in ("linucb", "popularity"):
            call("POST", "/policies", {"name": kind, "kind": kind}, expect=201)
        call("PUT", "/traffic", {"linucb": 0.5, "popularity": 0.5})
        arms = {"control": {"policy": "linucb", "share": 0.5}, "other": {"policy": "popularity", "share": 0.5}}
        call("PUT", "/experiments/test", {"arms": arms})
        call(
            "POST", "/activity", {"activity": [{"user_id": "u1", "item_id": "p0", "type": "view", "activity_id": "a"}]}
        )
        call("PUT", "/loops/shop", {"reward_activity": True})
        edges = [{"from": f"u{n}", "to": to} for n, to in ((1, "u2"), (1, "u3"), (2, "u3"))]
        call("POST", "/edges", {"edges": edges})
        call("DELETE", "/edges", asked={"from": "u1", "to": "u3"})
        again = {"user_id": "u2", "item_id": "p1", "type": "buy"}
        call("POST", "/activity", {"activity": [again]})
        for number in range(5):
            sent = {"loop": "shop", "decision_id": f"d{number}", "user_id": f"u{number}", "k": 2}
            call("POST", "/recommend", sent)
            call("POST", "/recommend", sent)
            if number:
                call("POST", "/feedback", {"loop": "shop", "decision_id": f"d{number}", "reward": 1}, expect=202)
        call("POST", "/recommend", {"loop": "shop", "decision_id": "later", "displayed": False})
        call("POST", "/decisions/later/display")
        call("POST", "/feedback", {"loop": "shop", "decision_id": "never", "reward": 1}, expect=202)
        events = [{"event_id": f"e{i}", "item_id": "p0", "reward": 1, "at": 1e9 + i} for i in range(1200)]
        for part in (events[:600], events[600:], events[600:]):
            call("POST", "/events", {"events": part})

        def settled() -> bool:
            told = client.get("/status").raise_for_status().json()["loops"]["shop"]
            policies = told["policies"].values()
            return not told["pending"] and all(policy["events"] == told["events"] for policy in policies)

        until(settled, "all decisions are settled and learned")
        until(lambda: client.get("/status").json()["loops"]["shop"]["unknown"] == 1, "the early report is given up")
        until(lambda: client.get("/status").json()["loops"]["shop"]["retrieval"], "the funnel's counts are published")
        until(lambda: call("GET", "/experiments/test")["events"], "the experiment is counted")
        call("POST", "/experiments/test/end")
        [stats] = node.redis.keys("rebound:{shop:0}:*:stats")
        until(lambda: node.redis.hexists(stats, "trimmed"), "the log is trimmed")
        call("PUT", "/loops/shop", {"schema": {"hash_dims": 8}})
        until(
            lambda: client.get("/status").json()["loops"]["shop"]["policies"]["linucb"]["encoder_swaps"],
            "the policy moves to the encoder that was declared",
        )
        version = call("GET", "/policies/linucb")["version"]
        call("POST", "/policies/linucb/rollback", {"version": version})
        call("POST", "/policies/linucb/activate")
        call("POST", "/policies/popularity/release", {"steps": [0.5]}, expect=202)
        call("DELETE", "/policies/popularity/release")
        call("GET", "/decisions/d1")
        call("GET", "/users/u1")
        erasure = call("DELETE", "/users/u1", expect=202)["id"]
        until(lambda: call("GET", f"/erasures/{erasure}")["ended"], "the user is erased")
        asked = call("POST", "/evaluations", {"targets": [{"kind": "random"}]}, expect=202)
        call("POST", f"/evaluations/{asked['id']}/cancel")
        until(lambda: not node.redis.keys("*lease:evaluation:*"), "no learner is at work on it")
        [granted] = node.redis.keys("rebound:{shop}:*:granted")
        until(lambda: node.redis.hlen(granted) == 2, "budgets are granted")
        call("PUT", "/loops/shop", {"budgets": {"p1": {"impressions": 100, "per": "day"}}})
        forget = script("forget_budgets").sha
        until(lambda: node.redis.script_exists(forget)[0], "the other is looked for")
        call("DELETE", "/policies/popularity", expect=204)
        call("DELETE", "/loops/shop", expect=204)


def test_the_whole_service_runs_on_a_node_of_a_cluster(node: ClusterNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeper, "ENCODERS_S", 0.1)
    with (
        Monitor(node.socket) as monitor,
        Worker(Settings(redis_url=node.url_of("rebound"), publish_period_ms=20), learner=True) as url,
    ):
        everything(url, node)
        runs = monitor.runs(node.redis)
    lacking = set(node.refused()) - MAY_BE_REFUSED
    assert lacking == set(), "docs/security.md gives the user of Redis too little"
    names = {script(name).sha: name for name in SCRIPTS}
    assert {names[run.sha] for run in runs if run.sha in names} == set(SCRIPTS), "a script was not run"
    for run in runs:
        name = names.get(run.sha, run.sha)
        assert len({tag(key) for key in run.given}) == 1, f"{name} has keys of several tags: {run.given}"
        for command, key in run.touched:
            assert command.decode() in WITHOUT_A_KEY or key in run.given, (
                f"{name} touches {key!r}, which is not in KEYS"
            )
    assert [key for key in node.redis.keys("*shop*") if b":fence:" not in key] == []


def test_several_tags_would_be_refused(node: ClusterNode) -> None:
    with pytest.raises(RedisError, match="same slot"):
        node.redis.eval("return 1", 2, "{a}", "{b}")
    with pytest.raises(RedisError, match="same slot"):
        node.redis.mget("{a}", "{b}")


def test_the_monitor_sees_a_key_that_was_not_given(node: ClusterNode) -> None:
    with Monitor(node.socket) as monitor:
        node.redis.eval("redis.call('TIME') return redis.call('GET', ARGV[1])", 1, "{a}:given", "{a}:other")
        [run] = monitor.runs(node.redis)
    assert (run.given, run.touched) == ([b"{a}:given"], [(b"TIME", b""), (b"GET", b"{a}:other")])


# ---- the user of Redis that docs/security.md describes


def called_of_redis(text: str) -> set[str]:
    """Return the methods that a file calls of a client of Redis, or of what such a call returns."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of: ast.expr = node.func.value
            while isinstance(of, ast.Call) and isinstance(of.func, ast.Attribute):
                of = of.func.value
            name = of.id if isinstance(of, ast.Name) else of.attr if isinstance(of, ast.Attribute) else ""
            if name in REDIS:
                found.add(node.func.attr)
    return found


def test_the_list_of_commands_is_what_the_code_names_and_no_more() -> None:
    """`everything` does not reach each of them: upgrades, restores and searches use more."""
    named = {command.lower() for text in SCRIPTS.values() for command, _ in CALL.findall(text)} | BY_THE_CLIENT
    for path in SERVICE.rglob("*.py"):
        text = path.read_text()
        if "redis" in text.lower() and path.name not in ADMINISTRATORS:
            named |= {NAMES.get(name, name) for name in called_of_redis(text) - NO_COMMANDS}
            named |= {word.lower() for word in AS_TEXT.findall(text)}
            named |= {"multi", "exec"} if "transaction=True" in text else set()
    listed = {rule[1:].partition("|")[0] for rules in USERS.values() for rule in rules if rule.startswith("+")}
    assert (listed - named, named - listed) == (set(), set()), "nothing needs the first; the list lacks the second"


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize(
    "command",
    [
        "FLUSHALL",
        "KEYS *",
        "CONFIG GET requirepass",
        "CONFIG SET dir /tmp",
        "DEBUG SLEEP 0",
        "SHUTDOWN NOSAVE",
        "REPLICAOF 127.0.0.1 1",
        "MONITOR",
        "ACL LIST",
        "CLIENT KILL ID 1",
        "SCRIPT FLUSH",
        "GET other:key",
        "SET other:key x",
        "PUBLISH other x",
        "EVAL \"return redis.call('GET','other:key')\" 0",
        "EVAL \"return redis.call('FLUSHALL')\" 0",
    ],
)
def test_nothing_else_is_open_to_it(node: ClusterNode, user: str, command: str) -> None:
    with (
        Redis.from_url(node.url_of(user)) as redis,
        pytest.raises(ResponseError, match=r"permission|access|can't run|not allowed"),
    ):
        redis.execute_command(*shlex.split(command))
    assert node.redis.ping()
    assert node.refused() != []


def test_a_backup_is_taken_by_its_own_user_and_by_no_other(node: ClusterNode, tmp_path: Path) -> None:
    fetch_data(node.url_of("rebound-backup"), tmp_path / "dump.rdb")
    assert (tmp_path / "dump.rdb").read_bytes().startswith(b"REDIS")
    with pytest.raises(StoreUnavailable, match=r"the permission `\+sync`"):
        fetch_data(node.url_of("rebound"), tmp_path / "other.rdb")
    with Redis.from_url(node.url_of("rebound-backup")) as redis, pytest.raises(ResponseError, match="permission"):
        redis.get("rebound:store")
    node.refused()
