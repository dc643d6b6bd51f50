"""Runs the blocks of a page, in order: what it takes to try each language, and what an unmarked block must do.

``sh`` runs in the scene's folder and ends with 0; a line ``cdc run`` starts the service, which then runs beside the
rest of the page and must stop cleanly; what runs until Ctrl-C gets one when it has shown something. ``toml`` is loaded
by the real loader, and its handlers are made. ``sql`` runs on the real server. ``python`` runs. Other languages are
samples of output, but JSON and YAML must be such.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from cdc.config import load
from cdc.errors import ConfigError
from cdc.loading import load_callback
from tests.docs.blocks import Block
from tests.docs.scenes import Scene
from tests.docs.variables import values_for

__all__ = ["RUNNERS", "run"]

ROOT = Path(__file__).resolve().parents[2]
STUB = '\n[source]\ndsn = "${CDC_DSN}"\n'
FILE = re.compile(r"\$\{file:([^}]*)\}")
_EXPORT = re.compile(r"export (\w+)=(.*)")
_SERVICE = re.compile(r"cdc run\b(?P<arguments>[^#&|]*)")
_FOREIGN = re.compile(
    r"\b(?:apt|apt-get|docker|podman|kubectl|helm|systemctl|journalctl|sudo|kill|pkill|killall|make|git|ssh|createuser)\b"
)
_ENDLESS = re.compile(r"cdc (?:tail|status .*(?:--watch|-w))\b")  # until Ctrl-C
_INSTALL = re.compile(r"""pip install ['"]?walsignal\[(?P<extras>[\w,]+)\]""")


def run(block: Block, scene: Scene) -> None:
    """Try one block; AssertionError tells what went wrong."""
    text = block.text
    if block.language in ("sh", "bash"):
        for word, value in scene.words.items():
            text = re.sub(rf"\b{word}\b", value, text)
        text = text.replace("9464", str(scene.port))
    RUNNERS.get(block.language, _sample)(block, text, scene)


def _shell(block: Block, text: str, scene: Scene) -> None:
    """Line by line where it must be, else as one script."""
    script: list[str] = []
    wanted = int(block.marks.get("exit", "0"))
    for line in text.splitlines():
        if (found := _INSTALL.match(line)) is not None:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert set(found["extras"].split(",")) <= extras.keys(), line
        elif (found := _EXPORT.match(line)) is not None:
            name, value = found[1], (shlex.split(found[2], comments=True) or [""])[0]
            scene.environment.setdefault(name, value)  # CDC_DSN is that of the scene
        elif (found := _SERVICE.match(line)) is not None and not wanted:
            _execute("\n".join(script), scene, 0)
            script = []
            scene.start(*shlex.split(found["arguments"]))
        elif _ENDLESS.match(line.partition("#")[0]) is not None:
            _execute("\n".join(script), scene, 0)
            script = []
            scene.watch(*shlex.split(line, comments=True))
        else:
            script.append(line)
    _execute("\n".join(script), scene, wanted)


def _execute(script: str, scene: Scene, wanted: int) -> None:
    if not script.strip():
        return
    if (foreign := _FOREIGN.search(re.sub(r"#.*", "", script))) is not None:
        raise AssertionError(f"{foreign[0]} reaches beyond the scene's folder: mark the block with skip=REASON")
    done = scene.command(script)
    assert done.returncode == wanted, f"exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert "Traceback" not in done.stderr, done.stderr


def _toml(block: Block, text: str, scene: Scene) -> None:
    """A whole configuration or a part of one: with a value for each variable the loader takes it."""
    text = FILE.sub("${file:secret}", text)  # nobody has /run/secrets here
    scene.write("secret", "word\n")
    if block.file:
        scene.write(block.file, text, append="append" in block.marks)
        if Path(block.file).name != "cdc.toml":
            tomllib.loads(text)
            return
    path = scene.folder / "cdc.toml" if block.file else scene.folder / "example.toml"
    if not block.file:
        path.write_text(text)
    whole = path.read_text()
    if "source" not in tomllib.loads(whole):
        path.write_text(whole + STUB)
    with _environment(path.read_text(), scene):
        try:
            config = load(path)
            for handler in config.handlers:
                load_callback(handler, config.folder, config.python_path)
        except ConfigError as error:
            raise AssertionError(f"{error.message}: {'; '.join(error.problems)}") from None


@contextmanager
def _environment(text: str, scene: Scene) -> Iterator[None]:
    """A value for each variable of the text that has no default of its own."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values_for(text).items():
            patch.setenv(name, scene.environment.get(name, value))
        yield


def _sql(_block: Block, text: str, scene: Scene) -> None:
    scene.sql(text)


def _python(block: Block, text: str, scene: Scene) -> None:
    compile(text, f"line {block.line}", "exec")
    if block.file:
        scene.write(block.file, text)
    if "compile" in block.marks:
        return
    command = ["-c", f"import {Path(block.file).stem}"] if block.file else ["-c", text]
    done = subprocess.run(
        [sys.executable, "-W", "error", *command],
        cwd=scene.folder,
        env=scene.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _sample(block: Block, text: str, _scene: Scene) -> None:
    if block.language == "json":
        for line in [text] if text.lstrip().startswith(("{\n", "[\n")) else text.splitlines():
            json.loads(line)
    if block.language in ("yaml", "yml"):
        list(yaml.safe_load_all(text))


RUNNERS: dict[str, Callable[[Block, str, Scene], None]] = {
    "sh": _shell,
    "bash": _shell,
    "toml": _toml,
    "sql": _sql,
    "python": _python,
}
