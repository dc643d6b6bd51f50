"""The dead letters as rows: kept, listed page by page, summed up, asked for again, discarded.

What is searched and summed stands in `letter`, the events themselves in `letter_body`: a hundred
thousand letters are a gigabyte of events, but few megabytes to look through.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cdc.events import Position
from cdc.state.records import DeadLetter, LetterFilter, LetterState, LetterTotal
from cdc.state.rows import Rows, column_time, sorted_position, sorting, time_column

__all__ = ["add", "drop", "extents", "page", "request_retry", "totals"]

_KEEP = """
INSERT INTO letter (callback, position, state, table_name, event_type, first_time, last_time, error, attempts, retry, size)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (callback, position) DO UPDATE SET
    state = excluded.state, table_name = excluded.table_name, event_type = excluded.event_type,
    last_time = excluded.last_time, error = excluded.error, attempts = excluded.attempts,
    retry = excluded.retry, size = excluded.size
WHERE NOT (excluded.state = 'parked' AND letter.state = 'failed')
"""  # noqa: E501
# The row above has the state of the new letter, or it is a failed one that a parked one must not replace.
_KEEP_BODY = """
INSERT INTO letter_body (id, error_text, event)
SELECT id, ?, ? FROM letter WHERE callback = ? AND position = ? AND state = ?
ON CONFLICT (id) DO UPDATE SET error_text = excluded.error_text, event = excluded.event
"""
_PAGE = """
SELECT id, callback, position, state, table_name, event_type, first_time, last_time, error, attempts, retry,
    error_text, event
FROM letter JOIN letter_body USING (id)
"""
_ORDER = "ORDER BY callback, position LIMIT ?"

Condition = tuple[str, list[Any]]


def add(rows: Rows, letters: Sequence[DeadLetter]) -> None:
    """See :meth:`~cdc.state.records.StateStore.add_letters`."""
    rows.executemany(_KEEP, [_columns(rows, letter) for letter in letters])
    rows.executemany(
        _KEEP_BODY,
        [
            (rows.text(letter.error_text), letter.event, letter.callback, sorting(letter.position), letter.state.value)
            for letter in letters
        ],
    )


def page(
    rows: Rows, wanted: LetterFilter, after: tuple[str, Position] | None, limit: int, max_bytes: int
) -> list[DeadLetter]:
    """See :meth:`~cdc.state.records.StateStore.letters`."""
    where, values = _where(rows, wanted)
    if after is not None:
        where += " AND (callback, position) > (?, ?)"
        values += [after[0], sorting(after[1])]
    if max_bytes:
        # The events are read only when it is known that they are few enough to be held.
        sizes = rows.execute(f"SELECT id, size FROM letter WHERE {where} {_ORDER}", [*values, limit])  # noqa: S608
        where, value = rows.among(list(_as_many_as_fit(sizes.fetchall(), max_bytes)))
        values = [value]
    found = rows.execute(f"{_PAGE} WHERE {where} {_ORDER}", [*values, limit])
    return [_letter(row) for row in found.fetchall()]


def totals(rows: Rows) -> list[LetterTotal]:
    """See :meth:`~cdc.state.records.StateStore.letter_totals`."""
    found = rows.execute(
        "SELECT callback, state, COUNT(*), SUM(size), MIN(first_time), SUM(retry) FROM letter "
        "GROUP BY callback, state ORDER BY callback, state"
    )
    return [
        LetterTotal(callback, LetterState(state), count, int(size), column_time(oldest), int(retry))
        for callback, state, count, size, oldest, retry in found.fetchall()
    ]


def extents(rows: Rows, wanted: LetterFilter) -> list[tuple[str, Position, Position, int, str, str]]:
    """What the letters span, by callback: first and last position, how many, earliest and latest time."""
    where, values = _where(rows, wanted)
    found = rows.execute(
        "SELECT callback, MIN(position), MAX(position), COUNT(*), MIN(first_time), MAX(last_time) "  # noqa: S608
        f"FROM letter WHERE {where} GROUP BY callback",
        values,
    )
    return [
        (callback, sorted_position(first), sorted_position(last), count, begin, end)
        for callback, first, last, count, begin, end in found.fetchall()
    ]


def drop(rows: Rows, wanted: LetterFilter) -> int:
    """Delete letters; how many there were."""
    where, values = _where(rows, wanted)
    rows.execute(f"DELETE FROM letter_body WHERE id IN (SELECT id FROM letter WHERE {where})", values)  # noqa: S608
    return rows.execute(f"DELETE FROM letter WHERE {where}", values).rowcount  # noqa: S608


def request_retry(rows: Rows, wanted: LetterFilter) -> int:
    """See :meth:`~cdc.state.records.StateStore.request_retry`."""
    where, values = _where(rows, wanted)
    return rows.execute(f"UPDATE letter SET retry = 1 WHERE state = 'failed' AND {where}", values).rowcount  # noqa: S608


def _where(rows: Rows, wanted: LetterFilter) -> Condition:
    conditions, values = ["1 = 1"], []
    if wanted.ids is not None:
        condition, value = rows.among(wanted.ids)
        conditions.append(condition)
        values.append(value)
    equal = {
        "callback": wanted.callback,
        "table_name": wanted.table,
        "state": wanted.state and wanted.state.value,
        "retry": None if wanted.retry is None else int(wanted.retry),
    }
    for column, value in equal.items():
        if value is not None:
            conditions.append(f"{column} = ?")
            values.append(value)
    if wanted.before is not None:
        conditions.append("last_time < ?")
        values.append(time_column(wanted.before))
    return " AND ".join(conditions), values


def _as_many_as_fit(sizes: Sequence[tuple[int, int]], max_bytes: int) -> Iterator[int]:
    total = 0
    for number, (letter_id, size) in enumerate(sizes):
        total += size
        if number and total > max_bytes:
            return
        yield letter_id


def _columns(rows: Rows, letter: DeadLetter) -> tuple[str | int, ...]:
    return (
        letter.callback,
        sorting(letter.position),
        letter.state.value,
        letter.table,
        letter.event_type,
        time_column(letter.first_time),
        time_column(letter.last_time),
        rows.text(letter.error),
        letter.attempts,
        int(letter.retry),
        letter.size,
    )


def _letter(row: Sequence[Any]) -> DeadLetter:
    return DeadLetter(
        id=row[0],
        callback=row[1],
        position=sorted_position(row[2]),
        state=LetterState(row[3]),
        table=row[4],
        event_type=row[5],
        first_time=column_time(row[6]),
        last_time=column_time(row[7]),
        error=row[8],
        attempts=row[9],
        retry=bool(row[10]),
        error_text=row[11],
        event=bytes(row[12]),
    )
