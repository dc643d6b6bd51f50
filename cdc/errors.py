"""Every error of walsignal, and what may be done about each.

Drawn as a tree::

    CdcError                    a message, and a hint: what the operator does next
    ├── ConfigError             the configuration is wrong: all its problems at once     (exit 2)
    ├── StateError              the state cannot be trusted or written
    │   └── StateBusy           another owner holds the state: it will be waited for     (retried)
    ├── StreamLost              the connection ended: reconnect and go on                (retried)
    │   └── SlotBusy            the slot is still held by another walsender              (retried)
    ├── StreamRefused           going on would lose or corrupt events: stop              (exit 1)
    │   ├── SlotMissing         the slot that the checkpoint belongs to is gone
    │   ├── SlotInvalidated     the server has thrown away WAL that we need              (exit 3)
    │   ├── SlotMismatch        the slot is of another plugin, database or history
    │   ├── ServerUnfit         wal_level, plugin, role, encoding: the server says no
    │   └── CheckpointMismatch  the checkpoint is of another cluster, or ahead of this one
    ├── DecodeError             a message that cannot be decoded: stop, never skip       (exit 1)
    └── CallbackError           facts about a callback
        ├── UnknownCallback     nobody has this name
        ├── TooManyCallbacks    `max_callbacks` is reached
        ├── CallbackTimeout     one attempt took longer than its timeout
        └── ManagerClosed       the manager has been shut down

Each has a `code`, the stable name of the situation: that of its class, or a finer one where it is raised.
Only :func:`is_retryable` decides whether the service tries again. No message holds a row value.
Where no exit code stands, it is 1. That of an invalidated slot is its own: a restart by a supervisor never mends it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from cdc.codes import Code

__all__ = [
    "CallbackError",
    "CallbackTimeout",
    "CdcError",
    "CheckpointMismatch",
    "ConfigError",
    "DecodeError",
    "ManagerClosed",
    "ServerUnfit",
    "SlotBusy",
    "SlotInvalidated",
    "SlotMismatch",
    "SlotMissing",
    "StateBusy",
    "StateError",
    "StreamLost",
    "StreamRefused",
    "TooManyCallbacks",
    "UnknownCallback",
    "is_retryable",
]


class CdcError(Exception):
    """What went wrong in one line, and in `hint` what to do about it (may be empty).

    `code` names the situation for programs and for docs/runbook.md, one of :class:`cdc.codes.Code` for errors of
    ours; without one it is that of the class.
    """

    exit_code: ClassVar[int] = 1  # of a process that it ends
    default_code: ClassVar[str] = Code.FAILED

    def __init__(self, message: str, *, hint: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = str(code or self.default_code)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"code": self.code, "message": self.message, "hint": self.hint}

    def __str__(self) -> str:
        return f"{self.message} | {self.hint}" if self.hint else self.message


class ConfigError(CdcError):
    """The configuration cannot be used; `problems` holds every reason, one line each."""

    exit_code = 2
    default_code = Code.CONFIG_INVALID

    def __init__(self, message: str, *, problems: Sequence[str] = (), hint: str = "", code: str = "") -> None:
        super().__init__(message, hint=hint, code=code)
        self.problems = tuple(problems)

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"problems": list(self.problems)}


class StateError(CdcError):
    """The durable state is torn, foreign, newer, unreadable or not writable."""

    default_code = Code.STATE_UNUSABLE


class StateBusy(StateError):
    """Another owner holds the state, and will be waited for; `holder` says who, as far as the state can tell.

    `silent_seconds`: since when it has given no sign of life; None where its end is known at once.
    """

    default_code = Code.STATE_BUSY

    def __init__(
        self, message: str, *, holder: str = "", silent_seconds: float | None = None, hint: str = "", code: str = ""
    ) -> None:
        super().__init__(message, hint=hint, code=code)
        self.holder = holder
        self.silent_seconds = silent_seconds


class StreamLost(CdcError):
    """The replication connection ended; nothing is lost, the service connects again.

    `reason` is a short fixed word, the label of `cdc_reconnects_total`: one of `REASONS`, or the server's SQLSTATE.
    """

    default_code = Code.STREAM_LOST
    REASONS: ClassVar[Mapping[str, str]] = {
        "connection_lost": Code.STREAM_LOST,
        "connect": Code.SERVER_UNREACHABLE,
        "server_shutdown": Code.SERVER_SHUTDOWN,
        "silent": Code.STREAM_SILENT,
        "catalog_unreachable": Code.CATALOG_UNREACHABLE,
        "slot_busy": Code.SLOT_BUSY,
        "slot_moved": Code.SLOT_MOVED,
        "standby_server": Code.STANDBY_SERVER,
    }

    def __init__(self, message: str, *, reason: str = "connection_lost", hint: str = "", code: str = "") -> None:
        super().__init__(message, hint=hint, code=code or self.REASONS.get(reason, ""))
        self.reason = reason


class SlotBusy(StreamLost):
    """Another walsender holds the slot (SQLSTATE 55006): often our own, not yet timed out."""

    def __init__(self, message: str, *, hint: str = "", code: str = "") -> None:
        super().__init__(message, reason="slot_busy", hint=hint, code=code)


class StreamRefused(CdcError):
    """The stream must not start or go on as things are; an operator decides.

    `gap`: the range of positions, its end not included, that is in doubt; None when none can be named.
    """

    default_code = Code.STREAM_REFUSED

    def __init__(self, message: str, *, hint: str = "", gap: tuple[int, int] | None = None, code: str = "") -> None:
        super().__init__(message, hint=hint, code=code)
        self.gap = gap


class SlotMissing(StreamRefused):
    """The slot does not exist."""

    default_code = Code.SLOT_MISSING


class SlotInvalidated(StreamRefused):
    """The server has invalidated the slot: WAL that we still need is gone."""

    exit_code = 3
    default_code = Code.SLOT_INVALIDATED


class SlotMismatch(StreamRefused):
    """The slot is there, but is not the one the checkpoint or the configuration speaks of."""

    default_code = Code.SLOT_MISMATCH


class ServerUnfit(StreamRefused):
    """The server or the role lacks something that logical decoding needs."""

    default_code = Code.SERVER_UNFIT


class CheckpointMismatch(StreamRefused):
    """The checkpoint belongs to another cluster, or lies beyond this server's WAL."""

    default_code = Code.CHECKPOINT_MISMATCH


