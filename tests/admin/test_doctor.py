"""What `rebound doctor` says of a service and its loops."""

from __future__ import annotations

from typing import Any

import pytest

from service.admin.doctor import Finding, Seen, examine
from service.admin.status import LoopStatus, PolicyStatus


def policy(**changes: Any) -> PolicyStatus:
    said = {"kind": "k", "version": 3, "events": 100, "lag": 0, "bytes": 1, "snapshot_age_s": 1.0, "alarms": 0}
    said |= {"last_alarm": None, "encoder": "e", "encoder_since": None, "encoder_swaps": 0, "trial": None}
    return PolicyStatus.model_validate({**said, **changes})


def status(**changes: Any) -> LoopStatus:
    said = {"learning": True, "events": 100, "decisions": 100, "joined": 60, "defaulted": 40, "misfits": {}}
    return LoopStatus.model_validate({**said, "policies": {"p": policy()}, **changes})


def findings(loop: LoopStatus, rung: str | None = "ok") -> list[Finding]:
    return examine(Seen("here", rung, 1, {"shop": loop}, {}))


def test_a_service_that_learns_needs_nobody() -> None:
    found = findings(status())
    assert [(finding.level, finding.loop) for finding in found] == [("good", None), ("good", "shop")]


@pytest.mark.parametrize("rung", ["learner_down", "store_down", "store_lost"])
def test_a_lower_rung_needs_a_person(rung: str) -> None:
    first = findings(status(), rung)[0]
    assert (first.level, first.loop) == ("bad", None)
    assert first.do


@pytest.mark.parametrize(
    ("loop", "words"),
    [
        (status(problem="garbled"), "cannot be read"),
        (status(policies={}), "no policy"),
        (status(dead_letters=2), "set aside"),
        (status(joined=0, defaulted=100), "none got any feedback"),
        (status(late=80), "after the deadline"),
        (status(rejected=90), "not known"),
        (status(learning=False, policies={"p": policy(lag=30, snapshot_age_s=60.0)}), "30 events to learn"),
    ],
)
def test_what_is_wrong_with_a_loop_is_said_with_what_to_do(loop: LoopStatus, words: str) -> None:
    bad = [finding for finding in findings(loop) if finding.level == "bad"]
    assert len(bad) == 1, bad
    assert words in bad[0].says
    assert bad[0].do.endswith(".")


def test_a_loop_without_events_and_misfits_are_notes() -> None:
    assert [f.level for f in findings(status(events=0, learning=False, decisions=0))] == ["good", "note"]
    [_, _, misfit] = findings(status(misfits={"context/hour/out_of_range": 1200}))
    assert (misfit.level, misfit.says) == ("note", "1,200 values of `hour` of the context did not fit: out of range.")


def test_where_nothing_runs_lag_is_no_fault() -> None:
    behind = status(learning=False, policies={"p": policy(lag=30, snapshot_age_s=60.0)})
    assert findings(behind, None) == []
