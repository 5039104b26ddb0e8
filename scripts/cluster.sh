#!/usr/bin/env bash
# A three-node MariaDB Galera cluster for tests and trial, as root in network namespaces, else on loopback addresses.
#   ./scripts/cluster.sh up|down|status        makes it, ends it, says how it is
#   ./scripts/cluster.sh kill N|start N        a node's server: SIGKILL; starts it again
#   ./scripts/cluster.sh partition N|heal N    cuts a node off the others; takes it in again
#   ./scripts/cluster.sh exec COMMAND...       runs a command where its addresses exist, DB_HOST and so on set
. "$(dirname "$0")/lib.sh"

help_if_asked "$@"
need_galera
need_python
exec "$PYTHON" -m scripts.cluster "$@"
