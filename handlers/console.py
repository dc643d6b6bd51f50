"""The `console` handler: a line per event on standard output, for people or, as JSON, for programs.

Owns the look of the line; must not let a value of the database command the terminal.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import orjson
from pydantic import Field
from rich.cells import cell_len, set_cell_size

from cdc import DatabaseEvent, EventType, HandlerOptions

__all__ = ["Console", "ConsoleOptions"]

VALUE_WIDTH = 60  # characters of one value: a name or an address is whole, a document is not the whole line
BYTES_SHOWN = 16

# What moves the cursor, colours, rings, breaks the line or turns the writing direction: C0, DEL, C1, the
# line separators and the bidirectional controls. Lone surrogates cannot be written at all.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# The same in UTF-8, as far as JSON leaves it as it is.
CONTROL_IN_JSON = re.compile(rb"\x7f|\xc2[\x80-\x9f]|\xe2\x80[\xa8-\xae]|\xe2\x81[\xa6-\xa9]")

RESET = "\x1b[0m"
DIM, BOLD, CYAN = "\x1b[2m", "\x1b[1m", "\x1b[36m"
TYPE_COLORS = {
    EventType.CREATE: "\x1b[32m",
    EventType.UPDATE: "\x1b[33m",
    EventType.DELETE: "\x1b[31m",
    EventType.TRUNCATE: "\x1b[35m",
}
TYPE_WIDTH = max(len(event_type.value) for event_type in EventType)


class ConsoleOptions(HandlerOptions):
    """`[handlers.options]` of `console`."""

    format: Literal["auto", "text", "json"] = Field(
        default="auto",
        description='`"text"` is a line for people, `"json"` the whole event, `"auto"` text on a terminal, else JSON.',
    )
    color: bool | None = Field(
        default=None, description="Colours in text; default: on a terminal, unless `NO_COLOR` is set."
    )
    max_width: int = Field(
        default=0, ge=0, description="Columns to cut lines of text at; 0: the terminal's width, elsewhere uncut."
    )
    values: bool = Field(default=True, description="Show values; without, a line of text names the columns only.")


class Console:
    """Write each event to standard output; settled when written, so at least once.

    Errors: OSError when standard output is closed; the events are not settled then.
    """

    def __init__(self, options: ConsoleOptions) -> None:
        self._format = options.format
        self._color = options.color
        self._max_width = options.max_width
        self._values = options.values

    def open(self) -> None:
        """There is nothing to open: standard output is looked at with each batch."""

    def handle_batch(self, events: Sequence[DatabaseEvent]) -> None:
        """Write the events, a line each, with one write."""
        out = sys.stdout
        if out is None:  # the process was started with it closed
            raise OSError("standard output is closed: the console handler has nowhere to write")
        terminal = out.isatty()
        if self._format == "json" or (self._format == "auto" and not terminal):
            data = b"".join([_json_line(event) for event in events])
        else:
            line = _Line(self._wants_color(terminal), self._width(out, terminal), values=self._values)
            text = "".join([line.of(event) for event in events])
            data = text.encode(out.encoding or "utf-8", "backslashreplace")
        _write(out, data)

    def close(self) -> None:
        """Nothing is held back: each batch is written when it is settled."""

    def _wants_color(self, terminal: bool) -> bool:
        if self._color is not None:
            return self._color
        return terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def _width(self, out: TextIO, terminal: bool) -> int:
        """Columns to cut at, 0 for none; asked for at every batch, as windows change."""
        if self._max_width or not terminal:
            return self._max_width
        try:
            return os.get_terminal_size(out.fileno()).columns
        except OSError:
            return 0


class _Line:
    """The look of a line: ``12:00:00.123Z create public.users 7  name='Ann'  [audit]``."""

    def __init__(self, color: bool, width: int, *, values: bool) -> None:
        self._paint: Callable[[str, str], str] = _painted if color else _plain
        self._width = width
        self._values = values
        self._timestamp: datetime | None = None
        self._time = ""

    def of(self, event: DatabaseEvent) -> str:
        """The line of one event, with its end."""
        kind = event.event_type
        table = clean(f"{event.schema}.{event.table_name}")
        record_id = event.record_id
        word = f"{kind.value:{TYPE_WIDTH}}"
        key = "" if record_id is None else f" {shortened(clean(record_id))}"
        details = self._details(event)
        tags = f"  [{clean(' '.join(event.tags))}]" if event.tags else ""
        if self._width:
            head = f"{self._time_of(event)} {word} {table}{key}"
            details, tags = _fitted(self._width - cell_len(head), details, tags)
        paint = self._paint
        return (
            f"{paint(DIM, self._time_of(event))} {paint(TYPE_COLORS[kind], word)} {paint(BOLD, table)}{key}"
            f"{details}{tags and paint(CYAN, tags)}\n"
        )

    def _time_of(self, event: DatabaseEvent) -> str:
        """Commit time, UTC; all events of a transaction share it."""
        timestamp = event.timestamp
        if timestamp is not self._timestamp:
            self._timestamp = timestamp
            self._time = timestamp.astimezone(UTC).strftime("%H:%M:%S.%f")[:-3] + "Z"
        return self._time

    def _details(self, event: DatabaseEvent) -> str:
        payload, before = event.payload, event.before
        if before is None or event.event_type is not EventType.UPDATE:
            parts = [self._value(name, payload[name]) for name in payload]
        else:
            # What the old row does not tell of may have changed or not: its new value is shown.
            parts = [
                self._change(name, before[name], payload[name]) if name in before else self._value(name, payload[name])
                for name in payload
                if name not in before or before[name] != payload[name]
            ]
        parts += [f"{clean(name)} unchanged" for name in sorted(event.unchanged)]
        return "  " + " ".join(parts) if parts else ""

    def _value(self, name: str, value: object) -> str:
        return f"{clean(name)}={readable(value)}" if self._values else clean(name)

    def _change(self, name: str, old: object, new: object) -> str:
        return f"{clean(name)}={readable(old)}→{readable(new)}" if self._values else clean(name)


def readable(value: object) -> str:
    """A value for people: one short piece of a line, strings in quotes, nothing a terminal would obey."""
    return _READABLE.get(type(value), _other)(value)


def clean(text: str) -> str:
    """`text` with every control character written as an escape, such as ``\\n`` or ``\\x1b``."""
    return text if text.isprintable() else CONTROL.sub(_escaped, text)


def shortened(text: str) -> str:
    """At most `VALUE_WIDTH` characters of it."""
    return text if len(text) <= VALUE_WIDTH else text[: VALUE_WIDTH - 1] + "…"


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def _text(value: str) -> str:
    # Cleaning makes text longer, never shorter: what is cut away first would not be seen after it.
    return f"'{shortened(clean(value[: VALUE_WIDTH + 1]))}'"


def _bytes(value: bytes) -> str:
    rest = f"… {len(value)} bytes" if len(value) > BYTES_SHOWN else ""
    return f"\\x{value[:BYTES_SHOWN].hex()}{rest}"


def _json(value: object) -> str:
    try:
        text = orjson.dumps(value, default=str).decode()
    except (TypeError, ValueError):  # integers beyond 64 bits, deep nesting
        text = str(value)
    return shortened(clean(text))


def _other(value: object) -> str:
    return shortened(clean(str(value)))


_READABLE: Mapping[type, Callable[[Any], str]] = {
    type(None): lambda _: "NULL",
    bool: lambda value: "true" if value else "false",
    int: str,
    float: str,
    str: _text,
    bytes: _bytes,
    dict: _json,
    list: _json,
    datetime: datetime.isoformat,
}


def _fitted(room: int, details: str, tags: str) -> tuple[str, str]:
    """Both cut to `room` columns, the tags last: they are short, and tell why an event is here."""
    room = max(room, 0)
    tags = tags if cell_len(tags) <= room else ""
    room -= cell_len(tags)
    if cell_len(details) > room:
        details = set_cell_size(details, room - 1) + "…" if room > 0 else ""
    return details, tags


def _painted(color: str, text: str) -> str:
    return f"{color}{text}{RESET}"


def _plain(color: str, text: str) -> str:  # noqa: ARG001 - the same shape as _painted
    return text


def _json_line(event: DatabaseEvent) -> bytes:
    return CONTROL_IN_JSON.sub(_escaped_in_json, event.to_json()) + b"\n"


def _escaped_in_json(match: re.Match[bytes]) -> bytes:
    return b"\\u%04x" % ord(match[0].decode())


def _write(out: TextIO, data: bytes) -> None:
    """Straight to the descriptor: what a closed pipe refuses must not stay in a buffer until the exit."""
    try:
        out.flush()
        try:
            descriptor = out.fileno()
        except OSError:  # somebody has put an object of his own in the place of stdout
            out.write(data.decode(out.encoding or "utf-8"))
            out.flush()
            return
        while data:
            data = data[os.write(descriptor, data) :]
    except BrokenPipeError as error:
        text = "standard output is closed: nobody reads what the console handler writes"
        raise BrokenPipeError(error.errno, text) from error
