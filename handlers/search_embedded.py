"""The embedded engine of `search_index`: a tantivy index in a folder of this machine.

Owns the schema, and which of two states of a document is the newer; must not know events beyond a change.

Each document holds its position. What is deleted stays as a tombstone, a document of position and id only, for
some days: something older that arrives after it is thus known to be older.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import tantivy

from cdc import CallbackError, Lsn, PermanentError, Position, PostgresValue, to_json
from handlers.name_template import value_text
from handlers.search_changes import Change, Clear

__all__ = ["OWN_FIELDS", "EmbeddedEngine", "FieldKind"]

FieldKind = Literal["text", "keyword", "integer", "number", "boolean", "time", "stored"]

OWN_FIELDS = ("_id", "_table", "_record_id", "_lsn", "_ordinal", "_deleted", "_deleted_at")
HEAP_BYTES = 32 * 1024 * 1024  # of the writer's one thread: some 256 documents per commit never fill it
PURGE_SECONDS = 3600.0  # between two looks for tombstones that are old enough
INT64 = 1 << 63
YEARS = range(1678, 2262)  # a time is kept as nanoseconds in 64 bits


class EmbeddedEngine:
    """Writes to the index in `folder`; one writer per folder, by tantivy's own lock.

    All of it runs in one thread: a call that was cancelled ends there before the next begins.
    """

    def __init__(self, folder: Path, fields: Mapping[str, FieldKind], tombstone_seconds: float) -> None:
        self._folder = folder
        self._fields = dict(fields)
        self._tombstone_seconds = tombstone_seconds
        self._thread: ThreadPoolExecutor | None = None
        self._index: Any = None
        self._writer: Any = None
        self._purged = float("-inf")

    async def open(self) -> None:
        """Make the folder and the index if they are missing; CallbackError when others write or the fields differ."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "cdc-search-index")
        try:
            await self._in_thread(self._open)
        except BaseException:
            await self.close()
            raise

    async def apply(self, batch: Sequence[Change]) -> None:
        """Write the batch and commit: returns when it is on the disk."""
        await self._in_thread(lambda: self._apply(batch))

    async def close(self) -> None:
        """Let the folder go; a second call does nothing."""
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.wrap_future(thread.submit(self._close))
            thread.shutdown(wait=False)

    async def _in_thread(self, function: Callable[[], None]) -> None:
        if self._thread is None:
            raise CallbackError(f"the search index in {self._folder} is not open")
        await asyncio.wrap_future(self._thread.submit(function))

    # --- in the thread

    def _open(self) -> None:
        if self._writer is not None:
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # its files, as tantivy makes them, hold rows
        try:
            self._index = tantivy.Index(_schema(self._fields), path=str(self._folder))
            self._writer = self._index.writer(HEAP_BYTES, 1)
        except ValueError as error:
            if "schema does not match" in str(error):
                hint = "its fields are fixed when it is made: take another folder, and fill it from the tables"
                raise CallbackError(f"the index in {self._folder} has other fields", hint=hint) from error
            if "Lock" in str(error):
                raise CallbackError(f"another handler or service writes to the index in {self._folder}") from error
            raise

    def _close(self) -> None:
        writer, self._writer, self._index = self._writer, None, None
        if writer is not None:
            writer.rollback()
            writer.wait_merging_threads()

    def _apply(self, batch: Sequence[Change]) -> None:
        self._open()
        # Checked before anything is written: a document that cannot be written must not undo the others' commit.
        documents = [self._document(change) for change in batch]
        try:
            self._write(batch, documents)
            self._purge()
            self._writer.commit()
        except BaseException:
            self._writer = None  # what is not committed goes with it; the next call opens the last commit
            raise

    def _write(self, batch: Sequence[Change], documents: Sequence[Any]) -> None:
        self._index.reload()
        seen = self._positions({name for change in batch for name in _names(change)})
        for change, document in zip(batch, documents, strict=True):
            names = _names(change)
            name = names[-1]
            if any(seen.get(other, _NEVER) >= change.position for other in names):
                continue
            if isinstance(change, Clear):
                self._writer.delete_documents_by_query(self._older(name, change.position))
            self._writer.delete_documents_by_term("_id", name)
            self._writer.add_document(document)
            seen[name] = change.position

    def _positions(self, names: Iterable[str]) -> dict[str, Position]:
        """The position of each that has a document or a tombstone."""
        wanted = list(names)
        searcher, schema = self._index.searcher(), self._index.schema
        query = tantivy.Query.term_set_query(schema, "_id", wanted)
        found = {}
        for _, address in searcher.search(query, limit=len(wanted), count=False).hits:
            document = searcher.doc(address)
            position = Position(Lsn(document.get_first("_lsn")), document.get_first("_ordinal"))
            found[document.get_first("_id")] = position
        return found

    def _older(self, table: str, position: Position) -> Any:
        query, kind = tantivy.Query, tantivy.FieldType.Unsigned
        schema, lsn = self._index.schema, int(position.commit_lsn)
        before = query.range_query(schema, "_lsn", kind, upper_bound=lsn, include_upper=False)
        same = query.range_query(schema, "_lsn", kind, lower_bound=lsn, upper_bound=lsn)
        earlier = query.range_query(schema, "_ordinal", kind, upper_bound=position.ordinal, include_upper=False)
        must, should = tantivy.Occur.Must, tantivy.Occur.Should
        older = query.boolean_query(
            [(should, before), (should, query.boolean_query([(must, same), (must, earlier)]))],
        )
        return query.boolean_query(
            [(must, query.term_query(schema, "_table", table, "basic")), (must, older)],
        )

    def _purge(self) -> None:
        now = time.monotonic()
        if now - self._purged < PURGE_SECONDS:
            return
        oldest = int(time.time() - self._tombstone_seconds)
        query = tantivy.Query.range_query(
            self._index.schema, "_deleted_at", tantivy.FieldType.Integer, upper_bound=oldest, include_upper=False
        )
        self._writer.delete_documents_by_query(query)
        self._purged = now

    def _head(self, name: str, table: str, record_id: str, position: Position, *, deleted: bool) -> Any:
        document = tantivy.Document()
        document.add_text("_id", name)
        document.add_text("_table", table)
        document.add_text("_record_id", record_id)
        document.add_unsigned("_lsn", int(position.commit_lsn))
        document.add_unsigned("_ordinal", position.ordinal)
        document.add_boolean("_deleted", deleted)
        if deleted:
            document.add_integer("_deleted_at", int(time.time()))
        return document

    def _document(self, change: Change) -> Any:
        table, name = change.event.kind.table, _names(change)[-1]
        if isinstance(change, Clear):
            return self._head(name, table, "", change.position, deleted=True)
        document = self._head(name, table, change.record_id, change.position, deleted=change.row is None)
        for column, value in (change.row or {}).items():
            kind = self._fields[column]
            for item in value if isinstance(value, list) and kind != "stored" else (value,):
                if item is not None:
                    try:
                        _ADD[kind](document, column, item)
                    except (TypeError, ValueError, OverflowError):
                        raise PermanentError(
                            f"{table}: a {type(item).__name__} in {column!r} cannot be indexed as {kind}",
                            hint="see the option `fields`",
                        ) from None
        return document


