"""Shapes of requests that users of such systems send: each with the reply that is right, and its neighbours.

Imports and what is bounded by retention: `test_shapes_of_histories.py`. Ids in paths: `test_http.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.waiting import until

Make = Callable[..., str]
Reply = dict[str, Any]


def refused(reply: httpx.Response, field: str) -> bool:
    """Whether a reply is a 422 that names the field."""
    assert reply.status_code == 422, reply.text
    return [error["field"] for error in reply.json()["errors"]] == [field]


def recommend(client: httpx.Client, loop: str, **body: Any) -> Reply:
    reply = client.post("/recommend", json={"loop": loop, **body})
    assert reply.status_code == 200, reply.text
    found: Reply = reply.json()
    assert all(isinstance(item["score"], float) for item in found["items"])
    return found


def misfits(client: httpx.Client, loop: str) -> dict[str, int]:
    """Return what was counted in a loop, as `side/field/reason`."""
    found: dict[str, int] = client.get("/status").json()["loops"][loop]["misfits"]
    return found


# ---- reward ranges


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"reward_range": [1, 5]}, "default_reward"),  # star ratings; the default of the default is 0
        ({"reward_range": [-5, -1]}, "default_reward"),
        ({"reward_range": [0.5, 1]}, "default_reward"),
        ({"reward_range": [1, 5], "default_reward": 0}, "default_reward"),
        ({"reward_range": [1, 5], "default_reward": None}, "default_reward"),
        ({"default_reward": 1.5}, "default_reward"),
        ({"reward_range": [-1e308, 1e308]}, "reward_range"),  # of infinite width
        ({"reward_range": [0, 5e-324]}, "reward_range"),  # the inverse of its width is infinite
        ({"reward_range": [0, 1e-310]}, "reward_range"),
        ({"reward_range": [0, 1e308]}, "reward_range"),  # its width is finite, and a score above it is not
        ({"reward_range": [1e307, 1e308], "default_reward": 1e307}, "reward_range"),
        ({"wait_time": 1e-300}, "wait_time"),  # no feedback would ever be in time
        ({"reward_range": [5, 1]}, "reward_range"),
        ({"reward_range": [1, 1]}, "reward_range"),
        ({"reward_range": [1, 2, 3]}, "reward_range"),
        ({"reward_range": [1]}, "reward_range.1"),
        ({"reward_range": [False, True]}, "reward_range.0"),
        ({"reward_range": ["0", 1]}, "reward_range.0"),
        ({"reward_range": [None, 5]}, "reward_range.0"),
        ({"reward_range": {"low": 0, "high": 1}}, "reward_range"),
        ({"default_reward": False}, "default_reward"),
        ({"exploration_floor": False}, "exploration_floor"),
        ({"exploration_floor": "0.1"}, "exploration_floor"),
        ({"wait_time": True}, "wait_time"),
        ({"ledger_time": True}, "ledger_time"),
        ({"retention": True}, "retention"),
    ],
)
def test_settings_that_do_not_fit_are_refused_and_nothing_is_stored(
    client: httpx.Client, make_loop: Make, body: Reply, field: str
) -> None:
    reply = client.put("/loops/misfit", json=body)
    assert reply.status_code == 422
    assert {error["field"] for error in reply.json()["errors"]} >= {field}
    assert client.get("/loops/misfit").status_code == 404
    assert client.delete("/loops/misfit").status_code == 404
    assert "misfit" not in client.get("/loops").json()["loops"]
    assert "misfit" not in client.get("/status").json()["loops"]
    loop = make_loop(policy=None, items=0)
    before = client.get(f"/loops/{loop}").json()
    assert client.put(f"/loops/{loop}", json=body).status_code == 422
    assert client.get(f"/loops/{loop}").json() == before


@pytest.mark.parametrize(
    ("low", "high", "default"), [(1, 5, 1), (-5, -1, -1), (0, 1e-300, 0), (-1e99, 1e99, 0), (1e15, 1e15 + 2, 1e15)]
)
def test_a_range_that_is_taken_is_learned(
    client: httpx.Client, make_loop: Make, low: float, high: float, default: float
) -> None:
    loop = make_loop(reward_range=[low, high], default_reward=default, params={"alpha": 0.0})
    for item, reward in (("p000", low), ("p001", high)):
        for _ in range(5):
            decision = recommend(client, loop, candidates=[item])
            sent = {"decision_id": decision["decision_id"], "reward": reward}
            assert client.post("/feedback", json=sent).status_code == 202

    def learned() -> bool:
        return bool(client.get("/policies/linucb", params={"loop": loop}).json()["events"] == 10)

    until(learned, "the rewards are learned")
    until(lambda: recommend(client, loop)["version"] > 0, "a version is served")
    scores = {i["id"]: i["score"] for i in recommend(client, loop, candidates=["p000", "p001"], k=2)["items"]}
    assert scores["p001"] > scores["p000"]
    status = client.get("/status").json()["loops"][loop]
    assert (status["dead_letters"], status["problem"]) == (0, None)


@pytest.mark.parametrize(
    ("kind", "params", "field"),
    [
        ("linucb", {"alpha": True}, "params.alpha"),
        ("linucb", {"alpha": "1"}, "params.alpha"),
        ("linucb", {"detect_change": "yes"}, "params.detect_change"),
        ("embedding_mlp", {"hidden": [True, 16]}, "params.hidden"),
        ("linucb", {"ridge": 5e-324}, "params.ridge"),  # 1 / ridge is infinite: the policy would never learn
        ("linucb_hybrid", {"shared_ridge": 1e-308}, "params.shared_ridge"),
        ("adaptive", {"item_ridge": 5e-324}, "params.item_ridge"),
        ("neural_linear", {"prior": 1e-308}, "params.prior"),
        ("popularity", {"prior_clicks": 1e308, "prior_impressions": 1}, "params.prior_clicks"),
        ("popularity", {"prior_impressions": 5e-324}, "params.prior_impressions"),
    ],
)
def test_priors_whose_ratio_is_not_finite_are_refused(
    client: httpx.Client, make_loop: Make, kind: str, params: Reply, field: str
) -> None:
    loop = make_loop(policy=None, items=0)
    assert refused(client.post("/policies", params={"loop": loop}, json={"kind": kind, "params": params}), field)
    assert client.get("/policies", params={"loop": loop}).json()["policies"] == []


@pytest.mark.parametrize(
    ("schema", "field"),
    [
        ({"hash_dims": True}, "schema.hash_dims"),
        ({"hash_dims": "5"}, "schema.hash_dims"),
        ({"context": {"a": {"type": "numeric", "min": False, "max": 1}}}, "schema.context.a.min"),
        ({"context": {"a": {"type": "numeric", "min": 0, "max": "1"}}}, "schema.context.a.max"),
        ({"item": {"a": {"type": "vector", "size": True}}}, "schema.item.a.size"),
    ],
)
def test_a_schema_takes_numbers_only(client: httpx.Client, schema: Reply, field: str) -> None:
    assert refused(client.put("/loops/numbers", json={"schema": schema}), field)


# ---- a schema that changes before its loop is used, or with its loop

AGE = {"context": {"age": {"type": "numeric", "min": 0, "max": 100}}}
LEVEL = {"context": {"age": {"type": "categorical", "levels": ["1", "2"]}}, "hash_dims": 7}


def check_loop(clients: list[httpx.Client], loop: str) -> None:
    """Both workers serve the loop's encoder, and what they serve is learned."""
    encoder = clients[0].get(f"/loops/{loop}").json()["encoder"]
    made = clients[0].post("/policies", params={"loop": loop}, json={"kind": "linucb"})
    assert made.status_code == 201, made.text
    clients[0].post("/policies/linucb/activate", params={"loop": loop}).raise_for_status()
    for client in clients:
        for age in (30, "old", None, 1, True, [1]):
            decision = recommend(client, loop, context={"age": age}, candidates=["a", {"id": "b"}])
            record = client.get(f"/decisions/{decision['decision_id']}").json()["decision"]
            assert record["encoder"] == encoder
            sent = {"decision_id": decision["decision_id"], "reward": 1}
            assert client.post("/feedback", json=sent).status_code == 202
    events = 6 * len(clients)

    def learned() -> bool:
        status = clients[0].get("/status").json()["loops"][loop]
        assert status["dead_letters"] == 0
        return bool(status["learning"] and status["policies"]["linucb"]["events"] == events)

    until(learned, "all is learned")
    assert all(client.get(f"/loops/{loop}").json()["encoder"] == encoder for client in clients)


