#!/usr/bin/env bash
# Fuzzes everything that reads what others wrote: the HTTP interface, frames, journal files, records, configuration, and
# what the database makes of accepted records. 10 minutes for each fuzzer, as many at once as there are cores.
#   ./scripts/fuzz.sh [FUZZER...] [--seconds N] [--json FILE] [--keep]     --help shows all options
# Exit status 0 only if nothing was found. The last long run is in docs/SECURITY.md.
. "$(dirname "$0")/lib.sh"

need_packages mariadb-server-core mariadb-client-core
need_python dev
exec "$PYTHON" -m tests.fuzz.campaign "$@"
