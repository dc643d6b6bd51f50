"""What `cdc tail` has shown: the events that were asked for, written in order and counted."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol

from cdc.cli.filters import Filter
from cdc.events import DatabaseEvent
from cdc.workers.daemon import DaemonThread

__all__ = ["Over", "Shown", "Writer"]

LAST_WRITE_SECONDS = 0.5
"""What is being written at Ctrl-C is waited for: its lines may be read already. A stopped terminal takes nothing."""


class Writer(Protocol):
    """What the built-in handler `console` is for us."""

    def handle_batch(self, events: Sequence[DatabaseEvent]) -> None:
        """Write the events, a line each, on standard output."""


class Over(Exception):
    """It has ended as it should: `--limit` is reached, or nobody reads any more."""


class Shown:
    """What was shown so far. Written by a thread: a terminal that takes nothing must not keep us from ending."""

    def __init__(self, writer: Writer, wanted: Filter, limit: int) -> None:
        self._writer = writer
        self._wanted = wanted
        self._limit = limit
        self._thread: DaemonThread | None = None
        self.count = 0
        self.is_pipe_closed = False

    async def receive(self, events: Sequence[DatabaseEvent]) -> None:
        """Show them; returns when they are written. Over after the last one."""
        if self._thread is None:
            self._thread = DaemonThread("cdc-tail-output")
        chosen = [event for event in events if self._wanted(event)]
        if self._limit:
            chosen = chosen[: self._limit - self.count]
        if chosen:
            try:
                await self._thread.submit(partial(self._write, chosen))
            except BrokenPipeError:
                self.is_pipe_closed = True
                raise Over from None
        if self._limit and self.count >= self._limit:
            raise Over

    def _write(self, events: Sequence[DatabaseEvent]) -> None:
        """In the thread, the count too: whoever reads a line may press Ctrl-C before the event loop hears of it."""
        self._writer.handle_batch(events)
        self.count += len(events)

    async def end(self) -> None:
        """Let what is being written be written and counted."""
        if self._thread is not None:
            await asyncio.wait([self._thread.submit(lambda: None)], timeout=LAST_WRITE_SECONDS)

    async def until_nobody_reads(self) -> None:
        """Returns when the pipe behind standard output is closed, also while there is nothing to write."""
        closed = asyncio.Event()
        with suppress(OSError, ValueError):  # no descriptor: then writing will tell
            descriptor = sys.stdout.fileno()
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                asyncio.get_running_loop().add_reader(descriptor, closed.set)  # an error wakes the reader, too
        await closed.wait()
        self.is_pipe_closed = True
