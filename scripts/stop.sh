#!/usr/bin/env bash
# Stops what run.sh started, in order: ingest drains, the flusher writes what is left, then the database. A start that
# is under way is ended.
#   ./scripts/stop.sh    PERSISTENCE_STATE_DIR names the copy, ./var by default
. "$(dirname "$0")/lib.sh"

no_arguments "$@"
if [ ! -x "$PYTHON" ] || [ ! -d "$PERSISTENCE_STATE_DIR" ]; then
    echo "not running with PERSISTENCE_STATE_DIR=$PERSISTENCE_STATE_DIR"
    exit 0
fi
exec "$PYTHON" -m scripts.run stop
