"""The settings of `cdc.toml`: read, checked whole and frozen before anything starts.

Owns the file's names, defaults and bounds, the references to environment and secret files, and telling all
problems of a file at once. It must not open a connection, import a callback, or show a secret.
"""

from __future__ import annotations

from cdc.config.allowed import AllowedCallbacks
from cdc.config.changes import Changes, Fingerprint, compare
from cdc.config.files import find, load
from cdc.config.models import (
    ROW_EVENTS,
    AfterRemoval,
    Columns,
    Config,
    HandlerConfig,
    HttpConfig,
    LogConfig,
    OnFailure,
    SignalConfig,
    SlotGuardConfig,
    SourceConfig,
    StateConfig,
    TagRule,
)

__all__ = [
    "ROW_EVENTS",
    "AfterRemoval",
    "AllowedCallbacks",
    "Changes",
    "Columns",
    "Config",
    "Fingerprint",
    "HandlerConfig",
    "HttpConfig",
    "LogConfig",
    "OnFailure",
    "SignalConfig",
    "SlotGuardConfig",
    "SourceConfig",
    "StateConfig",
    "TagRule",
    "compare",
    "find",
    "load",
]
