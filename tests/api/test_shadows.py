"""Shadow policies over HTTP: what they would have got stands beside what served."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from tests.waiting import until


def test_a_shadow_that_would_be_better_says_so(client: httpx.Client, make_loop: Callable[..., str]) -> None:
    loop = make_loop(policy=None, items=2, fit_schema=False, wait_time=60, exploration_floor=0.1)
    of_loop = {"loop": loop}
    for name, kind in (("old", "random"), ("new", "popularity"), ("same", "random")):
        client.post("/policies", params=of_loop, json={"name": name, "kind": kind}).raise_for_status()
    client.post("/policies/old/activate", params=of_loop).raise_for_status()

    def play(decisions: int) -> None:
        """Let p000 be clicked, and nothing else."""
        reports = []
        for _ in range(decisions):
            said = client.post("/recommend", json=of_loop).json()
            reward = float(said["items"][0]["id"] == "p000")
            reports.append(of_loop | {"decision_id": said["decision_id"], "reward": reward})
        client.post("/feedback", json={"feedback": reports}).raise_for_status()

    def policies() -> dict[str, Any]:
        found: dict[str, Any] = client.get("/status").json()["loops"][loop]["policies"]
        return found

    def judged() -> bool:
        play(20)
        shadows = [one["shadow"] for one in policies().values() if one["shadow"]]
        return len(shadows) == 2 and all(one["dr"] and one["decisions"] > 100 for one in shadows)

    until(judged, "both shadows are judged")
    found = policies()
    assert found["old"]["shadow"] is None
    new, same = found["new"]["shadow"], found["same"]["shadow"]
    assert new["says"].startswith("better than what served by")
    assert new["dr"]["difference"]["low"] > 0.2
    assert new["ips"]["difference"]["low"] > 0
    assert new["snips"] > 0.6
    assert same["dr"]["difference"]["low"] <= 0 <= same["dr"]["difference"]["high"]
    assert new["decisions"] == same["decisions"]
    assert new["served"] == same["served"]
    listed = {one["name"]: one["shadow"] for one in client.get("/policies", params=of_loop).json()["policies"]}
    assert listed["new"]["since"] == new["since"]
    assert (
        f'rebound_shadow_difference{{end="low",estimator="dr",loop="{loop}",policy="new"}}'
        in client.get("/metrics").text
    )

    client.post("/policies/new/activate", params=of_loop).raise_for_status()
    until(lambda: policies()["new"]["shadow"] is None and policies()["old"]["shadow"], "the other one is the shadow")
    assert policies()["old"]["shadow"]["decisions"] < 50, "what was judged beside another policy does not count"
