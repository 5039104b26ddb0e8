"""deploy/: alert rules, scrape configuration and Grafana dashboard, checked by promtool and against real metrics."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.support.service import ROOT, TASKS, Service, task
from tests.test_docs import anchor

DEPLOY = ROOT / "deploy"
ALERTS = DEPLOY / "alerts.yml"
ALERTS_TEST = ROOT / "tests" / "deploy" / "alerts_test.yml"
OPERATIONS = ROOT / "docs" / "OPERATIONS.md"


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60)


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for rule in group["rules"] if "alert" in rule]


def dashboard_expressions() -> Iterator[str]:
    for panel in json.loads((DEPLOY / "grafana.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]


def test_promtool_accepts_the_rules_and_the_scrape_configuration() -> None:
    for what, file in (("rules", ALERTS), ("config", DEPLOY / "prometheus.yml")):
        done = promtool("check", what, file)
        assert done.returncode == 0, done.stderr


def test_every_alert_fires_when_it_should_and_only_then() -> None:
    done = promtool("test", "rules", ALERTS_TEST)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_both_ways_and_explained() -> None:
    expected: dict[str, set[bool]] = {}
    for case in yaml.safe_load(ALERTS_TEST.read_text())["tests"]:
        for one in case["alert_rule_test"]:
            expected.setdefault(one["alertname"], set()).add(bool(one["exp_alerts"]))
    assert expected == {rule["alert"]: {True, False} for rule in rules()}
    headings = {anchor(heading): heading for heading in re.findall(r"^#+ (.*)$", OPERATIONS.read_text(), re.MULTILINE)}
    for rule in rules():
        document, _, fragment = rule["annotations"]["runbook"].partition("#")
        assert ROOT / document == OPERATIONS
        assert headings[fragment] == rule["alert"]
    assert [heading for heading in headings.values() if heading.startswith("Persistence")] == [
        rule["alert"] for rule in rules()
    ]


def test_every_metric_and_label_asked_for_is_there(service: Service) -> None:
    assert service.post(TASKS, {"tasks": [task(), task(row_index=-1)]}).status == 422
    assert service.post(TASKS, {"tasks": [task()]}).status == 202
    assert service.flush().status == 200
    assert service.get("/api/v1/persistence/sessions").status == 503  # no reader
    text = service.get("/metrics").body.decode()
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    names = {name for name, kind in types.items() if kind != "histogram"}
    names |= {
        f"{name}_{part}" for name, kind in types.items() if kind == "histogram" for part in ("bucket", "sum", "count")
    }
    # instance and job are Prometheus' own; errors of the database are not made here.
    labels = set(re.findall(r'[{,](\w+)="', text)) | {"instance", "job", "error_class"}

    expressions = [*dashboard_expressions(), *(rule["expr"] for rule in rules())]
    assert len(expressions) > 30
    for expression in expressions:
        asked = set(re.findall(r"\bpersistence_\w+", expression))
        assert asked <= names, expression
        by = {label for found in re.findall(r"by \(([^)]*)\)", expression) for label in found.split(", ")}
        by |= set(re.findall(r"[{,] ?(\w+)=~?\"", expression))
        assert by <= labels, expression
    # The page lists the ones that need a note.
    section = OPERATIONS.read_text().partition("\n## Metrics\n")[2].partition("\n## ")[0]
    assert {name.partition("{")[0] for name in re.findall(r"`(persistence_[^`]+)`", section)} <= {
        *types,
        "persistence_trouble",  # not there while all is well
    }


def test_every_expression_of_the_dashboard_is_promql(tmp_path: Path) -> None:
    expressions = [
        expression.replace("$__rate_interval", "5m").replace("$instance", ".*")
        for expression in dashboard_expressions()
    ]
    document = [{"record": f"panel:{number}", "expr": one} for number, one in enumerate(expressions)]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": document}]}))
    done = promtool("check", "rules", "--lint=none", file)
    assert done.returncode == 0, done.stderr + done.stdout


def test_the_dashboards_panels_do_not_overlap_and_are_told_apart() -> None:
    panels = json.loads((DEPLOY / "grafana.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not taken & cells, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