@pytest.mark.parametrize(
    "schemas", [[AGE], [LEVEL, AGE], [AGE, AGE], [AGE, None], [{"hash_dims": 0}], [{}]], ids=lambda s: f"{len(s)}"
)
@pytest.mark.parametrize("items", [0, 10])
def test_a_schema_changed_before_first_use_is_served(
    client: httpx.Client, other_client: httpx.Client, make_loop: Make, schemas: list[Reply | None], items: int
) -> None:
    loop = make_loop(policy=None, items=items)
    for schema in schemas:
        client.put(f"/loops/{loop}", json={"schema": schema}).raise_for_status()
    check_loop([client, other_client], loop)


@pytest.mark.parametrize("schema", [AGE, LEVEL, {}, {"hash_dims": 0}], ids=["numeric", "categorical", "none", "empty"])
def test_a_loop_made_again_with_another_schema_is_served(
    client: httpx.Client, other_client: httpx.Client, make_loop: Make, schema: Reply
) -> None:
    """Used by both workers, deleted by one, made again by the other."""
    loop = make_loop(policy=None, items=0, schema=AGE)
    check_loop([client, other_client], loop)
    other_client.delete(f"/loops/{loop}").raise_for_status()
    client.put(f"/loops/{loop}", json={"schema": schema}).raise_for_status()
    assert client.get("/policies", params={"loop": loop}).json()["policies"] == []
    assert recommend(other_client, loop, candidates=["a"])["policy"] == "random"
    client.put(f"/loops/{loop}", json={"schema": schema}).raise_for_status()


