"""What the service keeps between two runs, as values, and what it asks of whoever keeps it.

Nothing here knows files, SQL or connections; whoever implements :class:`StateStore` does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Protocol

from cdc.callbacks import CallbackState
from cdc.consumer import Consumer
from cdc.events import Position
from cdc.lsn import Lsn

__all__ = [
    "CallbackRecord",
    "CallbackState",
    "Checkpoint",
    "DeadLetter",
    "Gap",
    "LetterFilter",
    "LetterState",
    "LetterTotal",
    "Source",
    "StateStore",
]


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
    """One callback as the state knows it; `removed_at`, `removed_time` and `reason` unless it is ACTIVE.

    RESUMING: an operator wants it back, and what was parked for it is on its way.
    """

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


class LetterState(Enum):
    """Why an event lies in the dead letters; `value` is the word shown to people and programs."""

    FAILED = "failed"  # the callback had it, and failed at every attempt
    PARKED = "parked"  # the callback was removed before it could have it

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that a callback has not handled, kept until it has, or an operator discards it.

    `event` is what `cdc.codec` makes of the event as that callback sees it: masked columns stay masked.
    `error` is the class, `error_text` its words; both "" while PARKED, and `attempts` 0. Times are aware:
    of the first and the last attempt, or when it was parked. `retry`: an operator asks for another attempt.
    `id` is what people type; the store gives it (0 before) and keeps it.
    """

    callback: str
    position: Position
    state: LetterState
    table: str  # schema.table
    event_type: str
    event: bytes
    first_time: datetime
    last_time: datetime
    error: str = ""
    error_text: str = ""
    attempts: int = 0
    retry: bool = False
    id: int = 0

    @property
    def size(self) -> int:
        """Bytes that count for the bounds."""
        return len(self.event) + len(self.error_text)


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Which dead letters are meant: those that meet all conditions that are not None."""

    ids: Collection[int] | None = None
    callback: str | None = None
    table: str | None = None  # schema.table
    state: LetterState | None = None
    before: datetime | None = None  # last_time is earlier
    retry: bool | None = None


@dataclass(frozen=True, slots=True)
class LetterTotal:
    """All dead letters of one callback and state: how many, their size in bytes, the oldest's first_time."""

    callback: str
    state: LetterState
    count: int
    bytes: int
    oldest: datetime
    retry: int  # how many of them wait for another attempt


class StateStore(Protocol):
    """Keeps the durable state. Calls block on the disk: make them from one thread, not the event loop's.

    Every method raises `StateError` when the state cannot be read or written, `StateBusy` when another owner
    has it meanwhile: then it is lost for good, and nothing more is written.
    """

    @property
    def schema(self) -> str:
        """The schema that holds it, in its server: changes there are never events. "" for a file."""

    @property
    def consumer(self) -> Consumer | None:
        """What its owner's connections to the source are called; None where they end with the owner's process."""

    @property
    def leased(self) -> bool:
        """Whether an owner can lose it while it is open, and must `ping` every second to keep it."""

    @property
    def taken_over(self) -> bool:
        """Whether the owner before has not closed it: it may be at work until it misses an answer to its `ping`."""

    def shares_wal(self, system_identifier: str) -> bool:
        """Whether what is written here goes into the WAL of that cluster: saving that it has moved moves it."""

    def load(self) -> Checkpoint | None:
        """Return the last saved checkpoint, None when there was none yet."""

    def save(self, checkpoint: Checkpoint, gaps: Sequence[Gap] = ()) -> None:
        """Replace the checkpoint and add the gaps, all or nothing; durable when it returns.

        A gap with the callback, reason and `first` of a recorded one replaces it: an open gap grows. A
        `flushed_lsn` below the saved one of the same source is refused. A callback that the checkpoint
        does not name keeps its record.
        """

    def callbacks(self) -> list[CallbackRecord]:
        """List all callbacks that any checkpoint has named, and all removed ones, by name."""

    def mark_removed(self, name: str, position: Position, reason: str) -> None:
        """Record that the callback is not called after `position`; an earlier removal stands, and resuming ends."""

    def mark_paused(self, name: str, position: Position, reason: str) -> None:
        """Record that the callback is not called after `position` until it is resumed; a removal stands."""

    def mark_resuming(self, name: str) -> None:
        """Of a removed or paused callback: it shall get what was parked, then the live stream. Nothing of any other."""

    def mark_active(self, name: str) -> None:
        """Of a callback that is resuming: forget why. What was ordered since it began to resume stands."""

    def forget(self, name: str) -> None:
        """Drop all that is known of a callback that is not configured any more: record, dead letters, gaps."""

    def note_configuration(self, text: str) -> None:
        """Keep what the owner's configuration is known by, in place of what was kept."""

    def configuration(self) -> str | None:
        """What an owner has kept with `note_configuration`; None when there is nothing."""

    def gaps(self) -> list[Gap]:
        """List what was not delivered, by position."""

    def add_letters(self, letters: Sequence[DeadLetter]) -> None:
        """Keep dead letters, all or nothing; durable when it returns.

        One with the callback and position of a kept one replaces all of it but its id and `first_time`;
        only that a PARKED one never replaces a FAILED one.
        """

    def letters(
        self, wanted: LetterFilter, *, after: tuple[str, Position] | None = None, limit: int = 1000, max_bytes: int = 0
    ) -> list[DeadLetter]:
        """List dead letters by (callback, position), those behind `after`: the next page.

        At most `limit`; with `max_bytes` the list ends before it holds more than that, but for its first.
        """

    def letter_totals(self) -> list[LetterTotal]:
        """Sum up the dead letters, by callback and state; what there is none of is left out."""

    def remove_letters(self, ids: Collection[int]) -> None:
        """Drop letters that were delivered after all; unknown ids are ignored."""

    def discard_letters(self, wanted: LetterFilter) -> int:
        """Drop letters undelivered, and put on record as gaps, reason "discarded", which; how many there were."""

    def request_retry(self, wanted: LetterFilter) -> int:
        """Ask for another attempt at FAILED letters: sets `retry`; how many there are."""

    def version(self) -> int:
        """A number that is another one after anybody else has written; cheap, to be asked several times a second."""

    def ping(self) -> None:
        """Show a server that keeps the state that its owner lives; nothing for a file."""

    def close(self) -> None:
        """Let go of the store; a second call does nothing."""
