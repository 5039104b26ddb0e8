#!/usr/bin/env bash
# The operator's command line: status, top, flush, sessions, journal, deadletters, db, config. Each with --help.
#   ./scripts/ctl.sh status
# Exit status: 0 all right, 1 something is wrong, 2 usage, or what was asked is not reached.
. "$(dirname "$0")/lib.sh"

[ -x "$PYTHON" ] || { echo "ctl.sh: not installed yet; ./scripts/run.sh does it" >&2; exit 2; }
exec "$PYTHON" -m ctl "$@"
