"""The ledger: which LSN may be flushed. Pure: no I/O, no clock, no tasks.

Batches settle in any order; what may be flushed is the last commit with nothing unsettled before it.
A :class:`Batch` is a slice of the stream, the unit of queueing, settling and backpressure; each of
its :class:`Share` objects is the part that one lane of one callback has to work off.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from operator import length_hint

from cdc.events import DatabaseEvent, Position
from cdc.transactions import CommitMark

__all__ = ["Batch", "Ledger", "Share"]


COMPACT_BATCHES = 1_000
"""Batches that may pile up behind one that is not settled before the settled ones among them are joined:
enough that the walk over all of them costs each next to nothing."""


class Share:
    """The events of a batch that one lane works off, in order.

    Progress is read off the iterator that the worker walks along, so that counting costs the worker
    nothing: what the iterator has given out last is in work, what it still holds is waiting.
    """

    __slots__ = ("_idle_at", "batch", "events", "iterator", "paused", "taken")

    def __init__(self, batch: Batch, events: Sequence[DatabaseEvent]) -> None:
        self.batch = batch
        self.events = events
        self.iterator: Iterator[DatabaseEvent] = iter(events)
        self.taken = 0  # events that were taken away instead of being handed out
        self._idle_at = 0  # as long as so many are handed out, none is in work
        self.paused = False  # the worker has stopped for good: what was handed out is done, nothing is in work

    @property
    def handed_out(self) -> int:
        """How many events were handed to the callback, the one in work included."""
        return len(self.events) - length_hint(self.iterator) - self.taken

    @property
    def has_waiting(self) -> bool:
        """Whether something has not been handed out."""
        return length_hint(self.iterator) > 0

    def first_unsettled(self) -> DatabaseEvent:
        """The event in work, or the first one that waits when none is."""
        return self.events[self._done]

    def waiting(self) -> Sequence[DatabaseEvent]:
        """What has not been handed out; it stays."""
        end = len(self.events) - self.taken
        return self.events[end - length_hint(self.iterator) : end]

    @property
    def _done(self) -> int:
        handed_out = self.handed_out
        return handed_out if self.paused or handed_out == self._idle_at else handed_out - 1

    def rest(self) -> Sequence[DatabaseEvent]:
        """What is not done, and was not taken away."""
        return self.events[self._done : len(self.events) - self.taken]

    def put_back(self) -> None:
        """The event in work waits again, as the first: it will be handed out once more."""
        self.iterator = iter([self.first_unsettled(), *self.iterator])
        self._idle_at = self.handed_out

    def take_rest(self) -> list[DatabaseEvent]:
        """Take what has not been handed out; the worker's loop ends after the event in work."""
        rest = list(self.iterator)
        self.taken += len(rest)
        return rest

    def hold(self) -> None:
        """Keep what has not been handed out from the worker: its loop ends after the event in work."""
        self.iterator = iter(list(self.iterator))


class Batch:
    """A slice of the stream; `pending` counts the shares that are not settled.

    One that is not `live` holds dead letters on their way to one callback once more: no position waits for
    it. A `lenient` one does not bring the callback nearer to its removal when it fails again.
    """

    __slots__ = (
        "bytes", "commits", "count", "events", "lenient", "live", "on_settled", "pending", "shares", "undelivered",
    )  # fmt: skip

    def __init__(
        self,
        events: Sequence[DatabaseEvent],
        commits: Sequence[CommitMark] = (),
        size: int = 0,
        *,
        live: bool = True,
        lenient: bool = False,
    ) -> None:
        self.events = events
        self.count = len(events)
        self.commits = commits
        self.bytes = size
        self.pending = 0
        self.shares: list[Share] = []
        self.on_settled: Callable[[Batch], None] | None = None
        self.live = live
        self.lenient = lenient
        self.undelivered: list[DatabaseEvent] = []  # of one that is not live: settled without success

    def share(self, events: Sequence[DatabaseEvent]) -> Share:
        """A part of this batch for one lane; the batch is settled when all its shares are."""
        share = Share(self, events)
        self.pending += 1
        self.shares.append(share)
        return share

    def settle(self, share: Share) -> None:
        """All events of `share` are done for good."""
        self.shares.remove(share)
        self.pending -= 1
        if self.pending == 0:
            self.events = ()  # the ledger keeps the batch until its turn comes, not its rows
            self.commits = self.commits[-1:]
            if self.on_settled is not None:
                self.on_settled(self)


class Ledger:
    """Answers which commit may be flushed, given batches in the order of the stream."""

    def __init__(self, flushed: CommitMark) -> None:
        self._flushed = flushed
        self._batches: deque[Batch] = deque()
        self._compact_at = COMPACT_BATCHES

    def add(self, batch: Batch) -> None:
        """The next batch of the stream; its shares have been made."""
        if batch.pending == 0:
            batch.events = ()
        self._batches.append(batch)
        self._advance()  # here too, so that settled batches do not pile up between two checkpoints
        if len(self._batches) >= self._compact_at:
            self._compact()

    @property
    def is_settled(self) -> bool:
        """Whether nothing is unsettled."""
        self._advance()
        return not self._batches

    def flushable(self) -> CommitMark:
        """The last commit with nothing unsettled before it, also inside a batch in work. Never goes back."""
        self._advance()
        if self._batches:
            batch = self._batches[0]
            limit = min(share.first_unsettled().transaction.commit_lsn for share in batch.shares)
            for mark in batch.commits:
                if mark.lsn >= limit:
                    break
                self._raise(mark)
        return self._flushed

    def idle(self, lsn: int) -> None:
        """The server's keepalive: nothing for us up to `lsn`. Counts only when nothing is unsettled."""
        if self.is_settled:
            self._raise(CommitMark(lsn, self._flushed.event_id))

    def _advance(self) -> None:
        while self._batches and self._batches[0].pending == 0:
            commits = self._batches.popleft().commits
            if commits:
                self._raise(commits[-1])

    def _compact(self) -> None:
        """Let one batch stand for each run of settled ones: a hanging callback may hold back many."""
        kept: deque[Batch] = deque()
        for batch in self._batches:
            if kept and kept[-1].pending == 0 and batch.pending == 0:
                kept[-1].commits = batch.commits or kept[-1].commits
            else:
                kept.append(batch)
        self._batches = kept
        self._compact_at = 2 * len(kept) + COMPACT_BATCHES

    def _raise(self, mark: CommitMark) -> None:
        if mark.lsn > self._flushed.lsn:
            self._flushed = mark


def settled_before(event: DatabaseEvent) -> Position:
    """The position just before `event`: what a callback has settled whose first open event it is."""
    commit_lsn, ordinal = event.position
    return Position(commit_lsn, ordinal - 1)
