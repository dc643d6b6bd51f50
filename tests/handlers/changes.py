"""Single changes of rows, made by hand: what the tests of the Redis and search handlers give them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cdc import DatabaseEvent, EventType, Lsn, Position
from cdc.events import FixedRow

__all__ = ["NOON", "event", "moved"]

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def event(
    number: int,
    kind: EventType | str = "create",
    *,
    lsn: int = 0x1000,
    record_id: str | None = "",
    table: str = "users",
    payload: dict[str, Any] | None = None,
    **fields: Any,
) -> DatabaseEvent:
    """The change with this ordinal of the transaction at `lsn`; by default each is of a record of its own."""
    key = str(number) if record_id == "" else record_id
    row: dict[str, Any] = {"id": number, "name": f"name {number}"} if payload is None else payload
    return DatabaseEvent.of(
        kind,
        table,
        row,
        id=number,
        record_id=key,
        position=Position(Lsn(lsn), number),
        timestamp=fields.pop("timestamp", NOON),
        **fields,
    )


@dataclass(frozen=True, slots=True)
class _Moved(FixedRow):
    """A row whose update has changed its key."""

    old_key: str | None = None

    def previous_record_id(self) -> str | None:
        return self.old_key


def moved(number: int, old_key: str, new_key: str, *, lsn: int = 0x1000, **columns: Any) -> DatabaseEvent:
    """An update that changes the primary key, which is all that is known of the old row."""
    change = event(number, "update", lsn=lsn)
    return change.with_row(_Moved(columns, {"id": old_key}, frozenset(), new_key, old_key))
