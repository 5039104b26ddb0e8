"""`python -m scripts.run start [--detach]|stop`: what run.sh and stop.sh do once Python is there."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD}
if sys.argv[1:2] == ["start"]:
    # Before anything else: a signal that comes in an import may be lost, and one in a step would cut it in two.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    signal.signal(signal.SIGCHLD, lambda *_: None)

from scripts.processes import Failed, stop  # noqa: E402
from scripts.service import start  # noqa: E402


def main() -> None:
    os.umask(0o077)
    socket.setdefaulttimeout(10)
    state = Path(os.path.realpath(os.environ["PERSISTENCE_STATE_DIR"]))
    try:
        if sys.argv[1] == "stop":
            took_s = stop(state)
            at = f"with PERSISTENCE_STATE_DIR={state}"
            print(f"not running {at}" if took_s is None else f"{took_s * 1000:6.0f} ms  stopped")
        else:
            start(state, detach=sys.argv[2:] == ["--detach"])
    except KeyboardInterrupt:
        print("stop.sh: ended by SIGINT; the service goes on stopping", file=sys.stderr)
        sys.exit(130)
    except Failed as error:
        sys.exit(f"{'stop' if sys.argv[1] == 'stop' else 'run'}.sh: {error}")


if __name__ == "__main__":
    main()
