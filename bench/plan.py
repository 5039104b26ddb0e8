"""What a full run and a quick run measure, and the keys of `ratios` with their bounds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

OURS, NEVER, ALWAYS, TWO_WORKERS = "ours", "ours-never", "ours-always", "ours-2-workers"
ASGI, FALCON = "ceiling-asgi", "ceiling-falcon"
SEED, SEED_NO_LOG = "seed-design", "seed-design-no-log"
CONTENDERS = (OURS, NEVER, ALWAYS, TWO_WORKERS, ASGI, FALCON, SEED, SEED_NO_LOG)

LOAD_DATA, STATEMENTS = "limit-load-data", "limit-statements"
PROCESSES = ("ingest worker", "flusher", "writer")


@dataclass(frozen=True, slots=True)
class Key:
    """One ratio: what it says, and what it must be: `at_least`, `at_most`, or just reported."""

    name: str
    says: str
    at_least: float | None = None
    at_most: float | dict[str, float] | None = None


KEYS = (
    Key("rps_vs_ceiling_falcon", "requests/s, batch 1, 16 connections, of ceiling-falcon's", at_least=0.75),
    Key("rps_vs_seed_design", "the same, of seed-design's", at_least=6),
    Key("p50_vs_ceiling_asgi", "p50, batch 1, 1 connection, of ceiling-asgi's", at_most=2.0),
    Key("records_vs_ceiling_falcon", "records/s, batch 100, 16 connections, of ceiling-falcon's", at_least=0.35),
    Key("p99_locked_vs_idle", "p99, batch 10, 16 connections, table locked, of not locked", at_most=1.2),
    Key("p99_flushing_vs_idle", "p99, batch 100, half the highest rate, of the same without database", at_most=2.0),
    Key("landing_vs_load_data", "rows/s committed, batch 100, of LOAD DATA's", at_least=0.8),
    Key("landing_vs_seed_design", "the same, of seed-design's", at_least=2.0),
    Key("statements_per_1000", "statements for 1000 distinct records", at_most=2),
    Key("rows_per_record_lifecycle", "rows written by records of 10,000 tasks with 3 states each", at_most=0.4),
    Key("workers2_vs_1", "requests/s with 2 ingest workers, of 1's, unpinned"),
    Key(
        "rss_mb",
        "most memory held in the sustained run: " + ", ".join(PROCESSES),
        at_most=dict(zip(PROCESSES, (60, 60, 150), strict=True)),
    ),
    Key("recover_records_per_s", "of a journal read back and decoded", at_least=200_000),
    Key("always_vs_interval", "requests/s, fsync always of interval's, batch 1, 64 connections", at_least=0.3),
)
NAMES = tuple(key.name for key in KEYS)
MATRIX = "matrix"
"""Beside the keys, a name for --only: every batch size with every number of connections."""


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


def _cells(contenders: Iterable[str], batch: int, connections: int, **how: bool) -> tuple[Cell, ...]:
    return tuple(Cell(name, batch, connections, **how) for name in contenders)


CELLS_OF: dict[str, tuple[Cell, ...]] = {
    "rps_vs_ceiling_falcon": _cells((FALCON, OURS), 1, 16),
    "rps_vs_seed_design": _cells((SEED, SEED_NO_LOG, OURS), 1, 16),
    "p50_vs_ceiling_asgi": _cells((ASGI, OURS), 1, 1, pinned=False, latencies=True),
    "records_vs_ceiling_falcon": _cells((FALCON, OURS), 100, 16),
    "workers2_vs_1": _cells((OURS, TWO_WORKERS), 1, 16, pinned=False),
    "always_vs_interval": _cells((OURS, ALWAYS), 1, 64),
}
"""The keys that are ratios of cells. All others have a measurement of their own."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Seconds and rounds. Rounds of contenders that are compared alternate, and their median counts."""

    name: str
    cell_s: int
    rounds: int
    matrix_batches: tuple[int, ...]
    matrix_connections: tuple[int, ...]
    matrix_contenders: tuple[str, ...]
    matrix_s: int
    matrix_rounds: int
    latency_loads: tuple[tuple[int, int], ...]
    """Batch sizes and connections under which raw latencies of all are measured."""
    lock_s: int
    lock_rounds: int
    lock_plot_s: tuple[float, float, float]
    """Before, while, and after the table is locked, in the open loop."""
    flushing_s: float
    flushing_rounds: int
    equal_rounds: int
    """Of them, so many with a database that does not give way, too; no ratio is made of these."""
    offered: tuple[float, ...]
    """Shares of LOAD DATA's rate that are tried, to find how much lands at most."""
    offered_s: float
    landing_s: float
    landing_rounds: int
    limit_s: float
    lifecycle_tasks: int
    recover_records: int

    def matrix(self, peers: Iterable[str]) -> list[Cell]:
        contenders = (*self.matrix_contenders, *peers)
        usual = tuple(name for name in contenders if name not in (NEVER, ALWAYS))
        cells: list[Cell] = []
        for batch in self.matrix_batches:
            for connections in self.matrix_connections:
                cells += _cells(contenders, batch, connections)
        cells += _cells(usual, 1, 16, pinned=False)
        for batch, connections in self.latency_loads:
            cells += _cells(usual, batch, connections, pinned=False, latencies=True)
        return cells


FULL = Plan(
    name="full",
    cell_s=3,
    rounds=4,
    matrix_batches=(1, 10, 100, 1000),
    matrix_connections=(1, 16, 64),
    matrix_contenders=(ASGI, FALCON, SEED, OURS, NEVER, ALWAYS),
    matrix_s=1,
    matrix_rounds=2,
    latency_loads=((1, 1), (1, 16), (1, 64), (10, 16), (100, 16)),
    lock_s=10,
    lock_rounds=2,
    lock_plot_s=(4, 10, 6),
    flushing_s=6,
    flushing_rounds=9,
    equal_rounds=3,
    offered=(1.0, 0.8, 0.6, 0.4, 0.25),
    offered_s=4,
    landing_s=20,
    landing_rounds=5,
    limit_s=4,
    lifecycle_tasks=10_000,
    recover_records=1_000_000,
)
QUICK = Plan(
    name="quick",
    cell_s=1,
    rounds=1,
    matrix_batches=(1000,),
    matrix_connections=(16,),
    matrix_contenders=(NEVER,),
    matrix_s=1,
    matrix_rounds=1,
    latency_loads=(),
    lock_s=1,
    lock_rounds=1,
    lock_plot_s=(0.5, 1, 0.5),
    flushing_s=1,
    flushing_rounds=1,
    equal_rounds=1,
    offered=(0.6,),
    offered_s=0.5,
    landing_s=1,
    landing_rounds=1,
    limit_s=0.3,
    lifecycle_tasks=1500,
    recover_records=50_000,
)
