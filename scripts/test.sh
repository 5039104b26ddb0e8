#!/usr/bin/env bash
# On a fresh machine: installs what is missing, then lint, types, layers, all tests. Arguments go to pytest.
. "$(dirname "$0")/lib.sh"

# deploy/ is checked and run with prometheus, nginx and haproxy; the dashboard is tested in a browser.
need_packages mariadb-server-core mariadb-client-core wrk util-linux prometheus nginx haproxy chromium fonts-dejavu-core
for program in curl git openssl; do # the documents' examples are run as they stand, tracked files are looked through
    command -v $program >/dev/null || need_packages $program
done
command -v systemd-analyze >/dev/null || need_packages systemd # it checks the unit in deploy/
# The cluster's tests are skipped, with the reason, where it cannot be installed.
(need_galera) || step "no Galera cluster can be installed here"
./scripts/mysql.sh >/dev/null || step "the tests of Group Replication are left out"
need_python dev
need_frames pandas-2.1
need_frames newest
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/mypy
.venv/bin/lint-imports
step "lint, types and layers are clean"
# Most of the time of the system's tests is waiting: twice as many at once as there are cores.
status=0
.venv/bin/pytest -n $((2 * $(nproc))) --dist worksteal "$@" || status=$?
echo "took $SECONDS s"
exit $status
