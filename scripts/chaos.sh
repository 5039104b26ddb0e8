#!/usr/bin/env bash
# Breaks the running service on purpose, then compares every row with what was acknowledged. Its own database, state
# directory and port; nothing that runs is touched. As root it also fills the journal's disk (a small tmpfs).
#   ./scripts/chaos.sh [--faults N] [--seed S] [--json FILE]     60 faults by default, under a minute
#   ./scripts/chaos.sh --nodes 3 [...]    three nodes behind HAProxy on a Galera cluster; nodes and links are broken too
# Exit status 0 only if nothing was lost, stale, duplicated or unexpected. --help shows all options.
. "$(dirname "$0")/lib.sh"

if [ "${1:-}" = --nodes ]; then
    need_galera
    need_python
    exec "$PYTHON" -m tests.system.cluster "$@"
fi
need_packages mariadb-server-core mariadb-client-core
need_python
exec "$PYTHON" -m tests.system.chaos "$@"
