"""Holds what was delivered against what was committed: ledger, order, shadow tables, the bank's sum.

Reads the tapes of `recorder.py` as they grow, deletes what it has read, and keeps no more than the shadow
tables and a window of what may still come again: it can watch for hours.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg

from cdc.events import Position
from tests.conftest import Database
from tests.faults.recorder import Row, canon, canon_row, segment
from tests.faults.workload import ACCOUNTS, BALANCE, KEYS

WINDOW = 50_000
"""Events whose facts are remembered: many times what lies between two checkpoints and in all queues."""
BEGINNING = Position.parse("0/0:0")

Entry = dict[str, Any]


class Broken(AssertionError):
    """A guarantee is broken."""


class Tape:
    """Reads the lines of a tape that are whole, each once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number = 0
        self._offset = 0

    def read(self) -> Iterator[Entry]:
        """What is new."""
        while True:
            has_next = segment(self._path, self._number + 1).exists()  # asked before: then this one is complete
            yield from self._rest()
            if not has_next:
                return
            segment(self._path, self._number).unlink()
            self._number += 1
            self._offset = 0

    def _rest(self) -> Iterator[Entry]:
        file = segment(self._path, self._number)
        if not file.exists():
            return
        with file.open("rb") as stream:
            stream.seek(self._offset)
            for line in stream:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield json.loads(line)


class Ledger:
    """Which transactions of each writer have arrived; they come one after the other, or with a few missing."""

    def __init__(self) -> None:
        self._upto: dict[int, int] = {}
        self._beyond: dict[int, set[int]] = {}

    def add(self, writer: int, number: int) -> None:
        """One has arrived, perhaps again."""
        upto, beyond = self._upto.get(writer, 0), self._beyond.setdefault(writer, set())
        if number > upto:
            beyond.add(number)
        while upto + 1 in beyond:
            upto += 1
            beyond.remove(upto)
        self._upto[writer] = upto

    def lacks(self, committed: Mapping[int, int]) -> dict[int, int]:
        """The writers of whom something is missing, and the first that is."""
        return {writer: self._upto.get(writer, 0) + 1 for writer, last in committed.items() if self.upto(writer) < last}

    def upto(self, writer: int) -> int:
        """All up to this one have arrived."""
        return self._upto.get(writer, 0)


