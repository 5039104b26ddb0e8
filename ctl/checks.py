"""Faults of a database and their remedies. Pure: facts in, findings out. flusher/tables.py judges the tables, as it
does for the writer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from flusher import tables
from flusher.facts import Facts
from flusher.mysql_errors import Flavour
from flusher.store import MIN_PACKET_BYTES, StoreError

State = Literal["ok", "warning", "wrong"]
OLDEST = {Flavour.MYSQL: (8, 0), Flavour.MARIADB: (10, 6)}

_SESSION = {"sql_mode": "strict in our session", "time_zone": "UTC in our session"}


@dataclass(frozen=True, slots=True)
class Finding:
    """`mend`: a statement to run or another remedy; None if nothing is wrong."""

    state: State
    what: str
    detail: str
    mend: str | None = None


def check(facts: Facts, faults: Sequence[tables.Fault], database: str, *, recycle_s: float) -> list[Finding]:
    """Everything that can be judged without writing; faults of the tables in the order of their remedies."""
    found = [*_check_server(facts, recycle_s)]
    named = {fault.what for fault in faults}
    found += [Finding("ok", name, detail) for name, detail in _SESSION.items() if name not in named]
    wrong = {fault.table for fault in faults}
    for name, expected in tables.expected_tables().items():
        if name not in wrong:
            found.append(Finding("ok", name, f"{len(expected.columns)} columns, key, indexes"))
    for fault in faults:
        state: State = "warning" if fault.harmless else "wrong"
        found.append(Finding(state, fault.what, fault.detail, tables.statement(fault, database)))
    return found


def _check_server(facts: Facts, recycle_s: float) -> Iterator[Finding]:
    oldest = OLDEST[facts.flavour]
    numbers = version_of(facts.version)
    if numbers < oldest:
        mend = f"{facts.flavour.value} {oldest[0]}.{oldest[1]} or later is needed"
        yield Finding("wrong", "version", facts.version, mend)
    else:
        yield Finding("ok", "version", facts.version)
    if facts.settings["read_only"] not in ("0", "OFF"):
        mend = "SET GLOBAL read_only = OFF; -- or name the primary as database.host"
        yield Finding("wrong", "read_only", "the server takes no writes", mend)
    else:
        yield Finding("ok", "read_only", "off")
    packet = int(facts.settings["max_allowed_packet"])
    if packet < MIN_PACKET_BYTES:
        mend = "SET GLOBAL max_allowed_packet = 67108864; -- and in the server's configuration file"
        yield Finding("wrong", "max_allowed_packet", f"{packet:,} bytes; a record may need {MIN_PACKET_BYTES:,}", mend)
    else:
        yield Finding("ok", "max_allowed_packet", f"{packet:,} bytes")
    if int(facts.settings["wait_timeout"]) <= recycle_s:
        mend = "SET GLOBAL wait_timeout = 28800; -- or lower database.pool_recycle"
        detail = f"{facts.settings['wait_timeout']} s is not above database.pool_recycle = {recycle_s:g} s"
        yield Finding("warning", "wait_timeout", detail, mend)


def version_of(text: str) -> tuple[int, int]:
    """ "5.5.5-10.11.6-MariaDB" -> (10, 11): MariaDB may put a version of MySQL in front, for old clients."""
    numbers = re.findall(r"(\d+)\.(\d+)\.\d+", text)
    major, minor = numbers[-1 if "mariadb" in text.lower() and text.startswith("5.5.5-") else 0] if numbers else (0, 0)
    return int(major), int(minor)


def refused(what: str, error: StoreError, database: str, user: str) -> Finding:
    """An error of the database as a finding; `user` as in CURRENT_USER()."""
    return Finding("wrong", what, error.public, tables.remedy_of(error.number, error.error_class, database, user))


def worst(findings: Sequence[Finding]) -> State:
    states = {finding.state for finding in findings}
    return "wrong" if "wrong" in states else "warning" if "warning" in states else "ok"
