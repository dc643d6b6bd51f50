"""Tells an application's error handler what goes wrong. Whatever the handler does costs the events nothing.

Owns the calls of it that are in work, and how many there may be. What is an error, others say.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from cdc.events import DatabaseEvent

__all__ = ["MAX_TOLD", "ErrorHandler", "ErrorTeller"]

log = structlog.get_logger("cdc.error_handler")

ErrorHandler = Callable[[BaseException, DatabaseEvent | None, str], Awaitable[None] | None]
"""Called with the error, the event it is about (None: the callback as a whole) and the callback's name."""

MAX_TOLD = 100
"""Calls of an asynchronous error handler in work at once; past it a failed event is only counted and logged."""


class ErrorTeller:
    """See the module. `handler` is who is told, None for nobody; a coroutine function runs as a task."""

    def __init__(self) -> None:
        self.handler: ErrorHandler | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    def tell(self, error: BaseException, event: DatabaseEvent | None, callback: str) -> None:
        """Call the handler; an error of its own is logged and goes no further."""
        if self.handler is None:
            return
        if len(self._tasks) >= MAX_TOLD and event is not None:
            log.warning("error_handler_busy", callback=callback, calls=len(self._tasks))
            return
        try:
            result = self.handler(error, event, callback)
        except BaseException as broken:  # noqa: BLE001 - the user's code, SystemExit too
            log.warning("error_handler_failed", error=type(broken).__name__)
            return
        if inspect.isawaitable(result):
            task = asyncio.get_running_loop().create_task(_told(result), name="cdc-error-handler")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self, seconds: float) -> None:
        """Wait for the calls in work, at most for so long; then they are cancelled."""
        if self._tasks:
            _, strays = await asyncio.wait(self._tasks, timeout=seconds)
            for task in strays:
                task.cancel()


async def _told(result: Awaitable[None]) -> None:
    """Wait for an asynchronous error handler; SystemExit out of a task would end the event loop."""
    try:
        await result
    except asyncio.CancelledError:
        raise
    except BaseException as broken:  # noqa: BLE001 - the user's code
        log.warning("error_handler_failed", error=type(broken).__name__)
