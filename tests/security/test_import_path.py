"""The current folder is no place to import from: what lies there by chance must not run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CDC = Path(sys.executable).with_name("cdc")
INTRUDER = """
import pathlib

pathlib.Path(__file__).with_name("executed").touch()


def function(event): ...
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a configuration whose callback, and a library's namesake, lie beside it; no python_path."""
    for name in ("intruder", "typer", "orjson", "json", "standardwebhooks"):
        (tmp_path / f"{name}.py").write_text(INTRUDER)
    file = tmp_path / "cdc.toml"
    file.write_text(
        '[source]\ndsn = "postgresql://127.0.0.1:1/none"\n[http]\nenabled = false\n'
        '[[handlers]]\ncallback = "intruder:function"\nname = "one"\n'
        '[[handlers]]\ncallback = "webhook"\nname = "two"\n[handlers.options]\nurl = "https://example.org/"\n'
    )
    file.chmod(0o600)
    return tmp_path


def check(folder: Path, *program: str) -> str:
    """`cdc check` in that folder: what it says."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*program, "check", "--config", "cdc.toml"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done
    return done.stdout + done.stderr


def test_command_imports_nothing_from_the_current_folder(folder: Path) -> None:
    """Neither a callback nor the namesake of a library that is installed."""
    said = check(folder, str(CDC))

    assert "no module 'intruder'" in said
    assert not (folder / "executed").exists()


def test_module_form_imports_no_callback_from_the_current_folder(folder: Path) -> None:
    """`python -m cdc.cli` imports the command itself from wherever Python was told to; its callbacks not."""
    for name in ("typer", "orjson", "json"):
        (folder / f"{name}.py").unlink()

    said = check(folder, sys.executable, "-m", "cdc.cli")

    assert "no module 'intruder'" in said
    assert not (folder / "executed").exists()


def test_safe_path_imports_nothing_from_the_current_folder(folder: Path) -> None:
    """`python -P -m cdc.cli` is as strict as the command."""
    said = check(folder, sys.executable, "-P", "-m", "cdc.cli")

    assert "no module 'intruder'" in said
    assert not (folder / "executed").exists()
