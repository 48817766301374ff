"""What docker-compose.yml names is there, the dashboard draws from what is provisioned, alerts say what to do."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "docker-compose.yml").read_text()
GRAFANA = ROOT / "docker" / "grafana"


def test_every_file_that_is_mounted_is_there() -> None:
    mounted = re.findall(r"(?<=\./)docker/[^:\"]+(?=:/)", COMPOSE)
    assert len(mounted) == 3
    assert [path for path in mounted if not any((ROOT / path).iterdir())] == []


def test_the_paths_inside_the_containers_are_those_that_the_files_name() -> None:
    dashboards = (GRAFANA / "provisioning" / "dashboards" / "rebound.yml").read_text()
    assert "path: /etc/grafana/dashboards" in dashboards
    assert "/etc/grafana/dashboards:ro" in COMPOSE
    prometheus = (ROOT / "docker" / "prometheus" / "prometheus.yml").read_text()
    [rules] = re.findall(r"rule_files: \[(.+)\]", prometheus)
    assert (ROOT / "docker" / "prometheus" / rules).exists()
    [key] = re.findall(r"credentials_file: (\S+)", prometheus)
    assert f"> {key} &&" in COMPOSE


def test_every_panel_asks_the_provisioned_prometheus() -> None:
    [uid] = re.findall(r"uid: (\S+)", (GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())
    panels = json.loads((GRAFANA / "dashboards" / "rebound.json").read_text())["panels"]
    drawn = [panel for panel in panels if panel["type"] != "row"]
    assert {panel["datasource"]["uid"] for panel in drawn} == {uid}
    assert all(target["expr"] for panel in drawn for target in panel["targets"])
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_every_alert_has_its_line_in_the_runbook() -> None:
    rules = (ROOT / "docker" / "prometheus" / "alerts.yml").read_text()
    alerts = re.findall(r"- alert: (\w+)", rules)
    assert len(alerts) == rules.count("runbook: ") == 20
    assert re.findall(r'runbook: "docs/alerts.md#(\w+)"', rules) == [alert.lower() for alert in alerts]
    runbook = (ROOT / "docs" / "alerts.md").read_text()
    assert re.findall(r"^### (\w+)$", runbook, re.MULTILINE) == alerts
    severities = re.findall(r"severity: (\w+)", rules)
    assert re.findall(r"^\*(\w+)\.\*", runbook, re.MULTILINE) == severities
