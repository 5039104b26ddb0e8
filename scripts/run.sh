#!/usr/bin/env bash
# Starts everything on a fresh machine with no question asked: installs what is missing, a private MariaDB under
# PERSISTENCE_STATE_DIR (./var) unless DB_HOST or DB_SOCKET names one, the tables, ingest and flusher under supervisord.
#   ./scripts/run.sh             foreground; Ctrl-C drains and stops
#   ./scripts/run.sh --detach    returns as soon as the service accepts records
. "$(dirname "$0")/lib.sh"

help_if_asked "$@"
[ $# -le 1 ] || die "unknown argument $2; allowed: --detach"
case ${1:-} in
    '') detach=no ;;
    --detach) detach=yes ;;
    *) die "unknown argument $1; allowed: --detach" ;;
esac
running && die "already running with PERSISTENCE_STATE_DIR=$STATE; ./scripts/stop.sh stops it"

private=no
[ -n "${DB_HOST:-}${DB_SOCKET:-}" ] || private=yes
[ $private = no ] || need_packages mariadb-server-core mariadb-client-core
need_python

if [ $private = yes ]; then
    export DB_SOCKET=$STATE/mysql/mysqld.sock DB_USER=root DB_PASSWORD= DB_SSL_MODE=DISABLED
    [ ${#DB_SOCKET} -le 107 ] || die "$DB_SOCKET: a socket's path may have 107 bytes; shorten PERSISTENCE_STATE_DIR"
fi
settings=$("$PYTHON" -m shared.config --check) || exit 1
eval "$settings" # url= host= port=
[ ! -O "$ROOT/var" ] || chmod 700 "$ROOT/var" # which a benchmark of an earlier version has left open
"$PYTHON" - "$host" "$port" "$STATE" <<'PY' || exit 1
import errno, socket, sys
from pathlib import Path
from shared.process import own_state_directory
host, port = sys.argv[1], int(sys.argv[2])
own_state_directory(Path(sys.argv[3]))
try:
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
except (OSError, UnicodeError) as error:
    if getattr(error, "errno", None) == errno.EADDRINUSE:
        sys.exit(f"run.sh: service.port = {port}: the port is in use (SERVICE_PORT names another)")
    sys.exit(f"run.sh: service.host = {host}, service.port = {port}: {getattr(error, 'strerror', error)}")
PY

sed -e "s|%(here)s/var|$STATE|g" -e "s|%(here)s|$ROOT|g" supervisord.conf >"$SUPERVISOR_CONF"
if [ $private = yes ]; then
    # A server that starts removes the temporary tables of all others in the same directory, so it has its own.
    mkdir -p "$STATE/mysql.tmp"
    if [ ! -d "$STATE/mysql/mysql" ]; then
        rm -rf "$STATE/mysql.new"
        mkdir -p "$STATE/mysql.new"
        mariadb-install-db --no-defaults --user="$(id -un)" --datadir="$STATE/mysql.new" --tmpdir="$STATE/mysql.tmp" \
            --auth-root-authentication-method=normal --skip-test-db >"$STATE/mysql.install.log" 2>&1 ||
            die "mariadb-install-db failed, see $STATE/mysql.install.log"
        rm -rf "$STATE/mysql"
        mv "$STATE/mysql.new" "$STATE/mysql"
        step "made a private MariaDB in $STATE/mysql"
    fi
    cat >>"$SUPERVISOR_CONF" <<EOF

[program:mariadb]
command=$(command -v mariadbd) --no-defaults --user=$(id -un) --datadir=$STATE/mysql --socket=$DB_SOCKET
  --pid-file=$STATE/mysql/mysqld.pid --skip-networking --innodb-buffer-pool-size=256M --innodb-log-file-size=256M
  --tmpdir=$STATE/mysql.tmp --max-allowed-packet=64M --character-set-server=utf8mb4
priority=10
autorestart=true
startsecs=1
startretries=1000000
stopwaitsecs=60
stdout_logfile=NONE
stderr_logfile=$STATE/mariadb.stderr.log
stderr_logfile_maxbytes=1MB
stderr_logfile_backups=1
EOF
fi
# Programs start when the tables are there; afterwards supervisord starts them itself.
sed -i '/^\[program:\(flusher\|ingest\)\]/a autostart=false' "$SUPERVISOR_CONF"

supervisor= schema=
stop_all() {
    [ -n "$schema" ] && kill "$schema" 2>/dev/null && wait "$schema" 2>/dev/null || true
    [ -n "$supervisor" ] && kill -TERM "$supervisor" 2>/dev/null && wait "$supervisor" 2>/dev/null || true
    rm -f "$SUPERVISOR_CONF"
}
fail() {
    trap - INT TERM EXIT
    stop_all
    die "$*"
}
why_not_started() { # what the first program that did not start has said last
    local name
    name=$(sed -n 's/: ERROR.*//p' "$STATE/start.log" | head -n 1)
    tail -n 1 "$STATE/$name.stderr.log" 2>/dev/null | grep . || tr '\n' ' ' <"$STATE/start.log"
}
rm -f "$STATE/supervisor.sock" # of one that was killed
trap stop_all EXIT
trap 'exit 0' INT TERM
setsid "$ROOT/.venv/bin/supervisord" -n -s -c "$SUPERVISOR_CONF" >/dev/null 2>"$STATE/supervisord.stderr.log" </dev/null &
supervisor=$!
wait=5
[ $private = no ] || wait=60
"$PYTHON" -m flusher.schema --wait $wait 2>"$STATE/schema.stderr.log" &
schema=$!
wait -n "$supervisor" "$schema" || fail "$(cat "$STATE"/{schema,supervisord}.stderr.log | tail -n 1)"
for ((tries = 0; tries < 400; tries++)); do # 20 s; the tables may be ready before supervisord listens
    kill -0 "$supervisor" 2>/dev/null || fail "supervisord ended: $(tail -n 1 "$STATE/supervisord.stderr.log")"
    [ ! -S "$STATE/supervisor.sock" ] || break
    sleep 0.05
done
schema=
step "database and tables are ready"
# It shares the service's cores and goes after it (docs/OPERATIONS.md, Tuning); from here on, since on a busy machine it
# would take minutes to start like that. After a restart by supervisord it does not.
[ $private = no ] || chrt --all-tasks --idle --pid 0 "$(cat "$STATE/mysql/mysqld.pid")" 2>/dev/null || true
"$ROOT/.venv/bin/supervisorctl" -c "$SUPERVISOR_CONF" start flusher ingest >"$STATE/start.log" 2>&1 ||
    fail "$(why_not_started)"
"$PYTHON" - "$url/ready" <<'PY' || fail "the service did not get ready; see $STATE/*.stderr.log and the log file"
import sys, time, urllib.request
from shared.config import load_or_exit
from shared.exposure import local_tls
give_up_at = time.monotonic() + 20
tls = local_tls(load_or_exit().service)
while True:
    try:
        with urllib.request.urlopen(sys.argv[1], timeout=5, context=tls):
            sys.exit(0)
    except OSError:
        if time.monotonic() > give_up_at:
            sys.exit(1)
        time.sleep(0.05)
PY
step "ready at $url"
if [ $detach = yes ]; then
    trap - EXIT
    [ "$STATE" = "$ROOT/var" ] || copy="PERSISTENCE_STATE_DIR=$STATE "
    echo "stop it with ${copy:-}./scripts/stop.sh"
    exit 0
fi
echo "Ctrl-C drains and stops"
wait "$supervisor"
supervisor=
