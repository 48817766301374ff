"""`GET /loops/{loop}/profile` over HTTP, and what `/status`, `/metrics` and `rebound doctor` make of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.test_cli import rebound
from tests.waiting import until

Make = Callable[..., str]


@pytest.fixture
def messy(client: httpx.Client, make_loop: Make) -> str:
    """Make a loop whose log holds a field of ids and one of four segments."""
    loop = make_loop(items=0, policy=None)
    events = [
        {
            "event_id": f"e{i}",
            "user_id": f"u{i % 90}",
            "item_id": f"i{i % 12}",
            "context": {"segment": f"s{i * i % 7 % 4}", "trace": f"{i * 7919 % 1000003}t"},
            "features": {"kind": f"k{i % 12 % 4}", "price": 3.5 * (i % 12)},
            "reward": i * i * i % 5 % 2,
        }
        for i in range(700)
    ]
    client.post("/events", params={"loop": loop}, json={"events": events}).raise_for_status()
    until(lambda: profile(client, loop)["events"] == 700, "the events are profiled")
    return loop


def profile(client: httpx.Client, loop: str) -> dict[str, Any]:
    reply = client.get(f"/loops/{loop}/profile")
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def test_a_profile_says_what_the_data_look_like(client: httpx.Client, messy: str) -> None:
    found = profile(client, messy)
    fields = {f"{field['side']}.{field['path']}": field for field in found["fields"]}
    assert {name: field["kind"] for name, field in fields.items()} == {
        "context.segment": "levels",
        "context.trace": "left_out",
        "item.kind": "levels",
        "item.price": "number",
    }
    assert fields["item.price"]["newest"]["high"] == 38.5
    assert [(notice["code"], notice["needs_person"]) for notice in found["notices"]] == [("new_each_time", False)]
    assert found["notices"][0]["first"]["value"] == '"0t"'
    assert client.get("/loops/no-such-loop/profile").status_code == 404
    assert client.get(f"/loops/{messy}/profile", params={"depth": 1}).status_code == 422


def test_a_loop_without_events_has_an_empty_profile(client: httpx.Client, make_loop: Make) -> None:
    found = profile(client, make_loop(policy=None))
    assert (found["events"], found["fields"], found["notices"]) == (0, [], [])


def test_the_proposal_is_a_schema_that_a_loop_takes(client: httpx.Client, messy: str, make_loop: Make) -> None:
    proposal = profile(client, messy)["proposal"]
    assert (set(proposal["context"]), set(proposal["item"])) == ({"segment"}, {"kind", "price"})
    other = make_loop(items=0, policy=None, schema=proposal)
    assert client.get(f"/loops/{other}").json()["schema"] == proposal


def test_notices_are_in_the_status_and_the_metrics(client: httpx.Client, messy: str) -> None:
    found = client.get("/status").json()["loops"][messy]
    assert [(notice["code"], notice["field"]) for notice in found["notices"]] == [("new_each_time", "context/trace")]
    assert found["profiled"] == 700
    assert f'rebound_data_notices{{code="new_each_time",loop="{messy}",needs_person="false"}} 1.0' in (
        client.get("/metrics").text
    )


def test_the_profile_goes_with_its_loop(client: httpx.Client, messy: str) -> None:
    client.delete(f"/loops/{messy}").raise_for_status()
    assert client.get(f"/loops/{messy}/profile").status_code == 404
    client.put(f"/loops/{messy}", json={}).raise_for_status()
    assert profile(client, messy)["events"] == 0


def test_the_doctor_and_the_proposal_over_http_and_from_redis(service: str, redis_url: str, messy: str) -> None:
    for source in (("--url", service), ("--redis", redis_url)):
        done = rebound("doctor", "--loop", messy, *source, COLUMNS="200")
        assert "context.trace" in done.stdout, done.stderr
        assert "left out: new each time" in done.stdout
        assert done.returncode == 1, "it has no policy"
        assert "There is no policy" in done.stdout
        proposed = rebound("schema", "propose", "--loop", messy, *source)
        assert proposed.returncode == 0, proposed.stderr
        assert '"segment"' in proposed.stdout


def test_what_cannot_be_looked_at_is_said_in_a_line(service: str) -> None:
    for words in (("--url", "http://127.0.0.1:1"), ("--data", "/nowhere"), ("--url", service, "--loop", "no-such")):
        done = rebound("doctor", *words)
        assert (done.returncode, "Traceback" in done.stderr) == (1, False)
        assert done.stderr.startswith("✗ "), done.stderr
    done = rebound("schema", "propose", "--url", service, "--loop", "no-such")
    assert done.returncode == 1


# ---- the schema that is fitted


def test_a_fitted_schema_is_read_edited_and_fixed(client: httpx.Client, messy: str) -> None:
    until(lambda: profile(client, messy)["learned"] is not None, "a schema is fitted", within_s=60)
    learned = profile(client, messy)["learned"]
    assert learned["events"] >= 40
    schema = learned["schema"]
    assert schema["blocks"][0]["context"] is schema["blocks"][0]["item"] is None
    edited = {**schema, "own_of_users": []}
    reply = client.put(f"/loops/{messy}", json={"schema": edited})
    assert reply.status_code == 200, reply.text
    assert client.get(f"/loops/{messy}").json()["schema"] == edited
    assert profile(client, messy)["learned"] is None, "a person's word stands"
    asked = {"loop": messy, "user_id": "u1", "context": {"shop": "x"}, "candidates": ["a", "b"]}
    assert client.post("/recommend", json=asked).status_code == 200


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (
            {"context": {"age": {"type": "line", "path": "age", "values": [2, 1], "places": [0, 1]}}},
            "context.age.values",
        ),
        ({"item": {"kind": {"type": "levels", "path": "kind", "levels": ["a", "a"]}}}, "item.kind.levels"),
        ({"blocks": [{"context": "nobody", "item": None, "variance": 1}]}, ""),
        ({"blocks": [{"context": None, "item": None, "variance": -1}]}, "blocks.0.variance"),
        ({"blocks": "many"}, "blocks"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_a_schema_in_the_form_of_a_fitted_one_is_checked(client: httpx.Client, change: Any, field: str) -> None:
    reply = client.put("/loops/fitted-form", json={"schema": {"blocks": [], **change}})
    assert reply.status_code == 422, reply.text
    assert reply.json()["errors"][0]["field"] == ".".join(part for part in ("schema", field) if part)
    assert client.get("/loops/fitted-form").status_code == 404
