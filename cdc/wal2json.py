"""wal2json's output (format-version 2, type OIDs) → messages. Pure: no I/O, no clock.

One JSON object per message. The row of a change stays as parsed until somebody reads it. Two traps
of the plugin are handled here: wal2json 2.5 writes numeric as a bare JSON number, which a float
cannot hold, so its literals are taken from the message's text when the row is read; and the payload
is in the server's encoding, never converted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import wraps
from operator import itemgetter
from typing import Any, ParamSpec, Protocol, TypeVar

import orjson

from cdc.errors import CdcError, DecodeError, StreamLost
from cdc.events import EventType
from cdc.lsn import Lsn
from cdc.messages import Begin, Commit, Decoded, Message
from cdc.values import JsonValue, Loader, PostgresValue, as_is

__all__ = ["OPTIONS", "Decoder", "SourceCatalog", "Wal2JsonChange"]

OPTIONS = {
    "format-version": "2",
    "include-transaction": "on",
    "include-lsn": "on",
    "include-xids": "on",
    "include-timestamp": "on",
    "include-types": "off",  # type names can make the output invalid JSON; OIDs never do
    "include-type-oids": "on",
    "include-pk": "on",
}
"""Options of START_REPLICATION that this decoder relies on."""

_NO_ROW: list[Any] = []
_EVENT_TYPES = {
    "I": EventType.CREATE,
    "U": EventType.UPDATE,
    "D": EventType.DELETE,
    "T": EventType.TRUNCATE,
}
_CREATE, _UPDATE = EventType.CREATE, EventType.UPDATE  # names cost the hot path less than attributes
_BYTEA, _NUMERIC = 17, 1700
_INTEGERS = frozenset({20, 21, 23, 26})
_FLOATS = (700, 701)
_NUMBERS = frozenset({*_FLOATS, _NUMERIC})
_MOMENTS = frozenset({1082, 1114, 1184})  # date, timestamp, timestamptz
_FIRST_OWN_OID = 16384  # PostgreSQL's FirstNormalObjectId: domains are never built in
_SHAPE = itemgetter("name", "typeoid", "value")
# Bare numbers whose text must survive. The unescaped quotes cannot occur inside a JSON string,
# so the pattern finds structure only.
_NUMBER = re.compile(rb'("typeoid":(?:1700|70[01]),"value":)(-?[0-9][-+.0-9eE]*)')
_COLUMN_NAME = re.compile(r'"name":("(?:[^"\\]|\\.)*")')
# The keys before the row, and nothing behind the first one that is not of them: in a message that makes no
# sense a row value may stand under any key.
_SCALAR = r'"(?:[^"\\]|\\.)*"|-?\d+|null|true|false'
_HEAD = re.compile(
    r'\{"action":"\w"(?:,"(?:xid|timestamp|origin|lsn|nextlsn|transactional|prefix|schema|table)":'
    rf"(?:{_SCALAR}))*",
    re.DOTALL,
)
_LSN = re.compile(r'"lsn":"([0-9A-F]{1,8}/[0-9A-F]{1,8})"')
# What a domain over date or timestamp looks like; it comes as text under an OID of its own.
_MOMENT_TEXT = re.compile(r"-?infinity|\d{4,}-\d\d-\d\d")
_MESSAGE = b'{"action":"M"'
# What reading a row raises that is of the wrong shape, or holds a text that is none of its type.
_DAMAGES = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError)

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
        except _DAMAGES as error:  # its text may hold a row value
            raw: bytes | memoryview = args[0]._raw  # type: ignore[attr-defined]
            raise _undecodable(bytes(raw), f"{type(error).__name__} when its row was read") from None

    return method


class Wal2JsonChange:
    """One I, U, D or T message; see `cdc.messages.Change` and `cdc.events.Row`."""

    __slots__ = ("_catalog", "_exact", "_fields", "_raw", "event_type", "schema", "table", "watched")

    def __init__(
        self,
        event_type: EventType,
        fields: dict[str, Any],
        raw: bytes | memoryview,
        watched: bool,
        catalog: SourceCatalog,
    ) -> None:
        self.event_type = event_type
        self.schema: str = fields["schema"]
        self.table: str = fields["table"]
        self.watched = watched
        self._fields = fields
        self._raw = raw
        self._catalog = catalog
        self._exact = False

    @_or_decode_error
    def payload(self) -> Mapping[str, PostgresValue]:
        """See `cdc.events.Row`."""
        columns = self._columns("columns")
        if columns is None:
            return self.before() or {}
        row = self._convert(columns)
        if any(column["name"] not in row for column in self._fields.get("identity", ())):
            # REPLICA IDENTITY FULL holds the whole old row: what was not sent has not changed.
            return self._convert(self._columns("identity") or ()) | row
        return row

    @_or_decode_error
    def before(self) -> Mapping[str, PostgresValue] | None:
        """See `cdc.events.Row`."""
        identity = self._columns("identity")
        return None if identity is None else self._convert(identity)

    @_or_decode_error
    def unchanged(self) -> frozenset[str]:
        """See `cdc.events.Row`."""
        if self.event_type is not EventType.UPDATE:
            return frozenset()
        known = {column["name"] for column in self._fields["columns"]}
        known.update(column["name"] for column in self._fields.get("identity", ()))
        return self._catalog.toastable(self.schema, self.table) - known

    @_or_decode_error
    def record_id(self) -> str | None:
        """See `cdc.events.Row`."""
        # A long key that did not change is TOAST, too: then only the identity has it.
        return self._key("identity", "columns")

    @_or_decode_error
    def previous_record_id(self) -> str | None:
        """The key before an update that changed it; the same as `record_id` otherwise."""
        return self._key("identity") if "identity" in self._fields else self.record_id()

    @_or_decode_error
    def deleted_softly(self, columns: frozenset[str]) -> bool:
        """See `cdc.messages.Change`."""
        old = {column["name"]: column for column in self._fields.get("identity", ())}
        return any(
            _means_deleted(column) and not (column["name"] in old and _means_deleted(old[column["name"]]))
            for column in self._fields["columns"]
            if column["name"] in columns
        )

    @_or_decode_error
    def text_list(self, column: str) -> tuple[str, ...]:
        """See `cdc.messages.Change`."""
        for source in ("columns", "identity"):  # the identity has a TOAST value that did not change
            for entry in self._fields.get(source, ()):
                if entry["name"] == column:
                    value = entry["value"]
                    return _texts(self._loader(entry)(value) if isinstance(value, str) else value)
        return ()

    def _loader(self, column: dict[str, Any]) -> Loader:
        """For the stream itself, which can wait for a database that does not answer; a callback cannot."""
        try:
            return self._catalog.loaders[column["typeoid"]]
        except CdcError as error:
            raise StreamLost(error.message, reason="catalog_unreachable", hint=error.hint) from error

    def _key(self, *sources: str) -> str | None:
        names = [column["name"] for column in self._fields.get("pk", ())]
        if not names:
            return None
        values = {column["name"]: column for source in sources for column in self._columns(source) or ()}
        if any(name not in values for name in names):
            return None  # the replica identity is an index that lacks a column of the primary key
        key = [values[name] for name in names]
        if not self._exact and any(type(column["value"]) is float for column in key):
            self._read_exactly()  # the same number has one text only, whatever else is in the row
            return self._key(*sources)
        parts = [_key_part(column) for column in key]
        return str(parts[0]) if len(parts) == 1 else orjson.dumps(parts).decode()

    def _columns(self, name: str) -> list[dict[str, Any]] | None:
        """`columns` or `identity`, with exact number literals where a float has lost them."""
        columns: list[dict[str, Any]] | None = self._fields.get(name)
        if columns and not self._exact and _is_lossy(columns):
            self._read_exactly()
        return columns

    def _read_exactly(self) -> None:
        # The numbers of the text, put where the parsed ones stand: a third of the cost of parsing it again.
        # Also from several threads at once: each puts the same text into the same place.
        numbers = [
            column
            for column in (*self._fields.get("columns", ()), *self._fields.get("identity", ()))
            if column["typeoid"] in _NUMBERS and column["value"] is not None
        ]
        for column, (_, literal) in zip(numbers, _NUMBER.findall(self._raw), strict=True):
            column["value"] = literal.decode()
        self._exact = True

    def _convert(self, columns: Sequence[dict[str, Any]]) -> dict[str, PostgresValue]:
        loaders = self._catalog.loaders
        row: dict[str, PostgresValue] = {}
        for column in columns:
            value: JsonValue | None = column["value"]
            if value is not None:
                loader = loaders[column["typeoid"]]
                row[column["name"]] = value if loader is as_is else loader(value)
            else:
                row[column["name"]] = None
        return row


class Decoder:
    """See `cdc.messages.Decoder`.

    `watch` names columns whose presence `Change.watched` tells; `codec` is the Python codec of the
    server's encoding, None for UTF-8.
    """

    def __init__(self, catalog: SourceCatalog, *, watch: Sequence[str] = (), codec: str | None = None) -> None:
        self._catalog = catalog
        self._watched = _watch(watch)
        self._codec = codec

    def decode(self, payload: bytes | memoryview) -> Decoded:
        """See `cdc.messages.Decoder`."""
        if self._codec is not None:
            payload = self._to_utf8(bytes(payload), self._codec)
        try:
            fields = orjson.loads(payload)
        except orjson.JSONDecodeError as error:
            fields = self._second_reading(bytes(payload), error)
        try:
            event_type = _EVENT_TYPES.get(fields["action"])
            if event_type is None:
                return _boundary(fields)
            watched = self._watched is not None and self._watched(payload) is not None
            _check(fields, event_type, watched)
            return Wal2JsonChange(event_type, fields, payload, watched, self._catalog)
        except _DAMAGES as error:
            raise _undecodable(bytes(payload), f"{type(error).__name__}: {error}") from None

    @staticmethod
    def _to_utf8(payload: bytes, codec: str) -> bytes:
        # A message's content is whatever bytes somebody wrote, in no encoding at all.
        errors = "replace" if payload.startswith(_MESSAGE) else "strict"
        try:
            return payload.decode(codec, errors).encode()
        except UnicodeDecodeError as error:
            raise _undecodable(payload, f"byte {error.start} is not {codec}") from None

    @staticmethod
    def _second_reading(payload: bytes, error: orjson.JSONDecodeError) -> dict[str, Any]:
        """A number beyond float64, or bytes in a message's content: both are valid on the server."""
        text = _NUMBER.sub(rb'\1"\2"', payload)
        if payload.startswith(_MESSAGE):
            text = payload.decode("utf-8", "replace").encode()
        try:
            fields: dict[str, Any] = orjson.loads(text)
        except orjson.JSONDecodeError:
            raise _undecodable(payload, str(error)) from None
        return fields


