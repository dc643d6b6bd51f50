"""Values: what wal2json's JSON carries, as the Python object psycopg would return, and back to JSON.

Owns the rule "type OID → loader" (:class:`Loaders`) and the JSON form of every value (:func:`to_json`).
Types that psycopg does not know are asked for by a function handed in; this module must not know
where the answer comes from: it has no I/O and no connection.

What psycopg itself cannot represent (infinity, BC and years beyond 9999 in dates and timestamps, the
time ``24:00:00``, huge intervals; also as an element of an array or the bound of a range) comes as
PostgreSQL's text of the whole value, a `str`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from enum import Enum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from math import isfinite
from threading import Lock
from types import NoneType
from typing import Any, TypeAlias, get_args
from uuid import UUID

import msgspec
import orjson
import psycopg
from psycopg.adapt import AdaptersMap, PyFormat, Transformer
from psycopg.pq import Format
from psycopg.types import TypeInfo as ArrayElement
from psycopg.types.array import register_array
from psycopg.types.hstore import HstoreLoader
from psycopg.types.multirange import Multirange
from psycopg.types.range import Range

__all__ = [
    "JsonValue",
    "Loader",
    "Loaders",
    "PostgresValue",
    "TypeInfo",
    "TypeKind",
    "as_is",
    "to_json",
]

Address: TypeAlias = IPv4Address | IPv4Interface | IPv4Network | IPv6Address | IPv6Interface | IPv6Network
Moment: TypeAlias = datetime | date | time | timedelta
PostgresValue: TypeAlias = (
    bool | int | float | Decimal | str | bytes | Moment | UUID | Address
    | Range[Any] | Multirange[Any] | list[Any] | dict[str, Any] | None
)  # fmt: skip
JsonValue: TypeAlias = str | int | float | bool
Loader: TypeAlias = Callable[[JsonValue], PostgresValue]


class TypeKind(Enum):
    """What a type is made of: `pg_type.typtype`, and ``a`` for arrays, which have no letter of their own."""

    BASE = "b"
    ARRAY = "a"
    DOMAIN = "d"
    ENUM = "e"
    COMPOSITE = "c"
    RANGE = "r"
    MULTIRANGE = "m"


@dataclass(frozen=True, slots=True)
class TypeInfo:
    """A type of the source database, as far as its text form depends on it.

    `element_oid` and `delimiter` (that of the element) are an array's, `base_oid` is a domain's; 0 elsewhere.
    """

    oid: int
    name: str
    kind: TypeKind
    element_oid: int = 0
    delimiter: str = ","
    base_oid: int = 0


def as_is(value: JsonValue) -> PostgresValue:
    """The loader of types whose JSON value is the Python value: a caller may skip the call (``is as_is``)."""
    return value


# --- OID → loader ------------------------------------------------------------------------------------

BOOL, BYTEA, INT8, INT2, INT4, TEXT, OID = 16, 17, 20, 21, 23, 25, 26
JSON, FLOAT4, FLOAT8, DATE, TIMESTAMP, TIMESTAMPTZ = 114, 700, 701, 1082, 1114, 1184
NUMERIC, RECORD, RECORDS, JSONB = 1700, 2249, 2287, 3802

# DataError: psycopg cannot represent the value. The others: an integer of more than 4,300 digits in a json
# value, a number or date that is none as an element of an array, and json nested deeper than Python's stack.
_UNREPRESENTABLE = (psycopg.DataError, ValueError, ArithmeticError, IndexError, RecursionError)

_MAX_DIGITS = 131_072  # of a numeric before its point, and more than after it (PostgreSQL's "Numeric Types")

_read_json = msgspec.json.Decoder().decode


def _numeric(value: Any) -> PostgresValue:
    """From an int or the exact literal; a float has lost digits already and is refused."""
    if value.__class__ is float:
        raise ValueError("a numeric must reach its loader as the literal's text, not as a float")
    try:
        return Decimal(value)
    except InvalidOperation:
        raise ValueError("a numeric must be a number") from None


def _float(value: Any) -> PostgresValue:
    """From a number or its literal; ValueError for the integer 0, which JSON's -0 is read as, too."""
    if value == 0 and value.__class__ is int:
        raise ValueError("a float of 0 may be -0, of which only the literal tells")
    return float(value)


def _timestamptz(value: Any) -> PostgresValue:
    """Three times as fast as psycopg's loader, which goes by way of bytes."""
    try:
        moment = datetime.fromisoformat(value)
        # astimezone: only of a session that is not in UTC, as the replication connection always is
        return moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return str(value)


def _timestamp(value: Any) -> PostgresValue:
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        return str(value)


def _date(value: Any) -> PostgresValue:
    try:
        return date.fromisoformat(value)
    except ValueError:
        return str(value)


