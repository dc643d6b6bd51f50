"""An event as bytes that outlive the process, and back: exactly as its callback sees it.

JSON that people can read. A value that JSON does not have is an object with one key, its tag:
``{"$decimal": "1.10"}``. This module must not know who keeps the bytes, nor why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from math import isfinite
from types import NoneType
from typing import Any, TypeAlias
from uuid import UUID

import orjson
from psycopg.types.multirange import Multirange
from psycopg.types.range import Range

from cdc.events import DatabaseEvent, EventType, FixedRow, Kind, Position, Transaction

__all__ = ["KeptRow", "kind_of", "pack", "pack_value", "unpack", "unpack_value"]

_FORMAT = 1
_DEEPEST = 100  # levels; orjson writes 254 at most, and a JSON document of PostgreSQL may have thousands
_INTEGERS = (-(1 << 63), (1 << 64) - 1)  # what orjson writes
_KINDS = 1_000  # tables and types; routing compares kinds by identity, and remembers as many

_Parts: TypeAlias = list[Any]


def pack(event: DatabaseEvent) -> bytes:
    """`event` with all that its callback can read of it.

    Values are taken from the row anew: what a callback has changed in its `payload` is not kept. A moment in a zone
    with a name keeps its offset only, an object of a subclass comes back as its PostgreSQL value. TypeError for what
    is no PostgreSQL value, as only an event made by hand may hold; and whatever the row raises that cannot be read
    now, `CdcError`, because a database does not answer that knows its types.
    """
    row, position = event.row, event.position
    before = row.before()
    parts: _Parts = []
    document = {
        "format": _FORMAT,
        "id": event.id,
        "event_type": event.event_type.value,
        "schema": event.schema,
        "table_name": event.table_name,
        "record_id": row.record_id(),
        "previous_record_id": row.previous_record_id(),
        "tags": list(event.tags),
        "payload": dict(row.payload()),
        "before": None if before is None else dict(before),
        "unchanged": sorted(row.unchanged()),
        "timestamp": event.timestamp.isoformat(),
        "position": str(position),
        "transaction_id": event.transaction_id,
    }
    document = {name: _packed(value, parts, 1) for name, value in document.items()}
    _pack_parts(parts)
    if parts:
        document["parts"] = parts
    return orjson.dumps(document)


def unpack(data: bytes) -> DatabaseEvent:
    """The event that :func:`pack` was given. ValueError, which holds no row value, for bytes it has not made."""
    try:
        document = orjson.loads(data)
        version = _is(int, document["format"])
    except (ValueError, TypeError, LookupError):
        raise ValueError(f"{len(data)} bytes are no packed event: no JSON, or without a format") from None
    if version != _FORMAT:
        raise ValueError(f"the event was packed by another version of cdc: format {version}, not {_FORMAT}")
    try:
        return _event(document)
    except _DAMAGES as error:
        # Not its text, which may hold what could not be read.
        raise ValueError(f"{len(data)} bytes are no whole packed event: {type(error).__name__}") from None


def pack_value(value: Any) -> list[Any]:
    """One value as JSON has it, its parts behind it. TypeError for what is no PostgreSQL value."""
    parts: _Parts = []
    packed = _packed(value, parts, 1)
    _pack_parts(parts)
    return [packed, *parts]


def unpack_value(packed: list[Any]) -> Any:
    """The value that :func:`pack_value` was given; any of many errors for what it has not made."""
    return _unpacked(packed[0], _unpack_parts(packed[1:]))


def _pack_parts(parts: _Parts) -> None:
    for number, part in enumerate(parts):  # which may add more of them
        parts[number] = _CONTAINERS[type(part)](part, parts, 1)


def _unpack_parts(packed: Sequence[Any]) -> _Parts:
    parts: _Parts = list(packed)
    for number in reversed(range(len(parts))):  # a part refers only to later ones
        parts[number] = _unpacked(parts[number], parts)
    return parts


_DAMAGES = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True)
class KeptRow(FixedRow):
    """A row that knows its earlier key."""

    previous_key: str | None = None

    def previous_record_id(self) -> str | None:
        """See `cdc.events.Row`."""
        return self.previous_key


@lru_cache(_KINDS)
def kind_of(event_type: str, schema: str, table_name: str) -> Kind:
    """The one object of these names; ValueError for a type that is none."""
    return Kind(EventType(event_type), schema, table_name)


def _event(document: dict[str, Any]) -> DatabaseEvent:
    """What is missing raises KeyError, what is of another type TypeError."""
    parts = _unpack_parts(document.get("parts", ()))
    fields = {name: _unpacked(value, parts) for name, value in document.items() if name != "parts"}
    position = Position.parse(_is(str, fields["position"]))
    return DatabaseEvent(
        _is(int, fields["id"]),
        kind_of(_is(str, fields["event_type"]), _is(str, fields["schema"]), _is(str, fields["table_name"])),
        tuple(_is(str, tag) for tag in _is(list, fields["tags"])),
        Transaction(
            position.commit_lsn,
            _is(int, fields["transaction_id"]),
            datetime.fromisoformat(_is(str, fields["timestamp"])),
        ),
        position.ordinal,
        KeptRow(
            _is(dict, fields["payload"]),
            None if fields["before"] is None else _is(dict, fields["before"]),
            frozenset(_is(str, name) for name in _is(list, fields["unchanged"])),
            _text_or_none(fields["record_id"]),
            _text_or_none(fields["previous_record_id"]),
        ),
    )


def _is(wanted: type, value: Any) -> Any:
    if type(value) is not wanted:
        raise TypeError(f"{wanted.__name__} expected")
    return value


def _text_or_none(value: Any) -> str | None:
    return None if value is None else str(_is(str, value))


# --- values out --------------------------------------------------------------------------------------


def _packed(value: Any, parts: _Parts, depth: int) -> Any:
    """`value` as JSON has it. Containers at `_DEEPEST` go to `parts`, the place in which stands for them."""
    kind = type(value)
    if kind in _AS_IS or (kind is str and value.isascii()):
        return value
    if (scalar := _SCALARS.get(kind)) is not None:
        return scalar(value)
    if (container := _CONTAINERS.get(kind)) is not None:
        if depth < _DEEPEST:
            return container(value, parts, depth + 1)
        parts.append(value)
        return {"$part": len(parts) - 1}
    for base, convert in _BASES:
        if isinstance(value, base):
            return _packed(convert(value), parts, depth)
    raise TypeError(f"{kind.__name__} is no PostgreSQL value and cannot be kept")


def _packed_text(value: str) -> Any:
    """UTF-8 has no lone surrogates, which PostgreSQL's type json may hold, escaped."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return {"$surrogates": value.encode("utf-8", "surrogatepass").hex()}
    return value


