"""`python -m tests.mutants [NAME...]`: breaks each invariant on purpose, in a scratch copy, and sees that a test fails.

Runs the chosen tests on unbroken code first, and refuses to go on if one fails. Prints the table of
docs/RELIABILITY.md. Exit status 1 if a break goes unnoticed or no longer applies.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = (
    "bench",
    "config",
    "flusher",
    "ingest",
    "reader",
    "shared",
    "sql",
    "tests",
    "pyproject.toml",
    "client",
    "ctl",
    "scripts",
)


@dataclass(frozen=True)
class Break:
    what: str
    file: str
    old: str
    new: str
    only: tuple[str, ...] = ()

    @property
    def tests(self) -> tuple[str, ...]:
        """Those of the file, unless the break names others."""
        return self.only or (f"tests/flusher/test_{Path(self.file).stem}.py",)


BREAKS = {
    "1 ack => journaled": (
        Break(
            "acknowledge before the append",
            "flusher/intake.py",
            "        try:\n            segment = self.journal.writable()",
            "        reply(b''.join(map(encode, acks([one.seq for one in admitted], [1] * len(admitted)))))\n"
            "        try:\n            segment = self.journal.writable()",
        ),
        Break(
            "the fast path answers 202 before the ack",
            "ingest/connection.py",
            "            if fast.submit(self._answer_fast):",
            "            self._answer_fast(1)\n            if fast.submit(self._answer_fast):",
            ("tests/ingest/test_fast_path.py",),
        ),
        Break(
            "fsync always: acknowledge without a sync",
            "flusher/syncer.py",
            "        if self._policy is Fsync.ALWAYS:\n            return True",
            "        if self._policy is Fsync.ALWAYS:\n            return False",
        ),
        Break("a short write passes for a whole one", "flusher/journal.py", "if done != want:", "if done > want:"),
        Break(
            "a failed sync is taken for a good one",
            "flusher/syncer.py",
            "            self._sync_failed(segments, error)\n        else:",
            "            pass\n        else:",
        ),
        Break(
            "the inbox loses the beginning of a frame that is not whole yet",
            "shared/wire.py",
            "            memory[:left] = self._memory[self._start : self._end]\n",
            "            pass\n",
            ("tests/shared/test_wire.py",),
        ),
    ),
    "2 journaled => written": (
        Break(
            "remove a segment whatever the writer says",
            "flusher/scheduler.py",
            "            if isinstance(answer, Written):\n                await asyncio.get_running_loop()",
            "            if answer:\n                await asyncio.get_running_loop()",
        ),
        Break("answer without a commit", "flusher/store.py", "                db.commit()\n", "                pass\n"),
        Break(
            "no rollback after a failed statement",
            "flusher/store.py",
            "                self._connection.db.rollback()",
            "                self._connection.db.commit()",
        ),
        Break(
            "a look back leaves the host that works",
            "flusher/connection.py",
            "            if takes_writes(first, RETURN_CONNECT_S):\n",
            "            if True:\n",
        ),
        Break(
            "refused rows are not dead-lettered",
            "flusher/writer.py",
            "            if letters:\n",
            "            if not letters:\n",
        ),
        Break(
            "dead letters are not synced",
            "flusher/dead_letters.py",
            "                os.fsync(fd)\n            except",
            "                pass\n            except",
        ),
        Break("most of a batch may be dead-lettered", "flusher/writer.py", "new * 2 > total", "new > total"),
        Break(
            "an unknown error is taken for a bad row",
            "flusher/mysql_errors.py",
            "CLASS_OF.get((flavour, number), ErrorClass.UNKNOWN)",
            "CLASS_OF.get((flavour, number), ErrorClass.DATA)",
        ),
        Break(
            "no CRC check",
            "flusher/segments.py",
            "if body_at >= end or crc32(view[payload_at:end], crc32(view[at : payload_at - 4])) != crc:",
            "if body_at >= end:",
        ),
        Break(
            "reading ends at the first damage",
            "flusher/segments.py",
            "        at = data.find(ENTRY_MAGIC, at + 1)\n        while",
            "        at = -1\n        while",
        ),
        Break(
            "a damaged segment is removed, not set aside",
            "flusher/segments.py",
            "    if damaged:\n        set_aside(path)\n    else:\n        path.unlink(missing_ok=True)",
            "    path.unlink()",
            ("tests/flusher/test_scheduler.py", "tests/system/test_poison.py"),
        ),
        Break(
            "halves are written with the statements of the whole",
            "flusher/writer.py",
            "ready if part is rows else None",
            "ready",
        ),
        Break(
            "two commands of a writer do not take turns at its answers",
            "flusher/writers.py",
            "            async with child.turn:\n",
            "            if True:\n",
        ),
        Break(
            "a single row over a limit is a dead letter",
            "flusher/writer.py",
            "if error.error_class is ErrorClass.TOO_BIG:\n                    over_limit",
            "if error.number == -99:\n                    over_limit",
            ("tests/flusher/test_writer.py",),
        ),
        Break(
            "the client takes any 200 for delivered",
            "client/persistence_client.py",
            "if answer.status // 100 == 2 and said[0] in _ACCEPTED and said[1] == len(batch):",
            "if answer.status // 100 == 2:",
            ("tests/client/test_answers.py",),
        ),
        Break(
            "a dead letter is removed before its ack",
            "flusher/replay.py",
            "        accepted, why = connection.submit([letter for _, letter in part])\n"
            "        done += [line for index, (line, _) in enumerate(part) if index in accepted]\n",
            "        done += [line for line, _ in part]\n"
            "        accepted, why = connection.submit([letter for _, letter in part])\n",
            ("tests/flusher/test_replay.py",),
        ),
        Break(
            "committed is said of a dead letter",
            "flusher/callers.py",
            "if wanted.first <= at <= wanted.last}",
            "if at < wanted.first}",
            ("tests/flusher/test_scheduler.py",),
        ),
        Break(
            "entries of refused callers are read",
            "flusher/segments.py",
            "    contents = parse(data[:size])\n",
            "    contents = parse(data)\n",
        ),
    ),
    "3 reserve before accept": (
        Break("no reservation", "flusher/intake.py", "        if needed <= room:\n", "        if needed:\n"),
        Break(
            "a failed write is not cut back", "flusher/journal.py", "            self._cut_back(segment, start)\n", ""
        ),
    ),
    "4 one merge rule": (
        Break(
            "no guard in the SQL",
            "flusher/sql.py",
            'f"{name}=IF({newer},{new.format(name)},{old.format(name)})"',
            'f"{name}={new.format(name)}"',
            ("tests/flusher/test_merge_rule.py",),
        ),
        Break(
            "an older record sets updated_at back",
            "flusher/sql.py",
            "updated_at=GREATEST({old.format('updated_at')},{new.format('updated_at')})",
            "updated_at={new.format('updated_at')}",
            ("tests/flusher/test_merge_rule.py",),
        ),
        Break(
            "in memory the earlier of two wins a tie",
            "flusher/batch.py",
            "updated_at >= held.updated_at",
            "updated_at > held.updated_at",
        ),
        Break(
            "a task's key is its task_id alone", "flusher/batch.py", "attrgetter(*kind.key)", "attrgetter(kind.key[-1])"
        ),
        Break(
            "the arrival follows a clock that steps back",
            "flusher/intake.py",
            "max(self.wall_ns() // 1000, self.journal.last_arrival + 1)",
            "self._wall_ns() // 1000",
        ),
        Break(
            "a replay forgets the first arrival",
            "flusher/intake.py",
            "min(submit.arrival, arrival)",
            "arrival",
            ("tests/flusher/test_intake.py",),
        ),
        Break(
            "the client's queue keeps the older state of a task",
            "client/persistence_client.py",
            "if old.updated_at > new.updated_at:",
            "if old.updated_at < new.updated_at:",
            ("tests/client/test_queue.py",),
        ),
        Break(
            "a task that could not be sent replaces its newer state",
            "client/persistence_client.py",
            "record if newer is None or newer.updated_at < record.updated_at else",
            "record if newer is None or newer.updated_at >= record.updated_at else",
            ("tests/client/test_queue.py",),
        ),
    ),
    "5 bounded everything": (
        Break(
            "a login that is answered byte by byte has no end",
            "flusher/connection.py",
            "with hung_up_after(2 * timeout_s, self._peer(host)):",
            "with hung_up_after(3600, self._peer(host)):",
            ("tests/flusher/test_network.py",),
        ),
        Break(
            "a refused login is asked again at every try",
            "flusher/connection.py",
            "if said and self._clock() < again_at:",
            "if said and self._clock() < 0:",
            ("tests/flusher/test_servers.py",),
        ),
        Break(
            "a frame of any length is read",
            "shared/wire.py",
            "            if length > self._max_frame_bytes:",
            "            if length < 0:",
            ("tests/shared/test_wire.py",),
        ),
        Break(
            "no window to the flusher",
            "ingest/forwarder.py",
            "        if self._is_full(len(body)):\n            await",
            "        if False:\n            await",
            ("tests/ingest/test_forwarder.py",),
        ),
        Break(
            "a peer that has left is not forgotten",
            "flusher/server.py",
            "            self._scheduler.forget(self._reply)\n",
            "",
            ("tests/flusher/test_server.py",),
        ),
        Break(
            "dead letters have no cap",
            "flusher/dead_letters.py",
            "if size + len(data) > max_bytes:",
            "if size > max_bytes + (1 << 60):",
        ),
        Break(
            "a packed body's own size is not checked",
            "ingest/guard.py",
            "                if size > self._max_body_bytes:",
            "                if False:",
            ("tests/ingest/test_guard.py",),
        ),
        Break(
            "the ratio of packing is not checked",
            "ingest/unpacking.py",
            "                if size > most:",
            "                if False:",
            ("tests/ingest/test_guard.py",),
        ),
        Break(
            "the fast path does not give its room back",
            "ingest/batches.py",
            "        self.release()\n        self.body =",
            "        self.body =",
            ("tests/ingest/test_fast_path.py",),
        ),
        Break(
            "the fast path keeps the room of a body that was cut short",
            "ingest/connection.py",
            "            fast.release()\n            self._observed(fast.route.path, 0)\n",
            "            self._observed(fast.route.path, 0)\n",
            ("tests/ingest/test_fast_path.py",),
        ),
        Break(
            "chunks are not counted",
            "ingest/framing.py",
            "        if self._chunks > MAX_CHUNKS",
            "        if self._chunks > 10**9 + MAX_CHUNKS",
            ("tests/ingest/test_framing.py",),
        ),
        Break(
            "unread answers have no bound together",
            "ingest/deadlines.py",
            "    if total <= MAX_HELD_BYTES:",
            "    if True:",
            ("tests/ingest/test_connection_limits.py",),
        ),
    ),
    "6 the loop never waits": (
        Break(
            "the sync runs on the loop",
            "flusher/syncer.py",
            "self._running = loop.run_in_executor(self._thread, _sync_all, segments, cached)",
            "self._running = loop.create_future()\n        self._running.set_result(_sync_all(segments, cached))",
        ),
        Break(
            "an object is parsed before its values are counted",
            "shared/validation.py",
            "if values > MAX_OBJECT_VALUES:",
            "if False:",
            ("tests/shared/test_validation.py",),
        ),
        Break(
            "a closer look keeps its turn to the end",
            "ingest/batches.py",
            "            if time.monotonic() > turn_ends_at:\n",
            "            if False:\n",
            ("tests/ingest/test_batches.py",),
        ),
    ),
    "7 a failure is loud": (
        Break(
            "a ping ends what a write has found",
            "flusher/state.py",
            "        if self.bad and self._needs_commit:\n            return\n",
            "",
            ("tests/flusher/test_state.py",),
        ),
        Break(
            "dead letters are not counted",
            "flusher/figures.py",
            "        self.dead_lettered += answer.dead_lettered\n",
            "",
            ("tests/flusher/test_scheduler.py", "tests/system/test_poison.py"),
        ),
        Break(
            "no alarm for a missing table",
            "flusher/state.py",
            "        self.alarming = answer.alarming\n",
            "        pass\n",
            ("tests/flusher/test_scheduler.py",),
        ),
        Break(
            "refusals are not counted",
            "ingest/guard.py",
            "            self._reject(error.records)",
            "            pass",
            ("tests/ingest/test_rejections.py",),
        ),
    ),
    "8 never a wrong row": (
        Break(
            "tables that are not ours are written to",
            "flusher/store.py",
            "            raise TablesNotOurs(faults)",
            "            pass",
            ("tests/flusher/test_tables.py",),
        ),
        Break(
            "tables altered during a connection are not looked at",
            "flusher/store.py",
            "now - self._checked_at < LOOK_AGAIN_S",
            "True",
            ("tests/flusher/test_tables.py",),
        ),
        Break(
            "keys that ignore case pass",
            "flusher/tables.py",
            "harmless = harmless and not in_key",
            "pass",
            ("tests/flusher/test_tables.py",),
        ),
        Break(
            "a key of beginnings passes",
            "flusher/facts.py",
            'f"{column}({prefix})" if prefix else column',
            "column",
            ("tests/flusher/test_tables.py",),
        ),
        Break(
            "an upgrade changes the tables of another program",
            "ctl/database.py",
            "        if fault.foreign:\n",
            "        if False:\n",
            ("tests/ctl/test_upgrade.py",),
        ),
    ),
    "9 what went in comes out": (
        Break(
            "fields beyond ours stay behind when a record is read",
            "reader/queries.py",
            "return [value and value + comma for value in found]",
            "return [b'' for _ in found]",
            ("tests/reader/test_round_trip.py",),
        ),
        Break(
            "a page whose range was cut short skips rows",
            "reader/server.py",
            "        rows = before",
            "        rows = list(rows)",
            ("tests/reader/test_server.py",),
        ),
        Break(
            "a session that is sent back keeps its progress",
            "shared/bodies.py",
            "    return kind is SESSIONS and name == PROGRESS and type(value)",
            "    return False and type(value)",
            ("tests/shared/test_bodies.py",),
        ),
        Break(
            "an answer that breaks off ends like a whole one",
            "ingest/reading.py",
            "                self._cut_off()\n",
            '                await send({"type": "http.response.body", "body": b""})\n                return\n',
            ("tests/system/test_reading_kills.py",),
        ),
        Break(
            "a body means what the settings of today say",
            "flusher/batch.py",
            "decode(kind, entry.body, entry.rules)",
            "decode(kind, entry.body)",
            ("tests/system/test_records.py",),
        ),
        Break(
            "of a field that is sent twice one is kept",
            "shared/validation.py",
            "if name in item:\n                fault",
            "if False:\n                fault",
            ("tests/shared/test_validation.py",),
        ),
        Break(
            "the fast path does not look for a field that is sent twice",
            "shared/record_counter.h",
            "        if (seen & bit) return false;\n",
            "",
            ("tests/shared/test_fast_validator.py",),
        ),
    ),
    "access": (
        Break(
            "pages of other sites are answered",
            "ingest/access.py",
            "        if is_cross_site(scope, headers):",
            "        if False:",
            ("tests/ingest/test_access.py",),
        ),
        Break(
            "the fast path admits without the token",
            "ingest/access.py",
            '            return has_token(headers.get(b"authorization", b""), self._tokens)',
            "            return True",
            ("tests/ingest/test_fast_path.py",),
        ),
        Break(
            "the fast path admits under any name",
            "ingest/access.py",
            'is_local(client)) and self._is_ours(headers[b"host"])',
            "is_local(client))",
            ("tests/ingest/test_fast_path.py",),
        ),
    ),
    "the fast path is fast": (
        Break(
            "a number at its limit takes the slow path",
            "shared/record_counter.h",
            "number <= field.most;",
            "number < field.most;",
            ("tests/shared/test_fast_validator.py",),
        ),
    ),
}


def first_failure(tests: Sequence[str], copy: Path) -> str | None:
    """Runs tests up to the first failure. Returns: that test, or how pytest ended; None if all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout=60", *tests]
    run = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=900)
    for line in run.stdout.splitlines():
        if line.startswith(("FAILED tests", "ERROR tests")):
            return line.split()[1].split("[")[0]
    return f"{' '.join(tests)} (ended with status {run.returncode})" if run.returncode else None


