"""What every measurement needs: the plan, the database, the tasks, the contenders; and rounds of cells."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

import MySQLdb

from bench import tasks, wrk
from bench.contenders import Ceiling, Contender, Ours, post
from bench.database import Database
from bench.machine import ALL, LOAD, PINS, SERVICE
from bench.plan import ALWAYS, ASGI, FALCON, TWO_WORKERS, Cell, Plan

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
SETTINGS: dict[str, dict[str, object]] = {ALWAYS: {"JOURNAL_FSYNC": "always"}, TWO_WORKERS: {"SERVICE_WORKERS": 2}}


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
    tasks: list[dict[str, Any]] = field(default_factory=tasks.pool)
    rss_mb: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The most that each kind of our processes held in any cell, and in which."""

    def __post_init__(self) -> None:
        self.pool_file = self.directory / "pool"
        tasks.write(self.pool_file, self.tasks)

    def contender(self, name: str, **settings: object) -> Contender:
        """A new one, not started."""
        if name in (ASGI, FALCON):
            return Ceiling(name)
        return Ours(self.database, self.directory, name, **{**SETTINGS.get(name, {}), **settings})

    @contextmanager
    def running(self, name: str, where: str, *, pinned: bool, batch: int, **settings: object) -> Iterator[Trial]:
        """A contender with empty tables, where it belongs, warmed up.

        Args:
            where: under which load its memory is noted.
        """
        contender = self.contender(name, **settings)
        try:
            self.database.move_to(LOAD if pinned else ALL)
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

    def cells(self, wanted: Sequence[Cell]) -> list[dict[str, Any]]:
        """Measures cells in groups; in a group the contenders take turns, so that a noisy minute hits all alike."""
        rounds: dict[Cell, list[dict[str, Any]]] = {cell: [] for cell in wanted}
        for group in dict.fromkeys(cell.group for cell in rounds):
            members = [cell for cell in rounds if cell.group == group]
            say(f"{members[0].load}: {', '.join(cell.contender for cell in members)}")
            for _ in range(self.plan.rounds):
                for cell in members:
                    rounds[cell].append(self.round(cell, self.plan.cell_s))
        return [
            {
                "contender": cell.contender,
                "load": cell.load if PINS else f"{cell.load} (there is one core)",
                "rounds": of_cell,
            }
            for cell, of_cell in rounds.items()
        ]


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)
