"""Every alert of docker/prometheus fires on what it is about, and an hour in which all is well fires none.

`promtool test rules` evaluates the rules as Prometheus does, on series that are written down here.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RULES = ROOT / "docker/prometheus/alerts.yml"
ALERTS = re.findall(r"- alert: (\w+)", RULES.read_text())
STEP_S, STEPS = 15, 240  # an hour

Series = dict[str, str]
"""Series -> its values, in promtool's notation: `0+15x240` begins at 0 and grows by 15, 240 times."""

WELL: Series = {
    'up{job="rebound", instance="a"}': "1x240",
    'rebound_rung{instance="a", rung="ok"}': "1x240",
    'rebound_rung{instance="a", rung="store_down"}': "0x240",
    'rebound_rung{instance="a", rung="store_lost"}': "0x240",
    "rebound_learner_up": "1x240",
    "rebound_dropped_decisions_total": "0x240",
    'rebound_degraded_decisions_total{loop="shop"}': "0x240",
    "rebound_store_memory_bytes": "100000000x240",
    "rebound_store_memory_limit_bytes": "1000000000x240",
    'rebound_request_seconds_count{route="/recommend", status="200"}': "0+150x240",
    'rebound_request_seconds_count{route="/recommend", status="503"}': "0x240",
    'rebound_request_seconds_bucket{route="/recommend", status="200", le="0.01"}': "0+150x240",
    'rebound_request_seconds_bucket{route="/recommend", status="200", le="0.5"}': "0+150x240",
    'rebound_request_seconds_bucket{route="/recommend", status="200", le="+Inf"}': "0+150x240",
    'rebound_policy_lag_events{loop="shop", policy="adaptive"}': "20x240",
    'rebound_policy_snapshot_age_seconds{loop="shop", policy="adaptive"}': "2x240",
    "rebound_refused_snapshots_total": "0x240",
    'rebound_dead_letters_total{loop="shop"}': "0x240",
    'rebound_decisions_total{loop="shop", policy="adaptive"}': "0+135x240",
    'rebound_decisions_total{loop="shop", policy="random"}': "0+15x240",
    'rebound_data_notices{loop="shop", code="constant_field", needs_person="false"}': "1x240",
    'rebound_policy_alarms{loop="shop", policy="adaptive"}': "1x240",
    'rebound_policy_release{loop="shop", policy="adaptive", state="running"}': "1x240",
    'rebound_feedback_joined_total{loop="shop"}': "0+100x240",
    'rebound_feedback_late_total{loop="shop"}': "0+1x240",
    'rebound_feedback_rejected_total{loop="shop"}': "0+1x240",
}

