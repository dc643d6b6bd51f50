#!/usr/bin/env bash
# Usage: lock.sh UV ; writes requirements/{runtime,image,dev,bench,debezium}.txt for every Python from 3.11 on.
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
        --custom-compile-command 'make lock' --output-file "$file" "$@"
    echo "$file: $(grep -c == "$file") distributions"
}

compile requirements/dev.txt pyproject.toml --group dev --extra all  # the tests run every handler
# What runs is what was tested: the others may not choose versions of their own.
compile requirements/runtime.txt pyproject.toml --constraints requirements/dev.txt
# All that deploy/Dockerfile may install, whichever extras it is told, and what makes the wheel there.
compile requirements/image.txt pyproject.toml --group build --extra all --constraints requirements/dev.txt
compile requirements/bench.txt pyproject.toml --group bench --extra all --constraints requirements/dev.txt
compile requirements/debezium.txt --group debezium --constraints requirements/dev.txt
