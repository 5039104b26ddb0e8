"""`python scripts/simulate.py`: what waits, and for how long, when nodes or databases fail, at 10³, 10⁵, 10⁶ records/s.

A node's journal is a queue: records come in at its share of the rate, its database takes them out at what it has to
spare. Where several nodes write to one database they share it in proportion to what waits at each. A node that is down
takes nothing in (the balancer gives its share to the others) and keeps what it had; a database that is away takes
nothing out, and is noticed a moment after it is back. Below buffer.max_buffer_size and buffer.flush_interval a node
writes nothing. At risk is what is journaled and not committed.

    python scripts/simulate.py                   a table
    python scripts/simulate.py --check FILE      against an outage that `python -m tests.system.measure outage` saw
"""

from __future__ import annotations

import argparse
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STEP_S = 0.1
NOTICE_S = 1.0
"""A database that is back is found at the next try: after 2 s at most (flusher/triggers.py), half of it on average."""


@dataclass(frozen=True, slots=True)
class Outage:
    """`what`: node or database, by number; times in seconds."""

    what: str
    number: int
    at_s: float
    for_s: float

    def holds(self, what: str, number: int, now: float, *, longer_s: float = 0.0) -> bool:
        return what == self.what and number == self.number and self.at_s <= now < self.at_s + self.for_s + longer_s


@dataclass(frozen=True, slots=True)
class Layout:
    """`databases` clusters share the keys; each has `nodes // databases` nodes of ours. Rates in records/s.

    `database_rate` is what one of them takes, `node_rate` what one node's writers send at most.
    """

    name: str
    rate: float
    nodes: int
    databases: int
    database_rate: float
    node_rate: float
    record_bytes: int = 500
    journal_max_bytes: int = 1 << 30
    flush_interval_s: float = 30.0
    max_buffer_size: int = 1000

    def database_of(self, node: int) -> int:
        return node % self.databases


@dataclass(slots=True)
class Course:
    """By step: seconds, records waiting in all nodes, age of the oldest, in seconds, records/s refused."""

    at: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)
    oldest_s: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)

    def caught_up_s(self, after_s: float, normal: float) -> float | None:
        """Seconds from `after_s` until no more waits than usual; None: not within the simulated time."""
        return next(
            (at - after_s for at, n in zip(self.at, self.waiting, strict=True) if at >= after_s and n <= normal), None
        )


class _Queue:
    """What waits at a node: (arrival, records) in order; `flushing` from when it is due until it is written."""

    def __init__(self) -> None:
        self.parts: deque[list[float]] = deque()
        self.total = 0.0
        self.flushing = False

    def put(self, now: float, count: float) -> None:
        self.parts.append([now, count])
        self.total += count

    def take(self, count: float) -> None:
        self.total = max(0.0, self.total - count)
        while self.parts and count > 0:
            taken = min(count, self.parts[0][1])
            self.parts[0][1] -= taken
            count -= taken
            if self.parts[0][1] <= 1e-9:
                self.parts.popleft()

    def oldest_s(self, now: float) -> float:
        return now - self.parts[0][0] if self.parts else 0.0


def simulate(layout: Layout, outages: Sequence[Outage], duration_s: float) -> Course:
    """Databases that nothing happens to are alike: one of them stands for all."""
    hit = sorted({one.number if one.what == "database" else layout.database_of(one.number) for one in outages})
    courses = [(_cell(layout, database, outages, duration_s), 1) for database in hit]
    spared = next((database for database in range(layout.databases) if database not in hit), None)
    if spared is not None:
        courses.append((_cell(layout, spared, (), duration_s), layout.databases - len(hit)))
    whole = Course(at=courses[0][0].at)
    for step in range(len(whole.at)):
        whole.waiting.append(sum(course.waiting[step] * times for course, times in courses))
        whole.oldest_s.append(max(course.oldest_s[step] for course, _ in courses))
        whole.refused.append(sum(course.refused[step] * times for course, times in courses))
    return whole


def _cell(layout: Layout, database: int, outages: Sequence[Outage], duration_s: float) -> Course:
    """One database and the nodes that write to it."""
    nodes = [node for node in range(layout.nodes) if layout.database_of(node) == database]
    queues = {node: _Queue() for node in nodes}
    course = Course()
    limit = layout.journal_max_bytes / layout.record_bytes
    coming = layout.rate / layout.databases * STEP_S
    for step in range(int(duration_s / STEP_S)):
        now = step * STEP_S
        takers = [node for node in nodes if not any(one.holds("node", node, now) for one in outages)]
        refused = 0.0 if takers else coming
        for node in takers:
            share = coming / len(takers)
            room = max(0.0, limit - queues[node].total)
            queues[node].put(now, min(share, room))
            refused += max(0.0, share - room)
        if not any(one.holds("database", database, now, longer_s=NOTICE_S) for one in outages):
            _write(layout, [queues[node] for node in takers], now)
        course.at.append(now)
        course.waiting.append(sum(queue.total for queue in queues.values()))
        course.oldest_s.append(max(queue.oldest_s(now) for queue in queues.values()))
        course.refused.append(refused / STEP_S)
    return course


