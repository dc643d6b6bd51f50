"""The journal of the `notify` handler: what was sent, and what waits for a digest, in a SQLite file.

A mail cannot be taken back, and a mail server cannot be asked what it has got: so what was sent is written down
here, and an event that comes again is known. And an event that waits for a digest is settled, so it is on the disk
here. Owns the tables; must not know rules, templates or channels. Used by one thread at a time.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cdc import DatabaseEvent

__all__ = ["Held", "Journal", "Key", "Window"]

REMEMBERED = 200_000
"""Events kept as known: a crash gives back what was under way, bounded by the queue's 10,000 by default."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_TABLES = """
CREATE TABLE IF NOT EXISTS route (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, started REAL NOT NULL DEFAULT 0, used INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS known (
    id INTEGER PRIMARY KEY AUTOINCREMENT, route INTEGER NOT NULL, lsn TEXT NOT NULL, ordinal INTEGER NOT NULL,
    committed INTEGER NOT NULL, UNIQUE (route, lsn, ordinal, committed)
);
CREATE TABLE IF NOT EXISTS held (
    route INTEGER NOT NULL, what TEXT NOT NULL, count INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    PRIMARY KEY (route, what)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sample (id INTEGER PRIMARY KEY, route INTEGER NOT NULL, text TEXT NOT NULL);
"""


class Key(NamedTuple):
    """What an event is known by: positions come again on another cluster, at other times."""

    lsn: str
    ordinal: int
    committed: int  # microseconds since 1970

    @classmethod
    def of(cls, event: DatabaseEvent) -> Key | None:
        """None for an event that was emitted by hand: nothing tells it from others."""
        position = event.position
        if position.commit_lsn == 0:
            return None
        return cls(str(position.commit_lsn), position.ordinal, microseconds(event))


def microseconds(event: DatabaseEvent) -> int:
    """Of its commit, since 1970."""
    return (event.timestamp - _EPOCH) // timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Window:
    """Of a route: when its window began (seconds since 1970), and how many messages it has had since."""

    started: float
    used: int


class Held(NamedTuple):
    """Events of one kind that wait for a digest: ``update public.orders``, how many, first and last commit (µs)."""

    what: str
    number: int
    first: int
    last: int


class Journal:
    """Open it before anything else; RuntimeError if somebody else has the file, sqlite3.Error if it cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None

    def open(self) -> None:
        """Make or open the file, and keep it for us."""
        if self._connection is not None:
            return
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # it holds titles
        # In autocommit: each change says itself where its transaction begins. Threads take turns by the handler's lock.
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=0.5)
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # before WAL: no shared memory, one process
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")  # settled is on the disk
            connection.execute("BEGIN EXCLUSIVE")
            for statement in filter(str.strip, _TABLES.split(";")):
                connection.execute(statement)
            connection.execute("COMMIT")
        except BaseException as error:
            connection.close()
            if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
                raise RuntimeError(f"another handler uses the journal {self.path}: give each one of its own") from None
            raise
        self._connection = connection

    def close(self) -> None:
        """Let the file go; a second call does nothing."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return self._connection is not None

    def route(self, name: str) -> tuple[int, Window]:
        """Number and window of a route, made when it is new."""
        self._db.execute("INSERT INTO route (name) VALUES (?) ON CONFLICT DO NOTHING", [name])
        number, started, used = self._db.execute(
            "SELECT id, started, used FROM route WHERE name = ?", [name]
        ).fetchone()
        return number, Window(started, used)

    def waiting(self) -> dict[str, int]:
        """Events that wait for a digest, by the route's name."""
        query = "SELECT name, sum(count) FROM held JOIN route ON route.id = held.route GROUP BY name"
        return dict(self._db.execute(query).fetchall())

    def fresh(self, route: int, events: Iterable[DatabaseEvent]) -> list[DatabaseEvent]:
        """Those that are not known yet, in their order; one that is given twice is given back once."""
        found, seen = [], set()
        query = "SELECT 1 FROM known WHERE route = ? AND lsn = ? AND ordinal = ? AND committed = ?"
        for event in events:
            key = Key.of(event)
            if key is not None and (key in seen or self._db.execute(query, (route, *key)).fetchone()):
                continue
            seen.add(key)
            found.append(event)
        return found

    def sent(self, route: int, window: Window, event: DatabaseEvent) -> None:
        """A message of its own was taken by the channel."""
        with self._transaction():
            self._know(route, [event])
            self._set(route, window)

    def hold(self, route: int, window: Window, events: Sequence[DatabaseEvent], samples: Sequence[str]) -> None:
        """These wait for a digest: on the disk when this returns."""
        counts: dict[str, Held] = {}
        for event in events:
            what, moment = f"{event.event_type.value} {event.schema}.{event.table_name}", microseconds(event)
            known = counts.get(what, Held(what, 0, moment, moment))
            counts[what] = Held(what, known.number + 1, min(known.first, moment), max(known.last, moment))
        with self._transaction():
            self._know(route, events)
            self._set(route, window)
            self._db.executemany(
                "INSERT INTO held VALUES (?, ?, ?, ?, ?) ON CONFLICT (route, what) DO UPDATE SET"
                " count = count + excluded.count, first = min(first, excluded.first), last = max(last, excluded.last)",
                [(route, *held) for held in counts.values()],
            )
            self._db.executemany("INSERT INTO sample (route, text) VALUES (?, ?)", [(route, text) for text in samples])

    def held(self, route: int) -> tuple[list[Held], list[str]]:
        """What waits for the digest of a route, most frequent first, and its samples."""
        query = "SELECT what, count, first, last FROM held WHERE route = ? ORDER BY count DESC, what"
        rows = [Held(*row) for row in self._db.execute(query, [route])]
        samples = self._db.execute("SELECT text FROM sample WHERE route = ? ORDER BY id", [route])
        return rows, [text for (text,) in samples]

    def digested(self, route: int, window: Window) -> None:
        """The digest of all that waits was taken by the channel."""
        with self._transaction():
            self._db.execute("DELETE FROM held WHERE route = ?", [route])
            self._db.execute("DELETE FROM sample WHERE route = ?", [route])
            self._set(route, window)

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            raise RuntimeError("the notify handler is not open")
        return self._connection

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)

    def _know(self, route: int, events: Iterable[DatabaseEvent]) -> None:
        keys = [(route, *key) for key in map(Key.of, events) if key is not None]
        self._db.executemany("INSERT OR IGNORE INTO known (route, lsn, ordinal, committed) VALUES (?, ?, ?, ?)", keys)
        self._db.execute("DELETE FROM known WHERE id <= (SELECT max(id) FROM known) - ?", [REMEMBERED])

    def _set(self, route: int, window: Window) -> None:
        self._db.execute("UPDATE route SET started = ?, used = ? WHERE id = ?", [window.started, window.used, route])


class _Transaction:
    """All of the block's changes on the disk, or none."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            try:
                self._connection.execute("COMMIT")
            except sqlite3.Error:  # disk full: nothing of it is there, and the next transaction can begin
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        elif self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
