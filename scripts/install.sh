#!/usr/bin/env bash
# Installs what production needs: Debian's packages and the Python packages of requirements.lock into .venv.
#   ./scripts/install.sh
. "$(dirname "$0")/lib.sh"

no_arguments "$@"
need_python
mkdir -p var logs && chmod 700 var
step "installed; start with: .venv/bin/supervisord -c supervisord.conf"
