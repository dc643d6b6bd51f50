"""A callback's `open` and `close`: each called once for all its lanes, within a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from cdc.callbacks import Registration
from cdc.errors import CallbackTimeout
from cdc.invocation import Invocation

__all__ = ["Opening"]


class Caller(Protocol):
    """The lane in which it is called."""

    registration: Registration

    async def call(self, function: Callable[[], Any]) -> None:
        """Call a coroutine function on the event loop, another in a thread."""

    def timeout(self, seconds: float) -> CallbackTimeout:
        """The error of a call that took longer than `seconds`."""


class Opening:
    """Calls the `open` of a callback once, before its first event, and its `close` once, for all its lanes."""

    def __init__(self, invocation: Invocation) -> None:
        self._open = invocation.open
        self._close = invocation.close
        self._lock = asyncio.Lock()

    async def ensure(self, lane: Caller) -> BaseException | None:
        """None when the callback is open; otherwise why not, and the next event tries again."""
        if self._open is None:
            return None
        async with self._lock:
            return await self._try(lane)

    async def _try(self, lane: Caller) -> BaseException | None:
        if self._open is None:
            return None  # another lane has just done it
        error = await _bounded(lane, self._open, lane.registration.timeout_seconds)
        if error is None:
            self._open = None
        return error

    async def close(self, lane: Caller, grace: float) -> BaseException | None:
        """Call `close` if the callback was opened and not closed; why that failed, or None."""
        close, self._close = self._close, None
        if close is None or self._open is not None:
            return None
        return await _bounded(lane, close, grace)


async def _bounded(lane: Caller, function: Callable[[], Any], seconds: float) -> BaseException | None:
    """Call `open` or `close` in its lane; what it raises is returned, our own cancellation is not."""
    task = asyncio.current_task()
    deadline = asyncio.timeout(seconds)
    try:
        async with deadline:
            await lane.call(function)
    except BaseException as error:  # a callback may raise anything, CancelledError too
        if deadline.expired():
            return lane.timeout(seconds)
        if task is not None and task.cancelling():
            raise
        return error
    return None
