"""What a callback receives: one row change, and where it stands in the stream.

An event of the stream holds the plugin's row undecoded (:class:`Row`) and shares what all events of
its transaction and of its table have in common; values are converted when first read. This module
must not know plugins, type OIDs or connections.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any, NamedTuple, Protocol

import msgspec

from cdc.lsn import Lsn
from cdc.values import PostgresValue, to_json

__all__ = ["DatabaseEvent", "EventType", "FixedRow", "Kind", "Position", "Row", "Transaction"]

_NOTHING: frozenset[str] = frozenset()


class EventType(Enum):
    """What happened to the row; `value` is the word used in configuration, metrics and JSON."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"
    TRUNCATE = "truncate"

    def __str__(self) -> str:
        return self.value

    __hash__ = object.__hash__  # members are singletons; Enum's own is a Python function, called for every event


class Position(NamedTuple):
    """Where an event stands: end LSN of its commit, and its 1-based ordinal in the transaction.

    Positions compare in delivery order; ``str()`` is the idempotency key. Ordinal 0 stands
    before the first event of the transaction.
    """

    commit_lsn: Lsn
    ordinal: int

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read ``X/X:ordinal``; ValueError for anything else."""
        lsn, _, ordinal = text.partition(":")
        if not (ordinal.isascii() and ordinal.isdigit()):
            raise ValueError(f"{text!r} is not a position like 16/B374D848:3")
        return cls(Lsn.parse(lsn), int(ordinal))

    def __str__(self) -> str:
        return f"{self.commit_lsn}:{self.ordinal}"


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """What all events of one table and type share; one object each, compared by identity."""

    event_type: EventType
    schema: str
    table_name: str
    tags: tuple[str, ...] = ()

    @property
    def table(self) -> str:
        """``schema.table`` for people and patterns."""
        return f"{self.schema}.{self.table_name}"


class Transaction:
    """What all events of one transaction share: `commit_lsn` is the end LSN of the commit."""

    __slots__ = ("_timestamp", "commit_lsn", "xid")

    def __init__(self, commit_lsn: int, xid: int, timestamp: str | datetime) -> None:
        self.commit_lsn = commit_lsn
        self.xid = xid
        self._timestamp = timestamp

    @property
    def timestamp(self) -> datetime:
        """Commit time, UTC; the plugin's text (ISO with offset) is parsed when first asked for."""
        if isinstance(self._timestamp, str):
            self._timestamp = datetime.fromisoformat(self._timestamp).astimezone(UTC)
        return self._timestamp


class Row(Protocol):
    """The row of one change, as its decoder gives it; each method may convert at every call."""

    def payload(self) -> Mapping[str, PostgresValue]:
        """New row of an insert or update; what is known of the old row of a delete."""

    def before(self) -> Mapping[str, PostgresValue] | None:
        """What the replica identity gives of the old row."""

    def unchanged(self) -> frozenset[str]:
        """TOAST columns that the server did not send."""

    def record_id(self) -> str | None:
        """Primary key as text, composite keys as a JSON array."""

    def previous_record_id(self) -> str | None:
        """The key before an update that changed it; the same as `record_id` otherwise."""


@dataclass(frozen=True, slots=True)
class FixedRow:
    """A row whose values are known already: of an event made by hand, or read back from a file."""

    values: Mapping[str, PostgresValue]
    old: Mapping[str, PostgresValue] | None = None
    missing: frozenset[str] = _NOTHING
    key: str | None = None

    def payload(self) -> Mapping[str, PostgresValue]:
        """See :class:`Row`."""
        return self.values

    def before(self) -> Mapping[str, PostgresValue] | None:
        """See :class:`Row`."""
        return self.old

    def unchanged(self) -> frozenset[str]:
        """See :class:`Row`."""
        return self.missing

    def record_id(self) -> str | None:
        """See :class:`Row`."""
        return self.key

    def previous_record_id(self) -> str | None:
        """See :class:`Row`."""
        return self.key


