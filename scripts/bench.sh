#!/usr/bin/env bash
# The benchmark: the service beside its limits, in one run, with a database, state directories and ports of its own.
#   ./scripts/bench.sh [--quick] [--json FILE] [--only KEY,KEY]     about 10 minutes; quick: under 1
# Exit status 0 only if every measurement is valid. docs/PERFORMANCE.md explains the figures. --help shows all options.
. "$(dirname "$0")/lib.sh"

need_packages mariadb-server-core mariadb-client-core wrk util-linux
need_python
exec "$PYTHON" -m bench "$@"
