# Shared by the scripts: where things are, installing what is missing, timing, failing with one line.
# Source it: . "$(dirname "$0")/lib.sh"

set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
export PERSISTENCE_STATE_DIR="${PERSISTENCE_STATE_DIR:-var}"
case $PERSISTENCE_STATE_DIR in /*) ;; *) PERSISTENCE_STATE_DIR=$ROOT/$PERSISTENCE_STATE_DIR ;; esac
PYTHON=$ROOT/.venv/bin/python
STEP_AT=$(date +%s%N)
# Without these bash forgets a signal that comes while a program ends that has not died of it.
take_signals() {
    trap 'ended_by INT 130' INT
    trap 'ended_by TERM 143' TERM HUP
}

ended_by() { # ended_by SIGNAL STATUS
    echo "${0##*/}: ended by SIG$1" >&2
    exit "$2"
}
take_signals

die() {
    printf '%s\n' "${0##*/}: $*" >&2
    exit 1
}

help_if_asked() { # help_if_asked "$@": prints the script's first comment
    case ${1:-} in -h | --help) sed -n '2,/^[^#]/s/^# \?//p' "$ROOT/scripts/${0##*/}" && exit 0 ;; esac
}

no_arguments() { # no_arguments "$@": for a script that takes none
    help_if_asked "$@"
    [ $# = 0 ] || die "takes no arguments, $1 was given"
}

step() { # step TEXT: says what was done, and how long it took since the last step
    local now
    now=$(date +%s%N)
    printf '%6d ms  %s\n' $(((now - STEP_AT) / 1000000)) "$*"
    STEP_AT=$now
}

long() { # long COMMAND...: runs it in a process group of its own, which ends with us; bash itself waits for no child then
    local child
    set -m
    "$@" &
    child=$!
    set +m
    trap 'trap "" INT TERM HUP; kill -TERM -- -$child 2>/dev/null; wait $child 2>/dev/null; ended_by INT 130' INT TERM HUP
    local status=0
    wait $child || status=$?
    take_signals
    return $status
}

begins() { # begins TEXT: announces a step that takes long
    printf '           %s\n' "$*"
}

need_packages() { # need_packages PACKAGE...: installs missing Debian packages, asks nothing, starts none of their services
    local missing=() package sudo=()
    for package in "$@"; do
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || die "needs ${missing[*]} (Debian's names); install them with your system's tools"
    if [ "$(id -u)" != 0 ]; then
        sudo -n true 2>/dev/null || die "needs packages; run: sudo apt-get install -y --no-install-recommends ${missing[*]}"
        sudo=(sudo -n)
    fi
    begins "installing ${missing[*]}: up to some minutes"
    local log
    log=$(mktemp)
    export DEBIAN_FRONTEND=noninteractive
    long "${sudo[@]}" apt-get update -q >"$log" 2>&1 </dev/null &&
        long "${sudo[@]}" apt-get install -yqd --no-install-recommends "${missing[@]}" >>"$log" 2>&1 </dev/null &&
        unpack "${missing[@]}" >>"$log" 2>&1 </dev/null || die "could not install ${missing[*]}: $(tail -n 1 "$log"); all of it is in $log"
    rm -f "$log"
    step "installed ${missing[*]}"
}

unpack() ( # unpack PACKAGE...: installs what has been downloaded; cut in two it would leave dpkg broken, so no signal ends it
    trap '' INT TERM HUP
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then # Debian's way to say that an installed service must not be started: invoke-rc.d(8)
        trap '"${sudo[@]}" rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" install -m 755 /dev/stdin $policy
    fi
    "${sudo[@]}" apt-get install -yq --no-install-recommends "$@"
)

need_galera() { # what a trial cluster runs: Galera, the programs with which a node sends its data to another, HAProxy
    need_packages mariadb-server-core mariadb-client-core galera-4 rsync iproute2 haproxy
    if ! command -v wsrep_sst_rsync >/dev/null && [ ! -x .venv/share/galera/wsrep_sst_rsync ]; then
        # They are scripts in mariadb-server, whose installation would start a server: only they are taken out of it.
        local directory
        directory=$(mktemp -d)
        if ! (
            cd "$directory"
            apt-get download -q mariadb-server || { apt-get update -q && apt-get download -q mariadb-server; }
            dpkg-deb -x mariadb-server_*.deb .
        ) >"$directory/log" 2>&1 </dev/null; then
            tail -n 5 "$directory/log" >&2
            rm -rf "$directory"
            die "could not download mariadb-server"
        fi
        mkdir -p .venv/share/galera
        cp "$directory"/usr/bin/wsrep_sst_{common,rsync} .venv/share/galera/
        rm -rf "$directory"
        step "took wsrep_sst_rsync out of the package mariadb-server"
    fi
    if [ "$(id -u)" = 0 ] && ! id mysql >/dev/null 2>&1; then
        # As root a node's data cannot be sent; Debian's mariadb-server would have made this user.
        useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin mysql
    fi
}

need_python() { # need_python [dev]: .venv with the exact files of requirements.lock, or requirements-dev.lock
    local lock=requirements${1:+-dev}.lock wanted python log
    wanted=$(cat pyproject.toml requirements*.lock shared/*.cpp shared/*.h | sha256sum | cut -c1-16)
    local stamp=.venv/.installed-$lock-$wanted
    # The lock for development has everything that production needs.
    if [ -f "$stamp" ] || [ -f ".venv/.installed-requirements-dev.lock-$wanted" ]; then
        (trap '' INT && exec "$PYTHON" -c 'import shared.fast_validator' 2>/dev/null) && return 0
        rm -f .venv/.installed-* shared/fast_validator*.so # built for another Python, or damaged
    fi
    python=$(find_python) || {
        need_packages python3
        python=$(find_python) || die "needs Python 3.10 or later"
    }
    command -v g++ >/dev/null || need_packages g++ libc6-dev
    need_packages pkg-config libmariadb-dev libsimdjson-dev
    "$python" -c 'import ensurepip' 2>/dev/null || need_packages python3-venv
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' || need_packages python3-dev
    begins "installing the Python packages of $lock into .venv: some seconds, without uv a minute"
    log=$(mktemp)
    long install_python "$lock" "$stamp" "$python" >"$log" 2>&1 </dev/null ||
        die "could not install the Python packages of $lock: $(tail -n 1 "$log"); all of it is in $log"
    rm -f "$log"
    step "installed the Python packages of $lock into .venv"
}

install_python() ( # install_python LOCK STAMP PYTHON: one at a time, two scripts of the same checkout may start together
    set -e
    exec 9>.venv.lock
    flock 9
    if [ -f "$2" ]; then exit 0; fi
    [ -x .venv/bin/pip ] || "$3" -m venv .venv
    # Nothing is installed, and no build run, of a file whose hash is not in a lock.
    # Joined by &&: on the left of || bash ignores set -e.
    install --only-binary :all: -r requirements-build.lock &&
        install --no-build-isolation -r "$1" &&
        pip_install --no-deps --no-build-isolation -e . &&
        touch "$2"
)

install() { # with uv, which takes a tenth of the time; with pip where uv cannot be had or cannot install
    uv_install --require-hashes --no-deps "$@" || pip_install --require-hashes --no-deps "$@"
}

uv_install() ( # from the registry, and with the certificates, that pip is set up for
    [ -x .venv/bin/uv ] || pip_install --require-hashes --no-deps --only-binary :all: -r requirements-uv.lock || return 1
    index=${PIP_INDEX_URL:-$(.venv/bin/python -m pip config get global.index-url 2>/dev/null || true)}
    [ -z "$index" ] || export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}
    [ -z "${PIP_CERT:-}" ] || export SSL_CERT_FILE=${SSL_CERT_FILE:-$PIP_CERT}
    .venv/bin/uv pip install -q --no-config --compile-bytecode --python .venv/bin/python "$@"
)

pip_install() {
    .venv/bin/python -m pip install -q --disable-pip-version-check "$@"
}

find_python() { # Debian's own first: it is built for speed (PGO, LTO), most others in a PATH are not
    local name
    for name in /usr/bin/python3 python3 python3.13 python3.12 python3.11 python3.10; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            command -v "$name"
            return 0
        fi
    done
    return 1
}

need_frames() { # need_frames NAME: pandas for the client's tests; where there are no wheels for this Python, it says so
    need_venv "$1" "tests/client/frames/$1.txt" --only-binary :all:
}

no_wheels() { # no_wheels LOG OPTION...: notes for the tests that the registry, which answered, has no wheels for this Python
    [ $# -gt 1 ] && ! grep -q Retrying "$1" && grep 'No matching distribution' "$1" >"$venv/no-wheels"
}

need_venv() { # need_venv NAME REQUIREMENTS [OPTION...]: an environment of its own: none of it is the product's
    local name=$1 requirements=$2 venv=$PERSISTENCE_STATE_DIR/$1-venv stamp log
    shift 2
    # With the service's own Python: two builds of one version may differ by a third in speed.
    stamp=$venv/.installed-$({ cat "$requirements" && "$PYTHON" -c 'import sys; print(sys.version, sys.base_prefix)'; } |
        sha256sum | cut -c1-16)
    [ ! -f "$stamp" ] || return 0
    mkdir -p -m 700 "$PERSISTENCE_STATE_DIR"
    begins "installing the packages of $requirements: about half a minute"
    log=$(mktemp)
    (
        # Joined by &&: on the left of || bash ignores set -e.
        flock 9 && { [ -f "$stamp" ] || {
            "$PYTHON" -m venv --clear "$venv" &&
                { "$venv/bin/pip" install -q --disable-pip-version-check "$@" -r "$requirements" || no_wheels "$log" "$@"; } &&
                touch "$stamp"
        }; }
    ) 9>"$PERSISTENCE_STATE_DIR/$name-venv.lock" >"$log" 2>&1 </dev/null || {
        tail -n 15 "$log" >&2
        rm -f "$log"
        die "could not install the Python packages of $requirements"
    }
    rm -f "$log"
    step "installed the packages of $requirements into $venv"
}
