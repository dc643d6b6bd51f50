"""What the statements of the state need of a database, and how values become columns.

The same SQL runs in SQLite and in PostgreSQL, so all columns are text, integers and bytes: an LSN has 64
bits, an INTEGER of SQLite 63, and times of both would differ.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from cdc.events import Position
from cdc.lsn import Lsn

__all__ = ["Answer", "Rows", "clean", "column_time", "sorted_position", "sorting", "time_column"]

_HALF = 16  # hexadecimal digits of 64 bits


class Answer(Protocol):
    """What a statement brought: a DB-API cursor."""

    @property
    def rowcount(self) -> int:
        """How many rows it has changed."""

    def fetchone(self) -> Any:
        """One row, or None."""

    def fetchall(self) -> list[Any]:
        """All rows."""


class Rows(Protocol):
    """The tables of one state inside one transaction. Values stand as ``?`` in a statement."""

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Answer:
        """Run it."""

    def executemany(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run it once for each row of values."""

    def has_table(self, name: str) -> bool:
        """Whether the state has that table."""

    def among(self, ids: Collection[int]) -> tuple[str, Any]:
        """A condition on the column `id`, and its one value, however many ids there are."""

    def text(self, text: str) -> str:
        """What of a text of unknown origin this database can keep."""


def clean(text: str) -> str:
    """Text of any origin as every database takes it: NUL and lone surrogates are written out."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def time_column(time: datetime) -> str:
    """A moment, so that text compares as time does."""
    return time.astimezone(UTC).isoformat(timespec="microseconds")


def column_time(text: str) -> datetime:
    """The moment that :func:`time_column` wrote."""
    return datetime.fromisoformat(text)


def sorting(position: Position) -> str:
    """A position, so that text compares as positions do."""
    return f"{int(position.commit_lsn):0{_HALF}X}{position.ordinal:0{_HALF}X}"


def sorted_position(text: str) -> Position:
    """The position that :func:`sorting` wrote; ValueError for anything else."""
    if len(text) != 2 * _HALF:
        raise ValueError(f"{text!r} is not the position of a dead letter")
    return Position(Lsn(int(text[:_HALF], 16)), int(text[_HALF:], 16))
