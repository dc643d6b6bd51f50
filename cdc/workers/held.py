"""What is kept for a callback while its lanes are made anew: in order, unsettled, and not yet selected.

Which events it wants, and what it sees of them, is asked when it goes on: by then it may have other terms, or its
old ones again. Must not know lanes, nor why they are made anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cdc.callbacks import Registration
from cdc.columns import ColumnView
from cdc.events import DatabaseEvent, Position
from cdc.progress import Batch, Share

__all__ = ["Held"]


@dataclass(frozen=True, slots=True)
class _Kept:
    share: Share
    is_chosen: bool  # by the terms of before; otherwise it is all that a batch of the stream holds


class Held:
    """See the module. Shares go in, and out again by `take`; whoever takes one settles it."""

    def __init__(self, registration: Registration) -> None:
        self._registration = registration
        self._kept: list[_Kept] = []

    def keep(self, batch: Batch) -> None:
        """A batch of the stream, whole."""
        self._kept.append(_Kept(batch.share(batch.events), is_chosen=False))

    def put(self, batch: Batch, events: Sequence[DatabaseEvent]) -> None:
        """Events that were chosen for it before: parked ones, and dead letters."""
        self._kept.append(_Kept(batch.share(events), is_chosen=True))

    def put_back(self, shares: Sequence[Share]) -> None:
        """What its lanes had not settled, before all that is here; what they had shared out is whole again."""
        self._kept[:0] = [_Kept(share, is_chosen=True) for share in _joined(shares)]

    def first_unsettled(self) -> DatabaseEvent | None:
        """The first event of the stream; perhaps it does not want this one."""
        live = [kept.share.first_unsettled() for kept in self._kept if kept.share.batch.live]
        return min(live, key=lambda event: event.position, default=None)

    def take(self) -> Iterator[tuple[Share, Sequence[DatabaseEvent]]]:
        """Each share, and the events of it that the callback wants by the terms it has now, as it shall see them."""
        registration = self._registration
        for kept in self._kept:
            share = kept.share
            if not share.batch.live:
                yield share, share.waiting()  # as they were kept: what was masked then stays so
                continue
            waiting = [_unseen(event) for event in share.waiting()] if kept.is_chosen else share.waiting()
            wanted = registration.select(waiting, {event.kind for event in waiting})
            if kept.is_chosen:
                registration.outcomes["skipped"] += len(waiting) - len(wanted)
            yield share, wanted
        self._kept = []


def _unseen(event: DatabaseEvent) -> DatabaseEvent:
    """The event itself, without the view that the callback had of it."""
    return event.with_row(event.row.row) if isinstance(event.row, ColumnView) else event


def _joined(shares: Sequence[Share]) -> list[Share]:
    """One share for each batch, dead letters first, then in the order of the stream."""
    by_batch: dict[int, list[Share]] = {}
    for share in shares:
        by_batch.setdefault(id(share.batch), []).append(share)
    whole: list[Share] = []
    for parts in by_batch.values():
        batch = parts[0].batch
        events = [event for part in parts for event in part.waiting()]
        if events:
            whole.append(batch.share(sorted(events, key=_position)))
        for part in parts:
            batch.settle(part)
    return sorted(whole, key=lambda share: (share.batch.live, _position(share.events[0])))


def _position(event: DatabaseEvent) -> Position:
    return event.position
