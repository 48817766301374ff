"""API keys: roles, loops, rotation, and that none of them can be read anywhere."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from typer.testing import CliRunner

from service.api.app import ROUTES
from service.api.keys import ANYBODY, InvalidKeys, Key, KeyRing
from service.api.routes._depends import FOR_KEYS_OF_SOME_LOOPS, StrictRoute
from service.cli import app
from service.errors import Forbidden
from service.settings import Settings
from tests.conftest import Worker
from tests.docs.test_habits import ROOT
from tests.waiting import until

SECRETS = ("hunter2-client", "hunter2-new", "hunter2-scoped", "hunter2-admin", "hunter2-environment")


def digest(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()


def file_of(folder: Path, text: str) -> Path:
    path = folder / "keys.toml"
    path.write_text(text)
    return path


WHOLE = f"""
[everywhere]
role = "client"
sha256 = ["{digest("hunter2-client")}", "{digest("hunter2-new")}"]

[shop-web]
role = "client"
sha256 = ["{digest("hunter2-scoped")}"]
loops = ["shop", "default"]

[shop-admin]
role = "admin"
sha256 = ["{digest("hunter2-admin")}"]
loops = ["shop"]
"""


@pytest.fixture(scope="module")
def keyed(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a worker with keys of every sort."""
    keys_file = file_of(tmp_path_factory.mktemp("keys"), WHOLE)
    with_keys = Settings(redis_url=settings.redis_url, keys_file=keys_file, admin_keys="hunter2-environment")
    with Worker(with_keys, learner=False) as url:
        yield url


@pytest.fixture
def call(keyed: str) -> Iterator[Callable[..., httpx.Response]]:
    """Calls a route with a key."""
    with httpx.Client(base_url=keyed, verify=False, timeout=30) as client:

        def with_key(secret: str, method: str, path: str, **more: Any) -> httpx.Response:
            return client.request(method, path, headers={"X-API-Key": secret}, **more)

        yield with_key


ASK = {"candidates": ["a", "b"]}


def test_keys_of_file_and_environment_open_what_their_role_says(call: Any) -> None:
    for secret in ("hunter2-client", "hunter2-new", "hunter2-environment"):  # two at once, while one replaces the other
        assert call(secret, "POST", "/recommend", json=ASK).status_code == 200
    assert call("hunter2-client", "GET", "/status").status_code == 403
    assert call("hunter2-environment", "GET", "/status").status_code == 200
    assert call("hunter2-environment", "GET", "/metrics").status_code == 200
    for wrong in ("", "hunter2", "hunter2-clien", digest("hunter2-client"), "everywhere", "x" * 5000):
        assert call(wrong, "POST", "/recommend", json=ASK).status_code == 401


