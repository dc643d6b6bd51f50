"""A dead letter, and the sums of many, as commands show them: rows, a page, JSON. It must not know where they lie."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from cdc.cli.output import human_bytes, pairs, table
from cdc.cli.stored import moment
from cdc.codec import unpack
from cdc.events import DatabaseEvent
from cdc.logs import clean
from cdc.state import DeadLetter, LetterState, LetterTotal
from cdc.values import to_json

__all__ = [
    "LETTER_COLUMNS",
    "TOTAL_COLUMNS",
    "letter_page",
    "letter_row",
    "letter_values",
    "letter_whole",
    "total_row",
    "total_values",
]

LETTER_COLUMNS = ["id", "handler", "state", "table", "type", "position", "attempts", "error", "last attempt"]
TOTAL_COLUMNS = ["handler", "state", "letters", "size", "oldest", "to be retried"]


def letter_page(letter: DeadLetter) -> Iterator[RenderableType]:
    """For people: all about it, its event as the handler sees it, and what can be done."""
    event, problem = _event(letter)
    facts = [
        ("handler", letter.callback),
        ("state", _state(letter)),
        ("position", letter.position),
        ("first attempt" if letter.attempts else "kept since", moment(letter.first_time)),
        ("last attempt", moment(letter.last_time) if letter.attempts else "-"),
        ("attempts", letter.attempts),
        ("error", letter.error),
        ("error text", letter.error_text),
        ("size", human_bytes(letter.size)),
        ("table", letter.table),
        ("type", letter.event_type),
    ]
    if event is not None:
        facts += [
            ("record id", event.record_id),
            ("event id", event.id),
            ("tags", ", ".join(event.tags)),
            ("committed", moment(event.timestamp)),
            ("transaction", event.transaction_id),
            ("unchanged", ", ".join(sorted(event.unchanged))),
        ]
    yield pairs(f"dead letter {letter.id}", facts)
    if event is not None:
        yield table("row", ["column", "value", "before"], _columns(event))
    else:
        yield Text.assemble(("problem: ", "bold red"), clean(problem))
    retried = letter.state is LetterState.FAILED
    again = f"cdc dead-letters retry {letter.id}" if retried else f"cdc handlers resume {letter.callback}"
    yield Text(f"next: {again}, or give it up: cdc dead-letters discard {letter.id}")


def letter_whole(letter: DeadLetter) -> dict[str, Any]:
    """For JSON: all about it, with its event as the handler sees it."""
    event, problem = _event(letter)
    values = None if event is None else json.loads(event.to_json())
    return letter_values(letter) | {"error_text": letter.error_text, "event": values, "problem": problem}


def _event(letter: DeadLetter) -> tuple[DatabaseEvent | None, str]:
    """The event, or why there is none."""
    if not letter.event:
        return None, "the row could not be read when the letter was written; the table has it, or its log"
    try:
        return unpack(letter.event), ""
    except ValueError as error:
        return None, f"the event cannot be read: {error}"


def _columns(event: DatabaseEvent) -> Iterator[tuple[str, str, str]]:
    before = event.before or {}
    for name in {**event.payload, **before}:
        yield name, _value(event.payload, name), _value(before, name)


def _value(row: Any, name: str) -> str:
    if name not in row:
        return "-"
    value = row[name]
    return value if isinstance(value, str) and value else to_json(value).decode()


def _state(letter: DeadLetter) -> str:
    return f"{letter.state}, to be retried" if letter.retry else str(letter.state)


def letter_row(letter: DeadLetter) -> Sequence[object]:
    """Below `LETTER_COLUMNS`."""
    return (
        letter.id,
        letter.callback,
        _state(letter),
        letter.table,
        letter.event_type,
        letter.position,
        letter.attempts or "-",
        letter.error,
        moment(letter.last_time) if letter.attempts else "-",
    )


def letter_values(letter: DeadLetter) -> dict[str, Any]:
    """For JSON: all but its event and the text of its error."""
    return {
        "id": letter.id,
        "handler": letter.callback,
        "state": letter.state.value,
        "retry": letter.retry,
        "table": letter.table,
        "event_type": letter.event_type,
        "position": str(letter.position),
        "attempts": letter.attempts,
        "error": letter.error,
        "first_time": letter.first_time.isoformat(),
        "last_time": letter.last_time.isoformat(),
        "bytes": letter.size,
    }


def total_values(total: LetterTotal) -> dict[str, Any]:
    """For JSON."""
    return {
        "handler": total.callback,
        "state": total.state.value,
        "letters": total.count,
        "bytes": total.bytes,
        "oldest": total.oldest.isoformat(),
        "retry": total.retry,
    }


def total_row(total: LetterTotal) -> Sequence[object]:
    """Below `TOTAL_COLUMNS`."""
    size, oldest = human_bytes(total.bytes), moment(total.oldest)
    return total.callback, total.state, f"{total.count:,}", size, oldest, f"{total.retry:,}"
