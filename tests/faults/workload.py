"""Random transactions from several connections, and in each what it has changed, in its own words.

The last statement of a transaction writes a row into `ledger`: who, the how-manieth, and every change of it
that was not rolled back, in order. So a stream of events can be held against what was committed without
looking at the tables, transaction by transaction.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg import sql

from tests.conftest import Database

Change = Sequence[Any]
"""Type, table, key (a list if it has several columns, None for TRUNCATE) and, of an update, the key before."""

SCHEMA = """
CREATE TABLE items (id bigint PRIMARY KEY, note text, amount numeric, made timestamptz, raw bytea, extra jsonb,
    tags text[], __is_active__ boolean NOT NULL DEFAULT true);
ALTER TABLE items REPLICA IDENTITY FULL;
CREATE TABLE wide (id bigint PRIMARY KEY, n int, body text, other text);
ALTER TABLE wide ALTER body SET STORAGE EXTERNAL, ALTER other SET STORAGE EXTERNAL;
CREATE TABLE pairs (a int, b text, v int, PRIMARY KEY (a, b));
CREATE TABLE copied (id bigint PRIMARY KEY, v text);
CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);
CREATE TABLE ledger (writer int, n bigint, changes text NOT NULL, PRIMARY KEY (writer, n))
"""
KEYS = {"items": ("id",), "wide": ("id",), "pairs": ("a", "b"), "copied": ("id",), "accounts": ("id",)}
"""The tables that are shadowed, with their primary keys."""
ACCOUNTS = 20
BALANCE = 1000
OPENING = 0
"""The writer of the first transaction, which opens the accounts."""
LOCK_TIMEOUT = "2s"


class _RolledBackError(Exception):
    """A transaction, or a part of it, that ends so on purpose."""


class Transaction:
    """One transaction in work: statements, and what they have changed; `scale` bounds the rows of the larger ones."""

    def __init__(self, connection: psycopg.Connection, chance: random.Random, scale: int = 0) -> None:
        self._connection = connection
        self._chance = chance
        self._scale = scale
        self.changes: list[Change] = []

    def run(self) -> None:
        """A few random steps."""
        steps: dict[Callable[[], None], int] = {
            self._insert: 6,
            self._upsert: 2,
            self._update: 5,
            self._update_many: 2,
            self._delete: 3,
            self._move: 2,
            self._toggle: 2,
            self._widen: 3,
            self._touch_wide: 3,
            self._move_wide: 1,
            self._pair: 3,
            self._move_pair: 1,
            self._copy: 1,
            self._truncate: 0 if self._chance.random() < 0.9 else 1,
            self._savepoint: 3,
        }
        for step in self._chance.choices(list(steps), list(steps.values()), k=self._chance.randint(1, 6)):
            step()

    def transfer(self) -> None:
        """Between two accounts."""
        amount = self._chance.randint(1, 100)
        pair = sorted(self._chance.sample(range(1, ACCOUNTS + 1), 2))
        for account, change in zip(pair, (amount, -amount), strict=True):
            self._each(
                "update", "accounts", "UPDATE accounts SET balance = balance + %s WHERE id = %s", change, account
            )

    def open_accounts(self) -> None:
        """The first transaction."""
        self._each(
            "create", "accounts", "INSERT INTO accounts SELECT i, %s FROM generate_series(1, %s) i", BALANCE, ACCOUNTS
        )

    def _each(self, kind: str, table: str, statement: str, *values: Any) -> None:
        """A statement that changes rows without changing their keys."""
        columns = KEYS[table]
        rows = self._connection.execute(f"{statement} RETURNING {', '.join(columns)}".encode(), values).fetchall()
        self.changes += [(kind, table, _key(row)) for row in rows]

    def _id(self) -> int:
        return self._chance.randint(1, 300)

    def _text(self, least: int, most: int) -> str:
        return self._chance.randbytes(self._chance.randint(least, most) // 2 + 1).hex()

    def _values(self) -> tuple[Any, ...]:
        chance = self._chance
        amount = f"{chance.randint(-(10**12), 10**12)}.{chance.randint(0, 999):03}"
        note = None if chance.random() < 0.1 else self._text(0, 60) + chance.choice(["", "ü😀", "\n\t\"'\\", "{,}"])
        extra = json.dumps({"n": chance.randint(0, 9), "t": self._text(0, 8), "l": [1, None, True]})
        return (note, amount, f"2026-01-01 00:00:00.{chance.randint(0, 999999):06}+00", chance.randbytes(8), extra)

    def _insert(self) -> None:
        statement = "INSERT INTO items VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING"
        self._each("create", "items", statement, self._id(), *self._values(), [self._text(0, 5), None, "a,b"])

    def _upsert(self) -> None:
        number = self._chance.randint(0, 9)
        statement = (
            "INSERT INTO items (id, note) VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET note = excluded.note"
            " RETURNING id, xmax = 0"
        )
        for key, is_new in self._connection.execute(statement, [self._id(), f"upsert {number}"]):
            self.changes.append(("create" if is_new else "update", "items", _key((key,))))

    def _update(self) -> None:
        statement = "UPDATE items SET note = %s, amount = %s, made = %s, raw = %s, extra = %s WHERE id = %s"
        self._each("update", "items", statement, *self._values(), self._id())

    def _update_many(self) -> None:
        first = self._id()
        statement = "UPDATE items SET amount = amount + 0.5 WHERE id BETWEEN %s AND %s"
        self._each("update", "items", statement, first, first + self._chance.randint(1, 20))

    def _delete(self) -> None:
        table = self._chance.choice(["items", "wide", "copied"])
        self._each("delete", table, f"DELETE FROM {table} WHERE id = %s", self._id())

    def _toggle(self) -> None:
        """A soft delete, or the way back."""
        statement = (
            "UPDATE items SET __is_active__ = NOT __is_active__, note = 'toggled' WHERE id = %s"
            " RETURNING id, __is_active__"
        )
        for key, is_active in self._connection.execute(statement, [self._id()]):
            self.changes.append(("update" if is_active else "delete", "items", _key((key,))))

    def _move(self) -> None:
        self._change_key("items", ["id"], [self._id()], [self._id()])

    def _move_wide(self) -> None:
        self._change_key("wide", ["id"], [self._chance.randint(1, 60)], [self._chance.randint(1, 60)])

    def _move_pair(self) -> None:
        new = [self._chance.randint(1, 8), self._chance.choice("xyz")]
        self._change_key("pairs", ["a", "b"], [self._chance.randint(1, 8), self._chance.choice("xyz")], new)

    def _change_key(self, table: str, columns: Sequence[str], old: Sequence[Any], new: Sequence[Any]) -> None:
        """To a key that nobody has; if somebody was faster, the whole transaction fails, as it may."""
        where = " AND ".join(f"{column} = %s" for column in columns)
        assigned = ", ".join(f"{column} = %s" for column in columns)
        statement = (
            f"UPDATE {table} SET {assigned} WHERE {where} AND NOT EXISTS (SELECT FROM {table} WHERE {where})"
        ).encode()
        if self._connection.execute(statement, [*new, *old, *new]).rowcount:
            self.changes.append(("update", table, _key(new), _key(old)))

    def _widen(self) -> None:
        statement = "INSERT INTO wide VALUES (%s, 0, %s, %s) ON CONFLICT DO NOTHING"
        body, other = self._text(2_000, 20_000), self._text(0, 6_000)
        self._each("create", "wide", statement, self._chance.randint(1, 60), body, other)

    def _touch_wide(self) -> None:
        """What lies outside of the row is left alone, or one of the two is written anew."""
        key = self._chance.randint(1, 60)
        if self._chance.random() < 0.5:
            self._each("update", "wide", "UPDATE wide SET n = n + 1 WHERE id = %s", key)
        else:
            self._each("update", "wide", "UPDATE wide SET body = %s WHERE id = %s", self._text(2_000, 9_000), key)

    def _pair(self) -> None:
        a, b = self._chance.randint(1, 8), self._chance.choice("xyz")
        if self._chance.random() < 0.6:
            self._each("create", "pairs", "INSERT INTO pairs VALUES (%s, %s, 0) ON CONFLICT DO NOTHING", a, b)
        else:
            self._each("update", "pairs", "UPDATE pairs SET v = v + 1 WHERE (a, b) = (%s, %s)", a, b)

    def _copy(self) -> None:
        first = self._chance.randint(1, 20 * self._scale)
        last = first + self._chance.randint(0, self._scale)
        self._each("delete", "copied", "DELETE FROM copied WHERE id BETWEEN %s AND %s", first, last)
        with self._connection.cursor().copy("COPY copied FROM STDIN") as copy:
            for key in range(first, last + 1):
                copy.write_row((key, self._text(0, 40)))
        self.changes += [("create", "copied", str(key)) for key in range(first, last + 1)]

    def _truncate(self) -> None:
        self._connection.execute("TRUNCATE copied")
        self.changes.append(("truncate", "copied", None))

    def _savepoint(self) -> None:
        """A part of its own, every second time rolled back, by itself or by an error."""
        kept, ending = len(self.changes), self._chance.random()
        try:
            with self._connection.transaction():
                for step in self._chance.choices(
                    [self._insert, self._update, self._delete, self._widen, self._move], k=3
                ):
                    step()
                if ending < 0.5:
                    self._fail(on_purpose=ending < 0.25)
        except (_RolledBackError, psycopg.errors.DivisionByZero):
            del self.changes[kept:]

    def _fail(self, *, on_purpose: bool) -> None:
        if on_purpose:
            raise _RolledBackError
        self._connection.execute("SELECT 1 / 0")


def _key(values: Sequence[Any]) -> Any:
    """As an event names it: the text of one column, a list of several."""
    return str(values[0]) if len(values) == 1 else list(values)


class Writer(threading.Thread):
    """One connection's transactions, one after the other; a lost connection is made anew."""

    def __init__(
        self, database: Database, seed: str, number: int, end: threading.Event, pause: float, scale: int
    ) -> None:
        super().__init__(name=f"writer-{number}", daemon=True)
        self._database = database
        self._chance = random.Random(f"{seed}/{number}")
        self._number = number
        self._end = end
        self._pause = pause
        self._scale = scale
        self.committed = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._end.is_set():
                try:
                    with self._database.connect() as connection:
                        self._write(connection)
                except psycopg.OperationalError:
                    self._end.wait(0.1)  # the server has gone, and comes back
        except BaseException as error:  # noqa: BLE001 - told by `Workload.stop`
            self.error = error

    def _write(self, connection: psycopg.Connection) -> None:
        connection.execute(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
        self.committed = self._in_ledger(connection)  # a COMMIT that got no answer: only the table knows
        while not self._end.is_set():
            try:
                with connection.transaction():
                    self._one(connection)
                self.committed += 1
            except (_RolledBackError, psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected):
                pass
            except psycopg.errors.LockNotAvailable:
                pass
            self._end.wait(self._pause * self._chance.random() * 2)

    def _in_ledger(self, connection: psycopg.Connection) -> int:
        row = connection.execute("SELECT max(n) FROM ledger WHERE writer = %s", [self._number]).fetchone()
        return int(row[0] or 0) if row else 0

    def _one(self, connection: psycopg.Connection) -> None:
        transaction = Transaction(connection, self._chance, self._scale)
        if self._chance.random() < 0.3:
            transaction.transfer()
        else:
            transaction.run()
        if self._chance.random() < 0.1:
            raise _RolledBackError
        note(connection, self._number, self.committed + 1, transaction.changes)


def note(connection: psycopg.Connection, writer: int, number: int, changes: Sequence[Change]) -> None:
    """The last statement of a transaction."""
    values = [writer, number, json.dumps(changes)]
    connection.execute(sql.SQL("INSERT INTO ledger VALUES (%s, %s, %s)"), values)


class Workload:
    """Several writers, until `stop`."""

    def __init__(
        self, database: Database, seed: object, *, writers: int = 3, pause: float = 0.015, scale: int = 30
    ) -> None:
        self._database = database
        self._settings = (str(seed), writers, pause, scale)
        self._end = threading.Event()
        self._writers: list[Writer] = []
        self._starts = 0

    @staticmethod
    def prepare(database: Database) -> None:
        """Make the tables, empty: the slot shall see all that is ever in them."""
        database.execute(SCHEMA)

    @staticmethod
    def open_accounts(database: Database) -> None:
        """The first transaction, after the slot was made."""
        with database.connect() as connection, connection.transaction():
            transaction = Transaction(connection, random.Random(0))
            transaction.open_accounts()
            note(connection, OPENING, 1, transaction.changes)

    def start(self) -> None:
        """Begin, or go on after a `stop`."""
        seed, writers, pause, scale = self._settings
        self._end = threading.Event()
        self._starts += 1
        again = f"{seed}/{self._starts}"
        self._writers = [
            Writer(self._database, again, number, self._end, pause, scale) for number in range(1, writers + 1)
        ]
        for writer in self._writers:
            writer.start()

    @property
    def committed(self) -> int:
        """Transactions so far."""
        return sum(writer.committed for writer in self._writers)

    def stop(self) -> None:
        """Let each writer end its transaction; what went wrong in one of them is raised."""
        self._end.set()
        for writer in self._writers:
            writer.join()
        for writer in self._writers:
            if writer.error is not None:
                raise writer.error

    def __enter__(self) -> Workload:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
