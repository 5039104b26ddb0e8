"""What a run found -> verdict, text. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

ZERO = (
    "lost",
    "stale",
    "duplicated",
    "unexpected",
    "committed_but_not_stored",
    "dead_letters",
    "journaled_entries_left",
    "processes_left",
    "requests_never_acknowledged",
    "wrong_answers",
    "tracebacks",
)
"""What must be 0 for a good verdict."""


def problems(report: dict[str, Any]) -> list[str]:
    """Why the verdict is not good; empty if it is."""
    faults = report["faults"]
    found = [
        *report["broken"],
        *(f"{name.replace('_', ' ')}: {count}" for name, count in report["must_be_zero"].items() if count),
    ]
    for wrong, what in (
        (faults["hit"] < faults["asked"], f"only {faults['hit']} of {faults['asked']} faults found a target"),
        (not report["records"]["acknowledged"], "no record was acknowledged"),
        (not report["healed"], "the service did not get healthy after the faults"),
        (not report["flushed"], "the last flush did not write everything"),
        (len(set(report["digests"])) != 1, "the database's nodes hold different rows, or cannot be read"),
    ):
        found += [what] * wrong
    return found + _problems_of_nodes(report.get("nodes"))


def _problems_of_nodes(nodes: dict[str, Any] | None) -> list[str]:
    if nodes is None:
        return []
    drained, same, conflicts = nodes["drained"], nodes["same"], nodes["conflicts"]
    found = [
        f"while nodes were drained and restarted, requests {name}: {drained[name]}"
        for name in ("refused", "unanswered", "wrong")
        if drained.get(name)
    ]
    for wrong, what in (
        (not drained.get("sent"), "no request was sent while nodes were restarted"),
        (len(set(same["digests"])) != 1, "the same records through one, two and three nodes ended in different tables"),
        (not same["rows"], "no row was compared between one, two and three nodes"),
        (
            conflicts.get("of the database") and not conflicts["in metrics"],
            "conflicts between nodes are not in the metrics",
        ),
        (
            any(ours_s > nodes["most_fail_over_s"] for _, ours_s in nodes["fail_overs"]),
            f"a node took more than {nodes['most_fail_over_s']:g} s to write to a new primary",
        ),
    ):
        found += [what] * bool(wrong)
    return found


def text(report: dict[str, Any]) -> str:
    faults, records, requests = report["faults"], report["records"], report["requests"]
    kinds = sorted(faults["by_kind"].items(), key=lambda item: (-item[1], item[0]))
    width = max((len(kind) for kind in faults["by_kind"]), default=0)
    refused = ", ".join(f"{code} {count}" for code, count in sorted(requests["refused"].items())) or "none"
    lines = [
        (
            f"seed {report['seed']}, {report['database']}, fsync {report['fsync']},"
            f" {faults['hit']} faults in {report['seconds']} s:"
        ),
        *(f"  {kind:<{width}}  {count:>4}" for kind, count in kinds),
        f"records acknowledged {records['acknowledged']}, rows {records['rows']} for {records['keys']} keys sent",
        (
            f"requests {requests['sent']}: refused {sum(requests['refused'].values())} ({refused}),"
            f" without an answer {requests['unanswered']}, answered committed {requests['committed']}"
        ),
        f"longest time without an accepted batch {report['longest_gap_ms']} ms",
    ]
    for what, phases in report["latency_ms"].items():
        for phase, values in phases.items():
            figures = ", ".join(f"{name} {value}" for name, value in values.items() if name != "count")
            lines.append(f"{what}, {phase}: {figures} ms ({values['count']})")
    lines.append(", ".join(f"{name.replace('_', ' ')} {count}" for name, count in report["must_be_zero"].items()))
    lines.append(f"segments with damage set aside {report['segments_set_aside']}")
    lines += _text_of_nodes(report["nodes"]) if "nodes" in report else []
    lines += report["examples"]
    found = report["problems"]
    lines.append("verdict: " + ("BAD: " + "; ".join(found) if found else "good"))
    return "\n".join(lines)


def _text_of_nodes(nodes: dict[str, Any]) -> list[str]:
    same, drained, conflicts = nodes["same"], nodes["drained"], nodes["conflicts"]
    lines = [
        f"1, 2 and 3 nodes: {same['rows']} rows, {len(set(same['digests']))} digest of {len(same['digests'])} tables",
        "nodes drained and restarted: " + ", ".join(f"{name} {count}" for name, count in drained.items()),
    ]
    if conflicts:
        lines.append("conflicts between nodes: " + ", ".join(f"{count} {name}" for name, count in conflicts.items()))
    if nodes["fail_overs"]:
        elected, written = zip(*nodes["fail_overs"], strict=True)
        lines.append(f"primary killed, seconds until the group has its next: {_spread(elected)}")
        lines.append(f"from then until every node writes to it: {_spread(written)}")
    return lines


def _spread(values: Sequence[float]) -> str:
    ordered = sorted(values)
    return f"median {ordered[len(ordered) // 2]:.2f}, most {ordered[-1]:.2f} ({len(ordered)})"
