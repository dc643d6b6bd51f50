"""What an event looks like as the message of a broker: where it goes, its headers, its body, its key.

Owns the templates of subjects, routing keys and topics, with the escaping of what a broker does not allow in
them, and the names of the headers. It must not know a connection or a client library.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from string import Formatter
from typing import Any

from cdc import DatabaseEvent, PermanentError, traceparent

__all__ = ["Alphabet", "Template", "key_of", "message_headers", "message_id"]

ABSENT = "-"  # stands for what an event does not have: an empty part is not allowed in a subject

_FIELDS: Mapping[str, Callable[[DatabaseEvent], object]] = {
    "schema": lambda event: event.kind.schema,
    "table": lambda event: event.kind.table_name,
    "event_type": lambda event: event.kind.event_type.value,
    "record_id": lambda event: event.record_id,
}
_PAYLOAD = "payload."
_KNOWN = ", ".join(f"{{{name}}}" for name in [*_FIELDS, f"{_PAYLOAD}COLUMN"])


@dataclass(frozen=True, slots=True)
class Alphabet:
    """What a broker allows in a name: what matches `refused` in a value is written as `escape` of its UTF-8 bytes.

    `refused_literal`: what the fixed text of a template must not hold. `limit`: bytes of the whole name.
    """

    noun: str
    refused: re.Pattern[str]
    refused_literal: re.Pattern[str]
    limit: int
    escape: Callable[[int], str] = "%{:02X}".format

    def escaped(self, value: str) -> str:
        """`value` as one part of a name."""
        return self.refused.sub(self._escape, value)

    def _escape(self, match: re.Match[str]) -> str:
        return "".join(map(self.escape, match[0].encode()))


class Template:
    """A name made of each event: ``walsignal.{schema}.{table}`` with `{event_type}`, `{record_id}`, `{payload.COLUMN}`.

    ValueError, whose text tells what is wrong, for a template that cannot be used.
    """

    def __init__(self, text: str, alphabet: Alphabet) -> None:
        self.text = text
        self._alphabet = alphabet
        self._parts = list(self._parsed())
        if not self._parts:
            raise ValueError(f"the {alphabet.noun} is empty")
        fixed = "".join(literal + ("" if field is None else "x") for literal, field in self._parts)
        if found := alphabet.refused_literal.search(fixed):
            raise ValueError(f"{found[0]!r} is not allowed at that place of a {alphabet.noun}")
        self._by_kind: dict[object, str] | None = {}
        if any(field == "record_id" or (field and field.startswith(_PAYLOAD)) for _, field in self._parts):
            self._by_kind = None  # each event has a name of its own

    def _parsed(self) -> list[tuple[str, str | None]]:
        """Literal text and the field behind it, over and over; ValueError for anything else."""
        parts = []
        for literal, field, form, conversion in Formatter().parse(self.text):
            is_known = field is None or field in _FIELDS or (field.startswith(_PAYLOAD) and field != _PAYLOAD)
            if not is_known or form or conversion:
                raise ValueError(
                    f"{{{field}{'!' if conversion else ''}{conversion or ''}}} is unknown; known are {_KNOWN}"
                )
            parts.append((literal, field))
        return parts

    def of(self, event: DatabaseEvent) -> str:
        """The name for this event; PermanentError when a column is not there, or it is too long."""
        if self._by_kind is None:
            return self._made(event)
        name = self._by_kind.get(event.kind)
        if name is None:
            if len(self._by_kind) > 10_000:  # kinds are made anew when a table changes: nobody must collect them
                self._by_kind.clear()
            name = self._by_kind[event.kind] = self._made(event)
        return name

    def _made(self, event: DatabaseEvent) -> str:
        name = "".join(
            [literal + ("" if field is None else self._value(event, field)) for literal, field in self._parts]
        )
        if len(name.encode()) > self._alphabet.limit:
            raise PermanentError(
                f"the {self._alphabet.noun} that {self.text!r} makes is longer than {self._alphabet.limit} bytes"
            )
        return name

    def _value(self, event: DatabaseEvent, field: str) -> str:
        field_of = _FIELDS.get(field)
        value = self._column(event, field.removeprefix(_PAYLOAD)) if field_of is None else field_of(event)
        return self._alphabet.escaped(_text(value)) or ABSENT

    def _column(self, event: DatabaseEvent, column: str) -> object:
        try:
            return event.payload[column]
        except KeyError:
            raise PermanentError(
                f"{self.text!r} names the column {column!r}, which this {event.event_type} of {event.kind.table}"
                " does not have (of a delete only what the replica identity holds is known)"
            ) from None

    def pattern(self, wildcard: str) -> str:
        """What all names match: each dot-separated part that holds a field is `wildcard`."""
        text = "".join(literal + ("" if field is None else "\0") for literal, field in self._parts)
        return ".".join(wildcard if "\0" in part else part for part in text.split("."))

    def __repr__(self) -> str:
        return f"<Template {self.text!r}>"


def _text(value: Any) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "true" if value else "false"
    return value.isoformat() if isinstance(value, date) else str(value)  # a datetime is a date


def message_id(event: DatabaseEvent) -> str:
    """The idempotency key, the same again on redelivery."""
    return str(event.position)


def message_headers(event: DatabaseEvent) -> dict[str, str]:
    """What a consumer may want to know without reading the body; all are text.

    `cdc-record-id` is absent without a key, `cdc-tags` (separated by commas) without tags, `traceparent` without one.
    """
    kind = event.kind
    headers = {
        "cdc-position": message_id(event),
        "cdc-event-id": str(event.id),
        "cdc-event-type": kind.event_type.value,
        "cdc-schema": kind.schema,
        "cdc-table": kind.table_name,
        "cdc-commit-time": event.timestamp.isoformat(),
    }
    if (record_id := event.record_id) is not None:
        headers["cdc-record-id"] = record_id
    if event.tags:
        headers["cdc-tags"] = ",".join(event.tags)
        if (trace := traceparent(event)) is not None:
            headers["traceparent"] = trace
    return headers


def key_of(event: DatabaseEvent) -> bytes:
    """Table and record: all events of a record have the same, so a partitioned log keeps their order.

    Without a primary key it is the table alone: all its events stay in order, in one partition.
    """
    table = event.kind.table
    record_id = event.record_id
    return (table if record_id is None else f"{table}/{record_id}").encode()
