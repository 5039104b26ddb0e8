#!/usr/bin/env bash
# Flushes by hand: writes everything accepted so far, prints the result. Exit status 0 only if all was written.
#   ./scripts/flush.sh [SECONDS]    how long it may take, 10 by default, at most 60
# The same as ./scripts/ctl.sh flush --json, which also flushes other nodes (--url, --all-nodes).
. "$(dirname "$0")/lib.sh"

help_if_asked "$@"
exec "$ROOT/scripts/ctl.sh" flush --json --timeout "${1:-10}"
