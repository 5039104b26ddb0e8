#!/usr/bin/env bash
# A MySQL server for tests, beside whatever is installed. Fetches it once from Debian's unstable suite at this machine's
# own mirror, with all its libraries, into ~/.cache/persistence-service (or XDG_CACHE_HOME); installs nothing.
#   ./scripts/mysql.sh     prints its folder, in which ./mysqld is the server
. "$(dirname "$0")/lib.sh"

no_arguments "$@"
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || die "no MySQL here: it is fetched with apt-get and dpkg-deb"
cache=${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/persistence-service
server=$cache/mysql-$(dpkg --print-architecture)
mkdir -p "$cache" 2>/dev/null || die "no MySQL here: $cache cannot be made (XDG_CACHE_HOME names another directory)"
exec 9>"$cache/mysql.lock"
flock 9
if [ -x "$server/mysqld" ]; then
    echo "$server"
    exit 0
fi

keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -r $keyring ] || die "no MySQL here: $keyring is missing (the package debian-archive-keyring has it)"
work=$(mktemp -d "$cache/mysql.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{state/lists/partial,cache/archives/partial,server}
: >"$work/status" # as if nothing were installed: libc and all else come along
: >"$work/sources.list"
private=(-q -o "Dir::State=$work/state" -o "Dir::State::status=$work/status" -o "Dir::Cache=$work/cache"
    -o APT::Sandbox::User=root -o APT::Install-Recommends=false)
mirror() { # mirror [OPTION...]: where this machine gets its Debian packages
    apt-get "$@" indextargets --format '$(REPO_URI) $(ORIGIN) $(LABEL)' 'Created-By: Packages' 2>/dev/null |
        awk '$2 == "Debian" && $3 == "Debian" {print $1; exit}'
}
found=$(mirror)
if [ -z "$found" ]; then # its lists may be missing, as in a fresh container
    apt-get "${private[@]}" update >"$work/log" 2>&1 </dev/null || true
    found=$(mirror "${private[@]}")
fi
[ -n "$found" ] || die "no MySQL here: this machine gets its packages from no mirror of Debian"
echo "deb [signed-by=$keyring] $found unstable main" >"$work/sources.list"
private+=(-o "Dir::Etc::SourceList=$work/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::Etc::PreferencesParts=/dev/null)
step "fetching MySQL from $found, about 70 MB" >&2
apt-get "${private[@]}" update >"$work/log" 2>&1 </dev/null &&
    apt-get "${private[@]}" install --download-only -y mysql-server-core mysql-client-core >>"$work/log" 2>&1 </dev/null ||
    die "no MySQL here: $found, suite unstable: $(grep -m 1 '^E:' "$work/log" || tail -n 1 "$work/log")"
for package in "$work"/cache/archives/*.deb; do
    dpkg-deb -x "$package" "$work/server" || die "no MySQL here: ${package##*/} cannot be unpacked"
done

# With its own loader and libraries: this machine's may be older.
cd "$work/server"
loader=$(find . -name 'ld-linux*.so.*' -o -name 'ld64.so.*' | head -n 1)
libraries=$(dirname "$(find . -name libc.so.6 | head -n 1)")
cat >mysqld <<SH
#!/bin/sh
here=\$(dirname "\$0")
exec "\$here/$loader" --library-path "\$here/$libraries:\$here/usr/lib/mysql/private" "\$here/usr/sbin/mysqld" \\
    --no-defaults --basedir="\$here/usr" --lc-messages-dir="\$here/usr/share/mysql" --mysqlx=OFF --secure-file-priv=NULL "\$@"
SH
chmod 755 mysqld
version=$(./mysqld --version 2>&1) || die "no MySQL here: what was fetched does not run: $(tail -n 1 <<<"$version")"
cd "$ROOT"
rm -rf "$server"
mv "$work/server" "$server"
step "unpacked ${version#*mysqld  }" >&2
echo "$server"
