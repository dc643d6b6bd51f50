"""The state in one SQLite file, durable when saved.

Owns the transactions; must not know how the file is made, locked and checked, nor what the rows mean.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cdc.codes import Code
from cdc.errors import StateError
from cdc.state.files import DAMAGED_HINT, DatabaseFile, explained
from cdc.state.rows import clean
from cdc.state.store import RowStore

__all__ = ["SqliteState"]

_HIGHEST_ID = 2**63 - 1


class SqliteState(RowStore):
    """The :class:`~cdc.state.records.StateStore` in a file. For one thread at a time, any thread."""

    schema = ""
    leased = False
    consumer = None
    taken_over = False

    def __init__(self, file: DatabaseFile) -> None:
        self._file = file
        self._path = file.path
        self._db = file.connection
        self._rows = _Rows(file.connection)
        self.where = str(file.path)

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False, owner: bool = False) -> SqliteState:
        """See :func:`cdc.state.open_state`."""
        return cls(DatabaseFile.open(path, read_only=read_only, owner=owner))

    def version(self) -> int:
        """See :class:`~cdc.state.records.StateStore`; so for all methods."""
        with explained(self._path):
            (version,) = self._db.execute("PRAGMA data_version").fetchone()
            return int(version)

    def ping(self) -> None:
        pass

    def shares_wal(self, system_identifier: str) -> bool:  # noqa: ARG002 - a file is in nobody's WAL
        return False

    def close(self) -> None:
        self._file.close()

    @contextmanager
    def _reading(self) -> Iterator[_Rows]:
        with self._transaction("BEGIN") as rows:
            try:
                yield rows
            except (TypeError, ValueError) as error:  # values that no version of cdc writes
                raise StateError(
                    f"{self._path} is damaged: {error}", hint=DAMAGED_HINT, code=Code.STATE_DAMAGED
                ) from error

    @contextmanager
    def _writing(self) -> Iterator[_Rows]:
        with self._transaction("BEGIN IMMEDIATE") as rows:
            yield rows
        with explained(self._path):
            self._file.require_in_place()  # afterwards: so it was there when it was written

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[_Rows]:
        with explained(self._path):
            self._db.execute(begin)
            try:
                yield self._rows
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # the first error tells more than that of the rollback
                    self._db.rollback()
                raise


class _Rows:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        return self._db.execute(statement, values)

    def executemany(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        self._db.executemany(statement, rows)

    def has_table(self, name: str) -> bool:
        found = self._db.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (name,))
        return found.fetchone() is not None

    def among(self, ids: Collection[int]) -> tuple[str, str]:
        known = [number for number in ids if 0 < number <= _HIGHEST_ID]
        return "id IN (SELECT value FROM json_each(?))", json.dumps(known)

    def text(self, text: str) -> str:
        return clean(text)
