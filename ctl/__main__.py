"""Composition root of the command line. Ctrl-C ends it at any moment, also while modules load."""

from __future__ import annotations

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python may lose a KeyboardInterrupt inside an import

from ctl.commands import cli  # noqa: E402

signal.signal(signal.SIGINT, signal.default_int_handler)
cli(prog_name="ctl.sh")
