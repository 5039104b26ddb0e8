#!/usr/bin/env bash
# Renews the locks after a change of pyproject.toml: exact versions, and the hashes of all files of each release, so that
# every platform's is covered. Versions that stand in a lock stay; --upgrade takes the newest.
#   ./scripts/lock.sh [--upgrade] [--upgrade-package NAME]
# requirements.lock: production; requirements-dev.lock: with all extras; requirements-build.lock: what builds them;
# requirements-uv.lock: what installs them.
. "$(dirname "$0")/lib.sh"

help_if_asked "$@"
python=$(find_python) || die "needs Python 3.10 or later"
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
"$python" -m venv "$tools" && "$tools/bin/pip" install -q --disable-pip-version-check uv
export SSL_CERT_FILE=${SSL_CERT_FILE:-${PIP_CERT:-}}
[ -n "$SSL_CERT_FILE" ] || unset SSL_CERT_FILE

lock() { # lock FILE ARGUMENT...: with a header that says how it came to be
    local file=$1
    shift
    cp "$file" "$tools/lock" 2>/dev/null || cp requirements.lock "$tools/lock"
    "$tools/bin/uv" pip compile -q --universal --python-version 3.10 --generate-hashes \
        --no-header --no-annotate -o "$tools/lock" "$@"
    { echo "# Made by scripts/lock.sh from pyproject.toml; install with pip --require-hashes, as scripts/lib.sh does."; cat "$tools/lock"; } >"$file"
    step "$file: $(grep -c '==' "$file") packages, $(grep -c -- '--hash=' "$file") files"
}

lock requirements-dev.lock --all-extras "$@" pyproject.toml
# What both have, both have in the same version.
grep -o '^[^ ]*==[^ ]*\( ; [^\\]*\)\?' requirements-dev.lock >"$tools/constraints"
lock requirements.lock -c "$tools/constraints" pyproject.toml
"$python" - pyproject.toml >"$tools/build.in" <<'PY'
import re, sys
text = open(sys.argv[1], encoding="utf-8").read()
print("\n".join(re.findall(r'"([^"]+)"', re.search(r"^requires = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)[1])))
PY
lock requirements-build.lock "$@" "$tools/build.in"
echo uv >"$tools/uv.in"
lock requirements-uv.lock "$@" "$tools/uv.in"
