"""The files of deploy/ as values, and the numbers that they must agree on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cdc.config import Config, load
from cdc.runner import GRACE_SECONDS

__all__ = ["DEPLOY", "ROOT", "compose", "documents", "from_text", "least_grace", "seconds"]

ROOT = Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "deploy"


def documents(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every YAML document of the folder, with its file."""
    for file in sorted(folder.glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            yield file, document


def compose() -> dict[str, Any]:
    """compose.yaml."""
    read: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return read


def seconds(duration: str | int) -> float:
    """``60s``, ``2m`` or ``60``."""
    match = re.fullmatch(r"(\d+)(s|m|)", str(duration))
    assert match, duration
    return int(match[1]) * (60 if match[2] == "m" else 1)


def from_text(text: str, folder: Path, *, secrets: str) -> Config:
    """What the real loader makes of a cdc.toml whose DSN lies in the folder `secrets` of the container."""
    (folder / "dsn").write_text("host=db.example.org dbname=shop user=cdc password=s3cret\n")
    assert f"{secrets}/dsn}}" in text or f"{secrets}}}/dsn}}" in text, "the file does not read the secret's path"
    file = folder / "cdc.toml"
    file.write_text(text.replace(secrets, str(folder)))
    file.chmod(0o644)
    return load(file)


def least_grace(config: Config) -> float:
    """Seconds that a stop may take by itself: whoever kills earlier makes events come again."""
    return config.signal.drain_timeout_seconds + GRACE_SECONDS
