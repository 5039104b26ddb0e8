"""The real service under a real supervisord, with a configuration made from supervisord.conf as scripts/run.sh does."""

from __future__ import annotations

import subprocess
import sys

from tests.support.service import ROOT, Service


class Supervised(Service):
    """A Service whose flusher and ingest are children of `supervisor`, which restarts them."""

    supervisor: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.launch()
        self.wait_ready()

    def launch(self, *prefix: str) -> None:
        """Returns as soon as it is started. Args: prefix: words before the command."""
        text = (ROOT / "supervisord.conf").read_text(encoding="utf-8")
        text = text.replace("%(here)s/var", str(self.directory)).replace("%(here)s/.venv/bin/python", sys.executable)
        self.configuration = self.directory / "supervisord.conf"
        self.configuration.write_text(text.replace("%(here)s", str(ROOT)), encoding="utf-8")
        command = [sys.executable, "-m", "supervisor.supervisord", "-n", "-s", "-c", str(self.configuration)]
        with (self.directory / "supervisord.stderr").open("ab") as errors:
            self.supervisor = subprocess.Popen(
                [*prefix, *command],
                cwd=ROOT,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    def control(self, *arguments: str) -> str:
        """Runs supervisorctl. Returns: what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(self.configuration), *arguments],
            cwd=ROOT,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stop(self) -> None:
        if self.supervisor is not None and self.supervisor.poll() is None:
            self.supervisor.terminate()
            self.supervisor.wait(130)
