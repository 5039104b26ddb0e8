"""What a run on the cluster found beyond that of one service -> verdict, text. Pure."""

from __future__ import annotations

from typing import Any

from tests.system.chaos import report as one_service


def problems(report: dict[str, Any]) -> list[str]:
    """Why the verdict is not good; empty if it is."""
    found = one_service.problems(report)
    cluster = report["cluster"]
    if len(set(cluster["same"]["digests"])) != 1:
        found.append("the same records through one, two and three nodes ended in different tables")
    if not cluster["same"]["rows"]:
        found.append("no row was compared between one, two and three nodes")
    drained = cluster["drained"]
    if not drained["requests"] or not drained["restarts"]:
        found.append("no request was sent while nodes were restarted")
    found += [
        f"while nodes were drained and restarted, requests {name}: {drained[name]}"
        for name in ("refused", "unanswered", "wrong")
        if drained[name]
    ]
    if len(set(cluster["digests"])) != 1:
        found.append("the database's nodes hold different rows")
    if not cluster["conflicts"]["in metrics"]:
        found.append("no conflict between nodes was counted in the metrics")
    return found


def text(report: dict[str, Any]) -> str:
    cluster = report["cluster"]
    same, drained, conflicts = cluster["same"], cluster["drained"], cluster["conflicts"]
    lines = one_service.text(report).splitlines()
    lines[-1:] = [
        f"1, 2 and 3 nodes: {same['rows']} rows, {len(set(same['digests']))} digest of {len(same['digests'])} tables",
        (
            f"{drained['restarts']} nodes drained and restarted under {drained['requests']} requests:"
            f" refused {drained['refused']}, unanswered {drained['unanswered']}, wrong {drained['wrong']}"
        ),
        (
            f"conflicts between nodes: {conflicts['in metrics']} batches tried again (code 1213 in /metrics),"
            f" {conflicts['of the database']} transactions in the database's own count"
        ),
        f"database nodes with the same rows: {len(cluster['digests'])}",
        lines[-1],
    ]
    return "\n".join(lines)
