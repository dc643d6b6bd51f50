"""Writes checkpoints, and only then reports them to the server: settled → fsynced → feedback.

One thread of its own does the writing; the event loop never waits for the disk.
"""

from __future__ import annotations

import asyncio
from time import monotonic

import structlog

from cdc.errors import CdcError, StateError
from cdc.events import Position
from cdc.histogram import Histogram
from cdc.lsn import Lsn
from cdc.outage import Outage
from cdc.progress import Ledger
from cdc.pump import Pump
from cdc.replication import ReplicationStream
from cdc.signals import SignalManager
from cdc.state import Checkpoint, Gap, Source, StateStore, StateThread
from cdc.transactions import Assembler

__all__ = ["Checkpointer"]

log = structlog.get_logger("cdc.checkpoints")

IDLE_SECONDS = 10.0
"""Between two checkpoints that only follow other databases' WAL: nothing of ours would be sent again
without them, so they need not cost an fsync a second."""


IDLE_BYTES = 16 * 1024 * 1024
"""The same where the state lies in the source's own cluster: each checkpoint is WAL that the next would follow,
for ever. What other databases write moves the slot all the same, a WAL segment at a time."""


class Checkpointer:
    """Keeps the durable state up with the ledger. `stream` is the one to report to, None while there is none."""

    def __init__(
        self,
        store: StateStore,
        thread: StateThread,
        source: Source,
        ledger: Ledger,
        assembler: Assembler,
        manager: SignalManager,
        pump: Pump,
        interval: float,
    ) -> None:
        self._store = store
        self._thread = thread
        self.source = source  # of the stream that is open: a promoted standby is on another timeline
        self._ledger = ledger
        self._assembler = assembler
        self._manager = manager
        self._pump = pump
        self._interval = interval
        self.shares_wal = False  # the state lies in the source's own cluster
        self._wake = asyncio.Event()
        self._saving = asyncio.Lock()
        self._gaps: list[Gap] = []
        self._left: dict[str, Position] = {}
        self._saved: Checkpoint | None = None
        self._saved_gaps: list[Gap] = []
        self._saved_time = 0.0
        self._quiet_at: int | None = None  # the last event of all, when it and all before were settled as we looked
        self._saved_quiet_at: int | None = None
        self.stream: ReplicationStream | None = None
        self.seconds = Histogram()
        self._outage = Outage(StateError, _tell)

    @property
    def saved(self) -> Checkpoint | None:
        """The checkpoint that is durable."""
        return self._saved

    @property
    def saved_time(self) -> float:
        """When that was written, monotonic seconds; 0 before the first."""
        return self._saved_time

    @property
    def error(self) -> str:
        """Why the last attempt failed, "" when it did not."""
        return self._outage.error

    def note_gap(self, gap: Gap) -> None:
        """Put a gap of the whole stream on record with the next checkpoint."""
        self._gaps.append(gap)

    def note_left(self, name: str, settled: Position) -> None:
        """A callback has left the configuration: how far it had come goes on record with the next checkpoint."""
        self._left[name] = settled

    def request(self) -> None:
        """The server asks for an answer: let it be the latest."""
        self._wake.set()

    async def run(self) -> None:
        """Save whenever something has moved, at most once an interval, or when asked to; for ever."""
        while True:
            asked = await self._next()
            with self._outage:
                await self.save(asked=asked)

    async def _next(self) -> bool:
        try:
            async with asyncio.timeout(self._interval):
                await self._wake.wait()
        except TimeoutError:
            return False
        self._wake.clear()
        return True

    async def save(self, *, asked: bool = True) -> None:
        """Write what has moved since the last checkpoint and report it. StateError: nothing is reported."""
        async with self._saving:
            self._ledger.idle(self._pump.idle_lsn)
            checkpoint, gaps = self._checkpoint(), self._all_gaps()
            if self._is_due(checkpoint, gaps, asked=asked):
                began = monotonic()
                await self._thread.run(self._store.save, checkpoint, gaps)
                self._saved, self._saved_gaps, self._saved_time = checkpoint, gaps, monotonic()
                self._saved_quiet_at = self._quiet_at
                self._left = {name: at for name, at in self._left.items() if checkpoint.callbacks.get(name) != at}
                self.seconds.observe(self._saved_time - began)
            if self.stream is not None and self._saved and self._saved.flushed_lsn > self.stream.flushed:
                self.stream.report(self._assembler.commit_lsn, self._saved.flushed_lsn)

    def _checkpoint(self) -> Checkpoint:
        mark = self._ledger.flushable()
        frontier = self._pump.frontier
        self._quiet_at = self._assembler.event_id if self._ledger.is_settled else None
        # What is flushed is settled for everyone: so a handler that lies behind was not configured meanwhile.
        flushed = Position(Lsn(mark.lsn), 0)
        positions = dict(self._left)
        for item in self._manager.registry:
            if item.configured and item.leaves_at is not None:  # what lies behind is not for it
                positions[item.name] = self._manager.pool.settled(item, frontier)
            elif item.configured and item.is_routed:
                positions[item.name] = max(self._manager.pool.settled(item, frontier), flushed)
        return Checkpoint(self.source, Lsn(mark.lsn), mark.event_id, positions)

    def _all_gaps(self) -> list[Gap]:
        own = [
            Gap(item.name, lost.first, lost.last, lost.events, reason, lost.first_time, lost.last_time)
            for item in self._manager.registry
            if item.configured
            for reason, lost in item.missed.items()
        ]
        return self._gaps + own

    def _is_due(self, checkpoint: Checkpoint, gaps: list[Gap], *, asked: bool) -> bool:
        if self._saved is None or gaps != self._saved_gaps:
            return True
        if checkpoint == self._saved:
            return False
        only_idle = self._quiet_at is not None and self._quiet_at == self._saved_quiet_at
        if only_idle and self.shares_wal:
            return checkpoint.flushed_lsn - self._saved.flushed_lsn >= IDLE_BYTES
        return asked or not only_idle or monotonic() - self._saved_time >= IDLE_SECONDS


def _tell(error: CdcError) -> None:
    log.error("checkpoint_failed", code=error.code, error=str(error))