class Shadow:
    """The tables as the events tell them. What comes again is known by its position and changes nothing."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[Any, Row]] = {table: {} for table in KEYS}
        self._last: dict[str, dict[Any, Position]] = {table: {} for table in KEYS}
        self._truncated = dict.fromkeys(KEYS, BEGINNING)

    def apply(self, entry: Entry) -> None:
        """One event."""
        table, position = entry["table"], Position.parse(entry["position"])
        if entry["type"] == "truncate":
            self._truncate(table, position)
            return
        rows, columns = self.tables[table], KEYS[table]
        new = tuple(entry["row"][column] for column in columns)
        old = tuple((entry["before"] or entry["row"])[column] for column in columns)
        if not self._is_news(table, new, position):
            return
        before = rows.pop(old, {})
        self._last[table][old] = self._last[table][new] = position
        if entry["type"] == "delete" or entry["row"].get("__is_active__") is False:
            return
        rows[new] = entry["row"] | {column: before[column] for column in entry["unchanged"]}

    def _is_news(self, table: str, key: Any, position: Position) -> bool:
        return position > max(self._last[table].get(key, BEGINNING), self._truncated[table])

    def _truncate(self, table: str, position: Position) -> None:
        if position <= self._truncated[table]:
            return
        self._truncated[table] = position
        rows, last = self.tables[table], self._last[table]
        for key in [key for key in rows if last[key] < position]:
            del rows[key]

    def assert_equals(self, source: Mapping[str, Mapping[Any, Row]]) -> None:
        """Every table, every row, every value."""
        for table, rows in source.items():
            have = self.tables[table]
            if have == rows:
                continue
            differing = [key for key in sorted(have.keys() | rows.keys(), key=str) if have.get(key) != rows.get(key)]
            first = differing[0]
            raise Broken(f"{table}: {len(differing)} rows differ, {first}: {have.get(first)} is not {rows.get(first)}")


class Oracle:
    """Of one handler: feeds on its tape. What is broken is raised at once, as :class:`Broken`."""

    def __init__(self, path: Path) -> None:
        self._tape = Tape(path)
        self.ledger = Ledger()
        self.shadow = Shadow()
        self.events = 0
        self.repeated = 0
        self.highest = 0  # the highest id
        self.latest = BEGINNING  # of the highest position
        self._facts: OrderedDict[int, int] = OrderedDict()
        self._settled = BEGINNING  # a durable checkpoint: nothing up to there comes again
        self._run = 0

    def read(self) -> None:
        """Take what is new on the tape."""
        for entry in self._tape.read():
            self.feed(entry)

    def restarted(self, settled: Position | None) -> None:
        """The process was killed, or has stopped: what its durable state says of this handler."""
        self.read()
        if settled is None:
            return
        if settled > self.latest and settled.ordinal:  # ordinal 0, or a later LSN: nothing of ours lies there
            raise Broken(f"settled up to {settled}, but {self.latest} is the last that was delivered")
        self._settled = settled

    def feed(self, entry: Entry) -> None:
        """One line of the tape."""
        if "overlap" in entry:
            raise Broken(f"two calls for {entry['overlap']} at once")
        self.events += 1
        if is_new_run := entry["run"] != self._run:
            self._run = entry["run"]
            self._new_run()
        position = Position.parse(entry["position"])
        if position <= self._settled:
            raise Broken(f"{position} again, although a durable checkpoint had it settled at {self._settled}")
        self._remember(entry)
        self._order(entry, position, is_new_run=is_new_run)
        is_news = position > self.latest
        self.latest = max(self.latest, position)
        self._take(entry, is_news=is_news)

    def _remember(self, entry: Entry) -> None:
        """An event that comes again is the same again."""
        number = entry["id"]
        facts = hash(json.dumps({**entry, "run": 0}, sort_keys=True))
        if number in self._facts:
            self.repeated += 1
            if self._facts[number] != facts:
                raise Broken(f"event {number} has changed: {entry}")
            return
        if self._facts and number < self.highest - WINDOW:
            raise Broken(f"event {number} comes again, long after {self.highest}")
        self._facts[number] = facts
        if len(self._facts) > WINDOW:
            self._facts.popitem(last=False)

    def _new_run(self) -> None:
        """Another process than before."""

    def _order(self, entry: Entry, position: Position, *, is_new_run: bool) -> None:
        raise NotImplementedError

    def _take(self, entry: Entry, *, is_news: bool) -> None:
        raise NotImplementedError

    def committed(self, connection: psycopg.Connection) -> dict[int, int]:
        """The last transaction of each writer, as the source has it."""
        rows = connection.execute("SELECT writer, max(n) FROM ledger GROUP BY writer").fetchall()
        return {int(writer): int(number) for writer, number in rows}

    def has_all(self, database: Database) -> bool:
        """Whether all that was committed has arrived."""
        self.read()
        with database.connect() as connection:
            return not self.ledger.lacks(self.committed(connection))

    def assert_complete(self, database: Database) -> None:
        """At rest: nothing is missing, and the shadow is the source."""
        self.read()
        with database.connect() as connection, connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            self.assert_equal_to(connection)

    def assert_equal_to(self, connection: psycopg.Connection) -> None:
        """What was read so far, and what that connection sees."""
        if lacking := self.ledger.lacks(self.committed(connection)):
            raise Broken(f"transactions are missing, by writer, from: {lacking}")
        self.shadow.assert_equals({table: source_rows(connection, table) for table in KEYS})


class InOrder(Oracle):
    """Of a handler with one lane: ids without holes, whole transactions in the order of their commits."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._last = 0
        self._open: list[Entry] = []
        self.transactions = 0

    def _order(self, entry: Entry, position: Position, *, is_new_run: bool) -> None:
        number = entry["id"]
        if number != self._last + 1 and not (is_new_run and number <= self.highest):
            raise Broken(f"event {number} after {self._last}, in {'another' if is_new_run else 'the same'} process")
        if (number > self.highest) != (position > self.latest):
            raise Broken(f"event {number} at {position}, after {self.highest} at {self.latest}")
        self._last = number
        self.highest = max(self.highest, number)

    def _take(self, entry: Entry, *, is_news: bool) -> None:
        if not is_news:
            return
        lsn = entry["position"].partition(":")[0]
        if self._open and self._open[0]["position"].partition(":")[0] != lsn:
            raise Broken(f"the transaction at {self._open[0]['position']} ended without its ledger")
        if entry["table"] != "ledger":
            self._open.append(entry)
            return
        self._close(entry)

    def _close(self, entry: Entry) -> None:
        """The last event of a transaction: all of it was delivered as it was committed; apply it whole."""
        told = [_change(event) for event in self._open]
        changes = [_stated(change) for change in json.loads(entry["row"]["changes"])]
        if told != changes:
            raise Broken(f"the transaction at {entry['position']} was {changes}, delivered was {told}")
        for event in self._open:
            self.shadow.apply(event)
        self._open = []
        self.transactions += 1
        self.ledger.add(entry["row"]["writer"], entry["row"]["n"])
        accounts = self.shadow.tables["accounts"].values()
        if accounts and sum(row["balance"] for row in accounts) != ACCOUNTS * BALANCE:
            raise Broken(f"after the transaction at {entry['position']} the accounts do not add up")


