#!/usr/bin/env bash
# Breaks the running service on purpose, then compares every row with what was acknowledged. Its own database, state
# directory and port; nothing that runs is touched. As root it also fills the journal's disk (a small tmpfs).
#   ./scripts/chaos.sh [--faults N] [--seed S] [--json FILE]     60 faults by default, under a minute
#   ./scripts/chaos.sh --database mysql                          on a real MySQL
#   ./scripts/chaos.sh --nodes 3 [--database galera|group]       three nodes behind HAProxy on a cluster of three
# Exit status 0 only if nothing was lost, stale, duplicated or unexpected. --help shows all options.
. "$(dirname "$0")/lib.sh"

case " $* " in
    *" --nodes 3 "* | *" --nodes=3 "*) need_galera ;;
    *) need_packages mariadb-server-core mariadb-client-core ;;
esac
case " $* " in *" group "* | *=group*) ./scripts/mysql.sh >/dev/null || exit 1 ;; esac
need_python
exec "$PYTHON" -m tests.system.chaos "$@"
