"""The whole service as a user without rights: a copy of the tracked files, supervisord and all in a mount namespace of
its own, in which that user reaches the interpreter wherever it is installed."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.mariadb import MariaDB
from tests.support.service import ROOT
from tests.support.strangers import STRANGER
from tests.support.supervised import Supervised


class Unprivileged(Supervised):
    """`directory` must be reachable by everybody; the copy in it belongs to root, var and logs to the user."""

    def __init__(self, directory: Path, mariadb: MariaDB, database: str, **settings: object) -> None:
        self.copy = directory / "copy"
        super().__init__(self.copy / "var", mariadb, database, **settings)
        self.log = self.copy / "logs" / "log"
        self.environ |= {"LOGGING_FILE": str(self.log), "PERSISTENCE_CONFIG": str(self.copy / "config/config.yaml")}
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file() and not name.startswith("tests/"):
                (self.copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.copy / name)
        user = pwd.getpwnam(STRANGER)
        for own in (self.copy / "var", self.copy / "logs"):
            own.mkdir(mode=0o700)
            os.chown(own, user.pw_uid, user.pw_gid)
        (self.copy / ".venv").symlink_to(sys.prefix)

    def start(self) -> None:
        needed = list(dict.fromkeys([sys.prefix, sys.base_prefix]))
        hidden = sorted({top for path in needed if (top := closed_above(Path(path)))})
        lines = ["set -e"]
        for number, path in enumerate(needed):
            lines += [f"mkdir -p $1/{number}", f"mount --bind {shlex.quote(path)} $1/{number}"]
        lines += [f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(top))}" for top in hidden]
        for number, path in enumerate(needed):
            quoted = shlex.quote(path)
            lines += [f"mkdir -p {quoted}", f"mountpoint -q {quoted} || mount --bind $1/{number} {quoted}"]
        become = f"--reuid={STRANGER} --regid={pwd.getpwnam(STRANGER).pw_gid} --clear-groups --no-new-privs"
        dropped = "--bounding-set=-all --inh-caps=-all"
        lines.append(
            f"exec setpriv {become} {dropped} .venv/bin/python -m supervisor.supervisord -n -s -c supervisord.conf"
        )
        binds = self.copy.parent / "binds"
        with (self.copy.parent / "supervisord.stderr").open("ab") as errors:
            self.supervisor = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", "\n".join(lines), "sh", str(binds)],
                cwd=self.copy,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        self.wait_ready()


def closed_above(path: Path) -> Path | None:
    """The topmost directory on the way to `path` that others may not pass."""
    for parent in reversed(path.parents):
        if not parent.stat().st_mode & 0o001:
            return parent
    return None
