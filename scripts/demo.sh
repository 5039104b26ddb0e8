#!/usr/bin/env bash
# Shows in two minutes what the service is for: a translation run whose backend is killed at 60 %, the service at 20 %,
# with a locked table in between, goes on where it was. A copy of its own, with a private database, removed at the end.
#   ./scripts/demo.sh [--tasks N] [--seconds S]     of each of two workbooks; that a translation takes
. "$(dirname "$0")/lib.sh"

need_python
PERSISTENCE_STATE_DIR=$(mktemp -d /tmp/demo-XXXXXX)
for name in $(compgen -e | grep -E '^(DB|MYSQL|READ|SERVICE|BUFFER|JOURNAL|RECORDS|CLUSTER|LOGGING)_' || true); do unset "$name"; done
SERVICE_PORT=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export PERSISTENCE_STATE_DIR SERVICE_PORT SERVICE_HOST=127.0.0.1 BUFFER_FLUSH_INTERVAL=1 LOGGING_FILE="$PERSISTENCE_STATE_DIR/log"
ended() {
    ./scripts/stop.sh
    rm -rf "$PERSISTENCE_STATE_DIR"
}
trap ended EXIT
./scripts/run.sh --detach
status=0
long "$PYTHON" -m scripts.demo "$@" || status=$?
if [ -t 0 ] && [ $status = 0 ]; then
    read -rp "The dashboard shows the run for as long as you like; Enter stops everything. "
fi
exit $status
