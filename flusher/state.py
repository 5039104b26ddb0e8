"""The state of the node: the one source of health, readiness, metrics, dashboard and ctl.

    database    unknown -> up                       the first answer
                any     -> down, not_writable       a write or a ping failed, or no write has succeeded for HANGING_S
                bad     -> up                       a commit; where only a ping had found it bad, a ping
    acceptance  accepting, full, not_writable       Intake.look() says which

Rules: no clock, no I/O; belongs to the loop's thread. A reason is one sentence that names the next command, without
figures that change by themselves, so that one problem stays one line; a cause is its kind, for programs and for other
languages; `since` is in seconds since 1970.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from flusher.answers import Failed
from flusher.mysql_errors import ErrorClass
from shared import clock

log = logging.getLogger(__name__)


HANGING_S = 15.0
"""Without a commit although writers try; waits for locks end after 10 s."""
BACKLOG_DEGRADED_PERCENT = 50.0
NO_DATABASE_ERROR = -1
"""The number of a failure outside the database: a writer died or cannot be started."""
_REFUSED_CONNECTION = {1040, 1047, 1129, 1203, 1226}
"""The server answered, and accepts no connection or no write now."""
_RIGHTS = {1044, 1045, 1130, 1131, 1142, 1143, 1227, 1370, 1524, 1698, 1820, 1862, 2059, 2061, 3118, 3159, 3879, 4151}
"""Of class SCHEMA: the login, or a right."""


class Cause(str, Enum):
    """What kind of trouble it is."""

    STARTING = "starting"
    UNREACHABLE = "unreachable"
    BUSY = "busy"
    LOCKED = "locked"
    READ_ONLY = "read_only"
    DISK = "disk"
    RIGHTS = "rights"
    TABLES = "tables"
    WRITER = "writer"
    UNKNOWN = "unknown"
    SEGMENT = "segment"
    BACKLOG = "backlog"
    JOURNAL_FULL = "journal_full"
    JOURNAL_NOT_WRITABLE = "journal_not_writable"


_CAUSE_OF_CLASS = {
    ErrorClass.RETRY: Cause.LOCKED,
    ErrorClass.RECONNECT: Cause.UNREACHABLE,
    ErrorClass.READ_ONLY: Cause.READ_ONLY,
    ErrorClass.STORAGE: Cause.DISK,
    ErrorClass.SCHEMA: Cause.TABLES,
}


def cause_of(answer: Failed) -> Cause:
    if answer.number in _REFUSED_CONNECTION:
        return Cause.BUSY
    if answer.number in _RIGHTS:
        return Cause.RIGHTS
    return _CAUSE_OF_CLASS.get(answer.error_class, Cause.UNKNOWN)


class Condition(NamedTuple):
    """A fault: why, since when, of what kind."""

    reason: str
    since: float
    cause: Cause = Cause.UNKNOWN


class DatabaseState(str, Enum):
    UNKNOWN = "unknown"
    UP = "up"
    NOT_WRITABLE = "not_writable"
    DOWN = "down"


_ADVICE = {
    DatabaseState.DOWN: "start it, or correct database.host; ./scripts/ctl.sh db check tries each",
    DatabaseState.NOT_WRITABLE: "./scripts/ctl.sh db check shows the remedy",
}
"""The operator's step, if the error names none; the service then recovers by itself."""
OVERLOADED = "the database takes less than arrives; SHOW FULL PROCESSLIST shows what holds it up"


class Acceptance(str, Enum):
    ACCEPTING = "accepting"
    FULL = "full"
    NOT_WRITABLE = "not_writable"


