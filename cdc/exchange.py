"""What a file that is read again would change: its handlers loaded, compared with those that run, and nothing touched.

All that is wrong with it is told at once. Who puts it into effect is `cdc.reload`.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cdc.config import Changes, Config, Fingerprint, SignalConfig, compare, load
from cdc.enrolment import load_all
from cdc.errors import ConfigError
from cdc.loading import code_of, find_callback
from cdc.terms import Terms

__all__ = ["Exchange"]


@dataclass(frozen=True, slots=True)
class Exchange:
    """Made by :meth:`read`. `terms`: of the handlers that are new or have changed, in the order of the file."""

    config: Config
    changes: Changes
    terms: Mapping[str, Terms]

    @classmethod
    async def read(cls, file: Path, running: Fingerprint, signal: SignalConfig) -> Self:
        """Read the file; `signal` is what the service runs with. ConfigError with all that is wrong."""
        new = await asyncio.to_thread(load, file)
        if not new.handlers:
            raise ConfigError(f"{new.file} has no handlers", hint="stop the service, if that is meant")
        if len(new.handlers) > (limit := signal.max_callbacks):
            raise ConfigError(
                f"{len(new.handlers)} handlers, but the service runs with signal.max_callbacks = {limit}",
                hint="raise it and restart",
            )
        await asyncio.to_thread(_import_all, new)
        code = dict(code_of(handler) for handler in new.handlers)
        changes = compare(running, Fingerprint.of(new, code, salt=running.salt))
        return cls(new, changes, _loaded(new, changes, signal))


def _import_all(config: Config) -> None:
    """In a thread, because an import may take long; what is wrong is told when the handlers are loaded."""
    importlib.invalidate_caches()  # a module that was written a moment ago
    for handler in config.handlers:
        with suppress(ConfigError):
            find_callback(handler, config.folder, config.python_path)


def _loaded(new: Config, changes: Changes, signal: SignalConfig) -> dict[str, Terms]:
    """Make the callbacks, on the event loop as at a start; of handlers that stay as they are, none."""
    moved = {*changes.added, *changes.changed}
    unchanged = {handler.name for handler in new.handlers} - moved
    try:
        return load_all(new, signal, unchanged=unchanged)
    except ConfigError as error:
        raise ConfigError(f"{new.file} cannot be applied", problems=error.problems) from error