BROKEN: dict[str, Series] = {
    "ReboundWorkerDown": {'up{job="rebound", instance="a"}': "1x20 0x220"},
    "ReboundStoreDown": {'rebound_rung{instance="a", rung="store_down"}': "0x20 1x220"},
    "ReboundStoreLost": {'rebound_rung{instance="a", rung="store_lost"}': "0x20 1x220"},
    "ReboundNoLearner": {"rebound_learner_up": "1x20 0x220"},
    "ReboundDecisionsDropped": {"rebound_dropped_decisions_total": "0x230 7x10"},
    "ReboundDegraded": {'rebound_degraded_decisions_total{loop="shop"}': "0x20 0+1x220"},
    "ReboundMemory": {"rebound_store_memory_bytes": "100000000x20 900000000x220"},
    "ReboundErrors": {'rebound_request_seconds_count{route="/recommend", status="503"}': "0x20 0+3x220"},
    "ReboundSlow": {'rebound_request_seconds_bucket{route="/recommend", status="200", le="0.01"}': "0+147x240"},
    "ReboundPolicyBehind": {'rebound_policy_lag_events{loop="shop", policy="adaptive"}': "20x20 10001x220"},
    "ReboundPolicyStuck": {
        'rebound_policy_snapshot_age_seconds{loop="shop", policy="adaptive"}': "2x20 5+15x220",
    },
    "ReboundSnapshotRefused": {"rebound_refused_snapshots_total": "0x230 1x10"},
    "ReboundDeadLetters": {'rebound_dead_letters_total{loop="shop"}': "0x230 1x10"},
    "ReboundRandom": {
        'rebound_decisions_total{loop="shop", policy="adaptive"}': "0x240",
        'rebound_decisions_total{loop="shop", policy="random"}': "0+150x240",
    },
    "ReboundDataNeedsPerson": {
        'rebound_data_notices{loop="shop", code="constant_context", needs_person="true"}': "1x240",
    },
    "ReboundPolicyAlarm": {'rebound_policy_alarms{loop="shop", policy="adaptive"}': "1x230 2x10"},
    "ReboundReleaseRolledBack": {
        'rebound_policy_release{loop="shop", policy="adaptive", state="running"}': "1x200 _x40",
        'rebound_policy_release{loop="shop", policy="adaptive", state="rolled_back"}': "_x200 1x40",
    },
    "ReboundNoFeedback": {
        'rebound_feedback_joined_total{loop="shop"}': "0x240",
        'rebound_feedback_late_total{loop="shop"}': "0x240",
    },
    "ReboundLateFeedback": {'rebound_feedback_late_total{loop="shop"}': "0+30x240"},
    "ReboundRejectedFeedback": {'rebound_feedback_rejected_total{loop="shop"}': "0+30x240"},
}

# Rules with a minimum of traffic or of evidence: what is too little for them.
TOO_LITTLE: dict[str, Series] = {
    "two requests, one of them failed": {
        'rebound_request_seconds_count{route="/recommend", status="200"}': "0x230 1x10",
        'rebound_request_seconds_count{route="/recommend", status="503"}': "0x230 1x10",
    },
    "three late reports, and none in time": {
        'rebound_feedback_joined_total{loop="shop"}': "0+1x240",
        'rebound_feedback_late_total{loop="shop"}': "0x230 3x10",
        'rebound_decisions_total{loop="shop", policy="adaptive"}': "0+1x240",
    },
    "a Redis that does not say how much it may take": {"rebound_store_memory_limit_bytes": "0x240"},
    "a learner that nobody can ask for": {
        "rebound_learner_up": "1x238 0x2",
        'rebound_rung{instance="a", rung="store_down"}': "0x238 1x2",
    },
}


def evaluated(folder: Path, series: Series, expected: list[str]) -> str:
    """Return what promtool complains of, if these are not the alerts that fire at the end of the hour."""
    samples = [{"labels": f'ALERTS{{alertname="{name}"}}', "value": 1} for name in expected]
    firing = 'count by (__name__, alertname) (ALERTS{alertstate="firing"})'
    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": f"{STEP_S}s",
        "tests": [
            {
                "interval": f"{STEP_S}s",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [
                    {"expr": firing, "eval_time": f"{STEP_S * STEPS}s", "exp_samples": samples},
                ],
            }
        ],
    }
    file = folder / "test.yml"
    file.write_text(json.dumps(test))  # JSON is YAML
    ran = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    return "" if ran.returncode == 0 else ran.stdout + ran.stderr


def test_every_alert_is_tested() -> None:
    assert list(BROKEN) == ALERTS


@pytest.mark.parametrize("alert", BROKEN)
def test_it_fires(tmp_path: Path, alert: str) -> None:
    assert evaluated(tmp_path, WELL | BROKEN[alert], [alert]) == ""


@pytest.mark.parametrize("what", TOO_LITTLE)
def test_too_little_fires_none(tmp_path: Path, what: str) -> None:
    assert evaluated(tmp_path, WELL | TOO_LITTLE[what], []) == ""


def test_an_hour_in_which_all_is_well_fires_none(tmp_path: Path) -> None:
    assert evaluated(tmp_path, WELL, []) == ""
    assert "ALERTS" in evaluated(tmp_path, WELL, ["ReboundErrors"]), "the comparison can fail"
