"""What a run found -> verdict, text, JSON. Pure."""

from __future__ import annotations

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
    found = [
        f"{name.replace('_', ' ')}: {report['must_be_zero'][name]}" for name in ZERO if report["must_be_zero"][name]
    ]
    if report["faults"]["hit"] < report["faults"]["asked"]:
        found.append(f"only {report['faults']['hit']} of {report['faults']['asked']} faults found a target")
    if not report["records"]["acknowledged"]:
        found.append("no record was acknowledged")
    if not report["healed"]:
        found.append("the service did not get healthy after the faults")
    if not report["flushed"]:
        found.append("the last flush did not write everything")
    return found


def text(report: dict[str, Any]) -> str:
    faults = report["faults"]
    records = report["records"]
    requests = report["requests"]
    kinds = sorted(faults["by_kind"].items(), key=lambda item: (-item[1], item[0]))
    width = max((len(kind) for kind in faults["by_kind"]), default=0)
    refused = ", ".join(f"{code} {count}" for code, count in sorted(requests["refused"].items())) or "none"
    lines = [
        f"seed {report['seed']}, fsync {report['fsync']}, {faults['hit']} faults in {report['seconds']['faults']} s:",
        *(f"  {kind:<{width}}  {count:>4}" for kind, count in kinds),
        f"records acknowledged {records['acknowledged']}, rows {records['rows']} for {records['keys']} keys sent",
        (
            f"requests {requests['sent']}: refused with 503 {sum(requests['refused'].values())} ({refused}),"
            f" without an answer {requests['unanswered']}, answered committed {requests['committed']}"
        ),
        f"longest time without an accepted batch {report['longest_gap_ms']} ms",
    ]
    for what, phases in report["latency_ms"].items():
        for phase, values in phases.items():
            figures = ", ".join(f"{name} {value}" for name, value in values.items() if name != "count")
            lines.append(f"{what}, {phase}: {figures} ms ({values['count']})")
    lines.append(", ".join(f"{name.replace('_', ' ')} {report['must_be_zero'][name]}" for name in ZERO))
    lines.append(f"segments with damage set aside {report['segments_set_aside']}")
    lines += report["examples"]
    found = report["problems"]
    lines.append("verdict: " + ("BAD: " + "; ".join(found) if found else "good"))
    return "\n".join(lines)
