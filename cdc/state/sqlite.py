"""The state in one SQLite file, durable when saved: records to rows and back.

Owns the statements; must not know how the file is made, locked and checked, nor who saves what and when.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import astuple, fields
from datetime import UTC, datetime
from pathlib import Path

from cdc.errors import StateError
from cdc.events import Position
from cdc.lsn import Lsn
from cdc.state.files import DAMAGED_HINT, DatabaseFile, explained
from cdc.state.records import CallbackRecord, CallbackState, Checkpoint, Gap, Source

__all__ = ["SqliteState"]

_SOURCE = ", ".join(f'"{column.name}"' for column in fields(Source))


class SqliteState:
    """The :class:`~cdc.state.records.StateStore` in a file. For one thread at a time, any thread."""

    def __init__(self, file: DatabaseFile) -> None:
        self._file = file
        self._path = file.path
        self._db = file.connection

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False, owner: bool = False) -> SqliteState:
        """See :func:`cdc.state.open_state`."""
        return cls(DatabaseFile.open(path, read_only=read_only, owner=owner))

    def load(self) -> Checkpoint | None:
        """See :class:`~cdc.state.records.StateStore`; so for all methods."""
        with self._reading() as db:
            row = db.execute(f"SELECT {_SOURCE}, flushed_lsn, last_event_id FROM checkpoint").fetchone()  # noqa: S608
            if row is None:
                return None
            settled = db.execute("SELECT callback, position FROM settled ORDER BY callback")
            return Checkpoint(
                source=Source(*row[:6]),
                flushed_lsn=Lsn.parse(row[6]),
                last_event_id=row[7],
                callbacks={name: Position.parse(position) for name, position in settled},
            )

    def save(self, checkpoint: Checkpoint, gaps: Sequence[Gap] = ()) -> None:
        with self._writing() as db:
            self._refuse_backwards(checkpoint)
            db.execute(
                "INSERT OR REPLACE INTO checkpoint VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*astuple(checkpoint.source), str(checkpoint.flushed_lsn), checkpoint.last_event_id),
            )
            known = {name for (name,) in db.execute("SELECT callback FROM settled")}
            db.executemany(
                "DELETE FROM settled WHERE callback = ?",
                [(name,) for name in known - checkpoint.callbacks.keys()],
            )
            db.executemany(
                "INSERT OR REPLACE INTO settled VALUES (?, ?)",
                [(name, str(position)) for name, position in checkpoint.callbacks.items()],
            )
            db.executemany("INSERT OR REPLACE INTO gap VALUES (?, ?, ?, ?, ?, ?, ?)", [_gap_row(gap) for gap in gaps])

    def callbacks(self) -> list[CallbackRecord]:
        with self._reading() as db:
            records = {
                name: CallbackRecord(name, Position.parse(position))
                for name, position in db.execute("SELECT callback, position FROM settled")
            }
            for name, position, time, reason in db.execute("SELECT * FROM removed"):
                removed_at = Position.parse(position)
                settled = records[name].settled if name in records else removed_at
                records[name] = CallbackRecord(
                    name, settled, CallbackState.REMOVED, removed_at, datetime.fromisoformat(time), reason
                )
        return [records[name] for name in sorted(records)]

    def mark_removed(self, name: str, position: Position, reason: str) -> None:
        with self._writing() as db:
            db.execute(
                "INSERT OR IGNORE INTO removed VALUES (?, ?, ?, ?)",
                (name, str(position), _text(datetime.now(UTC)), reason),
            )

    def mark_active(self, name: str) -> None:
        with self._writing() as db:
            db.execute("DELETE FROM removed WHERE callback = ?", (name,))

    def gaps(self) -> list[Gap]:
        with self._reading() as db:
            found = [_gap(row) for row in db.execute("SELECT * FROM gap")]
        return sorted(found, key=lambda gap: (gap.first, gap.callback))

    def close(self) -> None:
        self._file.close()

    def _refuse_backwards(self, checkpoint: Checkpoint) -> None:
        """Guard against our own mistakes: what the server was told is settled cannot become unsettled."""
        row = self._db.execute(
            f"SELECT flushed_lsn FROM checkpoint WHERE ({_SOURCE}) = (?, ?, ?, ?, ?, ?)",  # noqa: S608 - our own words
            astuple(checkpoint.source),
        ).fetchone()
        if row is not None and checkpoint.flushed_lsn < Lsn.parse(row[0]):
            raise StateError(
                f"{self._path}: the checkpoint would go back from {row[0]} to {checkpoint.flushed_lsn}",
                hint="this is a mistake in cdc: please report it; the saved checkpoint stands",
            )

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Every SELECT inside sees the same moment."""
        with self._transaction("BEGIN") as db:
            try:
                yield db
            except (TypeError, ValueError) as error:  # values that no version of cdc writes
                raise StateError(f"{self._path} is damaged: {error}", hint=DAMAGED_HINT) from error

    def _writing(self) -> AbstractContextManager[sqlite3.Connection]:
        return self._transaction("BEGIN IMMEDIATE")

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with explained(self._path):
            self._db.execute(begin)
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # the first error tells more than that of the rollback
                    self._db.rollback()
                raise


def _gap_row(gap: Gap) -> tuple[str | int, ...]:
    return (
        gap.callback,
        str(gap.first),
        str(gap.last),
        gap.events,
        gap.reason,
        _text(gap.first_time),
        _text(gap.last_time),
    )


def _gap(row: tuple[str, str, str, int, str, str, str]) -> Gap:
    callback, first, last, events, reason, first_time, last_time = row
    return Gap(
        callback=callback,
        first=Position.parse(first),
        last=Position.parse(last),
        events=events,
        reason=reason,
        first_time=datetime.fromisoformat(first_time),
        last_time=datetime.fromisoformat(last_time),
    )


def _text(time: datetime) -> str:
    return time.astimezone(UTC).isoformat()