def _json(value: Any) -> PostgresValue:
    """As `json.loads`, psycopg's choice, reads it; by msgspec wherever that reads it at all: three times as fast."""
    try:
        return _read_json(value)  # type: ignore[no-any-return]
    except (msgspec.MsgspecError, RecursionError):
        pass  # a lone surrogate, a number beyond float64 or of hundreds of digits: json.loads takes them
    try:
        return json.loads(value)  # type: ignore[no-any-return]
    except _UNREPRESENTABLE:
        return str(value)


def _unhex(value: Any) -> PostgresValue:
    """wal2json strips the ``\\x`` of a bytea."""
    return bytes.fromhex(value)


def _by_psycopg(load: Callable[[bytes], Any]) -> Loader:
    """A loader of psycopg's behind our face: text in, and text out for what it cannot represent."""

    def loader(value: Any) -> PostgresValue:
        try:
            return load(value.encode())  # type: ignore[no-any-return]
        except _UNREPRESENTABLE:
            return str(value)

    return loader


_FROM_TEXT: Mapping[int, Loader] = {
    **dict.fromkeys((INT2, INT4, INT8, OID), int),
    **dict.fromkeys((FLOAT4, FLOAT8), _float),
    **dict.fromkeys((JSON, JSONB), _json),
    **dict.fromkeys((RECORD, RECORDS), as_is),  # of no column; psycopg fails at an empty one
    NUMERIC: _numeric,
    DATE: _date,
    TIMESTAMP: _timestamp,
    TIMESTAMPTZ: _timestamptz,
}
# What wal2json does not send as PostgreSQL's text: only columns of these types themselves. Domains over them,
# and their arrays, are text (source: pg_decode_write_value of wal2json 2.5).
_FROM_JSON: Mapping[int, Loader] = {
    **dict.fromkeys((INT2, INT4, INT8, OID), as_is),
    BOOL: as_is,
    BYTEA: _unhex,
}
# wal2json 2.6 with numeric-data-types-as-string.
_FROM_JSON_WITHOUT_NUMBERS: Mapping[int, Loader] = {BOOL: as_is, BYTEA: _unhex}


class _Context:
    """psycopg's adapters, of a server nobody is connected to: UTC, ISO dates, UTF-8."""

    connection = None

    def __init__(self) -> None:
        self.adapters = AdaptersMap(psycopg.adapters)


class Loaders(dict[int, Loader]):
    """Type OID → loader, made when first asked for: ``loaders[oid](value)``; None stays with the caller.

    `resolve` tells of types that psycopg does not know; None from it (a type that is gone) makes the
    values text. Whatever it raises passes through, and the next look-up asks again. `numbers_as_text`:
    the plugin sends numbers as JSON strings. Any thread may look up. A loader raises ValueError for a text that
    no server writes for its type.
    """

    def __init__(self, resolve: Callable[[int], TypeInfo | None], *, numbers_as_text: bool = False) -> None:
        super().__init__()
        self._resolve = resolve
        self._from_json = _FROM_JSON_WITHOUT_NUMBERS if numbers_as_text else _FROM_JSON
        self._context = _Context()
        self._text_loader = type(Transformer(self._context).get_loader(TEXT, Format.TEXT))
        self._lock = Lock()  # of the adapters; never held while `resolve` waits for its database

    def __missing__(self, oid: int) -> Loader:
        # wal2json prints OIDs of 2**31 and above as negative numbers. Two threads may make the same loader.
        loader = self._from_json.get(oid) or self._of_text(self._loadable(oid % (1 << 32)))
        self[oid] = loader
        return loader

    def _of_text(self, oid: int) -> Loader:
        if (loader := _FROM_TEXT.get(oid)) is not None:
            return loader
        # A Transformer remembers what it has found; each gets the adapters as they are now.
        found = Transformer(self._context).get_loader(oid, Format.TEXT)
        return as_is if type(found) is self._text_loader else _by_psycopg(found.load)

    def _loadable(self, oid: int) -> int:
        """The OID under which psycopg loads the type's text, taught to it if need be.

        Of enums, composites and ranges of one's own psycopg makes text, as of any type it does not know.
        """
        adapters = self._context.adapters
        if adapters.get_loader(oid, Format.TEXT) or adapters.types.get(oid):
            return oid
        info = self._resolve(oid)
        if info is None:
            return TEXT
        if info.kind is TypeKind.DOMAIN:
            return self._loadable(info.base_oid)
        if info.kind is TypeKind.ARRAY:
            element = self._loadable(info.element_oid)
            array = ArrayElement(info.name, element, oid, delimiter=info.delimiter)
            with self._lock:
                register_array(array, self._context)
        elif info.kind is TypeKind.BASE and info.name == "hstore":  # by name: extensions have no fixed OID
            with self._lock:
                adapters.register_loader(oid, HstoreLoader)
        return oid


# --- JSON out ----------------------------------------------------------------------------------------


