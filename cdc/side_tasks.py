"""The tasks that run beside each other as long as a service does: the first that fails ends it.

Owns their names and their end. It must not know what they do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

__all__ = ["SideTasks"]


class SideTasks:
    """See the module. None of them is meant to end by itself, unless it is done with what it was started for."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []
        self._error: BaseException | None = None
        self._failed = asyncio.Event()

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """One more."""
        task = asyncio.get_running_loop().create_task(work, name=f"cdc-{name}")
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Going on would lose something, or wait for ever; what comes after the first such error is its consequence."""
        if self._error is None:
            self._error = error
            self._failed.set()

    async def run_until(self, stopping: asyncio.Event) -> None:
        """Wait for `stopping`; raises the error of the first that failed."""
        waits = [asyncio.create_task(event.wait(), name="cdc-stopping") for event in (stopping, self._failed)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self._error is not None:
            raise self._error

    async def close(self) -> None:
        """Cancel all, and wait for their end."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