@dataclass(slots=True)
class Database:
    """`alarming`: it lasts until an operator acts."""

    since: float
    state: DatabaseState = DatabaseState.UNKNOWN
    reason: str | None = "the database has not answered yet"
    cause: Cause | None = Cause.STARTING
    alarming: bool = False
    _needs_commit: bool = False

    @property
    def bad(self) -> bool:
        return self.state in (DatabaseState.DOWN, DatabaseState.NOT_WRITABLE)

    def committed(self, wall: float) -> None:
        if self.bad:
            log.warning("database: writing again")
        self._up(wall)

    def answered(self, wall: float) -> None:
        """A ping succeeded. It does not end a fault that a write found: a locked table answers every ping."""
        if self.bad and self._needs_commit:
            return
        if self.bad:
            log.warning("database: reachable again")
        self._up(wall)

    def failed(self, answer: Failed, wall: float, *, writing: bool) -> None:
        """A write or a ping failed for a reason that concerns every segment."""
        if answer.number == NO_DATABASE_ERROR:
            return
        down = answer.error_class is ErrorClass.RECONNECT and answer.number not in _REFUSED_CONNECTION
        state = DatabaseState.DOWN if down else DatabaseState.NOT_WRITABLE
        reason = answer.message if "ctl.sh" in answer.message else f"{answer.message}; {_ADVICE[state]}"
        self._bad(state, reason, cause_of(answer), wall, writing)
        self.alarming = answer.alarming

    def refused_one(self, answer: Failed, wall: float) -> None:
        """A write failed for the sake of its own segment. Whatever was said before, the database is not down."""
        if self.state is DatabaseState.DOWN and answer.error_class is not ErrorClass.STORAGE:
            self.failed(answer, wall, writing=True)

    def held_up(self, last_error: str | None, wall: float) -> None:
        """No write has succeeded for HANGING_S."""
        if not self.bad:
            why = last_error or "one is under way: a lock on the tables, or a server that does not answer"
            reason = f"no write has succeeded for {HANGING_S:.0f} s: {why}; SHOW FULL PROCESSLIST names who holds it up"
            self._bad(DatabaseState.NOT_WRITABLE, reason, Cause.LOCKED, wall - HANGING_S, writing=True)

    def not_asked(self, why: str, wall: float) -> None:
        """Writer after writer dies before it reaches the database."""
        if not self.bad:
            reason = f"no writer can work: {why}; the log says more"
            self._bad(DatabaseState.NOT_WRITABLE, reason, Cause.WRITER, wall, writing=False)

    def _bad(self, state: DatabaseState, reason: str, cause: Cause, wall: float, writing: bool) -> None:
        if not self.bad:
            self.since = wall
        if self.state is not state:
            log.warning("database: %s, records wait in the journal: %s", state.value.replace("_", " "), reason)
        self.state, self.reason, self.cause = state, reason, cause
        self._needs_commit |= writing

    def _up(self, wall: float) -> None:
        if self.state is not DatabaseState.UP:
            self.since = wall
        self.state, self.reason, self.cause = DatabaseState.UP, None, None
        self.alarming = self._needs_commit = False


def verdict(
    acceptance: Condition | None, database: Database, segment: Condition | None, backlog: Condition | None
) -> tuple[str, Condition | None]:
    """Args: None for no fault. Returns: healthy, degraded or unhealthy, and why."""
    of_database = None
    if database.reason is not None and database.cause is not None:
        of_database = Condition(database.reason, database.since, database.cause)
    if acceptance is not None:
        if acceptance.cause is Cause.JOURNAL_FULL:
            why = database.reason if database.bad else OVERLOADED
            acceptance = acceptance._replace(reason=f"{acceptance.reason}: {why}")
        return "unhealthy", acceptance
    if database.bad and of_database is not None:
        return "degraded", of_database
    if segment is not None:
        return "degraded", segment
    if of_database is not None:
        return "degraded", of_database
    return ("healthy", None) if backlog is None else ("degraded", backlog)


def date_of(wall: float) -> str:
    return clock.iso(int(wall * 1e6))[:10]


def iso(wall: float | None) -> str | None:
    """Args: wall: seconds since 1970."""
    return None if wall is None else clock.iso(round(wall * 1e6))
