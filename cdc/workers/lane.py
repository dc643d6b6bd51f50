"""A lane: the ordered queue of one callback, or of one key-slice of it, and what works it off.

What runs the callback is a subclass's business; here are the queue, the watchdog for timeouts and
what happens to an event that failed. No task, timer or lock is made per event: one watchdog timer
serves the lane, and is set again only when it fires.
"""

from __future__ import annotations

import asyncio
import inspect
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Protocol

import structlog

from cdc.callbacks import Registration
from cdc.errors import CallbackTimeout
from cdc.events import DatabaseEvent
from cdc.failures import Failure, is_permanent, retry_after, wait_before
from cdc.histogram import SECONDS_BUCKETS
from cdc.progress import Share
from cdc.traces import trace_fields
from cdc.workers.opening import Opening
from cdc.workers.work import Work

__all__ = ["FAST", "MAX_ABANDONED", "Lane", "LaneListener"]

log = structlog.get_logger("cdc.lane")

FAST = SECONDS_BUCKETS[0]
"""Seconds below which calls are counted together: a no-op callback is not worth a histogram lookup."""

MAX_ABANDONED = 4
"""Calls per lane that were given up and still run. At the bound the lane waits instead of leaking more:
four is past the default `max_consecutive_failures`, so a callback that always hangs is removed first."""

LATE_SECONDS = 0.1
"""A watchdog that comes this much too late: another callback has blocked the event loop. No call could go on
meanwhile, so that each gets the time again, once."""


class LaneListener(Protocol):
    """Who decides for all lanes; called on the event loop."""

    async def may_begin(self) -> None:
        """Return once callbacks may be called."""

    async def failed(self, registration: Registration, share: Share, failure: Failure) -> None:
        """The event in work has failed for good; returns once it counts as settled. May stop the callback's lanes."""

    def broke(self, error: BaseException) -> None:
        """A mistake of ours has ended a lane: what it had will never be settled."""

    def handed_back(self, registration: Registration, share: Share) -> None:
        """Of a callback that is stopped: what was in a call as a batch, and will not be called again."""


