"""Counts the large values that updates lack because they did not change (TOAST), by table.

Stands between the stream and its decoder, which it leaves alone, and is told which events were handed out: what the
server sends again counts once. An update that names as many columns as the last complete one of its table is complete,
too; otherwise its row is read. It must not know the plugin but for how JSON names a column.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol, cast

from cdc.errors import DecodeError
from cdc.events import DatabaseEvent, EventType
from cdc.messages import Change, Decoded, Decoder

__all__ = ["ToastColumns", "Unchanged"]

UPDATE = EventType.UPDATE
NAME = b'{"name":'
"""Before each column of a message, and nowhere else: inside a JSON string quotes are escaped. Right after a column was
added, an update that lacks a value may name as many columns as a complete one did before; it is not counted then."""


_NOTHING: tuple[frozenset[str], int] = frozenset(), -1


class ToastColumns(Protocol):
    """Of the catalog: what the server may leave out."""

    def known_toastable(self, schema: str, table: str) -> frozenset[str] | None:
        """The columns; None of a table that is newer than the last look, for nobody waits for another."""


class Unchanged:
    """The decoder of one connection after the other; :meth:`take` what came of its messages."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()  # by table
        self._decoder: Decoder | None = None
        self._columns: ToastColumns | None = None
        # By identity of the change, of the burst decoded last and the one before, the last of which waits for this one.
        self._found: dict[int, tuple[Decoded, int]] = {}
        self._earlier: dict[int, tuple[Decoded, int]] = {}
        # By table: the columns that may be left out, and how many columns a complete update names; -1: none was seen.
        self._complete: dict[tuple[str, str], tuple[frozenset[str], int]] = {}

    def of(self, decoder: Decoder, columns: ToastColumns) -> Decoder:
        """The same decoder, watched."""
        self._decoder, self._columns = decoder, columns
        return self

    def decode_all(self, payloads: Sequence[bytes | memoryview]) -> tuple[list[Decoded], DecodeError | None]:
        """See `cdc.messages.Decoder`."""
        assert self._decoder is not None  # noqa: S101 - `of` goes before
        messages, error = self._decoder.decode_all(payloads)
        if self._found or self._earlier:
            self._earlier, self._found = self._found, {}
        schema, table, (columns, complete) = "", "", _NOTHING
        for message, payload in zip(messages, payloads, strict=False):
            # One loop without a call, for its sake: it runs for each change, where three in ten are updates.
            if getattr(message, "event_type", None) is not UPDATE:
                continue
            change = cast(Change, message)
            if change.table != table or change.schema != schema:
                schema, table = change.schema, change.table
                columns, complete = self._of_table(schema, table)
            if not columns or (count := bytes(payload).count(NAME)) == complete:
                continue
            lacking = _lacking(change)
            if lacking:
                self._found[id(message)] = message, lacking
            elif lacking == 0:
                complete = count
                self._complete[schema, table] = columns, complete
        return messages, error

    def take(self, events: Sequence[DatabaseEvent]) -> None:
        """These were made of the burst decoded last, or had waited for it, and are handed out."""
        if self._found or self._earlier:
            for event in events:
                change = id(event.row)
                if (found := self._found.get(change) or self._earlier.get(change)) is not None:
                    self.counts[event.kind.table] += found[1]

    def _of_table(self, schema: str, table: str) -> tuple[frozenset[str], int]:
        """See `_complete`; forgotten when the catalog knows of other columns."""
        assert self._columns is not None  # noqa: S101
        columns = self._columns.known_toastable(schema, table) or frozenset()
        known = self._complete.get((schema, table), _NOTHING)
        return known if known[0] == columns else (columns, -1)


def _lacking(change: Change) -> int | None:
    """How many values the row lacks; None for a damaged one, of which whoever reads it is told."""
    try:
        return len(change.unchanged())
    except DecodeError:
        return None
