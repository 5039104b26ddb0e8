#!/usr/bin/env bash
# Flushes by hand: writes everything accepted so far, prints the result. Exit status 0 only if all was written.
#   ./scripts/flush.sh [SECONDS]    how long it may take, 10 by default, at most 60
case ${1:-} in
    -h | --help) sed -n '2,3s/^# \?//p' "$0" && exit 0 ;;
esac
exec "$(dirname "$0")/ctl.sh" flush --json --timeout "${1:-10}"
