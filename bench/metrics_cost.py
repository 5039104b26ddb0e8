"""`python -m bench.metrics_cost [--rounds N] [--seconds S]`: what counting requests for /metrics costs.

Two ingest workers before one flusher, alike but for this: in the second, observing a request and publishing the counts
do nothing. wrk (Debian's package) asks one and the other in turn, so that whatever else slows the machine down meets
both; each round gives one ratio, and their median is the result. Requests of one task each, where the share is largest.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import timeit
from pathlib import Path

import msgspec

from ingest.__main__ import listen, make_metrics_directory
from ingest.metrics import RequestMetrics
from tests.support.mariadb import MariaDB
from tests.support.service import ROOT, TASKS, Service, free_port, wait_until

OBSERVING = "from ingest.worker import main; main()"
NOT_OBSERVING = (
    "from ingest.metrics import RequestMetrics as R;"
    " R.observe = lambda *_: None; R.publish = lambda *_, **__: None; " + OBSERVING
)
SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = [[{"tasks":[{"task_id":"t1","batch_id":"b1","session_id":"s1","sheet_name":"Sheet1","column_name":"A",
"row_index":1,"source_text":"Start game","status":"completed","target_text":"x"}]}]]
"""
TICKS = os.sysconf("SC_CLK_TCK")


class Worker:
    def __init__(self, service: Service, code: str) -> None:
        self.port = free_port()
        listener = listen("127.0.0.1", self.port)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(listener.fileno())],
            cwd=ROOT,
            env=service.environ,
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
        )
        listener.close()

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def measure(self, script: Path, seconds: int) -> tuple[float, float]:
        """Returns: requests/s, and µs of the worker's CPU a request."""
        before = self.cpu_s()
        url = f"http://127.0.0.1:{self.port}{TASKS}"
        command = ["wrk", "-t1", "-c16", f"-d{seconds}s", "-s", str(script), url]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 30).stdout
        found = re.search(r"(\d+) requests in", text)
        per_s = re.search(r"Requests/sec: +([\d.]+)", text)
        if found is None or per_s is None or "Non-2xx" in text:
            sys.exit(f"wrk: {text}")
        return float(per_s[1]), 1e6 * (self.cpu_s() - before) / int(found[1])

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cost-", dir="/tmp") as name:
        directory = Path(name)
        (directory / "db").mkdir()
        mariadb = MariaDB(directory / "db")
        mariadb.install()
        mariadb.start()
        service = Service(directory, mariadb, mariadb.create_database())
        service.start_flusher()
        make_metrics_directory(directory)
        workers = {"on": Worker(service, OBSERVING), "off": Worker(service, NOT_OBSERVING)}
        script = directory / "post.lua"
        script.write_text(SCRIPT)
        try:
            wait_until((directory / "run" / "flusher.sock").exists)
            for worker in workers.values():
                worker.measure(script, 1)  # warms up
            rates: dict[str, list[float]] = {"on": [], "off": []}
            costs: dict[str, list[float]] = {"on": [], "off": []}
            for number in range(arguments.rounds):
                for which in ("on", "off") if number % 2 else ("off", "on"):
                    rate, cost = workers[which].measure(script, arguments.seconds)
                    rates[which].append(rate)
                    costs[which].append(cost)
        finally:
            for worker in workers.values():
                worker.stop()
            service.stop()
            mariadb.stop()
    for which in ("on", "off"):
        low, high = min(rates[which]), max(rates[which])
        print(
            f"observation {which:3}  {statistics.median(rates[which]):8.0f} requests/s ({low:.0f} to {high:.0f}),"
            f" {statistics.median(costs[which]):.1f} µs of a worker's CPU a request"
        )
    for text, values, sign in (("requests/s", rates, -1), ("CPU a request", costs, 1)):
        changes = sorted(100 * sign * (on / off - 1) for on, off in zip(values["on"], values["off"], strict=True))
        print(f"cost in {text}: {statistics.median(changes):.1f} % ({changes[0]:.1f} to {changes[-1]:.1f})")
    calls = 200_000
    metrics = RequestMetrics(Path(os.devnull))
    took_s = min(timeit.repeat(lambda: metrics.observe(TASKS, 202, 0.0007), number=calls, repeat=5)) / calls
    publish_s = min(timeit.repeat(lambda: msgspec.json.encode(metrics._counts), number=100, repeat=5)) / 100
    print(
        f"observe() alone: {1e6 * took_s:.2f} µs a request;"
        f" encoding what is published: {1e6 * publish_s:.1f} µs a second"
    )


if __name__ == "__main__":
    main()