def caught_by(break_: Break, copy: Path) -> str | None:
    """Applies a break to the copy, runs its tests up to the first failure, takes it back. Returns: that test."""
    path = copy / break_.file
    sound = path.read_text()
    if sound.count(break_.old) != 1:
        sys.exit(f"{break_.what}: {break_.file} has changed; say here how to break it now")
    broken = sound.replace(break_.old, break_.new)
    if path.suffix == ".py":
        compile(broken, break_.file, "exec")  # what does not even start proves nothing
    path.write_text(broken)
    try:
        build(path)
        return next(filter(None, (first_failure([tests], copy) for tests in break_.tests)), None)
    finally:
        path.write_text(sound)
        build(path)


def build(path: Path) -> None:
    """In place, if it is C++."""
    if path.suffix in (".cpp", ".h"):
        path = path.with_name("fast_validator.cpp")
        built = path.with_suffix(sysconfig.get_config_var("EXT_SUFFIX"))
        flags = ["-std=c++17", "-O1", "-fPIC", "-shared", f"-I{sysconfig.get_paths()['include']}"]
        subprocess.run(["g++", *flags, str(path), "-o", str(built), "-lsimdjson"], check=True)


def main() -> None:
    words = sys.argv[1:]
    wanted = [
        (invariant, one)
        for invariant, breaks in BREAKS.items()
        for one in breaks
        if not words or any(word in f"{one.what} {one.file}" for word in words)
    ]
    unnoticed = 0
    print("| invariant | broken on purpose | caught by |\n|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="mutants-", dir="/tmp") as directory:
        copy = Path(directory)
        for name in PARTS:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                shutil.copy(source, copy / name)
        tests = sorted({tests for _, one in wanted for tests in one.tests})
        if failed := first_failure(tests, copy):
            sys.exit(f"{failed} fails on unbroken code: a break proves nothing")
        for invariant, one in wanted:
            test = caught_by(one, copy)
            unnoticed += test is None
            print(f"| {invariant} | {one.what} | {f'`{test}`' if test else '**nothing**'} |", flush=True)
    sys.exit(unnoticed > 0)


if __name__ == "__main__":
    main()
