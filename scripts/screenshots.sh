#!/usr/bin/env bash
# Pictures of the dashboard in each of its states, of a real service, in four minutes; renews those of docs/img.
#   ./scripts/screenshots.sh
. "$(dirname "$0")/lib.sh"

no_arguments "$@"
need_packages mariadb-server-core mariadb-client-core chromium fonts-dejavu-core fonts-wqy-zenhei pngquant
need_python dev
exec "$PYTHON" -m tests.dashboard.screenshots
