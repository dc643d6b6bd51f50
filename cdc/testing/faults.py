"""Faults put between the pool and a handler: a call that fails before or after its work, hangs, or is cut short.

Owns the counting of calls and what happens to the n-th; it wraps `def` and `async def` alike. It must not know how
the pool answers.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from cdc.events import DatabaseEvent
from cdc.invocation import Invocation, refuse_awaitable

__all__ = ["CutShort", "Fault", "InjectedFault", "Point", "Wrapped"]


class InjectedFault(Exception):
    """What an injected fault raises when no other error is given; the pool takes it for one that may pass."""


class CutShort(InjectedFault):
    """The handler's call was cancelled in the midst of its work, as by a timeout or a shutdown."""


class Point(Enum):
    """Where in a call a fault strikes."""

    BEFORE = "before"
    DURING = "during"
    AFTER = "after"


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to a call; `error` None: it hangs until it is cancelled or given up."""

    point: Point
    error: BaseException | None
    suspension: int = 1  # DURING: at which suspension of the coroutine


class Wrapped:
    """A handler as the pool sees it, with faults by the number of the call, from 1.

    `ended` is told of every call that has ended: its events, and the error that it ended with or None.
    """

    def __init__(self, handler: object, ended: Callable[[Sequence[DatabaseEvent], BaseException | None], None]) -> None:
        invocation = Invocation(handler)
        self.is_async = invocation.is_async
        self.faults: dict[int, Fault] = {}
        self.calls = 0
        self.released = threading.Event()  # lets hanging threads go
        self._function = invocation.function
        self._is_batch = invocation.is_batch
        self._ended = ended
        self._lock = threading.Lock()  # lanes with plain functions call from threads
        called = self._call_async if invocation.is_async else self._call
        setattr(self, "handle_batch" if invocation.is_batch else "handle", called)
        if invocation.open is not None:
            self.open = invocation.open
        if invocation.close is not None:
            self.close = invocation.close

    def _begin(self) -> Fault | None:
        with self._lock:
            self.calls += 1
            return self.faults.get(self.calls)

    async def _call_async(self, events: Any) -> None:
        with _Report(self, events):
            fault = self._begin()
            if fault is not None and fault.point is Point.BEFORE:
                await _strike_async(fault)
            if fault is not None and fault.point is Point.DURING:
                await self._cut_short(events, fault)
            await self._function(events)
            if fault is not None and fault.point is Point.AFTER:
                await _strike_async(fault)

    def _call(self, events: Any) -> None:
        with _Report(self, events):
            fault = self._begin()
            if fault is not None and fault.point is Point.BEFORE:
                self._strike(fault)
            if (result := self._function(events)) is not None:
                refuse_awaitable(result)
            if fault is not None and fault.point is Point.AFTER:
                self._strike(fault)

    def _strike(self, fault: Fault) -> None:
        if fault.error is not None:
            raise fault.error
        self.released.wait()
        raise InjectedFault("let go at the end of the test")

    async def _cut_short(self, events: Any, fault: Fault) -> None:
        """Start the handler's call and cancel it at a suspension; it may end before, and then has done its work."""
        task = asyncio.ensure_future(self._function(events))
        for _ in range(fault.suspension):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        raise fault.error or CutShort("the call was cancelled in the midst of its work")

    def report(self, events: Any, error: BaseException | None) -> None:
        self._ended(tuple(events) if self._is_batch else (events,), error)


class _Report:
    """Tells how a call has ended, however it does."""

    def __init__(self, wrapped: Wrapped, events: Any) -> None:
        self._wrapped = wrapped
        self._events = events

    def __enter__(self) -> None:
        """The call begins."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._wrapped.report(self._events, error)


async def _strike_async(fault: Fault) -> None:
    if fault.error is not None:
        raise fault.error
    await asyncio.Event().wait()
