"""One change of wal2json: its head is read, its row is when somebody asks for it. See `cdc.messages.Change`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import wraps
from typing import Any, Literal, ParamSpec, Protocol, TypeVar

import msgspec
import orjson
from msgspec import Raw

from cdc.errors import CdcError, StreamLost
from cdc.events import EventType
from cdc.values import Loader, PostgresValue, as_is
from cdc.wal2json.damage import DAMAGES, undecodable
from cdc.wal2json.shapes import NOTHING, Column, Columns, Head, Payload, Whole, read_columns, read_exactly, read_keys

__all__ = ["SourceCatalog", "Wal2JsonChange"]

_Part = Literal["columns", "identity"]
_PARTS: tuple[_Part, ...] = ("columns", "identity")
_UPDATE = EventType.UPDATE  # a name costs the hot path less than an attribute
_BYTEA = 17
_INTEGERS = frozenset({20, 21, 23, 26})
_MOMENTS = frozenset({1082, 1114, 1184})  # date, timestamp, timestamptz
_FIRST_OWN_OID = 16384  # PostgreSQL's FirstNormalObjectId: domains are never built in
_FLOATS = frozenset({700, 701})
_MINUS_ZERO = re.compile(rb"-0(?![0-9.eE])")  # wherever it stands; not of a date, nor of what is read as a literal
# What a domain over date or timestamp looks like; it comes as text under an OID of its own.
_MOMENT_TEXT = re.compile(r"-?infinity|\d{4,}-\d\d-\d\d")

# Of a change; it stands before all that a table or a row may hold.
_LSN = re.compile(rb'"lsn":"([0-9A-F]{1,8})/([0-9A-F]{1,8})"')
_HEAD_BYTES = 256

_P = ParamSpec("_P")
_T = TypeVar("_T")


class SourceCatalog(Protocol):
    """What the decoder must know of the source database (`cdc.catalog.Catalog` is the real one)."""

    @property
    def loaders(self) -> Mapping[int, Loader]:
        """Type OID → converter of a JSON value; every OID has one."""

    def toastable(self, schema: str, table: str) -> frozenset[str]:
        """Columns that the server may leave out of an UPDATE because they did not change."""


def _or_decode_error(read: Callable[_P, _T]) -> Callable[_P, _T]:
    """Rows are read late, and by callbacks: what makes no sense is told as the decoder would have told it."""

    @wraps(read)
    def method(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return read(*args, **kwargs)
        except DAMAGES as error:  # its text may hold a row value
            raw: Payload = args[0]._raw  # type: ignore[attr-defined]
            raise undecodable(bytes(raw), f"{type(error).__name__} when its row was read") from None

    return method


class Wal2JsonChange(msgspec.Struct, gc=False, eq=False):
    """One I, U, D or T message; see `cdc.messages.Change` and `cdc.events.Row`."""

    event_type: EventType
    schema: str
    table: str
    watched: bool
    _head: Head | Whole
    _raw: Payload
    _catalog: SourceCatalog
    was_read: bool = False
    """Whether somebody has asked for `payload`."""

    def __repr__(self) -> str:
        return f"<Wal2JsonChange {self.event_type} of {self.schema}.{self.table}>"  # no values: it may be logged

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("schema", self.schema), ("table", self.table)]

    @property
    def lsn(self) -> int:
        """See `cdc.messages.Change`; the stream asks for few of them."""
        found = _LSN.search(self._raw, 0, _HEAD_BYTES)
        return 0 if found is None else int(found[1], 16) << 32 | int(found[2], 16)

    def payload(self) -> Mapping[str, PostgresValue]:
        """See `cdc.events.Row`."""
        self.was_read = True
        head = self._head
        columns = head.columns
        if columns is None or columns is NOTHING:
            return self.before() or {}
        try:  # as `_or_decode_error`, without its two calls: it runs for every row that is read
            if columns.__class__ is not tuple:
                columns = read_columns(columns)  # type: ignore[arg-type]
            convert = head.convert
            row = convert(columns) if convert is not None else _converted(columns, self._catalog.loaders)
        except DAMAGES:
            row = self._converted_exactly("columns")
        if head.identity is not None and head.identity is not NOTHING:
            self._fill_in(row)
        return row

    @_or_decode_error
    def _fill_in(self, row: dict[str, PostgresValue]) -> None:
        """REPLICA IDENTITY FULL holds the whole old row: what was not sent has not changed."""
        for column in self._row("identity"):
            if column.name not in row:
                for name, value in self._convert("identity").items():
                    row.setdefault(name, value)
                return

    @_or_decode_error
    def before(self) -> Mapping[str, PostgresValue] | None:
        """See `cdc.events.Row`."""
        return self._convert("identity") if _is_there(self._head.identity) else None

    @_or_decode_error
    def unchanged(self) -> frozenset[str]:
        """See `cdc.events.Row`."""
        if self.event_type is not _UPDATE:
            return frozenset()
        known = {column.name for part in _PARTS for column in self._row(part)}
        return self._catalog.toastable(self.schema, self.table) - known

    @_or_decode_error
    def record_id(self) -> str | None:
        """See `cdc.events.Row`."""
        # A long key that did not change is TOAST, too: then only the identity has it.
        return self._key(*_PARTS)

    @_or_decode_error
    def previous_record_id(self) -> str | None:
        """The key before an update that changed it; the same as `record_id` otherwise."""
        return self._key("identity") if _is_there(self._head.identity) else self.record_id()

    @_or_decode_error
    def deleted_softly(self, columns: frozenset[str]) -> bool:
        """See `cdc.messages.Change`."""
        old = {column.name: column for column in self._row("identity")}
        return any(
            self._means_deleted(column) and not (column.name in old and self._means_deleted(old[column.name]))
            for column in self._row("columns")
            if column.name in columns
        )

    @_or_decode_error
    def text_list(self, column: str) -> tuple[str, ...]:
        """See `cdc.messages.Change`."""
        for part in _PARTS:  # the identity has a TOAST value that did not change
            for entry in self._row(part):
                if entry.name == column:
                    value = entry.value
                    return _texts(self._loader(entry)(value) if isinstance(value, str) else value)
        return ()

    def check_row(self) -> None:
        """What `DAMAGES` names unless the columns are such: of a row that the stream itself will read."""
        for part in _PARTS:
            self._row(part)

    def _means_deleted(self, column: Column) -> bool:
        """Of a soft delete column: boolean false, or a date or timestamp that is set. No other type means it."""
        value = column.value
        if isinstance(value, bool):
            return not value
        if not isinstance(value, str):
            return False
        if column.typeoid in _MOMENTS:
            return True
        if column.typeoid % (1 << 32) < _FIRST_OWN_OID or not (value == "f" or _MOMENT_TEXT.match(value)):
            return False
        return self._loader(column) is not as_is  # a domain; an enum or one over text may hold the same

    def _loader(self, column: Column) -> Loader:
        """For the stream itself, which can wait for a database that does not answer; a callback cannot."""
        try:
            return self._catalog.loaders[column.typeoid]
        except CdcError as error:
            raise StreamLost(error.message, reason="catalog_unreachable", hint=error.hint) from error

    def _key(self, *parts: _Part) -> str | None:
        """The primary key as text, each column from the first of `parts` that has it; None unless all are there."""
        names = [key.name for key in read_keys(self._head.pk)] if self._head.pk is not NOTHING else []
        if not names:
            return None
        values: dict[str, Column] = {}
        for part in parts:
            key = [column for column in self._row(part) if column.name in names]
            if any(column.typeoid in _FLOATS and column.value == 0 for column in key):  # may be -0
                key = [column for column in self._exact_row(part) if column.name in names]
            for column in key:
                values.setdefault(column.name, column)
            if len(values) == len(names):
                if any(column.value is None for column in values.values()):
                    return None  # no key is NULL: a NaN or an infinity, which wal2json 2.5 does not tell apart
                texts = [_key_part(values[name]) for name in names]
                return str(texts[0]) if len(texts) == 1 else orjson.dumps(texts).decode()
        return None  # the replica identity is an index that lacks a column of the primary key

    def _row(self, part: _Part) -> Columns:
        """The columns of a row, none where there is no row. Floats that are -0 have become 0."""
        row = self._head.columns if part == "columns" else self._head.identity
        if isinstance(row, Raw) and row is not NOTHING:
            try:
                return read_columns(row)
            except msgspec.ValidationError:  # an integer of more digits than msgspec takes
                return self._exact_row(part)
        return row if isinstance(row, tuple) else ()

    def _exact_row(self, part: _Part) -> Columns:
        """The same with the literal of every number, a str."""
        whole = read_exactly(bytes(self._raw))
        return (whole.columns if part == "columns" else whole.identity) or ()

    def _convert(self, part: _Part) -> dict[str, PostgresValue]:
        try:
            return _converted(self._row(part), self._catalog.loaders)
        except DAMAGES:
            return self._converted_exactly(part)

    @_or_decode_error
    def _converted_exactly(self, part: _Part) -> dict[str, PostgresValue]:
        """After a loader has refused a value: nearly always a float of 0, which in this row cannot be -0."""
        if _MINUS_ZERO.search(self._raw) is None:
            columns = self._row(part)
            for column in columns:
                if column.typeoid in _FLOATS and column.value == 0:
                    column.value = "0"
            with suppress(*DAMAGES):
                return _converted(columns, self._catalog.loaders)
        return _converted(self._exact_row(part), self._catalog.loaders)


def _is_there(row: Raw | Columns | None) -> bool:
    return row is not None and row is not NOTHING


def _converted(columns: Columns, loaders: Mapping[int, Loader]) -> dict[str, PostgresValue]:
    """Values by name."""
    row: dict[str, PostgresValue] = {}
    for column in columns:  # no call but the loaders': it runs for every row that is read
        value = column.value
        if value is not None and (loader := loaders[column.typeoid]) is not as_is:
            value = loader(value)
        row[column.name] = value
    return row


def _key_part(column: Column) -> str | int:
    """As PostgreSQL prints it; integers stay such (newer plugins may send them as text)."""
    value = column.value
    if isinstance(value, bool):
        return "true" if value else "false"
    if column.typeoid in _INTEGERS:
        return int(value)
    if column.typeoid == _BYTEA:
        return f"\\x{value}"
    return value if isinstance(value, str) else json.dumps(value)


def _texts(value: Any) -> tuple[str, ...]:
    """The texts in an array of any depth, or the one text; what is NULL or empty is left out."""
    if isinstance(value, list):
        return tuple(text for item in value for text in _texts(item))
    return () if value in (None, "") else (str(value),)
