"""Alerts and dashboard ask for metrics that this Ray exports, from the port where it does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "monitoring"
_PANELS = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return json.loads((FOLDER / "dashboard.json").read_text())["panels"]


def expressions() -> Iterator[str]:
    for rule in rules():
        yield rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield target["expr"]


@pytest.mark.parametrize("expression", list(expressions()))
def test_metrics_are_those_of_rays_own_dashboards(expression: str) -> None:
    known = "".join(path.read_text() for path in _PANELS.glob("*_panels.py"))
    names = re.findall(r"\bray_[a-z_]+", expression)
    assert names
    for name in names:
        assert re.search(rf"\b{name}\b", known), f"Ray's dashboards know no {name}"
    assert expression.count("(") == expression.count(")")


def test_alerts_say_what_they_are() -> None:
    for rule in rules():
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"\d+m", rule["for"])
        assert "$value" in rule["annotations"]["summary"]
    assert len({rule["alert"] for rule in rules()}) == len(rules())


def test_panels_do_not_overlap() -> None:
    cells = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels()]
    assert len(set(cells)) == len(cells)
    assert len({panel["id"] for panel in panels()}) == len(cells)


def test_prometheus_looks_where_the_nodes_export() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    assert set(config) == {"global", "rule_files", "scrape_configs"}
    assert [(FOLDER / name).exists() for name in config["rule_files"]] == [True]
    (scrape,) = config["scrape_configs"]
    (found,) = scrape["ec2_sd_configs"]
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert found["region"] == cluster["provider"]["region"]
    assert found["filters"][0]["values"] == [cluster["cluster_name"]]
    for kind in ("head", "worker"):
        (line,) = [one for one in cluster[f"{kind}_start_ray_commands"] if "ray start" in one]
        assert f"--metrics-export-port={found['port']} " in line + " "
    (monitor,) = yaml.safe_load_all((ROOT / "deploy/kubernetes/podmonitor.yaml").read_text())
    (pods,) = yaml.safe_load_all((ROOT / "deploy/kubernetes/raycluster.yaml").read_text())
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    for group in [pods["spec"]["headGroupSpec"], *pods["spec"]["workerGroupSpecs"]]:
        ports = {
            p["name"]: p["containerPort"]
            for p in group["template"]["spec"]["containers"][0]["ports"]
        }
        assert ports[endpoint["port"]] == int(group["rayStartParams"]["metrics-export-port"])
