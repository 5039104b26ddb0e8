"""A wall clock that a test steps while a process runs: a small library preloaded into it, since none of its code may
know that it is tested. Its monotonic clocks go on as they are, as they do when an operator or NTP sets a machine's."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_suffix(".c")


class SteppedClock:
    """`environ` is for the processes that shall have this clock."""

    def __init__(self, directory: Path) -> None:
        library = directory / "stepped_clock.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, _SOURCE], check=True)
        self._file = directory / "stepped_clock"
        self.step(0)
        self.environ = {"LD_PRELOAD": str(library), "STEPPED_CLOCK": str(self._file)}

    def step(self, seconds: int) -> None:
        """From now on the clock shows so much more than it should."""
        with self._file.open("r+b" if self._file.exists() else "w+b") as file:
            file.write(struct.pack("l", seconds))