def test_a_key_is_for_its_loops_only(call: Any) -> None:
    """Wherever the loop stands: in the body, the query, the path, or in the id of a decision."""
    decision = call("hunter2-client", "POST", "/recommend", json=ASK).json()["decision_id"]
    of_shop = "01JBX8E9Z3T4V5W6X7Y8Z9A0B1.0.shop"
    other = "01JBX8E9Z3T4V5W6X7Y8Z9A0B1.0.other"
    scoped: list[tuple[str, str, str, dict[str, Any], int]] = [
        ("hunter2-scoped", "POST", "/recommend", {"json": {**ASK, "loop": "other"}}, 403),
        ("hunter2-scoped", "POST", "/recommend?loop=other", {"json": ASK}, 403),
        ("hunter2-scoped", "POST", "/recommend", {"json": ASK}, 200),  # in `default`
        ("hunter2-scoped", "POST", "/recommend/batch", {"json": {"requests": [ASK]}}, 200),
        ("hunter2-scoped", "POST", "/feedback", {"json": {"decision_id": other, "reward": 1}}, 403),
        ("hunter2-scoped", "POST", "/feedback", {"json": {"decision_id": "mine", "reward": 1, "loop": "other"}}, 403),
        ("hunter2-scoped", "POST", "/feedback", {"json": {"decision_id": decision, "reward": 1}}, 202),
        ("hunter2-scoped", "GET", f"/decisions/{other}", {}, 403),
        ("hunter2-scoped", "GET", f"/decisions/{decision}?loop=other", {}, 403),
        ("hunter2-scoped", "GET", f"/decisions/{decision}", {}, 200),
        ("hunter2-scoped", "POST", f"/decisions/{other}/display", {}, 403),
        ("hunter2-scoped", "POST", f"/decisions/{decision}/display", {}, 200),
        ("hunter2-admin", "POST", "/recommend", {"json": ASK}, 403),  # `default` is not among its loops
        ("hunter2-admin", "GET", f"/decisions/{of_shop}", {}, 404),
        ("hunter2-admin", "GET", "/policies", {}, 403),
        ("hunter2-admin", "GET", "/policies?loop=shop", {}, 404),  # there is none; the key may ask
        ("hunter2-admin", "GET", "/policies?loop=nowhere", {}, 403),
        ("hunter2-admin", "PUT", "/loops/other", {"json": {}}, 403),
        ("hunter2-admin", "DELETE", "/loops/default", {}, 403),
        ("hunter2-admin", "DELETE", "/loops/default?loop=shop", {}, 422),
        ("hunter2-admin", "GET", "/metrics", {}, 403),
        ("hunter2-admin", "GET", "/kinds", {}, 200),
    ]
    for secret, method, path, more, status in scoped:
        reply = call(secret, method, path, **more)
        assert reply.status_code == status, (method, path, more, reply.text)


def test_in_a_batch_each_report_is_looked_at_by_itself(call: Any) -> None:
    decision = call("hunter2-client", "POST", "/recommend", json=ASK).json()["decision_id"]
    reports = [
        {"decision_id": decision, "reward": 1},
        {"decision_id": "01JBX8E9Z3T4V5W6X7Y8Z9A0B1.0.other", "reward": 1},
        {"decision_id": "mine", "loop": "other", "reward": 1},
    ]
    results = call("hunter2-scoped", "POST", "/feedback", json={"feedback": reports}).json()["results"]
    assert [result.get("code", result["status"]) for result in results] == ["accepted", "forbidden", "forbidden"]


def test_a_key_for_some_loops_hears_of_no_others(call: Any, keyed: str) -> None:
    assert call("hunter2-environment", "GET", "/loops").json()["loops"] != []
    assert call("hunter2-admin", "GET", "/loops").json()["loops"] == []
    status = call("hunter2-admin", "GET", "/status").json()
    assert (status["loops"], status["this_worker"]["serves"], status["rung"]) == ({}, {}, status["rung"])
    assert isinstance(httpx.get(f"{keyed}/readyz").json()["loops"], int)


def test_a_route_that_names_no_loop_is_for_keys_of_all_loops_unless_it_is_listed() -> None:
    """Whoever adds a route must think of it."""
    unscoped = set()
    for route in (route for routes in ROUTES for route in routes.router.routes):
        assert isinstance(route, StrictRoute), route
        if not any(found.alias == "loop" for found in route.dependant.query_params + route.dependant.path_params):
            unscoped.add(route.path)
    assert unscoped - FOR_KEYS_OF_SOME_LOOPS == {"/metrics"}


def test_the_hot_routes_check_the_loop_on_both_ways(settings: Settings, tmp_path: Path) -> None:
    with_keys = Settings(redis_url=settings.redis_url, keys_file=file_of(tmp_path, WHOLE))
    with Worker(with_keys, learner=False, hot_path=False) as url:
        headers = {"X-API-Key": "hunter2-scoped"}
        for path, body in (("/recommend", ASK), ("/feedback", {"decision_id": "mine", "reward": 1})):
            reply = httpx.post(url + path, json={**body, "loop": "other"}, headers=headers)
            assert (reply.status_code, reply.json()["code"]) == (403, "forbidden")


