"""What every measurement needs: the plan, the database, the tasks, the contenders; and one round of a cell."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

import MySQLdb

from bench import tasks, wrk
from bench.contenders import Ceiling, Contender, Ours, Peer, SeedDesign, post
from bench.database import Database
from bench.machine import ALL, LOAD, PINS, SERVICE
from bench.plan import ALWAYS, ASGI, FALCON, OURS, SEED, TWO_WORKERS, Cell, Plan

FAULTS = (
    AssertionError,
    OSError,
    RuntimeError,
    ValueError,  # an answer that is no JSON
    KeyError,  # or that lacks a figure
    subprocess.SubprocessError,
    HTTPException,
    MySQLdb.Error,
)
"""What a contender's fault looks like here. It spoils its own figures, not the whole run's."""
WARM_UP_RECORDS = 2000
WARM_UP_REQUESTS = (5, 200)
"""At least, at most."""


@dataclass
class Trial:
    """A contender that runs, and what has gone wrong since its start."""

    contender: Contender
    batch: int
    problems: list[str]

    def __post_init__(self) -> None:
        self._accepted_before = self.contender.accepted()

    def round(self, measured: dict[str, Any]) -> dict[str, Any]:
        """While it still runs. Returns: what a sender has measured, with all that is wrong with it: an answered record
        that was not accepted, too."""
        problems = [*self.problems, *measured["problems"]]
        answered = self.batch * measured.get("requests", measured.get("answered", 0))
        now = self.contender.accepted()
        if now is not None and self._accepted_before is not None and now - self._accepted_before < answered:
            problems.append(f"{answered} records were answered, {now - self._accepted_before} accepted")
        return {**measured, "problems": problems}


@dataclass
class Bench:
    plan: Plan
    database: Database
    directory: Path
    """Everything that is written lies in it, so that it goes with it."""
    seed_python: str
    """An interpreter that has the seed design's packages."""
    peers: dict[str, str]
    tasks: list[dict[str, Any]] = field(default_factory=tasks.pool)
    rss_mb: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The most that each kind of our processes held in any cell, and in which."""

    def __post_init__(self) -> None:
        self.pool_file = self.directory / "pool"
        tasks.write(self.pool_file, self.tasks)

    def contender(self, name: str, **settings: object) -> Contender:
        """A new one, not started."""
        made: dict[str, Callable[[], Contender]] = {
            ASGI: lambda: Ceiling("asgi"),
            FALCON: lambda: Ceiling("falcon"),
            SEED: lambda: SeedDesign(self.database, self.seed_python),
            OURS: lambda: self._ours(OURS, **settings),
            ALWAYS: lambda: self._ours(ALWAYS, JOURNAL_FSYNC="always"),
            TWO_WORKERS: lambda: self._ours(TWO_WORKERS, SERVICE_WORKERS=2),
        }
        return made[name]() if name in made else Peer(name, self.peers[name])

    def _ours(self, name: str, **settings: object) -> Ours:
        return Ours(self.database, self.directory, name, **settings)

    @contextmanager
    def running(self, name: str, where: str, *, pinned: bool, batch: int, **settings: object) -> Iterator[Trial]:
        """A contender with empty tables, where it belongs, warmed up.

        Args:
            where: under which load its memory is noted.
        """
        contender = self.contender(name, **settings)
        try:
            self.database.move_to(LOAD if pinned else ALL)
            if not contender.keeps_nothing:
                self.database.empty()
            os.sync()  # what the one before has left to be written to the disk is not this one's burden
            contender.start(SERVICE if pinned else ALL)
            least, most = WARM_UP_REQUESTS
            requests = min(most, max(least, WARM_UP_RECORDS // batch))
            odd = post(contender, self.bodies(batch, requests))
            yield Trial(contender, batch, [f"warm-up: {answer}" for answer in odd])
        finally:
            contender.stop()
            self.note_memory(contender, where)

    def note_memory(self, contender: Contender, where: str) -> None:
        if isinstance(contender, Ours):
            for process, peak in contender.rss_mb.items():
                if peak > self.rss_mb.get(process, {"mb": 0})["mb"]:
                    self.rss_mb[process] = {"mb": peak, "where": where}

    def bodies(self, batch: int, requests: int) -> list[bytes]:
        """Whole bodies with ids that nobody else uses."""
        run = tasks.new_run()
        pieces = tasks.bodies(self.tasks, batch, min(requests, tasks.BODIES))
        return [tasks.number(run, count).join(pieces[count % len(pieces)]) for count in range(requests)]

    def round(self, cell: Cell, seconds: int) -> dict[str, Any]:
        """One measurement with wrk of one contender, freshly started."""
        where = f"{cell.contender}, batch {cell.batch}, {cell.connections} connections"
        try:
            with self.running(cell.contender, where, pinned=cell.pinned, batch=cell.batch) as trial:
                return trial.round(self.load(trial.contender, cell, seconds))
        except FAULTS as error:
            return {"problems": [repr(error)]}

    def load(self, contender: Contender, cell: Cell, seconds: int) -> dict[str, Any]:
        """wrk against a contender that runs."""
        return wrk.run(
            contender.address,
            contender.path,
            self.pool_file,
            batch=cell.batch,
            connections=cell.connections,
            seconds=seconds,
            latencies=cell.latencies,
            cores=LOAD if cell.pinned else ALL,
        )


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def pinned(cell: Cell) -> str:
    return "" if cell.pinned and PINS else " unpinned"


def name_of(cell: Cell) -> str:
    how = ", latencies" if cell.latencies else ""
    return f"batch {cell.batch}, {cell.connections} connections{pinned(cell)}{how}"


def cells(bench: Bench, wanted: Sequence[tuple[Cell, int, int]]) -> list[dict[str, Any]]:
    """Measures cells in groups; in a group the contenders take turns, so that a noisy minute hits all alike.

    Args:
        wanted: cell, rounds, seconds.
    """
    most: dict[Cell, tuple[int, int]] = {}
    for cell, rounds, seconds in wanted:
        most[cell] = max(most.get(cell, (0, 0)), (rounds, seconds))
    rounds_of: dict[Cell, list[dict[str, Any]]] = {cell: [] for cell in most}
    for group in dict.fromkeys(cell.group for cell in most):
        members = [cell for cell in most if cell.group == group]
        say(f"{name_of(members[0])}: {', '.join(cell.contender for cell in members)}")
        for number in range(max(most[cell][0] for cell in members)):
            for cell in members:
                rounds, seconds = most[cell]
                if number < rounds:
                    rounds_of[cell].append(bench.round(cell, seconds))
    return [
        {
            "contender": cell.contender,
            "batch": cell.batch,
            "connections": cell.connections,
            "asked_pinned": cell.pinned,
            "pinned": cell.pinned and PINS and cell.contender not in bench.peers,
            "latencies": cell.latencies,
            "rounds": rounds,
        }
        for cell, rounds in rounds_of.items()
    ]
