"""Events as a database would give them: ids that rise by one, positions and commit times that rise.

Owns the counting. It must not know who is given the events.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cdc.events import DatabaseEvent, EventType, FixedRow, Kind, Transaction
from cdc.values import PostgresValue

__all__ = ["EventStream"]

Values = Mapping[str, PostgresValue]

START = datetime(2026, 1, 1, 12, tzinfo=UTC)
COMMIT_BYTES = 0x100  # of WAL between two commits
COMMIT_TIME = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class _MovedRow(FixedRow):
    """A row that knows its earlier key."""

    previous_key: str | None = None

    def previous_record_id(self) -> str | None:
        """See `cdc.events.Row`."""
        return self.previous_key


class EventStream:
    """Makes events in the order of a stream, each in a transaction of its own unless inside `transaction()`.

    Two streams with the same arguments and calls give the same events: for redelivery to another handler. `lsn`,
    `first_id` and `start` (aware) say where the stream begins. The record id is the payload's value in the column
    `key` as text, or what `record_id` says.
    """

    def __init__(self, *, lsn: int = 0x1000000, first_id: int = 1, start: datetime = START, key: str = "id") -> None:
        self._lsn = lsn
        self._id = first_id
        self._time = start
        self._key = key
        self._xid = 1000
        self._open: Transaction | None = None
        self._ordinal = 0
        self._kinds: dict[tuple[EventType, str], Kind] = {}

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is made inside the block is one transaction: one commit position, ordinals from 1."""
        if self._open is not None:
            raise RuntimeError("a transaction is open already")
        self._open, self._ordinal = self._next_transaction(), 0
        try:
            yield
        finally:
            self._open = None

    def create(
        self, table: str, payload: Values, *, tags: Iterable[str] = (), record_id: str | None = None
    ) -> DatabaseEvent:
        """An INSERT. `table` is "table" or "schema.table"."""
        return self._event(
            EventType.CREATE, table, FixedRow(payload, None, frozenset(), self._id_of(payload, record_id)), tags
        )

    def update(
        self,
        table: str,
        payload: Values,
        *,
        before: Values | None = None,
        unchanged: Iterable[str] = (),
        tags: Iterable[str] = (),
        record_id: str | None = None,
    ) -> DatabaseEvent:
        """An UPDATE: `before` as far as the replica identity gives it; a changed key is seen there."""
        key = self._id_of(payload, record_id)
        previous = key if before is None or self._key not in before else str(before[self._key])
        row = _MovedRow(payload, before, frozenset(unchanged), key, previous)
        return self._event(EventType.UPDATE, table, row, tags)

    def delete(
        self, table: str, old: Values, *, tags: Iterable[str] = (), record_id: str | None = None
    ) -> DatabaseEvent:
        """A DELETE: `old` is what is known of the row."""
        row = FixedRow(old, old, frozenset(), self._id_of(old, record_id))
        return self._event(EventType.DELETE, table, row, tags)

    def truncate(self, table: str) -> DatabaseEvent:
        """A TRUNCATE, which has no row."""
        return self._event(EventType.TRUNCATE, table, FixedRow({}), ())

    def inserts(self, count: int, table: str = "items", *, per_transaction: int = 100) -> list[DatabaseEvent]:
        """So many creates of different records ``{"id": 1, "name": "item 1"}``, in transactions of this size."""
        events: list[DatabaseEvent] = []
        while len(events) < count:
            with self.transaction():
                numbers = range(self._id, self._id + min(per_transaction, count - len(events)))
                events += [self.create(table, {"id": number, "name": f"item {number}"}) for number in numbers]
        return events

    def _id_of(self, values: Values, record_id: str | None) -> str | None:
        if record_id is not None or values.get(self._key) is None:
            return record_id
        return str(values[self._key])

    def _event(self, event_type: EventType, table: str, row: FixedRow, tags: Iterable[str]) -> DatabaseEvent:
        if self._open is None:
            with self.transaction():
                return self._event(event_type, table, row, tags)
        kind = self._kinds.get((event_type, table))
        if kind is None:
            schema, _, name = table.rpartition(".")
            kind = self._kinds[event_type, table] = Kind(event_type, schema or "public", name)
        self._ordinal += 1
        event = DatabaseEvent(self._id, kind, tuple(tags), self._open, self._ordinal, row)
        self._id += 1
        return event

    def _next_transaction(self) -> Transaction:
        self._lsn += COMMIT_BYTES
        self._xid += 1
        self._time += COMMIT_TIME
        return Transaction(self._lsn, self._xid, self._time)
