"""Draws latency over time while the table is locked: `python plot.py FIGURES.json PICTURE.png`.

Runs with the interpreter that has matplotlib, so it imports nothing of this project.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

SLICE_S = 0.1


def main() -> None:
    figures, picture = sys.argv[1:]
    measured = json.loads(Path(figures).read_text(encoding="utf-8"))
    points = sorted(measured["latencies"])
    slices: dict[int, list[float]] = {}
    for at, latency in points:
        slices.setdefault(int(at / SLICE_S), []).append(latency / 1000)
    at = [(number + 0.5) * SLICE_S for number in slices]
    ordered = [sorted(values) for values in slices.values()]
    fig, axes = plt.subplots(figsize=(9, 4), dpi=110)
    axes.axvspan(
        measured["locked_at_s"], measured["unlocked_at_s"], color="tab:red", alpha=0.12, lw=0, label="table locked"
    )
    axes.plot([at for at, _ in points], [latency / 1000 for _, latency in points], ",", color="tab:blue", alpha=0.4)
    axes.plot(
        at, [values[-1 - len(values) // 100] for values in ordered], color="tab:orange", lw=1.2, label="p99 of 0.1 s"
    )
    axes.plot(at, [values[len(values) // 2] for values in ordered], color="black", lw=1.2, label="p50 of 0.1 s")
    axes.set_yscale("log")
    axes.set_xlabel("seconds")
    axes.set_ylabel("latency of a POST in ms")
    axes.set_title(
        f"Open loop, {measured['rate']:,.0f} requests/s of {measured['batch']} tasks, every answer a dot", fontsize=10
    )
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.set_xlim(0, points[-1][0])
    axes.legend(loc="upper right", fontsize=8)
    fig.tight_layout()
    fig.savefig(picture)


if __name__ == "__main__":
    main()