def _check(fields: dict[str, Any], event_type: EventType, watched: bool) -> None:
    """TypeError or KeyError unless this is a change: its outline, and the rows where the stream itself reads them.

    The columns of other rows are not looked at, which would cost half as much as the parsing.
    """
    if not (fields["schema"].__class__ is fields["table"].__class__ is str):
        raise TypeError("schema and table must be strings")
    if event_type is not _CREATE:
        for name in ("identity", "pk"):
            if fields.get(name, _NO_ROW).__class__ is not list:
                raise TypeError("identity and pk must be lists")
    if (event_type is _CREATE or event_type is _UPDATE) and fields["columns"].__class__ is not list:
        raise TypeError("columns must be a list")
    if watched:
        for column in (*fields.get("columns", ()), *fields.get("identity", ())):
            name, oid, _ = _SHAPE(column)
            if name.__class__ is not str or oid.__class__ is not int:
                raise TypeError("a column must have a name and a type OID")


def _boundary(fields: dict[str, Any]) -> Decoded:
    match fields:
        case {"action": "B", "nextlsn": str(lsn), "xid": int(xid), "timestamp": str(timestamp)}:
            _check_timestamp(timestamp)
            return Begin(Lsn.parse(lsn), xid, timestamp)
        case {"action": "C", "nextlsn": str(lsn)}:
            return Commit(Lsn.parse(lsn))
        case {"action": "M", "transactional": bool(transactional), "prefix": str(prefix), "content": str(content)}:
            return Message(transactional, prefix, content)
        case {"action": "B" | "C" | "M"}:
            raise ValueError("a key is missing, or its value is of the wrong type")
    raise ValueError("unknown action")


