"""Writes checkpoints, and only then reports them to the server: settled → fsynced → feedback.

One thread of its own does the writing; the event loop never waits for the disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any, TypeVar

import structlog

from cdc.callbacks import CallbackState, Histogram, Registration
from cdc.errors import StateError
from cdc.events import Position
from cdc.lsn import Lsn
from cdc.progress import Ledger
from cdc.pump import Pump
from cdc.replication import ReplicationStream
from cdc.signals import SignalManager
from cdc.state import Checkpoint, Gap, Source, StateStore
from cdc.transactions import Assembler

__all__ = ["Checkpointer", "StateThread"]

log = structlog.get_logger("cdc.checkpoints")
T = TypeVar("T")

IDLE_SECONDS = 10.0
"""Between two checkpoints that only follow other databases' WAL: nothing of ours would be sent again
without them, so they need not cost an fsync a second."""


class StateThread:
    """The state store on the one thread that may touch it."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="cdc-state")

    async def run(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run `function` on the thread, after all that was asked before."""
        return await asyncio.wrap_future(self._executor.submit(function, *args, **kwargs))

    def close(self) -> None:
        """Wait for what was asked, and end the thread."""
        self._executor.shutdown()


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
        self._source = source
        self._ledger = ledger
        self._assembler = assembler
        self._manager = manager
        self._pump = pump
        self._interval = interval
        self._wake = asyncio.Event()
        self._saving = asyncio.Lock()
        self._gaps: list[Gap] = []
        self._saved: Checkpoint | None = None
        self._saved_gaps: list[Gap] = []
        self._saved_time = 0.0
        self._removals: list[tuple[Registration, str, Position]] = []
        self._removed_at: dict[str, Position] = {}
        self.stream: ReplicationStream | None = None
        self.seconds = Histogram()
        self.error = ""  # why the last attempt failed

    @property
    def saved(self) -> Checkpoint | None:
        """The checkpoint that is durable."""
        return self._saved

    @property
    def saved_time(self) -> float:
        """When that was written, monotonic seconds; 0 before the first."""
        return self._saved_time

    def note_gap(self, gap: Gap) -> None:
        """Put a gap of the whole stream on record with the next checkpoint."""
        self._gaps.append(gap)

    def note_removed(self, registration: Registration, reason: str, position: Position) -> None:
        """A callback was removed: its position goes on record with the next checkpoint, which is due now."""
        if registration.state is CallbackState.REMOVED and registration.configured:
            self._removed_at[registration.name] = position
            self._removals.append((registration, reason, position))
            self._wake.set()

    def keep_removed(self, name: str, position: Position) -> None:
        """A callback that an earlier run removed: its settled position stays where it was."""
        self._removed_at[name] = position

    def request(self) -> None:
        """The server asks for an answer: let it be the latest."""
        self._wake.set()

    async def run(self) -> None:
        """Save whenever something has moved, at most once an interval, or when asked to; for ever."""
        while True:
            asked = await self._next()
            try:
                await self.save(asked=asked)
            except StateError as error:
                # Held back, not given up: nothing is acknowledged, and the disk may have room again.
                if not self.error:
                    log.error("checkpoint_failed", error=str(error))  # noqa: TRY400 - the error says it all
                self.error = str(error)
            else:
                self.error = ""

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
            for registration, reason, position in self._removals:
                await self._thread.run(self._store.mark_removed, registration.name, position, reason)
            self._removals.clear()
            if self._is_due(checkpoint, gaps, asked=asked):
                began = monotonic()
                await self._thread.run(self._store.save, checkpoint, gaps)
                self._saved, self._saved_gaps, self._saved_time = checkpoint, gaps, monotonic()
                self.seconds.observe(self._saved_time - began)
            if self.stream is not None and self._saved and self._saved.flushed_lsn > self.stream.flushed:
                self.stream.report(self._assembler.commit_lsn, self._saved.flushed_lsn)

    def _checkpoint(self) -> Checkpoint:
        mark = self._ledger.flushable()
        frontier = self._pump.frontier
        positions = {
            item.name: self._removed_at.get(item.name) or self._manager.pool.settled(item, frontier)
            for item in self._manager.registry
            if item.configured
        }
        return Checkpoint(self._source, Lsn(mark.lsn), mark.event_id, positions)

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
        only_idle = (
            checkpoint.callbacks == self._saved.callbacks and checkpoint.last_event_id == self._saved.last_event_id
        )
        return asked or not only_idle or monotonic() - self._saved_time >= IDLE_SECONDS