def to_json(value: object) -> bytes:
    """UTF-8 JSON that loses nothing; TypeError for an object that is no PostgreSQL value.

    Decimal, UUID and addresses become strings, bytes ``"\\\\x…"`` in hexadecimal, dates and times ISO 8601,
    timedelta an ISO 8601 duration (``"P1DT2H3.5S"``), ranges PostgreSQL's text, sets and tuples lists,
    and floats that JSON does not have ``"NaN"``, ``"Infinity"``, ``"-Infinity"``. Integers keep all digits.
    """
    try:
        data = orjson.dumps(value, _plain, orjson.OPT_PASSTHROUGH_DATACLASS)
    except orjson.JSONEncodeError:
        return _to_json_slowly(value)
    # orjson writes null for NaN and infinity.
    if b"null" in data and _has_non_finite(value):
        return _to_json_slowly(value)
    return data


def _to_json_slowly(value: object) -> bytes:
    """What orjson refuses: integers beyond 64 bits, deep nesting, lone surrogates, times with a zone."""
    try:
        text = _dumps(value)
    except (TypeError, ValueError):  # keys that are no strings, NaN and infinity
        text = _dumps(_rebuilt(value))
    return text.encode("utf-8", "backslashreplace")  # a lone surrogate becomes its \uXXXX, which JSON allows


def _dumps(value: object) -> str:
    return json.dumps(value, default=_plain, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    """One step from an object that JSON does not know towards one that it does."""
    if (convert := _PLAIN.get(type(value))) is not None:
        return convert(value)
    for kind in type(value).__mro__:
        if (convert := _PLAIN.get(kind)) is not None:
            return convert(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no PostgreSQL value and has no JSON form")


def _fixed_point(value: Decimal) -> str:
    """PostgreSQL's text: never an exponent, which str() makes of small numbers.

    But for numbers that no column can hold: one such, of an event made by hand, would be gigabytes of zeros.
    """
    text = str(value)
    return format(value, "f") if "E" in text and abs(value.adjusted()) <= _MAX_DIGITS else text


def _hex(value: bytes | bytearray | memoryview) -> str:
    return "\\x" + value.hex()


def _iso(value: date | time) -> str:
    return value.isoformat()


def _duration(value: timedelta) -> str:
    """ISO 8601: ``P1DT2H3M4.5S``, the sign in front; days are the largest unit, as in timedelta."""
    sign, value = ("-", -value) if value < timedelta(0) else ("", value)
    hours, seconds = divmod(value.seconds, 3600)
    minutes, seconds = divmod(seconds, 60)
    fraction = f".{value.microseconds:06d}".rstrip("0") if value.microseconds else ""
    clock = "".join(
        f"{amount}{unit}"
        for amount, unit in ((hours, "H"), (minutes, "M"), (f"{seconds}{fraction}", "S"))
        if amount not in (0, "0")
    )
    days = f"{value.days}D" if value.days or not clock else ""
    return f"{sign}P{days}{'T' if clock else ''}{clock}"


def _float_text(value: float) -> float | str:
    """The number, or the name PostgreSQL has for what is none: ``NaN``, ``Infinity``, ``-Infinity``."""
    return float(value) if isfinite(value) else _fixed_point(Decimal(value))


def _range_text(value: Range[Any] | Multirange[Any]) -> str:
    """By psycopg's own dumper; a Transformer is cheap, and not for several threads."""
    text = Transformer().get_dumper(value, PyFormat.TEXT).dump(value)
    return bytes(text or b"").decode()


_PLAIN: Mapping[type, Callable[[Any], Any]] = {
    Decimal: _fixed_point,
    bytes: _hex,
    bytearray: _hex,
    memoryview: _hex,
    date: _iso,  # and datetime
    time: _iso,
    timedelta: _duration,
    UUID: str,
    **dict.fromkeys(get_args(Address), str),
    Range: _range_text,
    Multirange: _range_text,
    Enum: lambda value: value.value,
    set: list,
    frozenset: list,
    tuple: list,
    list: list,
    dict: dict,
    float: _float_text,  # subclasses, such as numpy's
}
_SCALARS = frozenset({str, int, bool, NoneType, Decimal, bytes, datetime, date, time, timedelta, UUID})


def _has_non_finite(value: Any) -> bool:
    """Whether a NaN or an infinity is in it, at any depth; runs for every document with a null in it."""
    kind = type(value)
    if kind is float:
        return not isfinite(value)
    if kind is dict or isinstance(value, Mapping):
        value = value.values()
    elif kind is not list and not isinstance(value, list | tuple | set | frozenset):
        return False
    for item in value:  # noqa: SIM110 - any() costs half as much again
        if type(item) not in _SCALARS and _has_non_finite(item):
            return True
    return False


def _rebuilt(value: Any) -> Any:
    """The same with strings for keys and for floats that JSON does not have."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return _float_text(value)
    if isinstance(value, dict):
        return {_key(key): _rebuilt(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rebuilt(item) for item in value]
    return _rebuilt(_plain(value))


def _key(key: Any) -> str:
    plain = _rebuilt(key)
    return plain if isinstance(plain, str) else _dumps(plain)