class DatabaseEvent(msgspec.Struct, gc=False, eq=False):  # made in a third of the time of a slotted class
    """One row change, which all its callbacks share. Make one by hand with :meth:`of`; the stream makes its own.

    ``id`` rises by one per event and is the same again on redelivery, as is ``position``.
    """

    id: int
    kind: Kind
    tags: tuple[str, ...]
    transaction: Transaction
    ordinal: int
    row: Row
    _payload: Mapping[str, PostgresValue] | msgspec.UnsetType = msgspec.UNSET
    _before: Mapping[str, PostgresValue] | msgspec.UnsetType | None = msgspec.UNSET

    @classmethod
    def of(  # noqa: PLR0913 - one keyword per field
        cls,
        event_type: EventType | str,
        table_name: str,
        payload: Mapping[str, PostgresValue] | None = None,
        *,
        id: int = 0,  # noqa: A002 - the specification's name
        schema: str = "public",
        record_id: str | None = None,
        tags: Iterable[str] = (),
        before: Mapping[str, PostgresValue] | None = None,
        unchanged: Iterable[str] = (),
        timestamp: datetime | None = None,
        position: Position = Position(Lsn(0), 0),
        transaction_id: int = 0,
    ) -> DatabaseEvent:
        """An event from its values, for `SignalManager.emit` and for tests. `timestamp` defaults to now."""
        return cls(
            id,
            Kind(EventType(event_type), schema, table_name),
            tuple(tags),
            Transaction(position.commit_lsn, transaction_id, timestamp or datetime.now(UTC)),
            position.ordinal,
            FixedRow(payload or {}, before, frozenset(unchanged), record_id),
        )

    @property
    def event_type(self) -> EventType:
        """CREATE, UPDATE, DELETE or TRUNCATE."""
        return self.kind.event_type

    @property
    def schema(self) -> str:
        """Schema of the table, unquoted."""
        return self.kind.schema

    @property
    def table_name(self) -> str:
        """Name of the table without its schema, unquoted; a partition's own name, not its parent's."""
        return self.kind.table_name

    @property
    def record_id(self) -> str | None:
        """Primary key as PostgreSQL's text; of several columns a JSON array, in the order of the table.

        None without a primary key, and where the replica identity of a deleted row does not hold it.
        """
        return self.row.record_id()

    @property
    def payload(self) -> Mapping[str, PostgresValue]:
        """Column name → value: the new row of a create or update, what is known of a deleted one.

        One object for all callbacks and all attempts: copy it before you change it.
        """
        payload = self._payload
        if payload is msgspec.UNSET:
            payload = self._payload = self.row.payload()
        return payload

    @property
    def before(self) -> Mapping[str, PostgresValue] | None:
        """Column name → old value, as far as the table's replica identity gives it."""
        before = self._before
        if before is msgspec.UNSET:
            before = self._before = self.row.before()
        return before

    @property
    def unchanged(self) -> frozenset[str]:
        """TOAST columns the server did not send: absent from `payload`, never None in it."""
        return self.row.unchanged()

    @property
    def timestamp(self) -> datetime:
        """Commit time, UTC."""
        return self.transaction.timestamp

    @property
    def position(self) -> Position:
        """End LSN of the commit and ordinal in the transaction; ``str()`` is the idempotency key."""
        return Position(Lsn(self.transaction.commit_lsn), self.ordinal)

    @property
    def transaction_id(self) -> int:
        """The transaction's xid (32 bits; PostgreSQL reuses them)."""
        return self.transaction.xid

    def with_row(self, row: Row) -> DatabaseEvent:
        """The same event with another row: a callback's own view of it, columns left out or masked."""
        return DatabaseEvent(self.id, self.kind, self.tags, self.transaction, self.ordinal, row)

    def to_dict(self) -> dict[str, Any]:
        """All public fields by name, values as Python objects."""
        return {
            "id": self.id,
            "event_type": self.event_type.value,
            "schema": self.schema,
            "table_name": self.table_name,
            "record_id": self.record_id,
            "tags": list(self.tags),
            "payload": self.payload,
            "before": self.before,
            "unchanged": sorted(self.unchanged),
            "timestamp": self.timestamp,
            "position": str(self.position),
            "transaction_id": self.transaction_id,
        }

    def to_json(self) -> bytes:
        """:meth:`to_dict` as UTF-8 JSON; exact values in text form (see `cdc.values.to_json`)."""
        return to_json(self.to_dict())

    def __repr__(self) -> str:
        # No values: events end up in logs.
        return f"<DatabaseEvent {self.id} {self.event_type} {self.kind.table} at {self.position}>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:  # what `rich` prints of a struct otherwise is all its fields
        return [("id", self.id), ("position", str(self.position))]
