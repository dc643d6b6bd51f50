"""From a path to a `Config`: find, parse, resolve references, make paths absolute, check it all."""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cdc.config.expand import Expander, Location, plain
from cdc.config.models import Config, SignalConfig
from cdc.config.problems import problem, problem_of
from cdc.errors import ConfigError

__all__ = ["find", "load"]

DEFAULT_FILE = Path("cdc.toml")
_SQLITE = "sqlite:///"


def find(option: Path | None = None) -> Path:
    """The file to use: `option` (--config), else ``$CDC_CONFIG``, else ``./cdc.toml``; or ConfigError."""
    variable = os.environ.get("CDC_CONFIG")
    if option is not None:
        path, origin = option, "--config"
    elif variable:
        path, origin = Path(variable), "$CDC_CONFIG"
    else:
        path, origin = DEFAULT_FILE, "the default"
    if not path.is_file():
        raise ConfigError(
            f"no configuration file {path} ({origin})",
            hint="write one with `cdc init`, or name yours with --config FILE",
        )
    return path.absolute()


def load(path: Path) -> Config:
    """Read and check the file. ConfigError tells all its problems: each with key, value and fix."""
    path = path.absolute()
    try:
        return _loaded(path)
    except RecursionError:
        raise ConfigError(f"{path} cannot be read", hint="it nests too deep: write it flat") from None


def _loaded(path: Path) -> Config:
    raw = _parse(path)
    expander = Expander(os.environ, path.parent)
    data = expander.tree(raw)
    problems = [problem(location, data, text) for location, text in expander.failures.items()]
    config: Config | None = None
    try:
        config = Config.model_validate(_with_absolute_paths(data, path.parent))
    except ValidationError as error:
        problems += [
            problem_of(details, data) for details in error.errors() if not _is_told(details["loc"], expander.failures)
        ]
    problems += _across_sections(data)
    if problems or config is None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError(f"{path}: {count}", problems=problems, hint="mend the file, look again: cdc check")
    config._file = path  # private attributes, not settings: no file can name them
    config._warnings = _warnings(path)
    return config


def _parse(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes().decode("utf-8-sig")  # some editors write a byte order mark, TOML knows none
        return tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint="name a readable file with --config") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start})", hint="save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{path} is not TOML: {error}",
            hint='text and ${REFERENCES} stand in double quotes: dsn = "${CDC_DSN}"',
        ) from None
    except ValueError:  # Python's own limit
        raise ConfigError(f"{path} cannot be read", hint="it holds a number of thousands of digits") from None


def _is_told(location: Location, failures: Mapping[Location, str]) -> bool:
    """Whether the value could not even be resolved: what else is wrong with it says nothing."""
    return any(location[: len(known)] == known for known in failures)


def _across_sections(data: Mapping[str, Any]) -> list[str]:
    """What no section can see by itself; looks at the file's data, so that it is told beside all the rest."""
    handlers = data.get("handlers")
    if not isinstance(handlers, list):
        return []
    names = [_name(one) for one in handlers]
    problems = [
        problem(
            ("handlers", index),
            data,
            f"the name {name!r} is taken; give each handler its own `name`",
        )
        for index, name in enumerate(names)
        if name and name in names[:index]
    ]
    signal = data.get("signal")
    limit = signal.get("max_callbacks") if isinstance(signal, Mapping) else None
    if not isinstance(limit, int):
        limit = SignalConfig().max_callbacks
    if len(handlers) > limit:
        problems.append(f"handlers: {len(handlers)} of them, but signal.max_callbacks = {limit}; raise it")
    return problems


def _name(handler: Any) -> str | None:
    if not isinstance(handler, Mapping):
        return None
    callback = handler.get("callback")
    name = handler.get("name", callback.replace(":", ".") if isinstance(callback, str) else None)
    return str(name) if isinstance(name, str) else None


def _with_absolute_paths(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A copy in which python_path and a sqlite URL do not depend on where the process was started."""
    result = dict(data)
    folders = data.get("python_path")
    if isinstance(folders, list):
        result["python_path"] = [_absolute(one, folder) if isinstance(one, str) else one for one in folders]
    state = data.get("state", {})
    if isinstance(state, Mapping):
        url = plain(state.get("url", f"{_SQLITE}cdc-state.db"))
        if isinstance(url, str) and url.startswith(_SQLITE) and len(url) > len(_SQLITE) and ":memory:" not in url:
            result["state"] = {**state, "url": f"{_SQLITE}{_absolute(url.removeprefix(_SQLITE), folder)}"}
    return result


def _absolute(path: str, folder: Path) -> str:
    return os.path.normpath(folder / path)


def _warnings(path: Path) -> tuple[str, ...]:
    mode = path.stat().st_mode
    if not mode & (stat.S_IWGRP | stat.S_IWOTH):
        return ()
    who = "everybody" if mode & stat.S_IWOTH else "its group"
    return (f"{path} can be written by {who}, who can so run code as this service; chmod go-w {path}",)
