#!/usr/bin/env bash
# Flushes by hand: writes everything accepted so far, prints the result. Exit status 0 only if all was written.
#   ./scripts/flush.sh [SECONDS]    how long it may take, 10 by default, at most 60
. "$(dirname "$0")/lib.sh"

[ -x "$PYTHON" ] || die "not installed yet; ./scripts/run.sh does it"
settings=$("$PYTHON" -m shared.config --check) || exit 1
eval "$settings" # url= host= port=
exec "$PYTHON" - "$url" "${1:-10}" <<'PY'
import os, sys, urllib.error, urllib.request
url, timeout = sys.argv[1:]
request = urllib.request.Request(f"{url}/api/v1/persistence/flush?timeout={timeout}", method="POST")
from shared.config import load_or_exit
token = load_or_exit().service.auth_token
if token:
    request.add_header("Authorization", f"Bearer {token}")
try:
    with urllib.request.urlopen(request, timeout=90) as answer:
        print(answer.read().decode())
except urllib.error.HTTPError as error:
    print(error.read().decode(), file=sys.stderr)
    sys.exit(1)
except OSError as error:
    sys.exit(f"flush.sh: {url}: {getattr(error, 'reason', error)}")
PY
