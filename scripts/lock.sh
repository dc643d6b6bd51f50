#!/usr/bin/env bash
# Usage: lock.sh UV ; writes requirements/{runtime,dev,bench}.txt for every Python from 3.11 on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
uv=$1
mkdir -p requirements

compile() { # FILE ARGUMENTS...
    local file=$1
    shift
    # No pinned version is kept: `make lock` means the newest that fit. Nothing of this machine goes into the file.
    rm -f "$file"
    "$uv" pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes \
        --custom-compile-command 'make lock' --output-file "$file" "$@" pyproject.toml
    echo "$file: $(grep -c == "$file") distributions"
}

compile requirements/dev.txt --group dev
# What runs is what was tested: the other two may not choose versions of their own.
compile requirements/runtime.txt --constraints requirements/dev.txt
compile requirements/bench.txt --group bench --constraints requirements/dev.txt
