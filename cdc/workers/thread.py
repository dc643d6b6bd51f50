"""A lane whose callback is a plain function: called in a thread of the lane's own, never on the event loop.

A thread gets a whole share at a time, so that the hand-over costs nothing per event. It cannot be
cancelled: a call that times out is abandoned with its thread, and a new thread takes over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any

from cdc.callbacks import Registration
from cdc.invocation import refuse_awaitable
from cdc.progress import Share
from cdc.workers.daemon import DaemonThread
from cdc.workers.lane import FAST, MAX_ABANDONED, Lane, LaneListener
from cdc.workers.opening import Opening

__all__ = ["ThreadLane"]

LOOK_AGAIN_SECONDS = 1.0
"""How often a lane whose abandoned calls are at their bound looks whether one has ended."""


class ThreadLane(Lane):
    """See the module. Who gives a call up, the watchdog or its end, is decided under the registration's lock."""

    def __init__(self, registration: Registration, name: str, listener: LaneListener, opening: Opening) -> None:
        super().__init__(registration, name, listener, opening)
        self._thread: DaemonThread | None = None
        self._outcome: asyncio.Future[BaseException | None] | None = None
        self._abandoned = 0  # threads whose call was given up and still runs
        self._in_call = False  # the thread is in the callback: only then is it the callback that takes long

    def close(self) -> list[asyncio.Future[Any]]:
        """See `Lane.close`; the call in work, which cannot be cancelled, may end and count. No other begins."""
        if (task := self.busy_task) is not None and self.started and (share := self._share) is not None:
            share.hold()
            self._closing = True
            self._unwatch()
            return [task]
        ending = super().close()
        if self._thread is not None and not self._ending:
            with self.registration.lock:
                self._thread.abandoned = True
            ending.append(self._thread.submit(_nothing))
        return ending

    def release(self) -> None:
        """See `Lane.release`."""
        if self._thread is not None:
            self._thread.end()
            self._thread = None

    async def _call(self, function: Callable[[], Any]) -> Any:
        return await self._own_thread().submit(function)

    def _own_thread(self) -> DaemonThread:
        if self._thread is None:
            self._thread = DaemonThread(f"cdc-lane-{self.name}", self._one_ended)
        return self._thread

    def _one_ended(self) -> None:
        self._abandoned -= 1

    async def _walk(self, share: Share) -> BaseException | None:
        while self._is_whole(share):
            error = await self._in_thread(self._whole, share)
            if error is not None:
                error = await self._blame(share, error)
            if error is not None or not share.has_waiting or self._resting:
                return error
        return await self._in_thread(self._each, share)

    async def _in_thread(
        self, walk: Callable[[Share, DaemonThread], BaseException | None], share: Share
    ) -> BaseException | None:
        thread = self._own_thread()
        self._in_call = False
        self._begin(share)
        self._outcome = thread.submit(lambda: walk(share, thread))
        unfinished = True
        try:
            error = await self._outcome
            unfinished = error is not None
            return error
        finally:
            self._end(share, unfinished=unfinished)
            self._outcome = None  # an error holds the frames it came through, and they their events

    def _whole(self, share: Share, thread: DaemonThread) -> BaseException | None:
        events = share.waiting()
        began = self._begin_walk()
        self._in_call = True
        try:
            if (result := self.registration.invocation.function(events)) is not None:
                refuse_awaitable(result)
        except BaseException as error:  # noqa: BLE001 - a callback may raise anything
            return error
        with self.registration.lock:
            if not thread.abandoned:
                share.take_rest()
                self._in_call = False
                self.started = monotonic()
                self._count(len(events), self.started - began)
        return None

    def _each(self, share: Share, thread: DaemonThread) -> BaseException | None:
        registration = self.registration
        function = registration.invocation.function
        is_batch = registration.invocation.is_batch
        began = self._begin_walk()
        try:
            for event in share.iterator:
                self._in_call = True
                if (result := function([event] if is_batch else event)) is not None:
                    refuse_awaitable(result)
                now = monotonic()
                if now - began < FAST:  # the watchdog has no eye on calls as fast as this
                    if thread.abandoned:
                        return None
                    registration.consecutive_failures = 0  # now: at the end, another lane's failures were forgotten
                    self._in_call = False
                    self.started = now
                elif not self._ended_slowly(thread, began, now):
                    return None
                began = now
        except BaseException as error:  # noqa: BLE001 - a callback may raise anything
            return error
        return None

    def _begin_walk(self) -> float:
        """Calls have their time from here on: a busy machine may have let the thread wait since it was asked."""
        self.started = self._walk_began = monotonic()
        return self.started

    def _ended_slowly(self, thread: DaemonThread, began: float, now: float) -> bool:
        """Count a call that has ended well, unless it was given up before."""
        with self.registration.lock:
            if not thread.abandoned:
                self._in_call = False
                self.started = now
                self._count_slow(now - began)
        return not thread.abandoned

    def _give_up(self) -> None:
        if (share := self._share) is None or self._thread is None or self._outcome is None or self._outcome.done():
            return
        timeout = self.registration.timeout_seconds
        if self._abandoned >= MAX_ABANDONED:
            self._watch(monotonic() + min(LOOK_AGAIN_SECONDS, timeout))
            return
        with self.registration.lock:
            if not self._in_call:  # the thread waits for its turn: nothing of the callback's is late
                self.started = monotonic()
            if monotonic() < self.started + timeout:  # it has ended just now, and the next has begun
                self._watch(self.started + timeout)
                return
            self._thread.abandoned = True
            share.hold()
        self._abandoned += 1
        self.release()
        self._outcome.set_result(self.timeout(timeout))


def _nothing() -> None:
    """Done when all jobs before are."""
