"""From a path to a `Config`: find, parse, resolve references, make paths absolute, check it all."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cdc.codes import Code
from cdc.config.allowed import ANY, VARIABLE, AllowedCallbacks
from cdc.config.expand import Expander, Location, plain
from cdc.config.models import Config, SignalConfig
from cdc.config.problems import problem, problem_of
from cdc.config.trust import writable_by_others
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
            code=Code.CONFIG_MISSING,
        )
    return path.absolute()


def load(path: Path) -> Config:
    """Read and check the file. ConfigError tells all its problems: each with key, value and fix."""
    path = path.absolute()
    try:
        return _loaded(path)
    except RecursionError:
        raise ConfigError(
            f"{path} cannot be read", hint="it nests too deep: write it flat", code=Code.CONFIG_UNREADABLE
        ) from None


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
    allowed, complaints = _allowed_by_environment()
    problems += complaints
    exposed: tuple[str, ...] = ()
    if config is not None:
        exposed = writable_by_others(path, config.python_path, [one.callback for one in config.handlers])
        if allowed is not None or ANY not in config.allowed_callbacks:
            # A list of what may run is worth nothing where others may change what is behind the names.
            problems += exposed
    if problems or config is None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError(f"{path}: {count}", problems=problems, hint="mend the file, look again: cdc check")
    config._file = path  # private attributes, not settings: no file can name them
    config._warnings = exposed
    if allowed is not None:
        config.restrict(allowed)
    return config


def _allowed_by_environment() -> tuple[AllowedCallbacks | None, list[str]]:
    """The list of whoever deploys the service, and what is wrong with it."""
    try:
        return AllowedCallbacks.of_environment(os.environ), []
    except ValueError as error:
        return None, [f"${VARIABLE}: {error}"]


def _parse(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes().decode("utf-8-sig")  # some editors write a byte order mark, TOML knows none
        return tomllib.loads(text)
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}",
            hint="name a readable file with --config",
            code=Code.CONFIG_UNREADABLE,
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8 text (byte {error.start})", hint="save it as UTF-8", code=Code.CONFIG_UNREADABLE
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{path} is not TOML: {error}",
            hint='text and ${REFERENCES} stand in double quotes: dsn = "${CDC_DSN}"',
            code=Code.CONFIG_UNREADABLE,
        ) from None
    except ValueError:  # Python's own limit
        raise ConfigError(
            f"{path} cannot be read", hint="it holds a number of thousands of digits", code=Code.CONFIG_UNREADABLE
        ) from None


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
    """A copy in which python_path, a sqlite URL and other files do not depend on where the process was started."""
    result = dict(data)
    folders = data.get("python_path")
    if isinstance(folders, list):
        result["python_path"] = [_absolute(one, folder) if isinstance(one, str) else one for one in folders]
    http = data.get("http")
    if isinstance(http, Mapping) and isinstance(token := plain(http.get("token_file")), str) and token:
        result["http"] = {**http, "token_file": _absolute(token, folder)}
    state = data.get("state", {})
    if isinstance(state, Mapping):
        url = plain(state.get("url", f"{_SQLITE}cdc-state.db"))
        if isinstance(url, str) and url.startswith(_SQLITE) and len(url) > len(_SQLITE) and ":memory:" not in url:
            result["state"] = {**state, "url": f"{_SQLITE}{_absolute(url.removeprefix(_SQLITE), folder)}"}
    return result


def _absolute(path: str, folder: Path) -> str:
    return os.path.normpath(folder / path)
