"""What an event means for a search index: a document to put or to take out, or all documents of a table to take out.

Owns the translation and its errors; must not know an engine.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from cdc import DatabaseEvent, EventType, PermanentError, Position, PostgresValue

__all__ = ["Change", "Clear", "Document", "Engine", "changes"]


@dataclass(frozen=True, slots=True)
class Document:
    """A row is to be found as this, or with `row` None no more. The event is that of the change."""

    event: DatabaseEvent
    record_id: str
    position: Position
    row: Mapping[str, PostgresValue] | None


@dataclass(frozen=True, slots=True)
class Clear:
    """All documents of the event's table that are older than it are to go."""

    event: DatabaseEvent
    position: Position


Change: TypeAlias = Document | Clear


class Engine(Protocol):
    """Where documents are kept. A document or deletion never undoes a newer one, whatever the order of arrival."""

    async def open(self) -> None:
        """Connect, or open the files."""

    async def apply(self, batch: Sequence[Change]) -> None:
        """Returns once all is durable."""

    async def close(self) -> None:
        """A second call does nothing."""


def changes(event: DatabaseEvent, columns: Collection[str]) -> Iterator[Change]:
    """The changes of one event; `columns` are those to index, none: all.

    PermanentError for a record without an id, and when a column to index is not known.
    """
    position = event.position
    if event.event_type is EventType.TRUNCATE:
        yield Clear(event, position)
        return
    record_id = event.record_id
    if record_id is None:
        raise _without_id(event, "a record without an id")
    if event.event_type is EventType.UPDATE:
        old = event.row.previous_record_id()
        if old is None:
            raise _without_id(event, "a record whose id before the update is not known")
        if old != record_id:
            yield Document(event, old, position, None)
    row = None if event.event_type is EventType.DELETE else _row(event, columns)
    yield Document(event, record_id, position, row)


def _without_id(event: DatabaseEvent, what: str) -> PermanentError:
    return PermanentError(
        f"{event.kind.table}: {what} cannot be found again in the index",
        hint="give the table a primary key, and a replica identity that holds it",
    )


def _row(event: DatabaseEvent, columns: Collection[str]) -> Mapping[str, PostgresValue]:
    payload = event.payload
    unknown = event.unchanged.difference(payload)
    if unknown and (not columns or not unknown.isdisjoint(columns)):
        name = min(unknown if not columns else unknown.intersection(columns))
        raise PermanentError(
            f"{event.kind.table}: the value of {name!r}, large and not changed by this update, is not known",
            hint="ALTER TABLE ... REPLICA IDENTITY FULL, or leave the column out of `fields`",
        )
    # Of a field that the table does not have, the document has none: one set of fields serves several tables.
    return {name: payload[name] for name in columns if name in payload} if columns else payload
