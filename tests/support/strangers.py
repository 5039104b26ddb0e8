"""What another user of this machine does: a child process under another user id."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys

import pytest

STRANGER = "nobody"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="another user's process can only be started by root")


def as_stranger(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code as another user. What it needs is imported before: that user may not reach the interpreter."""
    user = pwd.getpwnam(STRANGER)
    become = f"os.setgroups([]); os.setgid({user.pw_gid}); os.setuid({user.pw_uid}); os.chdir('/')"
    prologue = f"import os, pathlib, socket, sys; {become}\n"
    return subprocess.run(
        [sys.executable, "-c", prologue + code, *arguments], capture_output=True, text=True, timeout=60
    )
