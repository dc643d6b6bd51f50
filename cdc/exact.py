"""An event as one line of JSON that people and programs read, and from which the same event comes back.

The line is `DatabaseEvent.to_json` with one more field, ``types``: how to read the values that JSON has only as
text. It names the columns of ``payload`` and ``before`` that are none of JSON's own::

    {"id":7, ... ,"payload":{"id":1,"total":"1.10","span":"[1,5)"}, ...
     "types":{"payload":{"total":"decimal","span":[{"$range":[1,5,"[)"]}]}}}

A name is a way to read the text, element by element for a list; a list holds the value itself, as `cdc.codec` writes
it, for the few whose text says too little. This module must not know files, nor who reads the line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
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

from cdc.codec import KeptRow, kind_of, pack_value, unpack_value
from cdc.events import DatabaseEvent, EventType, Position, Transaction

__all__ = ["dump_event", "load_event"]

_Types: TypeAlias = dict[str, "str | list[Any]"]  # column → how to read it

_NATIVE = frozenset({NoneType, bool, int})
# Nineteen digits in a row may be an integer beyond 64 bits, which orjson would turn into a float.
_DIGITS = bytes(0x30 if 0x30 <= byte <= 0x39 else 0x20 for byte in range(256))
_NINETEEN_DIGITS = b"0" * 19


def dump_event(event: DatabaseEvent) -> bytes:
    """`event.to_json()` with the field ``types``, and ``previous_record_id`` where an update has changed the key.

    One line, without its end. TypeError for an object that is no PostgreSQL value, as only an event made by hand
    may hold; ValueError for an integer that has too many digits for any JSON.
    """
    extra: dict[str, Any] = {}
    if event.event_type is EventType.UPDATE and (previous := event.row.previous_record_id()) != event.record_id:
        extra["previous_record_id"] = previous
    before = event.before
    types = {"payload": _types(event.payload), "before": {} if before is None else _types(before)}
    extra["types"] = {name: columns for name, columns in types.items() if columns}
    return event.to_json()[:-1] + b"," + orjson.dumps(extra)[1:]


def load_event(data: bytes) -> DatabaseEvent:
    """The event that :func:`dump_event` was given.

    Of a line that `DatabaseEvent.to_json` made, which has no ``types``, the values are those of JSON: numerics,
    times and the like as text. ValueError, which holds no row value, for anything else.
    """
    try:
        return _event(_parsed(data))
    except _DAMAGES as error:
        # Not its text, which may hold what could not be read.
        raise ValueError(f"{len(data)} bytes are no event as JSON: {type(error).__name__}") from None


_DAMAGES = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError)


def _parsed(data: bytes) -> Any:
    """As `json.loads` reads it; by orjson wherever both agree."""
    if _NINETEEN_DIGITS not in data.translate(_DIGITS):
        with suppress(orjson.JSONDecodeError):  # a lone surrogate, deep nesting: json.loads takes both
            return orjson.loads(data)
    return json.loads(data)


def _event(document: dict[str, Any]) -> DatabaseEvent:
    position = Position.parse(document["position"])
    types = document.get("types", {})
    record_id = document["record_id"]
    previous = document.get("previous_record_id", record_id)
    before = document["before"]
    return DatabaseEvent(
        _is(int, document["id"]),
        kind_of(document["event_type"], _is(str, document["schema"]), _is(str, document["table_name"])),
        tuple(_is(str, tag) for tag in _is(list, document["tags"])),
        Transaction(
            position.commit_lsn, _is(int, document["transaction_id"]), datetime.fromisoformat(document["timestamp"])
        ),
        position.ordinal,
        KeptRow(
            _read(document["payload"], types.get("payload")),
            None if before is None else _read(before, types.get("before")),
            frozenset(_is(str, name) for name in _is(list, document["unchanged"])),
            None if record_id is None else _is(str, record_id),
            None if previous is None else _is(str, previous),
        ),
    )


def _is(wanted: type, value: Any) -> Any:
    if type(value) is not wanted:
        raise TypeError(f"{wanted.__name__} expected")
    return value


# --- types out ---------------------------------------------------------------------------------------


def _types(row: Mapping[str, Any]) -> _Types:
    """Of the columns that need one; most values are seen through here, without a call."""
    types: _Types = {}
    for name, value in row.items():
        kind = type(value)
        if kind in _NATIVE or (kind is str and value.isascii()):
            continue
        found = _type(value)
        if found is not None:
            types[name] = found
    return types


def _type(value: Any) -> str | list[Any] | None:
    """How `value` is read back from its JSON; None when that gives it as it is."""
    kind = type(value)
    if (name := _NAMES.get(kind)) is not None and _is_told(value):
        return name
    if kind is float and not isfinite(value):
        return "float"
    try:
        if _is_plain(value):
            return None
        if kind is list and (name := next(_names_in(value), None)) is not None and _is_all(name, value):
            return name
    except RecursionError:
        pass
    return pack_value(value)


def _is_plain(value: Any) -> bool:
    """Whether JSON has all of it."""
    kind = type(value)
    if kind is str:
        return _is_text(value)
    if kind is float:
        return isfinite(value)
    if kind is dict:
        if not all(type(key) is str and _is_text(key) for key in value):
            return False
        value = value.values()
    elif kind is not list:
        return kind in _NATIVE
    for item in value:  # noqa: SIM110 - any() costs half as much again
        if not _is_plain(item):
            return False
    return True


def _names_in(value: list[Any]) -> Iterator[str]:
    """Of a list's elements, also those of the lists in it."""
    for item in value:
        if type(item) is list:
            yield from _names_in(item)
        elif type(item) is float:
            yield "float"
        elif (name := _NAMES.get(type(item))) is not None:
            yield name


