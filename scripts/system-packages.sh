#!/usr/bin/env bash
# Puts in place what only the operating system can: Python's venv module, PostgreSQL's server, wal2json, and the
# programs that the tests run beside it.
#
#   system-packages.sh venv PYTHON   ensurepip for that Python
#   system-packages.sh postgresql    server programs and wal2json.so (of $PG_BINDIR, when set)
#   system-packages.sh pgdg VERSION  the same of that major version, from the repository of the PostgreSQL project
#   system-packages.sh servers       redis-server, nats-server, rabbitmq-server, prometheus, chromium, pgbouncer: the
#                                    programs only, nothing is started
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
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=120 "$@" </dev/null >&2 ||
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
        fail "install the PostgreSQL server (initdb, pg_ctl, postgres; 13 or newer) and wal2json (2.5 or newer) for it," \
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

# Versions that the distribution has not: https://wiki.postgresql.org/wiki/Apt. Those past their end are in an archive.
ensure_postgresql_version() {
    local version=$1 bindir=/usr/lib/postgresql/$1/bin
    if has_server "$bindir" && has_wal2json "$bindir"; then return; fi
    can_install || fail "install PostgreSQL $version and wal2json for it, then run make again"
    local packages=("postgresql-$version" "postgresql-$version-wal2json")
    apt_install ca-certificates postgresql-common
    as_root /usr/share/postgresql-common/pgdg/apt.postgresql.org.sh -y >&2 ||
        fail "the repository of the PostgreSQL project cannot be reached"
    if ! apt-cache show "${packages[@]}" >/dev/null 2>&1; then
        local codename
        codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
        echo "deb [signed-by=/usr/share/postgresql-common/pgdg/apt.postgresql.org.gpg]" \
            "https://apt-archive.postgresql.org/pub/repos/apt $codename-pgdg-archive main" |
            as_root tee /etc/apt/sources.list.d/pgdg-archive.list >/dev/null
        updated=no
    fi
    without_main_cluster apt_install "${packages[@]}"
}

# Servers for the tests --------------------------------------------------------------------------------------------

# Debian keeps some of them where only root looks; tests/handlers/servers.py looks in the same folders.
has_program() { PATH="$PATH:/usr/sbin:/usr/lib/rabbitmq/bin" command -v "$1" >/dev/null; }

POLICY=/usr/sbin/policy-rc.d

put_policy_back() {
    as_root rm -f "$POLICY"
    if as_root test -e "$POLICY.walsignal"; then as_root mv "$POLICY.walsignal" "$POLICY"; fi
}

# Installing a server on Debian also starts it, now and at every boot. We need the programs only: for the time of the
# installation the policy forbids every start, and afterwards the units that came with it are switched off.
without_services() {
    if as_root test -e "$POLICY"; then as_root mv "$POLICY" "$POLICY.walsignal"; fi
    trap put_policy_back EXIT
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$POLICY" >/dev/null
    as_root chmod 755 "$POLICY"
    apt_install "$@"
    put_policy_back
    trap - EXIT
    local name
    for name in "$@"; do
        if ! command -v systemctl >/dev/null || [ ! -e "/lib/systemd/system/$name.service" ]; then continue; fi
        as_root systemctl disable --quiet "$name" >/dev/null 2>&1 ||
            say "could not keep $name from starting at boot; to do so: systemctl disable $name"
    done
}

ensure_servers() {
    local name missing=()
    for name in redis-server nats-server rabbitmq-server prometheus chromium pgbouncer; do
        if ! has_program "$name"; then missing+=("$name"); fi
    done
    if ! has_program systemd-analyze; then missing+=(systemd); fi # it reads the unit files; nothing of it is started
    if [ ${#missing[@]} -eq 0 ]; then return; fi
    if ! can_install; then
        fail "the tests need ${missing[*]}: install them (Debian, Ubuntu: packages of these names;" \
            "Fedora: redis, nats-server, rabbitmq-server, prometheus2, chromium) and put the programs on the PATH, then run make again"
    fi
    # The installation of RabbitMQ runs a tool of its own, which leaves Erlang's port mapper behind.
    local mapper
    mapper=$(command -v epmd || true)
    without_services "${missing[@]}"
    if [ -z "$mapper" ] && command -v epmd >/dev/null; then
        as_root epmd -kill >/dev/null 2>&1 || true
        if command -v systemctl >/dev/null; then
            as_root systemctl disable --quiet epmd.socket epmd.service >/dev/null 2>&1 || true
        fi
    fi
}

case ${1:-} in
venv) ensure_venv "${2:?the Python}" ;;
postgresql) ensure_postgresql ;;
pgdg) ensure_postgresql_version "${2:?the major version}" ;;
servers) ensure_servers ;;
*) fail "usage: system-packages.sh venv PYTHON | postgresql | pgdg VERSION | servers" ;;
esac
