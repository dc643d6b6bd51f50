"""A lane whose callback is a coroutine function: awaited on the event loop, one event or batch at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any

from cdc.callbacks import Registration
from cdc.progress import Share
from cdc.workers.daemon import DaemonThread
from cdc.workers.lane import FAST, MAX_ABANDONED, Lane, LaneListener
from cdc.workers.opening import Opening

__all__ = ["CoroutineLane"]

GRACE_SECONDS = 1.0
"""How long a cancelled call may take for its `finally` blocks before the lane goes on without it."""


class CoroutineLane(Lane):
    """A timeout cancels the call; a call that swallows its cancellation is abandoned after a grace."""

    def __init__(self, registration: Registration, name: str, listener: LaneListener, opening: Opening) -> None:
        super().__init__(registration, name, listener, opening)
        self._timed_out = False
        self._abandoned: set[asyncio.Task[None]] = set()  # the event loop alone would not keep them alive

    def close(self) -> list[asyncio.Future[Any]]:
        """See `Lane.close`; abandoned calls are asked once more to end, and not waited for."""
        for task in self._abandoned:
            task.cancel()
        return super().close()

    def release(self) -> None:
        """See `Lane.release`; a coroutine leaves nothing behind."""

    async def _call(self, function: Callable[[], Any]) -> Any:
        thread = DaemonThread(f"cdc-lane-{self.name}")
        try:
            return await thread.submit(function)
        finally:
            thread.end()

    async def _walk(self, share: Share) -> BaseException | None:
        task = asyncio.current_task()
        while self._is_whole(share):
            error = await self._attempt(share, self._whole(share, task))
            if task is not self._task:
                return None
            if error is not None:
                error = await self._blame(share, error)
            if error is not None or not share.has_waiting or self._resting:
                return error
        return await self._attempt(share, self._each(share, task))

    async def _attempt(self, share: Share, walk: Coroutine[Any, Any, None]) -> BaseException | None:
        """Run part of a walk; what the callback raised is returned, our own cancellation is not."""
        self._begin(share)
        try:
            await walk
        except BaseException as error:  # noqa: BLE001 - SystemExit and the like are the callback's failure
            return self._ended(share, error)
        return self._ended(share, None)

    def _ended(self, share: Share, error: BaseException | None) -> BaseException | None:
        task = asyncio.current_task()
        if task is None or task is not self._task:
            self._abandoned -= {task}
            return None
        self._end(share, unfinished=error is not None or self._timed_out or self._closing)
        if self._closing:
            raise asyncio.CancelledError
        if self._timed_out:
            self._timed_out = False
            self._unwatch()  # it waits for the end of the grace, the next call has a deadline of its own
            task.uncancel()
            return self.timeout(self.registration.timeout_seconds)
        return error

    def _is_given_up(self, task: object) -> bool:
        return task is not self._task or self._timed_out or self._closing

    async def _whole(self, share: Share, task: object) -> None:
        events = share.waiting()
        began = self.started
        await self.registration.invocation.function(events)
        if not self._is_given_up(task):
            share.take_rest()
            self._count(len(events), monotonic() - began)

    async def _each(self, share: Share, task: object) -> None:
        registration = self.registration
        function = registration.invocation.function
        is_batch = registration.invocation.is_batch
        began = self.started
        for event in share.iterator:
            await function([event] if is_batch else event)
            now = monotonic()
            took = now - began
            if took >= FAST:  # all others are counted together at the end: one clock reading per event
                if self._is_given_up(task):
                    return
                self._count_slow(took)
            registration.consecutive_failures = 0  # now: at the end, another lane's failures were forgotten
            self.started = began = now

    def _give_up(self) -> None:
        if self._task is None or (share := self._share) is None:
            return
        if not self._timed_out:
            self._timed_out = True
            self._task.cancel(f"timeout of callback {self.registration.name}")
        elif len(self._abandoned) < MAX_ABANDONED:
            self._abandon(self._task, share)
            return
        self._watch(monotonic() + GRACE_SECONDS)

    def _abandon(self, task: asyncio.Task[None], share: Share) -> None:
        """The call has swallowed its cancellation: leave it alone, and go on in a new task."""
        self._abandoned.add(task)
        self._timed_out = False
        self._end(share, unfinished=True)
        if not self._is_whole(share) or self._is_one_to_blame(share):
            self._error = self.timeout(self.registration.timeout_seconds)
        share.hold()  # the old task finds its own iterator exhausted
        self._start()
