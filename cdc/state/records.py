"""What the service keeps between two runs, as values, and what it asks of whoever keeps it.

Nothing here knows files, SQL or connections; whoever implements :class:`StateStore` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Protocol

from cdc.events import Position
from cdc.lsn import Lsn

__all__ = ["CallbackRecord", "CallbackState", "Checkpoint", "Gap", "Source", "StateStore"]


class CallbackState(Enum):
    """Whether a callback is called; `value` is the word shown to people and programs."""

    ACTIVE = "active"
    REMOVED = "removed"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Source:
    """Whose positions these are: LSNs of another cluster, slot or history mean nothing here."""

    system_identifier: str
    timeline: int
    database: str
    slot: str
    plugin: str
    selection: str  # fingerprint of what the server filters: another selection makes other ordinals


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far everything is settled: up to `flushed_lsn` the server may forget its WAL.

    `callbacks` holds each callback's own settled position, at or past `flushed_lsn`.
    """

    source: Source
    flushed_lsn: Lsn
    last_event_id: int
    callbacks: Mapping[str, Position] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CallbackRecord:
    """One callback as the state knows it; `removed_at`, `removed_time` and `reason` only when REMOVED."""

    name: str
    settled: Position
    state: CallbackState = CallbackState.ACTIVE
    removed_at: Position | None = None
    removed_time: datetime | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Gap:
    """Events that were not delivered: `first` to `last`, both included.

    `callback` is "" when no callback got them. Times are aware, of the first and the last event.
    """

    callback: str
    first: Position
    last: Position
    events: int
    reason: str
    first_time: datetime
    last_time: datetime


class StateStore(Protocol):
    """Keeps the durable state. Calls block on the disk: make them from one thread, not the event loop's.

    Every method raises `StateError` when the state cannot be read or written.
    """

    def load(self) -> Checkpoint | None:
        """Return the last saved checkpoint, None when there was none yet."""

    def save(self, checkpoint: Checkpoint, gaps: Sequence[Gap] = ()) -> None:
        """Replace the checkpoint and add the gaps, all or nothing; durable when it returns.

        A gap with the callback and `first` of a recorded one replaces it: an open gap grows. A
        `flushed_lsn` below the saved one of the same source is refused.
        """

    def callbacks(self) -> list[CallbackRecord]:
        """List the callbacks of the checkpoint and all removed ones, by name."""

    def mark_removed(self, name: str, position: Position, reason: str) -> None:
        """Record that the callback gets no events after `position`; an earlier removal stands."""

    def mark_active(self, name: str) -> None:
        """Forget the removal, if there was one."""

    def gaps(self) -> list[Gap]:
        """List what was not delivered, by position."""

    def close(self) -> None:
        """Let go of the store; a second call does nothing."""
