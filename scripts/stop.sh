#!/usr/bin/env bash
# Stops what run.sh started, in order: ingest drains, the flusher writes what is left, then the database.
#   ./scripts/stop.sh    PERSISTENCE_STATE_DIR names the copy, ./var by default
. "$(dirname "$0")/lib.sh"

no_arguments "$@"
running || {
    echo "not running with PERSISTENCE_STATE_DIR=$STATE"
    exit 0
}
pid=$(cat "$STATE/supervisord.pid")
kill -TERM "$pid"
# Longest: ingest 35 s, flusher 25 s, MariaDB 60 s, each then killed by supervisord.
for ((i = 0; i < 1200; i++)); do
    if ! kill -0 "$pid" 2>/dev/null; then
        rm -f "$SUPERVISOR_CONF"
        step "stopped"
        exit 0
    fi
    sleep 0.1
done
die "supervisord (process $pid) does not end"