def _write(layout: Layout, queues: Sequence[_Queue], now: float) -> None:
    """One step of one database: shared in proportion to what is due, no node beyond what its writers can."""
    for queue in queues:
        full = queue.total >= layout.max_buffer_size
        queue.flushing = queue.flushing or full or queue.oldest_s(now) >= layout.flush_interval_s
    due = [queue for queue in queues if queue.flushing]
    waiting = sum(queue.total for queue in due)
    room = min(layout.database_rate * STEP_S, waiting)
    for queue in due:
        queue.take(min(room * queue.total / waiting, layout.node_rate * STEP_S) if waiting else 0.0)
        queue.flushing = queue.total >= 1


def layouts(database_rate: float, node_rate: float) -> list[Layout]:
    """Those of docs/SCALING.md."""
    common: dict[str, Any] = {"database_rate": database_rate, "node_rate": node_rate}
    return [
        Layout("10³ records/s: 2 nodes, 1 database", 1e3, 2, 1, **common),
        Layout("10⁵ records/s: 12 nodes, 6 databases", 1e5, 12, 6, journal_max_bytes=8 << 30, **common),
        Layout("10⁶ records/s: 120 nodes, 60 databases", 1e6, 120, 60, journal_max_bytes=8 << 30, **common),
    ]


OUTAGES = {  # just before a flush: the worst moment
    "one node down 60 s": Outage("node", 0, 19.9, 60),
    "one database away 60 s": Outage("database", 0, 19.9, 60),
}
DURATION_S = 240.0


def table(database_rate: float, node_rate: float) -> None:
    print(
        f"{'layout':<42} {'what fails':<24} {'most waiting':>13} {'oldest':>8} {'caught up after':>16} {'refused':>8}"
    )
    for layout in layouts(database_rate, node_rate):
        for name, outage in OUTAGES.items():
            course = simulate(layout, [outage], DURATION_S)
            over_s = outage.at_s + outage.for_s
            normal = max(course.waiting[: int(outage.at_s / STEP_S)])
            caught_up_s = course.caught_up_s(over_s, normal * 1.05 + 1)
            caught_up = "later" if caught_up_s is None else f"{caught_up_s:.0f} s"
            print(
                f"{layout.name:<42} {name:<24} {max(course.waiting):>13,.0f} {max(course.oldest_s):>6.0f} s"
                f" {caught_up:>16} {sum(course.refused) * STEP_S:>8,.0f}"
            )


def check(measured: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """A measured outage beside the same one simulated. How fast a backlog goes is taken from the lock before it.

    Returns: by figure, measured and simulated.
    """
    rate, samples = measured["rate"], measured["samples"]
    usual = 1.1 * max(waiting for at, waiting, _ in samples if measured["locked"][0] - 2 < at < measured["locked"][0])

    def caught_up_at(back_at: float) -> float:
        most_at = max((one for one in samples if back_at - 1 < one[0] < back_at + 3 * NOTICE_S), key=lambda one: one[1])
        return float(next(at for at, waiting, _ in samples if at > most_at[0] and waiting <= usual))

    locked_at, unlocked_at = measured["locked"]
    drain_rate = rate * (1 + (unlocked_at - locked_at) / (caught_up_at(unlocked_at) - unlocked_at))
    gone_at, back_at = measured["away"]
    seen = [one for one in samples if one[0] >= gone_at]
    layout = Layout("measured", rate, 1, 1, database_rate=drain_rate, node_rate=drain_rate)
    simulated = simulate(layout, [Outage("database", 0, gone_at, back_at - gone_at)], samples[-1][0])
    simulated_s = simulated.caught_up_s(back_at + NOTICE_S, usual)
    return {
        "backlog written, records/s": (drain_rate, drain_rate),
        "most records waiting": (max(waiting for _, waiting, _ in seen), max(simulated.waiting)),
        "oldest, s": (max(age_s for *_, age_s in seen), max(simulated.oldest_s)),
        "caught up after, s": (
            caught_up_at(back_at) - back_at,
            float("inf") if simulated_s is None else simulated_s + NOTICE_S,
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="simulate.py", description="what waits when nodes or databases fail")
    parser.add_argument("--database-rate", type=float, default=25_000, help="records/s that a database takes (25000)")
    parser.add_argument("--node-rate", type=float, default=50_000, help="records/s that a node's writers send (50000)")
    parser.add_argument("--check", type=Path, metavar="FILE", help="JSON of python -m tests.system.measure outage")
    options = parser.parse_args()
    if options.check:
        for name, (measured, simulated) in check(json.loads(options.check.read_text())).items():
            print(f"{name:<27} measured {measured:>10,.1f}   simulated {simulated:>10,.1f}")
        return
    table(options.database_rate, options.node_rate)


if __name__ == "__main__":
    main()
