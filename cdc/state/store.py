"""The state as rows, the same in every database: the statements of :class:`~cdc.state.records.StateStore`.

Whoever keeps the tables gives transactions; this must not know files and connections.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple, fields, replace
from datetime import UTC, datetime

from cdc.codes import Code
from cdc.errors import StateError
from cdc.events import Position
from cdc.lsn import Lsn
from cdc.state import letters
from cdc.state.records import (
    CallbackRecord,
    CallbackState,
    Checkpoint,
    DeadLetter,
    Gap,
    LetterFilter,
    LetterTotal,
    Source,
)
from cdc.state.rows import Rows, column_time, time_column

__all__ = ["DISCARDED", "RowStore"]

DISCARDED = "discarded"
"""The reason of a gap that an operator made by discarding dead letters."""

_SOURCE_COLUMNS = [f'"{column.name}"' for column in fields(Source)]
_SOURCE = ", ".join(_SOURCE_COLUMNS)
_REPLACED = ", ".join(f"{name} = excluded.{name}" for name in [*_SOURCE_COLUMNS, "flushed_lsn", "last_event_id"])
_CHECKPOINT = (
    "INSERT INTO checkpoint VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?) "  # noqa: S608 - our own words
    f"ON CONFLICT (id) DO UPDATE SET {_REPLACED}"
)

_CONFIGURATION = "CREATE TABLE configuration (id INTEGER PRIMARY KEY CHECK (id = 1), content TEXT NOT NULL)"


class RowStore(ABC):
    """A :class:`~cdc.state.records.StateStore` but for `version`, `ping` and `close`."""

    where: str  # the state's place, as error messages name it

    @abstractmethod
    def _reading(self) -> AbstractContextManager[Rows]:
        """A transaction of which every SELECT sees the same moment."""

    @abstractmethod
    def _writing(self) -> AbstractContextManager[Rows]:
        """A transaction that sees all earlier ones; committed and durable when the block has ended."""

    def load(self) -> Checkpoint | None:
        """See :class:`~cdc.state.records.StateStore`; so for all methods."""
        with self._reading() as rows:
            row = rows.execute(f"SELECT {_SOURCE}, flushed_lsn, last_event_id FROM checkpoint").fetchone()  # noqa: S608
            if row is None:
                return None
            settled = rows.execute("SELECT callback, position FROM settled WHERE named = 1 ORDER BY callback")
            return Checkpoint(
                source=Source(*row[:6]),
                flushed_lsn=Lsn.parse(row[6]),
                last_event_id=row[7],
                callbacks={name: Position.parse(position) for name, position in settled.fetchall()},
            )

    def save(self, checkpoint: Checkpoint, gaps: Sequence[Gap] = ()) -> None:
        with self._writing() as rows:
            self._refuse_backwards(rows, checkpoint)
            rows.execute(
                _CHECKPOINT, [*astuple(checkpoint.source), str(checkpoint.flushed_lsn), checkpoint.last_event_id]
            )
            named = {name for (name,) in rows.execute("SELECT callback FROM settled WHERE named = 1").fetchall()}
            rows.executemany(
                "UPDATE settled SET named = 0 WHERE callback = ?",
                [(name,) for name in sorted(named - checkpoint.callbacks.keys())],
            )
            rows.executemany(
                "INSERT INTO settled VALUES (?, ?, 1) ON CONFLICT (callback) DO UPDATE "
                "SET position = excluded.position, named = 1 "
                "WHERE settled.position <> excluded.position OR settled.named = 0",
                [(name, str(position)) for name, position in checkpoint.callbacks.items()],
            )
            for gap in gaps:
                _record(rows, gap)

    def callbacks(self) -> list[CallbackRecord]:
        with self._reading() as rows:
            settled = rows.execute("SELECT callback, position FROM settled").fetchall()
            removed = rows.execute('SELECT callback, state, position, "time", reason FROM removed').fetchall()
            records = {name: CallbackRecord(name, Position.parse(position)) for name, position in settled}
            for name, state, position, time, reason in removed:
                removed_at = Position.parse(position)
                at = records[name].settled if name in records else removed_at
                records[name] = CallbackRecord(name, at, CallbackState(state), removed_at, column_time(time), reason)
        return [records[name] for name in sorted(records)]

    def mark_removed(self, name: str, position: Position, reason: str) -> None:
        self._mark(name, CallbackState.REMOVED, position, reason)

    def mark_paused(self, name: str, position: Position, reason: str) -> None:
        self._mark(name, CallbackState.PAUSED, position, reason)

    def _mark(self, name: str, state: CallbackState, position: Position, reason: str) -> None:
        """A removal stands, whatever comes later, until it is resumed."""
        with self._writing() as rows:
            rows.execute(
                "INSERT INTO removed VALUES (?, ?, ?, ?, ?) ON CONFLICT (callback) DO UPDATE "
                "SET state = excluded.state WHERE removed.state <> 'removed'",
                [
                    name,
                    state.value,
                    str(position),
                    time_column(datetime.now(UTC)),
                    rows.text(reason),
                ],
            )

    def mark_resuming(self, name: str) -> None:
        with self._writing() as rows:
            rows.execute("UPDATE removed SET state = ? WHERE callback = ?", [CallbackState.RESUMING.value, name])

    def mark_active(self, name: str) -> None:
        with self._writing() as rows:
            rows.execute("DELETE FROM removed WHERE callback = ? AND state = ?", [name, CallbackState.RESUMING.value])

    def forget(self, name: str) -> None:
        with self._writing() as rows:
            letters.drop(rows, LetterFilter(callback=name))
            for table in ("settled", "removed", "gap"):
                rows.execute(f"DELETE FROM {table} WHERE callback = ?", [name])  # noqa: S608 - our own words

    def note_configuration(self, text: str) -> None:
        with self._writing() as rows:
            if not rows.has_table("configuration"):  # a state that an earlier version has made
                rows.execute(_CONFIGURATION)
            rows.execute(
                "INSERT INTO configuration VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET content = excluded.content",
                [text],
            )

    def configuration(self) -> str | None:
        with self._reading() as rows:
            if not rows.has_table("configuration"):
                return None
            row = rows.execute("SELECT content FROM configuration").fetchone()
            return None if row is None else str(row[0])

    def gaps(self) -> list[Gap]:
        with self._reading() as rows:
            found = [_gap(row) for row in rows.execute(f"SELECT {_GAP} FROM gap").fetchall()]  # noqa: S608
        return sorted(found, key=lambda gap: (gap.first, gap.callback, gap.reason))

    def add_letters(self, letters_: Sequence[DeadLetter]) -> None:
        with self._writing() as rows:
            letters.add(rows, letters_)

    def letters(
        self, wanted: LetterFilter, *, after: tuple[str, Position] | None = None, limit: int = 1000, max_bytes: int = 0
    ) -> list[DeadLetter]:
        with self._reading() as rows:
            return letters.page(rows, wanted, after, limit, max_bytes)

    def letter_totals(self) -> list[LetterTotal]:
        with self._reading() as rows:
            return letters.totals(rows)

    def remove_letters(self, ids: Collection[int]) -> None:
        with self._writing() as rows:
            letters.drop(rows, LetterFilter(ids=ids))

    def discard_letters(self, wanted: LetterFilter) -> int:
        with self._writing() as rows:
            for callback, first, last, count, begin, end in letters.extents(rows, wanted):
                gap = Gap(callback, first, last, count, DISCARDED, column_time(begin), column_time(end))
                _record(rows, _joined(rows, gap))
            return letters.drop(rows, wanted)

    def request_retry(self, wanted: LetterFilter) -> int:
        with self._writing() as rows:
            return letters.request_retry(rows, wanted)

    def _refuse_backwards(self, rows: Rows, checkpoint: Checkpoint) -> None:
        """Guard against our own mistakes: what the server was told is settled cannot become unsettled."""
        row = rows.execute(
            f"SELECT flushed_lsn FROM checkpoint WHERE ({_SOURCE}) = (?, ?, ?, ?, ?, ?)",  # noqa: S608 - our own words
            astuple(checkpoint.source),
        ).fetchone()
        if row is not None and checkpoint.flushed_lsn < Lsn.parse(row[0]):
            raise StateError(
                f"{self.where}: the checkpoint would go back from {row[0]} to {checkpoint.flushed_lsn}",
                hint="this is a mistake in cdc: please report it; the saved checkpoint stands",
                code=Code.CHECKPOINT_BACKWARDS,
            )


_GAP = 'callback, "first", reason, "last", events, first_time, last_time'


def _record(rows: Rows, gap: Gap) -> None:
    rows.execute(
        f"INSERT INTO gap ({_GAP}) VALUES (?, ?, ?, ?, ?, ?, ?) "  # noqa: S608 - our own words
        'ON CONFLICT (callback, "first", reason) DO UPDATE SET "last" = excluded."last", events = excluded.events, '
        "first_time = excluded.first_time, last_time = excluded.last_time",
        [
            gap.callback,
            str(gap.first),
            rows.text(gap.reason),
            str(gap.last),
            gap.events,
            time_column(gap.first_time),
            time_column(gap.last_time),
        ],
    )


def _joined(rows: Rows, gap: Gap) -> Gap:
    """With what is on record under the same key: events that came again and were discarded again."""
    row = rows.execute(
        f'SELECT {_GAP} FROM gap WHERE callback = ? AND "first" = ? AND reason = ?',  # noqa: S608 - our own words
        [gap.callback, str(gap.first), gap.reason],
    ).fetchone()
    if row is None:
        return gap
    known = _gap(row)
    return replace(
        gap,
        last=max(gap.last, known.last),
        events=gap.events + known.events,
        first_time=min(gap.first_time, known.first_time),
        last_time=max(gap.last_time, known.last_time),
    )


def _gap(row: Sequence[str | int]) -> Gap:
    callback, first, reason, last, events, first_time, last_time = row
    return Gap(
        callback=str(callback),
        first=Position.parse(str(first)),
        last=Position.parse(str(last)),
        events=int(events),
        reason=str(reason),
        first_time=column_time(str(first_time)),
        last_time=column_time(str(last_time)),
    )