class Lane(ABC):
    """See the module. `last` is the work queued last, finished or not."""

    def __init__(self, registration: Registration, name: str, listener: LaneListener, opening: Opening) -> None:
        self.registration = registration
        self.name = name
        self.last: Work | None = None
        self.started = 0.0  # when the call in work began, monotonic seconds; 0 while none is
        self._listener = listener
        self._opening = opening
        self._queue: deque[Work] = deque()
        self._current: Work | None = None
        self._wake: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._due = 0.0  # when the watchdog shall look
        self._pardoned = 0.0  # when the call began that has got more time
        self._closing = False
        self._resting = False
        self._stopped = False
        self._ending = False
        self._singly: Share | None = None  # its batch has failed: its events are given one by one
        self._failure: Failure | None = None  # of the event that is tried again and again
        self._failing = False  # the event in work has failed for good, and is on its way to be settled
        self._error: BaseException | None = None  # of a call that was given up together with its task
        self._attempts = 0  # calls with the whole share that have failed
        self._walk_began = 0.0
        self._handed_out = 0  # of the share, when the walk began
        self._slow = 0  # calls of this walk that took longer than FAST, and their time
        self._slow_seconds = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether all that was put in is worked off."""
        return self._current is None and not self._queue

    @property
    def busy_task(self) -> asyncio.Task[None] | None:
        """The task with a call in work, unless it is the one that asks."""
        if self._current is None or self._task is asyncio.current_task():
            return None
        return self._task

    def first_unsettled(self) -> DatabaseEvent | None:
        """The event of the stream in work or next in the queue."""
        works = (self._current, *self._queue) if self._current is not None else self._queue
        shares = (work.share for work in works if work.share is not None and work.share.batch.live)
        return next((share.first_unsettled() for share in shares), None)

    def put(self, work: Work) -> None:
        """Queue one more share."""
        self.last = work
        self._queue.append(work)
        if self._task is None:
            self._start()
        elif self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def stop(self) -> list[Share]:
        """The callback is removed: give back what has not begun, for the caller to settle.

        A call in work runs to its end, and so does the event that is on its way to the dead letters.
        """
        self._stopped = True
        rest: list[Share] = []
        if (work := self._current) is not None and (share := work.share) is not None:
            is_busy = self.started or self._failing
            if share.has_waiting and not (self.started and self._is_whole(share)):
                rest.append(share.batch.share(share.take_rest()))
            if not is_busy:  # it waits for a gate, for `open`, or for its next attempt
                work.finish()
        while self._queue:
            work = self._queue.popleft()
            rest += [] if work.share is None else [work.share]
            work.share = None
            work.finish()
        return rest

    def rest(self) -> asyncio.Task[None] | None:
        """Begin no other call; what is not begun stays, for `take`. The task that comes to its end by and by, if any.

        A call in work runs to its end or its timeout, and so does the event that is on its way to the dead letters.
        """
        if (share := self._share) is not None:
            share.hold()
        self._resting = True
        if self._task is None or self._task.done():
            return None
        if not self.started and not self._failing:  # it waits: for work, a gate, `open`, or its next attempt
            self._task.cancel(f"lane {self.name} is at rest")
        return self._task

    async def call(self, function: Callable[[], Any]) -> None:
        """Call the callback's `open` or `close`: a coroutine function here, another in a thread."""
        result = function() if inspect.iscoroutinefunction(function) else await self._call(function)
        if isinstance(result, Awaitable):
            await result

    def close(self) -> list[asyncio.Future[Any]]:
        """Stop working at once; what is unsettled stays so. Returns what comes to its end by and by."""
        if (share := self._share) is not None:
            share.hold()
        if self._task is not None and self._task is asyncio.current_task():
            self._ending = True  # the callback ends its own subscription: let it come to its end
            return []
        self._closing = True
        if self._watchdog is not None:
            self._watchdog.cancel()
        if self._task is None:
            return []
        self._task.cancel(f"lane {self.name} is closed")
        return [self._task]

    @abstractmethod
    def release(self) -> None:
        """After `close` and the callback's own: nothing is called here any more."""

    def discard(self) -> list[DatabaseEvent]:
        """After `close`: nobody wants what was in work; settle it and give it back."""
        if self._current is None or self._ending or (share := self._current.share) is None:
            return []
        events = share.take_rest() or [share.first_unsettled()]
        self._current.finish()
        self._current = None
        return events

    def timeout(self, seconds: float) -> CallbackTimeout:
        """The error of a call that took longer than `seconds`."""
        return CallbackTimeout(
            f"callback {self.registration.name!r} took longer than {seconds:g} s",
            callback=self.registration.name,
            hint="raise timeout_seconds, or make the callback faster",
        )

    def give_back(self) -> list[Share]:
        """After `close`: what was in work and is not settled, for the caller to settle."""
        if self._current is None or (share := self._current.share) is None:
            return []
        rest = [share.batch.share(share.rest())]
        self._current.finish()
        self._current = None
        return rest

    def take(self) -> list[Share]:
        """After `close`: all that is not settled, in its order, for the caller to settle."""
        rest = self.give_back()
        while self._queue:
            work = self._queue.popleft()
            if (share := work.share) is not None:
                work.share = None
                rest.append(share)
            work.finish()
        return rest

    @property
    def _share(self) -> Share | None:
        return None if self._current is None else self._current.share

    @abstractmethod
    async def _call(self, function: Callable[[], Any]) -> Any:
        """Call a plain `function`, which may block, in a thread."""

    @abstractmethod
    async def _walk(self, share: Share) -> BaseException | None:
        """Hand out events until the share is exhausted (None) or the one in work has failed."""

    @abstractmethod
    def _give_up(self) -> None:
        """The call in work has timed out."""

    def _start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._main(), name=f"cdc-lane-{self.name}")
        self._task.add_done_callback(self._main_ended)

    def _main_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._listener.broke(error)

    async def _main(self) -> None:
        task = asyncio.current_task()
        while True:
            work = self._current or await self._next()
            if work.after is not None:
                await work.after.wait()
            await self._listener.may_begin()
            if (share := work.share) is not None:
                await self._work_off(share, task)
                if self._task is not task:
                    return  # given up meanwhile, and another task has taken over
                if share.has_waiting:
                    share.paused = True  # closed or at rest: the call in work has ended, and no other begins
                    return
                del share
            self._singly = self._current = None
            work.finish()
            if self._stopped or self._resting:
                return
            await asyncio.sleep(0)  # the reader and the other lanes have their turn

    async def _work_off(self, share: Share, task: object) -> None:
        error, self._error = self._error, None
        while True:
            if error is not None:
                await self._fail(share, error)
            if not share.has_waiting or self._ending or self._closing or self._resting:
                return
            error = await self._opening.ensure(self)
            if error is None:
                error = await self._walk(share)
                if self._task is not task:
                    return
            elif next(share.iterator, None) is None:  # otherwise, an event that cannot be handed out has failed
                return

    async def _fail(self, share: Share, error: BaseException) -> None:
        """The event in work has failed: wait for its next attempt, or see to it that it is settled without one."""
        failure = self._count_attempt(share.first_unsettled(), error)
        if self._is_worth_another(error, failure.attempts):
            share.put_back()
            if self._stopped:
                self._hand_back(share)
            elif not (self._closing or self._resting):
                self.registration.retries += 1
                await self._wait(failure, wait_before(failure.attempts + 1, error))
            return
        self._failure = None
        self._failing = True
        try:
            await self._listener.failed(self.registration, share, failure)
        finally:
            self._failing = False

    async def _wait(self, failure: Failure, seconds: float) -> None:
        log.debug(
            "callback_retried",
            callback=self.registration.name,
            position=str(failure.event.position),
            attempts=failure.attempts,
            error=type(failure.error).__name__,
            seconds=seconds,
            **trace_fields(failure.event),
        )
        await asyncio.sleep(seconds)

    def _count_attempt(self, event: DatabaseEvent, error: BaseException) -> Failure:
        now = datetime.now(UTC)
        if (failure := self._failure) is None or failure.event is not event:
            failure = self._failure = Failure(event, error, 0, now, now)
        failure.error, failure.last_time = error, now
        failure.attempts += 1
        return failure

    def _is_worth_another(self, error: BaseException, attempts: int) -> bool:
        registration = self.registration
        return registration.blocks or (attempts < registration.max_attempts and not is_permanent(error))

    def _hand_back(self, share: Share) -> None:
        self._listener.handed_back(self.registration, share.batch.share(share.take_rest()))

    async def _next(self) -> Work:
        while not self._queue:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        self._current = self._queue.popleft()
        return self._current

    def _is_whole(self, share: Share) -> bool:
        """Whether the callback takes all of `share` in one call."""
        return self.registration.invocation.is_batch and self._singly is not share

    async def _blame(self, share: Share, error: BaseException) -> BaseException | None:
        """After a failed call with the whole share: its error if one event is to blame, or None.

        Which event of a failed batch is to blame, nobody knows; one by one, only that one fails. Unless the
        error says when to come again: then no event is, and the whole share is tried again after that time.
        """
        self._attempts += 1
        is_asked_to_wait = retry_after(error) is not None and len(share.waiting()) > 1
        is_asked_to_wait = is_asked_to_wait and not (self._stopped or self._resting)
        if is_asked_to_wait and self._is_worth_another(error, self._attempts):
            self.registration.retries += 1
            await asyncio.sleep(wait_before(self._attempts + 1, error))
            return None
        self._attempts = 0
        return error if self._is_one_to_blame(share) else None

    def _is_one_to_blame(self, share: Share) -> bool:
        """Whether what was called as a whole is one event; otherwise it shall be called one by one."""
        if len(share.waiting()) == 1:
            next(share.iterator)
            return True
        if self._stopped:
            self._hand_back(share)
        self._singly = share
        return False

    def _count(self, events: int, seconds: float) -> None:
        """`events` were handled by one call; the caller holds the registration's lock."""
        self.registration.succeeded()
        self.registration.outcomes["ok"] += events
        self.registration.seconds.observe(seconds)

    def _count_slow(self, seconds: float) -> None:
        self._count(1, seconds)
        self._slow += 1
        self._slow_seconds += seconds

    def _begin(self, share: Share) -> None:
        """A walk begins: the clock runs, and the watchdog is on."""
        self._handed_out, self._slow, self._slow_seconds = share.handed_out, 0, 0.0
        self.started = self._walk_began = self.registration.last_active = monotonic()
        if self._watchdog is None:
            self._watch(self.started + self.registration.timeout_seconds)

    def _end(self, share: Share, *, unfinished: bool) -> None:
        """The walk is over: count its fast calls, which are all but the slow ones and one that is `unfinished`."""
        fast = share.handed_out - self._handed_out - self._slow - unfinished
        if fast > 0:
            seconds = max(self.started - self._walk_began - self._slow_seconds, 0.0)
            with self.registration.lock:  # each has set the count of failures back itself: see the walks
                self.registration.outcomes["ok"] += fast
                self.registration.seconds.observe_fast(fast, seconds)
        self.started = 0.0

    def _watch(self, due: float) -> None:
        # The loop's clock is the monotonic one; the delay form keeps this true of other loops too.
        self._due = max(due, monotonic() + 0.001)
        self._watchdog = asyncio.get_running_loop().call_later(self._due - monotonic(), self._look)

    def _unwatch(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    def _look(self) -> None:
        self._watchdog = None
        if not self.started or self._closing:
            return  # the next walk sets it again
        timeout = self.registration.timeout_seconds
        late = monotonic() - self._due
        if late > LATE_SECONDS and self._pardoned != self.started:
            self._pardoned = self.started
            self._watch(monotonic() + min(late, timeout))
        elif monotonic() < self.started + timeout:
            self._watch(self.started + timeout)
        else:
            self._give_up()
