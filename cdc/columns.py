"""A callback's own view of rows: some columns left out, some masked."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from cdc.events import DatabaseEvent, Row
from cdc.values import PostgresValue

__all__ = ["ColumnView"]

MASK = "***"


class ColumnView(msgspec.Struct, frozen=True, gc=False):
    """A row as one callback sees it; made by :meth:`of`."""

    row: Row
    excluded: frozenset[str]
    masked: frozenset[str]

    @classmethod
    def of(cls, event: DatabaseEvent, excluded: frozenset[str], masked: frozenset[str]) -> DatabaseEvent:
        """`event` as its callback sees it. NULL stays NULL under a mask."""
        return event.with_row(cls(event.row, excluded, masked))

    def _seen(self, values: Mapping[str, PostgresValue]) -> dict[str, PostgresValue]:
        return {
            name: MASK if name in self.masked and value is not None else value
            for name, value in values.items()
            if name not in self.excluded
        }

    def payload(self) -> Mapping[str, PostgresValue]:
        """See `cdc.events.Row`."""
        return self._seen(self.row.payload())

    def before(self) -> Mapping[str, PostgresValue] | None:
        """See `cdc.events.Row`."""
        before = self.row.before()
        return None if before is None else self._seen(before)

    def unchanged(self) -> frozenset[str]:
        """See `cdc.events.Row`."""
        return self.row.unchanged() - self.excluded

    def record_id(self) -> str | None:
        """See `cdc.events.Row`; the key stays readable, it is the event's identity."""
        return self.row.record_id()

    def previous_record_id(self) -> str | None:
        """See `cdc.events.Row`."""
        return self.row.previous_record_id()