class PerKey(Oracle):
    """Of a handler with several lanes: each record in order, all ids in the end."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._beyond: set[int] = set()
        self._last: dict[tuple[str, Any], Position] = {}

    def _new_run(self) -> None:
        self._last = {}

    def _order(self, entry: Entry, position: Position, *, is_new_run: bool) -> None:
        del is_new_run
        if entry["id"] > self.highest:
            self._beyond.add(entry["id"])
        while self.highest + 1 in self._beyond:
            self.highest += 1
            self._beyond.remove(self.highest)
        if entry["table"] == "ledger":
            return
        for key in {_key_of(entry, entry["row"]), _key_of(entry, entry["before"] or entry["row"])}:
            record = (entry["table"], key)
            if self._last.get(record, BEGINNING) >= position:
                raise Broken(f"{record} at {position} after {self._last[record]}")
            self._last[record] = position

    def _take(self, entry: Entry, *, is_news: bool) -> None:
        del is_news
        if entry["table"] == "ledger":
            self.ledger.add(entry["row"]["writer"], entry["row"]["n"])
        else:
            self.shadow.apply(entry)

    def has_all(self, database: Database) -> bool:
        # The ledger's row, the last of a transaction, may overtake in its lane what is on its way in another.
        return super().has_all(database) and not self._beyond

    def assert_complete(self, database: Database) -> None:
        super().assert_complete(database)
        if self._beyond:
            raise Broken(f"event {self.highest + 1} is missing, {len(self._beyond)} after it have arrived")


def source_rows(connection: psycopg.Connection, table: str) -> dict[Any, Row]:
    """A table as the shadow should have it: soft-deleted rows are none."""
    cursor = connection.execute(f"SELECT * FROM {table}".encode())
    names = [column.name for column in cursor.description or ()]
    rows = [dict(zip(names, values, strict=True)) for values in cursor]
    return {
        tuple(canon(row[column]) for column in KEYS[table]): canon_row(row)
        for row in rows
        if row.get("__is_active__") is not False
    }


def _key_of(entry: Entry, row: Row) -> Any:
    return tuple(row[column] for column in KEYS[entry["table"]]) if entry["type"] != "truncate" else None


def _change(entry: Entry) -> tuple[Any, ...]:
    """What an event tells, in the words of the workload."""
    key = entry["key"]
    if key is not None and len(KEYS[entry["table"]]) > 1:
        key = tuple(json.loads(key))
    if entry["type"] != "update" or (old := _key_of(entry, entry["before"] or entry["row"])) is None:
        return (entry["type"], entry["table"], key)
    before = str(old[0]) if len(old) == 1 else old
    return (entry["type"], entry["table"], key, before)


def _stated(change: Sequence[Any]) -> tuple[Any, ...]:
    """What the ledger tells; an update that says nothing else has kept its key."""
    words = [tuple(word) if isinstance(word, list) else word for word in change]
    return tuple(words) if words[0] != "update" or len(words) == 4 else (*words, words[2])
