#!/usr/bin/env bash
# Starts everything on a fresh machine with no question asked: installs what is missing, a private MariaDB under
# PERSISTENCE_STATE_DIR (./var) unless the environment or config.yaml names a database's host or socket, the tables,
# ingest and flusher under supervisord.
#   ./scripts/run.sh             foreground; Ctrl-C drains and stops
#   ./scripts/run.sh --detach    returns as soon as the service accepts records
. "$(dirname "$0")/lib.sh"

help_if_asked "$@"
[ $# -le 1 ] || die "unknown argument $2; allowed: --detach"
case ${1:-} in
    '' | --detach) ;;
    *) die "unknown argument $1; allowed: --detach" ;;
esac

need_python
settings=$(trap '' INT && exec "$PYTHON" -m shared.config --check) || exit $? # Ctrl-C is taken behind it, or is the status
[ "$settings" = private=no ] || need_packages mariadb-server-core mariadb-client-core
[ ! -O "$ROOT/var" ] || chmod 700 "$ROOT/var" # which a benchmark of an earlier version has left open
# Python would end with status 1 by a Ctrl-C in its own start: it waits until scripts.run looks.
exec env --block-signal=INT,TERM,HUP "$PYTHON" -m scripts.run start "$@"
