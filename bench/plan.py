"""What a full run and a quick run measure, and the keys of `ratios` with their bounds."""

from __future__ import annotations

from dataclasses import dataclass

OURS, ALWAYS, TWO_WORKERS = "ours", "ours-always", "ours-2-workers"
ASGI, FALCON = "ceiling-asgi", "ceiling-falcon"
LOAD_DATA = "limit-load-data"
PROCESSES = ("ingest worker", "flusher", "writer")


@dataclass(frozen=True, slots=True)
class Key:
    """One ratio: what it says, and what it must be: `at_least`, `at_most`, or just reported."""

    name: str
    says: str
    at_least: float | None = None
    at_most: float | dict[str, float] | None = None


KEYS = (
    Key("rps_vs_ceiling_falcon", "requests/s, batch 1, 16 connections, of ceiling-falcon's", at_least=1.0),
    Key("p50_vs_ceiling_asgi", "p50, batch 1, 1 connection, of ceiling-asgi's", at_most=2.0),
    Key("records_vs_ceiling_falcon", "records/s, batch 100, 16 connections, of ceiling-falcon's", at_least=0.5),
    Key("p99_locked_vs_idle", "p99, batch 10, 16 connections, table locked, of not locked", at_most=1.2),
    Key("p99_flushing_vs_idle", "p99, batch 100, half the highest rate, of the same without database", at_most=2.0),
    Key("landing_vs_load_data", "rows/s that land at the highest rate kept up, of LOAD DATA's", at_least=0.85),
    Key("statements_per_1000", "statements for 1000 distinct records", at_most=2),
    Key("rows_per_record_lifecycle", "rows written by records of 10,000 tasks with 3 states each", at_most=0.4),
    Key("workers2_vs_1", "requests/s with 2 ingest workers, of 1's, unpinned"),
    Key(
        "rss_mb",
        "most memory held while landing: " + ", ".join(PROCESSES),
        at_most=dict(zip(PROCESSES, (60, 60, 150), strict=True)),
    ),
    Key("recover_records_per_s", "of a journal read back and decoded", at_least=250_000),
    Key("always_vs_interval", "requests/s, fsync always of interval's, batch 1, 64 connections", at_least=0.7),
)
NAMES = tuple(key.name for key in KEYS)


@dataclass(frozen=True, slots=True)
class Cell:
    """One contender under one load."""

    contender: str
    batch: int
    connections: int
    pinned: bool = True
    latencies: bool = False

    @property
    def group(self) -> tuple[int, int, bool, bool]:
        """Cells that are compared with each other."""
        return self.batch, self.connections, self.pinned, self.latencies

    @property
    def load(self) -> str:
        what = "p50 / p99 in µs" if self.latencies else "requests/s"
        return f"{what}, batch {self.batch}, {self.connections} connections, {'' if self.pinned else 'not '}pinned"


CELLS_OF: dict[str, tuple[Cell, Cell]] = {
    "rps_vs_ceiling_falcon": (Cell(OURS, 1, 16), Cell(FALCON, 1, 16)),
    "p50_vs_ceiling_asgi": (
        Cell(OURS, 1, 1, pinned=False, latencies=True),
        Cell(ASGI, 1, 1, pinned=False, latencies=True),
    ),
    "records_vs_ceiling_falcon": (Cell(OURS, 100, 16), Cell(FALCON, 100, 16)),
    "workers2_vs_1": (Cell(TWO_WORKERS, 1, 16, pinned=False), Cell(OURS, 1, 16, pinned=False)),
    "always_vs_interval": (Cell(ALWAYS, 1, 64), Cell(OURS, 1, 64)),
}
"""The keys that are ratios of cells, of the first by the second. All others have a measurement of their own."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Seconds and rounds. Rounds of contenders that are compared alternate, and their median counts."""

    name: str
    cell_s: int
    rounds: int
    lock_s: int
    lock_rounds: int
    flushing_s: float
    flushing_rounds: int
    landing_s: float
    landing_steps: int
    """Rates that are tried in a round, each for `landing_s`, from `first_share` of LOAD DATA's on."""
    first_share: float
    landing_rounds: int
    lifecycle_tasks: int
    recover_records: int


FULL = Plan(
    name="full",
    cell_s=3,
    rounds=4,
    lock_s=10,
    lock_rounds=2,
    flushing_s=6,
    flushing_rounds=9,
    landing_s=8,
    landing_steps=5,
    first_share=0.85,
    landing_rounds=4,
    lifecycle_tasks=10_000,
    recover_records=1_000_000,
)
QUICK = Plan(
    name="quick",
    cell_s=1,
    rounds=1,
    lock_s=1,
    lock_rounds=1,
    flushing_s=1,
    flushing_rounds=1,
    landing_s=2,
    landing_steps=1,
    first_share=0.3,
    landing_rounds=1,
    lifecycle_tasks=1500,
    recover_records=50_000,
)
