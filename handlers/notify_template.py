"""Texts of messages: a template with fields of an event in braces, and how a value looks in it.

Owns what may stand in braces, and that no text of the database breaks a line of a title or commands a terminal.
It must not know rules or channels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from string import Formatter
from typing import Any

import orjson

from cdc import DatabaseEvent, PermanentError

__all__ = ["Template", "one_line"]

MAX_VALUE = 1000
"""Characters of one value: a message is read by people, and services refuse long ones."""

_COLUMN = re.compile(r"(payload|before)\[([^\[\]]+)\]")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")  # all but tab and newline

FIELDS: Mapping[str, Callable[[DatabaseEvent], object]] = {
    "event_type": lambda event: event.event_type.value,
    "id": lambda event: event.id,
    "position": lambda event: str(event.position),
    "record_id": lambda event: event.record_id,
    "schema": lambda event: event.schema,
    "table": lambda event: f"{event.schema}.{event.table_name}",
    "table_name": lambda event: event.table_name,
    "tags": lambda event: ", ".join(event.tags),
    "timestamp": lambda event: event.timestamp,
    "transaction_id": lambda event: event.transaction_id,
}


@dataclass(frozen=True, slots=True)
class _Field:
    name: str  # of the event, or "payload" or "before"
    column: str | None
    spec: str


class Template:
    """``"Order {record_id} of {payload[customer]}: {payload[total]:.2f}"``; ``{{`` is a brace.

    ValueError for a text that is none: there are no attributes, calls or conversions.
    """

    def __init__(self, text: str, extra: tuple[str, ...] = ()) -> None:
        self.text = text
        self._extra = extra
        self._parts: list[str | _Field] = []
        try:
            pieces = list(Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"cannot be read: {error}") from None
        for literal, field, spec, conversion in pieces:
            self._parts.append(literal)
            if field is not None:
                self._parts.append(self._field(field, spec or "", conversion))

    def _field(self, field: str, spec: str, conversion: str | None) -> _Field:
        if conversion or "{" in spec:
            raise ValueError(f"{{{field}}}: conversions and nested fields are not known here")
        if match := _COLUMN.fullmatch(field):
            return _Field(match[1], match[2], spec)
        if field not in FIELDS and field not in self._extra:
            known = ", ".join(sorted([*FIELDS, *self._extra]))
            raise ValueError(f"{{{field}}} is no field: known are {known}, payload[COLUMN] and before[COLUMN]")
        return _Field(field, None, spec)

    def of(self, event: DatabaseEvent, *, missing: str | None = None, **extra: object) -> str:
        """The text for an event; `missing` stands for a column that the event does not have.

        Without `missing`, PermanentError for such a column, and for a value that its format does not fit.
        """
        pieces: list[str] = []
        for part in self._parts:
            if isinstance(part, str):
                pieces.append(part)
            elif part.column is not None:
                pieces.append(_column_text(part, event, missing))
            else:
                value = extra[part.name] if part.name in extra else FIELDS[part.name](event)
                pieces.append(_formatted(part, value, event))
        return "".join(pieces)


def one_line(text: str) -> str:
    """For titles: a mail's subject is a header, and has no line breaks."""
    return " ".join(text.split())


def _column_text(field: _Field, event: DatabaseEvent, missing: str | None) -> str:
    column = field.column or ""
    before = event.before or {}
    # A large value that did not change is not in the payload, but perhaps in the old row.
    row = before if field.name == "before" or column in event.unchanged else event.payload
    if column in row:
        return _formatted(field, row[column], event)
    if missing is not None:
        return missing
    raise PermanentError(
        f"{event.kind.table}: this {event.event_type} has no {field.name}[{column}] for the template",
        hint="set `missing` to a text that stands for it, or REPLICA IDENTITY FULL on the table",
    )


def _formatted(field: _Field, value: object, event: DatabaseEvent) -> str:
    if not field.spec or value is None:
        text = _text(value)
    else:
        try:
            text = format(value, field.spec)
        except (TypeError, ValueError):
            name = field.name if field.column is None else f"{field.name}[{field.column}]"
            raise PermanentError(
                f"{event.kind.table}: {name} is a {type(value).__name__}, which the format {field.spec!r} does not fit"
            ) from None
    text = _CONTROL.sub(" ", text)
    return text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 1] + "…"


def _text(value: Any) -> str:  # noqa: PLR0911 - a line per kind
    match value:
        case None:
            return "NULL"
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case Decimal():
            return f"{value:f}"
        case datetime() | date() | time():
            return value.isoformat()
        case bytes():
            return "\\x" + value[:MAX_VALUE].hex()
        case dict() | list():
            return _json(value)
    return str(value)


def _json(value: object) -> str:
    try:
        return orjson.dumps(value, default=str).decode()
    except (TypeError, ValueError):  # integers beyond 64 bits, deep nesting
        return str(value)
