#!/usr/bin/env bash
# Puts in place what only the operating system can: Python's venv module, PostgreSQL's server, wal2json.
#
#   system-packages.sh venv PYTHON   ensurepip for that Python
#   system-packages.sh postgresql    server programs and wal2json.so (of $PG_BINDIR, when set)
#
# Says nothing and changes nothing when all is there. Installs with apt-get where there is one, as root or through
# sudo; elsewhere it names what to install and fails.
set -euo pipefail

say() { echo "walsignal: $*" >&2; }

fail() {
    say "$@"
    exit 1
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif [ -t 0 ]; then
        sudo "$@"
    else
        sudo -n "$@" # nobody is there to type a password: fail at once
    fi
}

can_install() {
    command -v apt-get >/dev/null && { [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null; }
}

updated=no
apt_install() {
    say "installing $* with apt-get"
    if [ $updated = no ]; then
        # The package lists of a fresh machine are empty or old.
        as_root apt-get update -qq >&2 || fail "apt-get update failed; once it works, run make again"
        updated=yes
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" </dev/null >&2 ||
        fail "apt-get could not install $*; once it is installed, run make again"
}

ensure_venv() {
    local python=$1
    if "$python" -c 'import ensurepip, venv' 2>/dev/null; then return; fi
    local version
    version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    # Debian splits ensurepip off its own Pythons, and only from those.
    if ! can_install || [[ $("$python" -c 'import sys; print(sys.executable)') != /usr/bin/* ]]; then
        fail "$version cannot make virtual environments: install its ensurepip (Debian, Ubuntu:" \
            "apt-get install $version-venv), then run make again"
    fi
    apt_install "$version-venv"
}

# The folders with PostgreSQL programs, best first; cdc/demo/programs.py looks in the same order.
bindirs() {
    if [ -n "${PG_BINDIR:-}" ]; then
        echo "$PG_BINDIR"
        return
    fi
    if command -v pg_config >/dev/null; then pg_config --bindir 2>/dev/null || true; fi
    local folder
    for folder in /usr/lib/postgresql/*/bin /usr/pgsql-*/bin; do
        if [ -d "$folder" ]; then echo "$folder"; fi
    done | sort -rV
    if command -v initdb >/dev/null; then dirname "$(readlink -f "$(command -v initdb)")"; fi
}

has_server() { [ -x "$1/initdb" ] && [ -x "$1/pg_ctl" ] && [ -x "$1/postgres" ]; }

has_wal2json() {
    local libdir=$1/../lib
    if [ -x "$1/pg_config" ]; then libdir=$("$1/pg_config" --pkglibdir); fi
    compgen -G "$libdir/wal2json.*" >/dev/null
}

# Installing a PostgreSQL server on Debian also creates and starts a cluster `main` on port 5432. We need the programs
# only, so it is told not to, for the time of this installation and only where there is no server yet.
without_main_cluster() {
    local note=/etc/postgresql-common/createcluster.d/walsignal.conf
    as_root mkdir -p "${note%/*}"
    echo 'create_main_cluster = false' | as_root tee "$note" >/dev/null
    # shellcheck disable=SC2064  # the path as it is now
    trap "as_root rm -f '$note'" EXIT
    "$@"
    as_root rm -f "$note"
    trap - EXIT
}

ensure_postgresql() {
    local folder server=""
    while read -r folder; do
        if ! has_server "$folder"; then continue; fi
        if has_wal2json "$folder"; then return; fi
        server=${server:-$folder}
    done < <(bindirs)

    if [ -n "${PG_BINDIR:-}" ]; then
        fail "PG_BINDIR=$PG_BINDIR has no ${server:+wal2json beside its }PostgreSQL server;" \
            "install it there or unset PG_BINDIR"
    fi
    if ! can_install; then
        fail "install the PostgreSQL server (initdb, pg_ctl, postgres; 14 or newer) and wal2json (2.5 or newer) for it," \
            "then run make again. Debian, Ubuntu: postgresql-NN postgresql-NN-wal2json;" \
            "Fedora: postgresql-server wal2json; PGDG on RHEL: postgresqlNN-server wal2json_NN;" \
            "elsewhere: https://github.com/eulerto/wal2json. A server in an unusual place: set PG_BINDIR"
    fi
    local version
    if [[ $server =~ ^/usr/lib/postgresql/([0-9]+)/bin$ ]]; then
        apt_install "postgresql-${BASH_REMATCH[1]}-wal2json"
    else
        as_root apt-get update -qq >&2 || fail "apt-get update failed; once it works, run make again"
        updated=yes
        version=$(apt-cache depends postgresql | sed -n 's/.*Depends: postgresql-\([0-9][0-9]*\)$/\1/p' | head -n 1)
        [ -n "$version" ] || fail "this distribution has no package postgresql; install PostgreSQL and wal2json, then run make again"
        without_main_cluster apt_install "postgresql-$version" "postgresql-$version-wal2json"
    fi
}

case ${1:-} in
venv) ensure_venv "${2:?the Python}" ;;
postgresql) ensure_postgresql ;;
*) fail "usage: system-packages.sh venv PYTHON | postgresql" ;;
esac
