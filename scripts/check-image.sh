#!/usr/bin/env bash
# Usage: check-image.sh PYTHON [EXTRAS...] ; builds deploy/Dockerfile in a Debian tree and runs the service in it.
#
# No container engine: the steps run in a debootstrap tree, in namespaces of this process that end with it. Needs root,
# debootstrap and the network (Debian's packages, PyPI); leaves the tree in build/image for the next time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$1
shift

fail() {
    echo "walsignal: $*" >&2
    exit 1
}
[ "$(id -u)" -eq 0 ] || fail "check-image mounts file systems and changes accounts: run it as root"
command -v debootstrap >/dev/null || fail "check-image needs debootstrap: apt-get install debootstrap"

base=build/image/base
suite=$(sed -n 's/^ARG BASE=debian:\([a-z]*\)-slim.*/\1/p' deploy/Dockerfile)
[ -n "$suite" ] || fail "deploy/Dockerfile names no debian:SUITE-slim as its base"
if [ "$(cat "$base.suite" 2>/dev/null)" != "$suite" ]; then
    rm -rf "$base" "$base.suite"
    mkdir -p "$base"
    echo "a tree of Debian $suite"
    debootstrap --variant=minbase "$suite" "$base" >build/image/debootstrap.log
    # As in Debian's own image: what was mended since the release comes from here.
    printf 'deb http://deb.debian.org/%s main\n' "debian $suite" "debian $suite-updates" \
        "debian-security $suite-security" >"$base/etc/apt/sources.list"
    echo "$suite" >"$base.suite"
fi
exec unshare --mount --pid --fork --kill-child --mount-proc --propagation private "$python" -m tests.deploy.image "$@"