def _check_timestamp(text: str) -> None:
    """ValueError or OverflowError for what is no moment: events parse it when asked, which is too late to stop."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a commit time without its zone")
    moment.astimezone(UTC)


def _is_lossy(columns: Iterable[dict[str, Any]]) -> bool:
    """Whether a value is a number whose literal the JSON parser may have changed."""
    for column in columns:  # a loop, not any(): it is walked for every row that is read
        value = column["value"]
        if value.__class__ is float:
            if column["typeoid"] == _NUMERIC:
                return True
        elif value == 0 and value.__class__ is int and column["typeoid"] in _FLOATS:
            return True  # "-0" became 0
    return False


def _key_part(column: dict[str, Any]) -> str | int:
    """As PostgreSQL prints it; integers stay such (newer plugins may send them as text)."""
    value = column["value"]
    if isinstance(value, bool):
        return "true" if value else "false"
    if column["typeoid"] in _INTEGERS:
        return int(value)
    if column["typeoid"] == _BYTEA:
        return f"\\x{value}"
    return value if isinstance(value, str) else json.dumps(value)


def _means_deleted(column: dict[str, Any]) -> bool:
    """Of a soft delete column: boolean false, or a date or timestamp that is set. No other type means it."""
    value = column["value"]
    if isinstance(value, bool):
        return not value
    if not isinstance(value, str):
        return False
    if column["typeoid"] in _MOMENTS:
        return True
    is_own_type = column["typeoid"] % (1 << 32) >= _FIRST_OWN_OID  # a domain, perhaps: those come as text
    return is_own_type and (value == "f" or bool(_MOMENT_TEXT.match(value)))


def _texts(value: Any) -> tuple[str, ...]:
    """The texts in an array of any depth, or the one text; what is NULL or empty is left out."""
    if isinstance(value, list):
        return tuple(text for item in value for text in _texts(item))
    return () if value in (None, "") else (str(value),)


def _watch(columns: Sequence[str]) -> Callable[[bytes | memoryview], object] | None:
    """Searches a message for the names; what is found may still be a value, or the end of another name.

    A regular expression takes half the time of ``in``: names that begin alike are searched for together.
    """
    names = [json.dumps(name, ensure_ascii=False)[1:].encode() for name in columns]
    return re.compile(b"|".join(map(re.escape, names))).search if names else None


def _undecodable(payload: bytes, reason: str) -> DecodeError:
    """The error for a message that makes no sense: its head and column names, never a value."""
    text = payload.decode("utf-8", "replace")
    head = match[0] if (match := _HEAD.match(text)) else "(no action)"
    names = ",".join(_COLUMN_NAME.findall(text)[:20])
    lsn = match[1] if (match := _LSN.search(head)) else "0/0"
    return DecodeError(
        f"a message of {len(payload)} bytes cannot be decoded at {lsn}: {reason[:120]}",
        lsn=Lsn.parse(lsn),
        excerpt=f"{head[:300]} columns: {names[:500]}",
        hint="nothing was acknowledged past it; report it with this line, then decide about the slot",
    )
