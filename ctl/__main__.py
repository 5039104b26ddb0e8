"""Composition root of the command line: Ctrl-C ends it at any moment, while it loads its modules, too."""

from __future__ import annotations

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python would raise it, and may lose it in an import

from ctl.commands import cli  # noqa: E402

signal.signal(signal.SIGINT, signal.default_int_handler)
cli(prog_name="ctl.sh")
