#!/usr/bin/env bash
# Usage: check-wheel.sh WHEEL PYTHON... ; for each Python: installs the wheel with the locked dependencies into an empty
# environment, imports all of it, and has its command serve some events of a real PostgreSQL.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
wheel=$(realpath "$1")
shift
for python; do
    rm -rf build/empty
    "$python" -m venv build/empty
    pip=(build/empty/bin/python -m pip install --quiet --disable-pip-version-check --no-deps)
    "${pip[@]}" --require-hashes -r requirements/runtime.txt
    "${pip[@]}" --no-index "$wheel"

    empty=$root/build/empty/bin
    # Away from the sources, and with -P, or they would be imported instead.
    (
        cd /
        "$empty/python" -P - <<'PYTHON'
import importlib.resources, pkgutil, sys
import cdc, handlers

for package in (cdc, handlers):
    assert package.__file__ and "site-packages" in package.__file__, package
    assert importlib.resources.files(package).joinpath("py.typed").is_file(), package
for module in pkgutil.walk_packages(cdc.__path__, "cdc."):
    if not module.name.endswith("__main__"):
        __import__(module.name)
print(f"wheel: cdc and handlers import on Python {sys.version.split()[0]}")
PYTHON
        "$empty/cdc" --help >/dev/null
        "$empty/python" -P "$root/scripts/try_wheel.py"
    )
done