def test_a_loop_made_again_learns_anew(client: httpx.Client, other_client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(policy=None, items=0, schema=AGE)
    check_loop([client, other_client], loop)
    for schema in (LEVEL, AGE):
        client.delete(f"/loops/{loop}").raise_for_status()
        other_client.put(f"/loops/{loop}", json={"schema": schema}).raise_for_status()
        check_loop([client, other_client], loop)


def test_a_schema_may_change_while_the_loop_is_in_use(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(policy="adaptive")
    before = client.get(f"/loops/{loop}").json()
    first = client.post("/recommend", json={"loop": loop, "context": {"age": 30}}).json()
    client.post("/feedback", json={"loop": loop, "decision_id": first["decision_id"], "reward": 1}).raise_for_status()

    def told() -> Any:
        return client.get("/status").json()["loops"][loop]

    for encoders, schema in ((2, AGE), (2, AGE), (3, LEVEL), (3, {})):
        reply = client.put(f"/loops/{loop}", json={"schema": schema})
        assert reply.status_code == 200
        declared = reply.json()
        assert declared == client.get(f"/loops/{loop}").json()
        until(lambda: told()["policies"]["adaptive"]["encoder"] == declared["encoder"], "the policy moves")  # noqa: B023
        assert told()["encoders"] == encoders
    assert declared["schema"] == before["schema"]
    assert told()["policies"]["adaptive"]["encoder_swaps"] == 3
    assert told()["policies"]["adaptive"]["encoder_since"]["why"] == "left to the service"


@pytest.mark.parametrize("early", [False, True])
def test_a_reward_range_in_use_is_kept(client: httpx.Client, make_loop: Make, early: bool) -> None:
    """A report that waits for its decision was checked against it, too."""
    loop = make_loop(policy=None)
    if early:
        client.post("/feedback", json={"loop": loop, "decision_id": "d", "reward": 1}).raise_for_status()
    else:
        recommend(client, loop)
    assert client.put(f"/loops/{loop}", json={"schema": {}, "wait_time": 5}).status_code == 200
    reply = client.put(f"/loops/{loop}", json={"reward_range": [0, 2]})
    assert (reply.status_code, reply.json()["code"]) == (409, "reward_range_in_use")


# ---- null


def test_null_is_not_given_in_administration(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(policy=None, items=0, wait_time=5, exploration_floor=0.2, schema={"hash_dims": 7})
    before = client.get(f"/loops/{loop}").json()
    nothing: Reply = dict.fromkeys([*before["settings"], "schema"])
    changed = client.put(f"/loops/{loop}", json=nothing).json()
    assert changed["settings"] == before["settings"]
    assert changed["schema"] == before["schema"]
    parts: Reply = dict.fromkeys(["context", "item", "crosses"])
    assert client.put(f"/loops/{loop}", json={"schema": {**parts, "hash_dims": 5}}).json()["features"] == 6
    params = {"loop": loop}
    policy: Reply = {"name": None, "kind": "linucb", "params": {"alpha": None}}
    made = client.post("/policies", params=params, json=policy).json()
    assert (made["name"], made["params"]["alpha"] is None) == ("linucb", False)
    policy = {"name": "pop", "kind": "popularity", "params": {"half_life": None}}
    made = client.post("/policies", params=params, json=policy).json()
    assert made["params"]["half_life"] is None, "this parameter has a null of its own: nothing is forgotten"


def test_null_features_are_none(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(policy=None, items=0)
    params = {"loop": loop}
    assert client.post("/items", params=params, json={"items": [{"id": "a", "features": None}]}).status_code == 200
    assert client.get("/items/a", params=params).json() == {"id": "a", "features": {}}
    assert client.put("/items/b", params=params, json={"features": None}).status_code == 200
    assert client.put(
        "/items/c", params=params, json={"features": {"x": None, "y": {"z": None}, "v": [None]}}
    ).is_success
    event = dict.fromkeys(["user_id", "context", "features", "propensity", "at"])
    event |= {"event_id": "e", "item_id": "a", "reward": 1}
    reply = client.post("/events", params=params, json={"events": [event]})
    assert reply.json() == {"imported": 1, "duplicates": 0}
    recommend(client, loop, candidates=[{"id": "a", "features": None}, "c"], context={"x": None}, k=2)
    for path, body in (("/items", {"items": None}), ("/events", {"events": None}), ("/items", {"items": [None]})):
        assert client.post(path, params=params, json=body).status_code == 422


# ---- integers


def test_integers_are_ids_everywhere(client: httpx.Client, make_loop: Make) -> None:
    loop = make_loop(policy=None, items=0)
    params = {"loop": loop}
    client.post("/items", params=params, json={"items": [{"id": 242}, {"id": 302}]}).raise_for_status()
    assert [item["id"] for item in client.get("/items", params=params).json()["items"]] == ["242", "302"]
    assert client.get("/items/242", params=params).json()["id"] == "242"
    decision = recommend(client, loop, user_id=196, exclude=[302])
    assert decision["items"][0]["id"] == "242"
    event = {"event_id": 1, "user_id": 2, "item_id": 242, "reward": 1}
    for imported in (1, 0):
        reply = client.post("/events", params=params, json={"events": [event]})
        assert reply.json() == {"imported": imported, "duplicates": 1 - imported}
    twice = client.post("/items", params=params, json={"items": [{"id": 7}, {"id": "7"}]})
    assert twice.status_code == 422


@pytest.mark.parametrize("number", [1.5, 242.0, 1e30, 10**25, True, False])
def test_other_numbers_are_no_ids(client: httpx.Client, make_loop: Make, number: float) -> None:
    """A float cannot hold an id of many digits: it would come back as another one."""
    params = {"loop": make_loop(policy=None, items=0)}
    assert refused(client.post("/recommend", json={**params, "candidates": [number]}), "candidates.0")
    assert refused(client.post("/recommend", json={**params, "user_id": number}), "user_id")
    assert refused(client.post("/items", params=params, json={"items": [{"id": number}]}), "items.0.id")
    assert refused(client.post("/feedback", json={"decision_id": number, "reward": 1}), "decision_id")


# ---- paths, health


@pytest.mark.parametrize(
    "path", ["/recommend", "/feedback", "/items", "/events", "/loops", "/policies", "/traffic", "/status", "/healthz"]
)
def test_nothing_is_redirected_over_a_slash(client: httpx.Client, path: str) -> None:
    for method in ("GET", "POST", "DELETE", "HEAD"):
        for spelled in (f"{path}/", f"/{path}", f"{path}//"):
            reply = client.request(method, spelled, follow_redirects=False, json={"candidates": ["a"]})
            assert reply.status_code in (404, 405, 422), f"{method} {spelled}"


def test_an_id_that_ends_in_a_slash_is_another_one(client: httpx.Client, make_loop: Make) -> None:
    params = {"loop": make_loop(policy=None, items=0)}
    for item in ("a", "a/", "/a", "a//"):
        client.post("/items", params=params, json={"items": [{"id": item}]}).raise_for_status()
    for left, item in ((3, "a%2F"), (2, "a%2F%2F"), (1, "%2Fa"), (0, "a")):
        assert client.delete(f"/items/{item}", params=params).status_code == 204
        assert len(client.get("/items", params=params).json()["items"]) == left


def test_a_long_id_in_the_path_is_refused(client: httpx.Client, make_loop: Make) -> None:
    params = {"loop": make_loop(policy=None, items=0)}
    for length, status in ((128, 200), (129, 422), (1000, 422), (20_000, 422)):
        assert client.put(f"/items/{'y' * length}", params=params, json={}).status_code == status
    assert client.get(f"/policies/{'y' * 1000}", params=params).status_code == 404
    assert client.get(f"/loops/{'y' * 1000}").status_code == 404
    assert client.put(f"/loops/{'y' * 65}", json={}).status_code == 422


# ---- values that do not fit their field

LONG = "Mozilla/5.0 (X11; Linux x86_64) " + "x" * 239
DEEP: Any = {"a": {"b": {"c": {"d": {"e": {"f": 1}}}}}}
VALUES: list[tuple[Any, dict[str, int]]] = [
    ({"ua": LONG}, {"context/ua/overlong": 1}),
    ({"ua": "x" * 256}, {}),
    ({"ua": "x" * 257}, {"context/ua/overlong": 1}),
    ({"ua": "🐟" * 1_000_000}, {"context/ua/overlong": 1}),
    ({"x" * 300: 1}, {f"context/{'x' * 99}…/overlong": 1}),
    ({"": "", " ": " ", "/": "/", "a.b": 1}, {}),
    ({f"f{i}": i for i in range(100)}, {}),
    (DEEP, {"context/a.b.c.d.e/too_deep": 1}),
    ({"tags": ["a", "b", 3, None, True, 1.5, {}, []]}, {}),
    ({"level": 1, "flag": True, "price": 5}, {}),
    ({"level": "1", "flag": "true", "price": 0}, {}),
    ({"level": 1.0, "flag": False, "price": 10}, {}),
    ({"level": None, "flag": None, "price": None}, {}),
    ({"level": 3, "flag": "maybe"}, {"context/level/unknown_level": 1, "context/flag/unknown_level": 1}),
    ({"level": [1, 2]}, {"context/level/wrong_type": 1}),
    ({"level": {"a": 1}}, {"context/level/wrong_type": 1}),
    ({"price": "5"}, {"context/price/wrong_type": 1}),
    ({"price": True}, {"context/price/wrong_type": 1}),
    ({"price": 11}, {"context/price/out_of_range": 1}),
    ({"price": -1e308}, {"context/price/out_of_range": 1}),
    ({"taste": [0.5, 1]}, {}),
    ({"taste": [1, 2, 3]}, {"context/taste/wrong_size": 1}),
    ({"taste": []}, {"context/taste/wrong_size": 1}),
    ({"taste": 1}, {"context/taste/wrong_type": 1}),
    ({"taste": ["a", "b"]}, {"context/taste/wrong_type": 1}),
]
DECLARED = {
    "level": {"type": "categorical", "levels": ["1", "2"]},
    "flag": {"type": "categorical", "levels": ["true", "false"]},
    "price": {"type": "numeric", "min": 0, "max": 10},
    "taste": {"type": "vector", "size": 2},
}


def test_a_value_that_does_not_fit_is_counted_and_refuses_nothing(client: httpx.Client, make_loop: Make) -> None:
    """Every case in a loop of its own, and in each one value more, whose count shows that the counts are written."""
    marker = "context/level/unknown_level"
    expected = {}
    for context, counts in VALUES:
        loop = make_loop(policy=None, items=0, schema={"context": DECLARED})
        recommend(client, loop, context=context, candidates=["a", "b"])
        recommend(client, loop, context={"level": "marker"}, candidates=["a"])
        expected[loop] = {**counts, marker: counts.get(marker, 0) + 1}

    def found() -> dict[str, dict[str, int]]:
        return {name: loop["misfits"] for name, loop in client.get("/status").json()["loops"].items()}

    until(lambda: all(marker in found()[loop] for loop in expected), "the counts are written")
    last = found()
    for (context, _), (loop, counts) in zip(VALUES, expected.items(), strict=True):
        assert last[loop] == counts, str(context)[:80]


@pytest.mark.parametrize(
    ("context", "fields"),
    [
        ({f"f{i}": i for i in range(101)}, 1),
        ({f"f{i}": "x" for i in range(160)}, 60),
        ({"a": {"b": {f"f{i}": i for i in range(103)}}}, 1),
        ({"list": [f"tag {i}" for i in range(150)]}, 1),
    ],
)
def test_too_many_values_are_counted(client: httpx.Client, make_loop: Make, context: Reply, fields: int) -> None:
    """By field: one of which something is left out counts once."""
    loop = make_loop(policy=None, items=0)
    recommend(client, loop, context=context, candidates=["a"])
    until(lambda: misfits(client, loop), "the counts are written")
    found = misfits(client, loop)
    assert all(name.endswith("/too_many_values") for name in found)
    assert sum(found.values()) == fields


@pytest.mark.parametrize("size", [1, 100, 101, 256, 768, 4096])
def test_an_embedding_is_taken_whatever_its_size(client: httpx.Client, make_loop: Make, size: int) -> None:
    embedding = [(-1) ** i * i / size for i in range(size)]
    loop = make_loop(policy=None, items=0)
    params = {"loop": loop}
    item = {"id": "a", "features": {"embedding": embedding}}
    assert client.post("/items", params=params, json={"items": [item]}).status_code == 200
    assert client.get("/items/a", params=params).json() == item
    assert client.put("/items/b", params=params, json={"features": {"embedding": embedding}}).status_code == 200
    recommend(client, loop, candidates=["a", {"id": "c", "features": {"embedding": embedding}}], k=2)
    declared = make_loop(
        policy=None, items=0, schema={"item": {"embedding": {"type": "vector", "size": size}}, "hash_dims": 0}
    )
    assert client.post("/items", params={"loop": declared}, json={"items": [item]}).status_code == 200
    recommend(client, declared, candidates=["a", {"id": "c", "features": {"embedding": embedding[1:]}}], k=2)
    until(lambda: misfits(client, declared) == {"item/embedding/wrong_size": 1}, "the shorter one is counted")


def test_a_vector_that_is_too_large_to_declare_names_the_field(client: httpx.Client) -> None:
    schema = {"item": {"embedding": {"type": "vector", "size": 4097}}}
    assert refused(client.put("/loops/big", json={"schema": schema}), "schema.item.embedding.size")
    schema = {"context": {"numeric": {"type": "numeric", "min": 1, "max": 0}}}
    assert refused(client.put("/loops/big", json={"schema": schema}), "schema.context.numeric")
    schema = {"context": {"a": {"type": "colour"}}}
    assert refused(client.put("/loops/big", json={"schema": schema}), "schema.context.a")