class DecodeError(CdcError):
    """A message from the plugin that cannot be decoded; `excerpt` shows its structure, no row values."""

    default_code = Code.UNDECODABLE_MESSAGE

    def __init__(self, message: str, *, lsn: int, excerpt: str = "", hint: str = "", code: str = "") -> None:
        super().__init__(message, hint=hint, code=code)
        self.lsn = lsn
        self.excerpt = excerpt


class CallbackError(CdcError):
    """Something about one callback; `callback` is its name."""

    default_code = Code.CALLBACK_ERROR

    def __init__(self, message: str, *, callback: str = "", hint: str = "", code: str = "") -> None:
        super().__init__(message, hint=hint, code=code)
        self.callback = callback


class UnknownCallback(CallbackError):
    """Nobody has this name."""

    default_code = Code.HANDLER_UNKNOWN


class TooManyCallbacks(CallbackError):
    """`max_callbacks` callbacks are registered already."""

    default_code = Code.TOO_MANY_CALLBACKS


class CallbackTimeout(CallbackError):
    """One attempt of a callback took longer than its timeout; the attempt was given up."""

    default_code = Code.CALLBACK_TIMEOUT


class ManagerClosed(CallbackError):
    """The manager was shut down and takes no more events or callbacks."""

    default_code = Code.MANAGER_CLOSED


def is_retryable(error: BaseException) -> bool:
    """Whether the service may try the stream again after `error`: the one place that decides it."""
    return isinstance(error, StreamLost)
