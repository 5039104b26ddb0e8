#!/usr/bin/env bash
# Renews docs/img from a real service that runs for ten minutes, through an outage of its database.
#   ./scripts/screenshots.sh
. "$(dirname "$0")/lib.sh"

no_arguments "$@"
need_packages mariadb-server-core mariadb-client-core chromium fonts-dejavu-core pngquant
need_python dev
exec "$PYTHON" -m tests.dashboard.screenshots
