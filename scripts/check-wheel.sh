#!/usr/bin/env bash
# Usage: check-wheel.sh PYTHON ; builds the wheel and imports it in an environment that holds nothing else.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$1
rm -rf build/wheel build/empty
"$python" -m hatchling build --target wheel --directory build/wheel
"$python" -m venv build/empty
pip=(build/empty/bin/python -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" --require-hashes -r requirements/runtime.txt
"${pip[@]}" --no-deps --no-index build/wheel/walsignal-*.whl

empty=$PWD/build/empty/bin
cd / # away from the sources, or they would be imported instead
"$empty/python" - <<'PYTHON'
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
echo "wheel: the command cdc answers"