def _is_all(name: str, value: Any) -> bool:
    kind = type(value)
    if kind is list:
        return all(_is_all(name, item) for item in value)
    return value is None or (name == "float" if kind is float else _NAMES.get(kind) == name and _is_told(value))


def _is_told(value: Any) -> bool:
    """Whether the text in JSON says all of it: an exponent and the seconds of an offset it leaves out."""
    kind = type(value)
    if kind is Decimal:
        return "E" not in str(value)
    return kind is not datetime or value.tzinfo is UTC or value.tzinfo is None


def _is_text(value: str) -> bool:
    """Whether it is without lone surrogates, of which JSON reads two in a row as one character."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


_NAMES: Mapping[type, str] = {
    Decimal: "decimal",
    bytes: "bytes",
    datetime: "datetime",
    date: "date",
    time: "time",
    timedelta: "duration",
    UUID: "uuid",
    **dict.fromkeys((IPv4Address, IPv6Address), "address"),
    **dict.fromkeys((IPv4Interface, IPv6Interface), "interface"),
    **dict.fromkeys((IPv4Network, IPv6Network), "network"),
}


# --- values in ---------------------------------------------------------------------------------------


def _read(row: dict[str, Any], types: Mapping[str, Any] | None) -> dict[str, Any]:
    """`row` with each value in its type, in place."""
    _is(dict, row)
    for name, found in (types or {}).items():
        row[name] = unpack_value(found) if type(found) is list else _each(_READERS[found], row[name])
    return row


def _each(read: Callable[[Any], Any], value: Any) -> Any:
    if value is None:
        return None
    return [_each(read, item) for item in value] if type(value) is list else read(value)


_DURATION = re.compile(r"(-?)P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)(?:\.(\d{1,6}))?S)?)?", re.ASCII)


def _duration(text: str) -> timedelta:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError("no duration of ISO 8601")
    sign, days, hours, minutes, seconds, fraction = match.groups(default="")
    value = timedelta(
        int(days or 0), int(seconds or 0), int(fraction.ljust(6, "0")), 0, int(minutes or 0), int(hours or 0)
    )
    return -value if sign else value


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "decimal": Decimal,
    "float": float,
    "bytes": lambda text: bytes.fromhex(text.removeprefix("\\x")),
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "duration": _duration,
    "uuid": UUID,
    "address": ip_address,
    "interface": ip_interface,
    "network": ip_network,
}