_NEVER = Position(Lsn(0), -1)


def _names(change: Change) -> tuple[str, ...]:
    """The ids under which the positions are kept that the change must be newer than: its table's, and its own."""
    table = change.event.kind.table
    return (table,) if isinstance(change, Clear) else (table, f"{table}/{change.record_id}")


def _schema(fields: Mapping[str, FieldKind]) -> Any:
    builder = tantivy.SchemaBuilder()
    for name in ("_id", "_table", "_record_id"):
        builder.add_text_field(name, stored=True, tokenizer_name="raw", index_option="basic")
    for name in ("_lsn", "_ordinal"):
        builder.add_unsigned_field(name, stored=True, fast=True)
    builder.add_boolean_field("_deleted", stored=True, indexed=True)
    builder.add_integer_field("_deleted_at", stored=True, fast=True)
    for name, kind in fields.items():
        _DEFINE[kind](builder, name)
    return builder.build()


_DEFINE: Mapping[FieldKind, Callable[[Any, str], object]] = {
    "text": lambda builder, name: builder.add_text_field(name, stored=True),
    "keyword": lambda builder, name: builder.add_text_field(
        name, stored=True, fast=True, tokenizer_name="raw", index_option="basic"
    ),
    "integer": lambda builder, name: builder.add_integer_field(name, stored=True, indexed=True, fast=True),
    "number": lambda builder, name: builder.add_float_field(name, stored=True, indexed=True, fast=True),
    "boolean": lambda builder, name: builder.add_boolean_field(name, stored=True, indexed=True, fast=True),
    "time": lambda builder, name: builder.add_date_field(name, stored=True, indexed=True, fast=True),
    "stored": lambda builder, name: builder.add_bytes_field(name, stored=True),
}


def _integer(value: PostgresValue) -> int:
    if not isinstance(value, int | Decimal) or value != int(value) or not -INT64 <= value < INT64:
        raise ValueError
    return int(value)


def _number(value: PostgresValue) -> float:
    if not isinstance(value, int | float | Decimal):
        raise TypeError
    return float(value)


def _boolean(value: PostgresValue) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _time(value: PostgresValue) -> datetime:
    """A time without a zone is taken for UTC, a date for its midnight."""
    if not isinstance(value, date) or value.year not in YEARS:
        raise ValueError
    if not isinstance(value, datetime):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


_ADD: Mapping[FieldKind, Callable[[Any, str, PostgresValue], None]] = {
    "text": lambda document, name, value: document.add_text(name, value_text(value)),
    "keyword": lambda document, name, value: document.add_text(name, value_text(value)),
    "integer": lambda document, name, value: document.add_integer(name, _integer(value)),
    "number": lambda document, name, value: document.add_float(name, _number(value)),
    "boolean": lambda document, name, value: document.add_boolean(name, _boolean(value)),
    "time": lambda document, name, value: document.add_date(name, _time(value)),
    "stored": lambda document, name, value: document.add_bytes(name, to_json(value)),
}
