"""What a decoder says, whichever plugin spoke: begin, change, commit, message.

A transaction arrives as Begin, any number of Change and Message, Commit. Positions are plain
integers here (the hot path); :class:`cdc.lsn.Lsn` prints them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from cdc.errors import DecodeError
from cdc.events import EventType, Row

__all__ = ["Begin", "Change", "Commit", "Decoded", "Decoder", "Message"]


class Begin(msgspec.Struct, frozen=True, gc=False):
    """A transaction begins: `commit_lsn` is the end LSN of its commit, known beforehand."""

    commit_lsn: int
    xid: int
    timestamp: str


class Commit(msgspec.Struct, frozen=True, gc=False):
    """The transaction that began last is complete."""

    commit_lsn: int


class Message(msgspec.Struct, frozen=True, gc=False):
    """A logical decoding message (`pg_logical_emit_message`) with a prefix that was asked for.

    `lsn` is where its WAL record ends, 0 when the plugin does not tell.
    """

    transactional: bool
    prefix: str
    content: str
    lsn: int = 0


class Change(Row, Protocol):
    """One row change. `watched`: the row may hold one of the columns the decoder was told to watch."""

    event_type: EventType
    schema: str
    table: str
    watched: bool

    @property
    def lsn(self) -> int:
        """Where its WAL record begins, 0 when the plugin does not tell; a record may hold many rows."""

    def deleted_softly(self, columns: frozenset[str]) -> bool:
        """Whether this update turns one of `columns` to deleted (boolean false, timestamp not null)."""

    def text_list(self, column: str) -> tuple[str, ...]:
        """The value of a text[] column of the new row (the old one of a delete), empty when absent."""


Decoded = Begin | Change | Commit | Message


class Decoder(Protocol):
    """Plugin output → messages, without I/O."""

    def decode_all(self, payloads: Sequence[bytes | memoryview]) -> tuple[list[Decoded], DecodeError | None]:
        """Messages in order, up to the first that cannot be understood; its error, or None."""
