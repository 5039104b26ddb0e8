"""A real Prometheus with our rules and our dashboard's expressions scrapes the real service while a table is locked."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.test_monitoring import ALERTS, dashboard_expressions, rules
from tests.support.load import Load
from tests.support.mariadb import MariaDB
from tests.support.service import TASKS, Service, free_port, task, wait_until

FASTER = (("[5m]", "[10s]"), ("[2m]", "[10s]"), ("for: 1m", "for: 2s"))
"""Minutes of the alerts as seconds of the test."""


class Prometheus:
    def __init__(self, directory: Path, service: Service) -> None:
        self.port = free_port()
        text = ALERTS.read_text()
        for old, new in FASTER:
            text = text.replace(old, new)
        (directory / "alerts.yml").write_text(text)
        job = {"job_name": "persistence", "static_configs": [{"targets": [f"127.0.0.1:{service.port}"]}]}
        configuration = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["alerts.yml"],
            "scrape_configs": [job],
        }
        (directory / "prometheus.yml").write_text(json.dumps(configuration))
        with (directory / "log").open("w") as log:
            self.process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={directory}/prometheus.yml",
                    f"--storage.tsdb.path={directory}/data",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                stdout=log,
                stderr=log,
                env={**os.environ, "GOMAXPROCS": "1"},
            )

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Raises: urllib.error.HTTPError for what is no PromQL."""
        url = f"http://127.0.0.1:{self.port}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found

    def firing(self) -> set[str]:
        try:
            return {one["metric"]["alertname"] for one in self.query('ALERTS{alertstate="firing"}')}
        except OSError:  # it is not up yet
            return set()


@pytest.fixture
def prometheus(
    tmp_path: Path, start_service: Callable[..., Service], mariadb: MariaDB, database: str
) -> Iterator[tuple[Prometheus, Service]]:
    service = start_service(mariadb, database, BUFFER_FLUSH_INTERVAL=1)
    made = Prometheus(tmp_path, service)
    yield made, service
    made.process.terminate()
    made.process.wait(30)


def test_a_locked_table_fires_its_alert_and_the_dashboards_expressions_have_values(
    prometheus: tuple[Prometheus, Service], mariadb: MariaDB, database: str
) -> None:
    watching, service = prometheus
    assert service.post(TASKS, {"tasks": [task(status="none such")]}).status == 422
    assert service.flush().status == 200
    with Load(service, clients=1, batch=5, pause_s=0.1):
        with mariadb.locked(database):
            wait_until(lambda: "PersistenceNotWritable" in watching.firing(), 90, "the alert fires")
            assert "PersistenceDatabaseDown" not in watching.firing()
            assert "PersistenceRefusing" not in watching.firing()
        wait_until(lambda: "PersistenceNotWritable" not in watching.firing(), 60, "the alert ends")
        assert service.flush().status == 200

        def empty() -> list[str]:
            asked = [
                one.replace("$__rate_interval", "1m").replace("$instance", ".+") for one in dashboard_expressions()
            ]
            return [one for one in asked if not watching.query(one)]

        # Nobody reads, nothing is wrong, and no write need have failed.
        may_be_empty = (
            "persistence_trouble",
            "persistence_read_requests",
            'path=~"/api/v1/persistence/sessions(',
            "flush_failures",
        )
        wait_until(lambda: not [one for one in empty() if not any(part in one for part in may_be_empty)], 60)
        for rule in rules():
            watching.query(rule["expr"])
