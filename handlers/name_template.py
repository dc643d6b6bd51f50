"""Names made of an event: keys, streams and indexes by a template such as ``user:{record_id}``.

Owns what may stand in braces and the text of a value there; must not know what the name is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from string import Formatter

from cdc import DatabaseEvent, PermanentError, PostgresValue, to_json

__all__ = ["NameTemplate", "value_text"]

OF_EVENT = ("schema", "table_name", "event_type", "record_id")
_COLUMN = "row."  # in front of a column that is called like one of these


@dataclass(frozen=True, slots=True)
class _Field:
    """What stands in one pair of braces: a property of the event, or a column."""

    name: str
    is_column: bool


class NameTemplate:
    """A text with ``{schema}``, ``{table_name}``, ``{event_type}``, ``{record_id}`` and columns of the row in it.

    A column that is called like one of the four is written ``{row.schema}``. ``{{`` is a brace.
    ValueError for a text that cannot be read as one.
    """

    __slots__ = ("_parts", "_plain", "fields", "text")

    def __init__(self, text: str) -> None:
        if not text:
            raise ValueError("is empty")
        self.text = text
        self._parts = [part for piece in Formatter().parse(text) for part in _parts(*piece)]
        self.fields = [part for part in self._parts if isinstance(part, _Field)]
        # The usual case, in one call: nothing of the row, and so nothing that can be missing or NULL.
        is_plain = not any(field.is_column or field.name == "record_id" for field in self.fields)
        self._plain = text if is_plain else None

    @property
    def columns(self) -> list[str]:
        """Names of the columns in it."""
        return [field.name for field in self.fields if field.is_column]

    @property
    def has_record_id(self) -> bool:
        """Whether the record's id is in it."""
        return any(field.name == "record_id" and not field.is_column for field in self.fields)

    @property
    def literals(self) -> list[str | None]:
        """Its text piece by piece, None where a value comes: for a search pattern."""
        return [None if isinstance(part, _Field) else part for part in self._parts]

    def of(
        self, event: DatabaseEvent, row: Mapping[str, PostgresValue] | None = None, record_id: str | None = None
    ) -> str | None:
        """The name for an event; None when a column in it is NULL.

        `row` and `record_id` (default: those of the event) may be those before the change. PermanentError for a
        column that is not in the row, and for a record without an id where one is needed.
        """
        if self._plain is not None:
            return self._plain.format(
                schema=event.schema, table_name=event.table_name, event_type=event.event_type.value
            )
        names = {
            "schema": event.schema,
            "table_name": event.table_name,
            "event_type": event.event_type.value,
            "record_id": event.record_id if record_id is None else record_id,
        }
        values = event.payload if row is None else row
        pieces: list[str] = []
        for part in self._parts:
            if not isinstance(part, _Field):
                pieces.append(part)
                continue
            value = self._column(event, values, part.name) if part.is_column else names[part.name]
            if value is None and not part.is_column:
                raise self._unknown(event, "record_id")
            if value is None:
                return None
            pieces.append(value_text(value))
        return "".join(pieces)

    def _column(self, event: DatabaseEvent, row: Mapping[str, PostgresValue], name: str) -> PostgresValue:
        try:
            return row[name]
        except KeyError:
            raise self._unknown(event, name) from None

    def _unknown(self, event: DatabaseEvent, name: str) -> PermanentError:
        return PermanentError(
            f"{event.kind.table}: this {event.event_type} has no {name!r} for the template {self.text!r}",
            hint="see its spelling and the table's primary key; of deleted rows only the replica identity is known",
        )


def _parts(literal: str, field: str | None, spec: str | None, conversion: str | None) -> list[str | _Field]:
    parts: list[str | _Field] = [literal] if literal else []
    if field is None:
        return parts
    if spec or conversion:
        raise ValueError(f"{{{field}}} takes no format")
    if not field.removeprefix(_COLUMN) or field.isdigit():
        raise ValueError("a pair of braces is without a name")
    is_column = field not in OF_EVENT
    return [*parts, _Field(field.removeprefix(_COLUMN) if is_column else field, is_column)]


def value_text(value: PostgresValue) -> str:
    """A value as part of a name, or by itself: text as it is, everything else in its JSON form without quotes."""
    if isinstance(value, str):
        return value
    if type(value) is int:
        return str(value)
    if isinstance(value, Decimal | bool | float | bytes):
        return to_json(value).decode().strip('"').replace("\\\\", "\\")
    text = to_json(value).decode()
    return text.strip('"') if text.startswith('"') else text
