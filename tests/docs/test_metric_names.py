"""Every metric that docs/ and docker/ name is on a live /metrics, under that name and of the type its name says."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]
NAME = re.compile(r"\brebound_[a-z_]*[a-z]\b")
FILES = [
    file
    for folder in ("docs", "docker")
    for file in sorted((ROOT / folder).rglob("*"))
    if file.suffix in (".md", ".yml", ".yaml", ".json")
]
NOT_METRICS = {"rebound_greedy"}  # a module


def test_every_name_is_a_metric(client: httpx.Client) -> None:
    client.post("/recommend", json={"candidates": ["a"], "context": {"text": "x" * 300}}).raise_for_status()
    families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
    series = {sample.name for family in families.values() for sample in family.samples} | families.keys()
    # Counters with labels have no sample before the first count; their names end in _total all the same.
    series |= {f"{family.name}_total" for family in families.values() if family.type == "counter"}
    named = {name for file in FILES for name in NAME.findall(file.read_text())} - NOT_METRICS
    assert len(named) > 10
    assert named - series == set()


def test_names_follow_the_conventions(client: httpx.Client) -> None:
    for family in text_string_to_metric_families(client.get("/metrics").text):
        assert family.name.startswith("rebound_"), family.name
        assert family.documentation, family.name
        assert not family.name.endswith(("_s", "_ms", "_mb")), "base units: seconds, bytes"
        if family.type == "counter":
            assert all(sample.name.endswith(("_total", "_created")) for sample in family.samples), family.name
        else:
            assert not family.name.endswith("_total"), family.name