def _packed_int(value: int) -> Any:
    if _INTEGERS[0] <= value <= _INTEGERS[1]:
        return value
    try:
        return {"$int": str(value)}
    except ValueError:  # of more than 4,300 digits, by default
        return {"$int": hex(value)}


def _packed_float(value: float) -> Any:
    return value if isfinite(value) else {"$float": str(value)}


def _tagged(tag: str, convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: {tag: convert(value)}


def _packed_list(value: list[Any], parts: _Parts, depth: int) -> Any:
    return [_packed(item, parts, depth) for item in value]


def _packed_dict(value: dict[Any, Any], parts: _Parts, depth: int) -> Any:
    packed = {key: _packed(item, parts, depth) for key, item in value.items()}
    if _is_plain(value):
        return packed
    return {"$items": [[_packed(key, parts, depth), item] for key, item in packed.items()]}


def _is_plain(value: dict[Any, Any]) -> bool:
    """Whether JSON has all of its keys, and nobody would take it for a tagged value."""
    if any(type(key) is not str or not (key.isascii() or _packed_text(key) is key) for key in value):
        return False
    return len(value) != 1 or next(iter(value))[:1] != "$"


def _packed_range(value: Range[Any], parts: _Parts, depth: int) -> Any:
    return {"$range": _bounds(value, parts, depth)}


def _packed_multirange(value: Multirange[Any], parts: _Parts, depth: int) -> Any:
    return {"$multirange": [_bounds(item, parts, depth) for item in value]}


def _bounds(value: Range[Any], parts: _Parts, depth: int) -> list[Any]:
    """Empty for the empty range."""
    if value.isempty:
        return []
    return [_packed(value.lower, parts, depth), _packed(value.upper, parts, depth), value.bounds]


_AS_IS = frozenset({bool, NoneType})
_SCALARS: Mapping[type, Callable[[Any], Any]] = {
    str: _packed_text,
    int: _packed_int,
    float: _packed_float,
    Decimal: _tagged("$decimal", str),
    bytes: _tagged("$bytes", bytes.hex),
    datetime: _tagged("$datetime", datetime.isoformat),
    date: _tagged("$date", date.isoformat),
    time: _tagged("$time", time.isoformat),
    timedelta: _tagged("$timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
    UUID: _tagged("$uuid", str),
    **dict.fromkeys((IPv4Address, IPv6Address), _tagged("$address", str)),
    **dict.fromkeys((IPv4Interface, IPv6Interface), _tagged("$interface", str)),
    **dict.fromkeys((IPv4Network, IPv6Network), _tagged("$network", str)),
}
_CONTAINERS: Mapping[type, Callable[[Any, _Parts, int], Any]] = {
    list: _packed_list,
    dict: _packed_dict,
    Range: _packed_range,
    Multirange: _packed_multirange,
}
# Subclasses and relatives, of events made by hand: the first that fits, so that a datetime is no date.
_BASES: tuple[tuple[type | tuple[type, ...], Callable[[Any], Any]], ...] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (Decimal, lambda value: Decimal(str(value))),
    ((bytes, bytearray, memoryview), bytes),
    (datetime, lambda value: datetime.fromisoformat(value.isoformat())),
    (date, lambda value: date(value.year, value.month, value.day)),
    (time, lambda value: time.fromisoformat(value.isoformat())),
    (timedelta, lambda value: timedelta(value.days, value.seconds, value.microseconds)),
    (UUID, lambda value: UUID(int=value.int)),
    (Range, lambda value: Range(value.lower, value.upper, value.bounds, value.isempty)),
    (Multirange, Multirange),
    ((list, tuple), list),
    (Mapping, dict),
)


# --- values in ---------------------------------------------------------------------------------------


def _unpacked(value: Any, parts: _Parts) -> Any:
    """What `_packed` was given; `parts` from the place of a ``$part`` on are unpacked already."""
    if type(value) is list:
        return [_unpacked(item, parts) for item in value]
    if type(value) is not dict:
        return value
    if len(value) == 1:
        ((tag, content),) = value.items()
        if tag[:1] == "$":
            return _READERS[tag](content, parts)
    return {key: _unpacked(item, parts) for key, item in value.items()}


def _of_text(make: Callable[[str], Any]) -> Callable[[Any, _Parts], Any]:
    return lambda content, _parts: make(_is(str, content))


def _range(content: Any, parts: _Parts) -> Range[Any]:
    if _is(list, content) == []:
        return Range(empty=True)
    lower, upper, bounds = content
    return Range(_unpacked(lower, parts), _unpacked(upper, parts), _is(str, bounds))


def _part(content: Any, parts: _Parts) -> Any:
    return parts[_is(int, content)]


def _timedelta(content: Any, _parts: _Parts) -> timedelta:
    days, seconds, microseconds = (_is(int, number) for number in _is(list, content))
    return timedelta(days, seconds, microseconds)


_READERS: Mapping[str, Callable[[Any, _Parts], Any]] = {
    "$int": _of_text(lambda digits: int(digits, 0)),
    "$float": _of_text(float),
    "$surrogates": _of_text(lambda digits: bytes.fromhex(digits).decode("utf-8", "surrogatepass")),
    "$decimal": _of_text(Decimal),
    "$bytes": _of_text(bytes.fromhex),
    "$datetime": _of_text(datetime.fromisoformat),
    "$date": _of_text(date.fromisoformat),
    "$time": _of_text(time.fromisoformat),
    "$timedelta": _timedelta,
    "$uuid": _of_text(UUID),
    "$address": _of_text(ip_address),
    "$interface": _of_text(ip_interface),
    "$network": _of_text(ip_network),
    "$range": _range,
    "$multirange": lambda content, parts: Multirange(_range(item, parts) for item in _is(list, content)),
    "$items": lambda content, parts: {_unpacked(key, parts): _unpacked(item, parts) for key, item in content},
    "$part": _part,
}
