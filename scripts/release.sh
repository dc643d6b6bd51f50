#!/usr/bin/env bash
# Usage: release.sh PYTHON ; writes build/release/: wheel, sdist, SBOM and SHA256SUMS, the same bytes from the same
# commit. Builds twice, and fails when the two differ. Nothing is published.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$1
# The time that the archives bear: of the commit, or, outside of a clone, the build system's own constant.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || true)}
if [ -n "$SOURCE_DATE_EPOCH" ]; then export SOURCE_DATE_EPOCH; else unset SOURCE_DATE_EPOCH; fi

build() { # FOLDER
    rm -rf "$1"
    "$python" -m hatchling build --target wheel --target sdist --directory "$1" >/dev/null
    # Of what is installed with the wheel: name, version and hashes from the lock.
    "$python" -W ignore -m cyclonedx_py requirements --pyproject pyproject.toml --output-reproducible --of JSON \
        --output-file "$1/walsignal.cdx.json" requirements/runtime.txt
    (cd "$1" && sha256sum -- * >SHA256SUMS)
}

build build/release
(umask 077 && build build/again) # of no influence either
diff --recursive build/release build/again || {
    echo "release: two builds of the same sources differ" >&2
    exit 1
}
rm -rf build/again
cat build/release/SHA256SUMS