def test_no_answer_and_no_log_shows_a_key(call: Any, keyed: str) -> None:
    with structlog.testing.capture_logs() as logs, pytest.MonkeyPatch.context() as patch:

        async def defect(*_: object, **__: object) -> None:
            raise ZeroDivisionError

        said = [call(secret, "GET", path).text for secret in SECRETS for path in ("/status", "/metrics", "/nowhere")]
        patch.setattr("service.api.routes.status.read_status", defect)
        said += [call(secret, "GET", "/status").text for secret in SECRETS]

        def met() -> bool:  # the reply may come before the line
            return len([line for line in logs if line["event"] == "request failed"]) == 2

        until(met, "the defect was met with both admin keys")
    for secret in SECRETS:
        for shown in (secret, digest(secret)):
            assert shown not in "".join([*said, str(logs)])


def test_every_key_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the right one stands, and of digests, so that neither length nor a shared beginning shows."""
    ring = KeyRing.of(Settings(keys_file=file_of(tmp_path, WHOLE), client_keys="one,two"))
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def counted(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return real(a, b)

    monkeypatch.setattr("service.api.keys.hmac.compare_digest", counted)
    for given in (b"one", b"hunter2-admin", b"", b"wrong" * 100):
        compared.clear()
        ring.find(given)
        assert len(compared) == len(ring.keys) == 6
        assert {len(part) for pair in compared for part in pair} == {32}
    assert "hunter2" not in repr(ring)
    found = ring.find(b"two")
    assert found is not None
    assert (found.name, found.role) == ("CLIENT_KEYS.2", "client")


def test_without_keys_anybody_may_do_everything() -> None:
    assert KeyRing.of(Settings()).find(b"") is ANYBODY
    ANYBODY.check("any")
    ANYBODY.check_all_loops()
    with pytest.raises(Forbidden):
        Key("k", "admin", frozenset({"a"})).check_all_loops()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no key"),
        ("[a", "no TOML"),
        ("[a]\nrole = 'client'\nsha256 = ['hunter2']", r"a\.sha256\.0"),
        (f"[a]\nrole = 'root'\nsha256 = ['{digest('x')}']", r"a\.role"),
        ("[a]\nrole = 'client'\nsha256 = []", r"a\.sha256"),
        (f"[a]\nrole = 'client'\nsha256 = ['{digest('x')}']\nloop = 'x'", r"a\.loop"),
        (f"[a]\nrole = 'client'\nsha256 = ['{digest('x')}']\nloops = []", r"a\.loops"),
        (f"[A]\nrole = 'client'\nsha256 = ['{digest('x')}']", "A"),
        (f"[a]\nrole = 'client'\nsha256 = ['{digest('env')}']", "are the same"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_and_not_quoted(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InvalidKeys, match=says) as refused:
        KeyRing.of(Settings(keys_file=file_of(tmp_path, text), admin_keys="env"))
    assert "hunter2" not in str(refused.value)


def test_a_missing_file_stops_the_start(tmp_path: Path) -> None:
    env = {"REBOUND_KEYS_FILE": str(tmp_path / "none"), "REBOUND_DATA": str(tmp_path / "data")}
    done = CliRunner().invoke(app, ["serve"], env=env)
    assert (done.exit_code, "Traceback" in done.output) == (2, False)
    assert str(tmp_path / "none") in done.output
    assert not (tmp_path / "data").exists()


def test_a_made_key_is_shown_once_and_its_entry_is_taken(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["key", "shop-web", "--loop", "shop", "--loop", "email"])
    assert done.exit_code == 0, done.output
    secret, entry = done.stderr.split()[-1], done.stdout
    assert len(secret) >= 43, "32 random bytes"
    assert secret not in entry
    found = KeyRing.of(Settings(keys_file=file_of(tmp_path, entry))).find(secret.encode())
    assert found == Key("shop-web", "client", frozenset({"shop", "email"}))
    refused = CliRunner().invoke(app, ["key", "Shop Web", "--role", "root"])
    assert (refused.exit_code, refused.stdout) == (2, "")


def test_no_command_takes_a_key_as_an_option() -> None:
    """Options stand in the list of processes, for every user of the machine."""
    text = (ROOT / "service/cli.py").read_text()
    assert "--key" not in text
    assert "REBOUND_ADMIN_KEYS" in text
