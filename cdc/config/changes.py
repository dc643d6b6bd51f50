"""What differs between two configurations, by key; what of it a reload applies, and what waits for a restart.

Compares digests, so that a configuration can be held against one that is known by its digests alone: secrets stay
where they are. Digests of short secrets can be guessed at; whoever keeps a :class:`Fingerprint` keeps it like a row.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from hashlib import blake2b
from typing import Any

from cdc.config.models import Config, HandlerConfig, Section

__all__ = ["Changes", "Fingerprint", "compare"]

RELOADED = frozenset({"allowed_callbacks", "log.level", "python_path"})
"""Beside the handlers. A folder that is added to `python_path` is looked in; one that is taken out stays."""
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A configuration by the digests of its values: ``section.key``, and of each handler by name and key.

    `code`: by module of a handler, of its file as whoever made this has imported it, or finds it on the disk.
    """

    salt: str
    settings: Mapping[str, str]
    handlers: Mapping[str, Mapping[str, str]]
    code: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Config, code: Mapping[str, str] | None = None, *, salt: str = "") -> Fingerprint:
        """Of a configuration; `salt` is that of the one it will be compared with."""
        salt = salt or secrets.token_hex(16)
        key = bytes.fromhex(salt)
        return cls(
            salt,
            {name: _digest(value, key) for name, value in _settings(config).items()},
            {
                handler.name: {name: _digest(value, key) for name, value in _keys(handler).items()}
                for handler in config.handlers
            },
            dict(code or {}),
        )

    def to_json(self) -> str:
        """For the state."""
        return json.dumps(
            {
                "salt": self.salt,
                "settings": dict(self.settings),
                "handlers": {name: dict(keys) for name, keys in self.handlers.items()},
                "code": dict(self.code),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Fingerprint:
        """What `to_json` wrote; ValueError for anything else."""
        try:
            data = json.loads(text)
            return cls(data["salt"], data["settings"], data["handlers"], data["code"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"it is no fingerprint of a configuration: {type(error).__name__}") from None


@dataclass(frozen=True, slots=True)
class Changes:
    """What a reload does: handlers by name, the changed ones with their keys; `restart`: keys that it leaves alone."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether a reload has nothing to do."""
        return not (self.added or self.removed or self.changed or self.settings)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "added": list(self.added),
            "removed": list(self.removed),
            "changed": {name: list(keys) for name, keys in self.changed.items()},
            "settings": list(self.settings),
            "restart": list(self.restart),
        }


def compare(running: Fingerprint, new: Fingerprint) -> Changes:
    """From what runs to what the file says; both with the same salt."""
    keys = _differing(running.settings, new.settings)
    stale = [
        f"module {name}: its file has changed"
        for name, digest in new.code.items()
        if running.code.get(name, digest) != digest
    ]
    return Changes(
        added=tuple(name for name in new.handlers if name not in running.handlers),
        removed=tuple(name for name in running.handlers if name not in new.handlers),
        changed={
            name: differing
            for name, one in new.handlers.items()
            if name in running.handlers and (differing := _differing(running.handlers[name], one))
        },
        settings=tuple(key for key in keys if key in RELOADED),
        restart=(*(key for key in keys if key not in RELOADED), *stale),
    )


def _differing(one: Mapping[str, str], other: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(key for key in dict.fromkeys([*one, *other]) if one.get(key) != other.get(key))


def _settings(config: Config) -> dict[str, Any]:
    """``section.key`` → value, of everything but the handlers."""
    return _flat(config, "handlers")


def _keys(handler: HandlerConfig) -> dict[str, Any]:
    """As they stand in the file: ``columns.mask``, ``options.url``."""
    return _flat(handler, "name")


def _flat(section: Section, without: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in section:
        if isinstance(value, Section | Mapping):
            found |= {f"{name}.{key}": item for key, item in dict(value).items()}
        elif name != without:
            found[name] = value
    return found


def _digest(value: Any, key: bytes) -> str:
    text = json.dumps(value, sort_keys=True, default=_plain)
    return blake2b(text.encode(), key=key, digest_size=_DIGEST_BYTES).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return {name: getattr(value, name) for name in type(value).model_fields}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return str(value)
