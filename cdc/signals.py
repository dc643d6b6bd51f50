"""`SignalManager`: the specification's face over callbacks and workers.

Used by itself (`emit` events by hand) or by the service, which submits the stream's batches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from time import monotonic
from types import TracebackType
from typing import Protocol, Self

import structlog

from cdc.callbacks import CallbackState, Registration
from cdc.codes import Code
from cdc.config import ROW_EVENTS, AfterRemoval, OnFailure, SignalConfig
from cdc.error_handler import ErrorHandler, ErrorTeller
from cdc.errors import CallbackError, CdcError, ManagerClosed
from cdc.events import DatabaseEvent, EventType, Position
from cdc.failures import Failure
from cdc.invocation import Invocation
from cdc.patterns import TablePatterns, TagPatterns
from cdc.progress import Batch
from cdc.recent import Recent
from cdc.registry import Registry
from cdc.stats import CallbackPerformance, Rates, SignalStats
from cdc.terms import Terms, parse_event_types, several
from cdc.traces import trace_fields
from cdc.workers import Bounds, Pool

__all__ = ["CallbackHandle", "Keeper", "SignalManager"]

log = structlog.get_logger("cdc.signals")

FENCE_POLL_SECONDS = 0.1
"""How often is asked whether callbacks may be called again, while they may not."""
GRACE_SECONDS = 2.0
"""After the drain deadline: for callbacks to react to their cancellation, and for their `close`."""


class Keeper(Protocol):
    """Who keeps what callbacks of the configuration have not handled; without one it is missed."""

    async def keep_failed(self, registration: Registration, failure: Failure) -> None:
        """Returns once the event is durably a dead letter."""

    async def keep_parked(self, registration: Registration, events: Sequence[DatabaseEvent]) -> int:
        """Returns once events are durably kept: how many, from the front; for the rest there is no room."""

    def note_removed(self, registration: Registration, reason: str, position: Position) -> None:
        """A callback is removed: it is not called after `position`."""


class CallbackHandle:
    """What `add_callback` returns: the callback's `id` and `name`, and the way to end it."""

    __slots__ = ("_manager", "id", "name")

    def __init__(self, manager: SignalManager, callback_id: int, name: str) -> None:
        self._manager = manager
        self.id = callback_id
        self.name = name

    async def unsubscribe(self) -> bool:
        """End the subscription; False when it has ended before."""
        return await self._manager.remove_callback(self)

    def __repr__(self) -> str:
        return f"<CallbackHandle {self.id} {self.name!r}>"


class SignalManager:
    """Registers callbacks, hands events to them concurrently and in order, and counts what happens.

    Lives on one event loop, from its first event to `shutdown`; ``async with`` does the latter.
    """

    def __init__(self, config: SignalConfig | None = None) -> None:
        self.config = config or SignalConfig()
        self.registry = Registry(self.config)
        bounds = Bounds(self.config.max_queued_events, self.config.max_queued_bytes)
        self.pool = Pool(self.registry, bounds, self)
        self.on_room: Callable[[], None] | None = None
        self.keeper: Keeper | None = None
        self.may_deliver: Callable[[], bool] | None = None  # asked before each share of a batch
        self.on_batch: Callable[[Sequence[DatabaseEvent]], None] | None = None  # told of all that is queued
        self.on_broken: Callable[[BaseException], None] | None = None  # told of a mistake of ours that stops a callback
        self._teller = ErrorTeller()
        self._cleanup: asyncio.Task[None] | None = None
        self._room = asyncio.Event()
        self._closed = False
        self._started = monotonic()
        self._emitted = 0
        self._rates = Rates()
        self.recent = Recent()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.shutdown()

    def add_callback(  # noqa: PLR0913 - the public face: every condition has a keyword and a default
        self,
        callback: object,
        *,
        name: str | None = None,
        tables: Sequence[str] = (),
        event_types: Collection[EventType | str] = ROW_EVENTS,
        tags: Sequence[str] = (),
        exclude_columns: Iterable[str] = (),
        mask_columns: Iterable[str] = (),
        concurrency: int = 1,
        timeout_seconds: float | None = None,
        max_attempts: int = 1,
        on_failure: OnFailure = OnFailure.DEAD_LETTER,
        after_removal: AfterRemoval = AfterRemoval.PARK,
        configured: bool = False,
        settled: Position | None = None,
    ) -> CallbackHandle:
        """Register a function (`def` or `async def`) or an object with `handle` or `handle_batch`.

        Without conditions it gets every create, update and delete. `settled`: how far it had come in an earlier run.
        TooManyCallbacks past `max_callbacks`, ManagerClosed after `shutdown`, CallbackError or ConfigError for what
        cannot be a callback or a condition.
        """
        terms = Terms(
            invocation=Invocation(callback),
            tables=TablePatterns(several(tables)),
            event_types=parse_event_types(several(event_types)),
            tags=TagPatterns(several(tags)),
            excluded=frozenset(several(exclude_columns)),
            masked=frozenset(several(mask_columns)),
            concurrency=concurrency,
            timeout_seconds=self.config.callback_timeout_seconds if timeout_seconds is None else timeout_seconds,
            max_attempts=max_attempts,
            blocks=on_failure is OnFailure.BLOCK,
            parks=configured and after_removal is AfterRemoval.PARK,
        )
        return self.register(terms, name=name, configured=configured, settled=settled)

    def register(
        self,
        terms: Terms,
        *,
        name: str | None,
        configured: bool,
        settled: Position | None,
        state: CallbackState = CallbackState.ACTIVE,
        routed: bool = True,
    ) -> CallbackHandle:
        """As `add_callback`, whose terms are made already. `state`: whether it was removed in an earlier run.

        One that is not `routed` gets nothing yet, and may be one too many.
        """
        if self._closed:
            raise ManagerClosed("the signal manager is shut down")

        def make(callback_id: int) -> Registration:
            return Registration(
                id=callback_id,
                name=name or f"{terms.invocation.name}-{callback_id}",
                configured=configured,
                settled=settled,
                state=state,
                last_active=monotonic(),
                is_routed=routed,
                **terms.by_name(),
            )

        registration = self.registry.add(make, bounded=routed)
        self.pool.add(registration)
        return CallbackHandle(self, registration.id, registration.name)

    async def remove_callback(self, handle: CallbackHandle | int) -> bool:
        """Take a callback out; what it has not begun is not given to it. False when it is not there.

        Returns when the call in work has ended, or was cancelled because it takes too long, and `close` was
        called. A coroutine callback may end its own subscription; a plain function must not wait for it.
        """
        callback_id = handle if isinstance(handle, int) else handle.id
        registration = self.registry.get(callback_id)
        if registration is None or registration.state is CallbackState.UNSUBSCRIBED:
            return False
        await self._end_subscriptions([registration], "unsubscribed")
        return True

    async def _end_subscriptions(self, registrations: Sequence[Registration], reason: str) -> None:
        for registration in registrations:
            self.pool.remove(registration, CallbackState.UNSUBSCRIBED, reason)
        await self.pool.leave(registrations, GRACE_SECONDS)

    async def clear_callbacks(self) -> int:
        """Take all callbacks out; how many there were."""
        registrations = self.registry.active
        await self._end_subscriptions(registrations, "unsubscribed")
        return len(registrations)

    def callback_count(self) -> int:
        """How many callbacks get events."""
        return len(self.registry.active)

    def set_error_handler(self, handler: ErrorHandler | None) -> None:
        """Who is told of failed events and removed callbacks; a coroutine function runs as a task."""
        self._teller.handler = handler

    async def open(self) -> None:
        """Call every callback's `open` now instead of before its first event; CallbackError if one fails."""
        for registration in self.registry.active:  # not those that are removed: whoever resumes them opens them
            await self.open_one(registration)

    async def open_one(self, registration: Registration) -> None:
        """Call its `open` now; CallbackError, or the CdcError that it raises, if it fails."""
        error = await self.pool.open(registration)
        if isinstance(error, CdcError):
            raise error
        if error is not None:
            raise CallbackError(
                f"callback {registration.name!r} cannot be opened: {type(error).__name__}: {error}",
                callback=registration.name,
                hint="see its options, and the system that it talks to",
                code=Code.CALLBACK_NOT_OPENED,
            ) from error

    async def emit(self, event: DatabaseEvent) -> None:
        """Put one event in; returns when it is queued, which waits while the queue is full."""
        while not self._closed and not self.pool.has_room:
            self._room.clear()
            await self._room.wait()
        if self._closed:
            raise ManagerClosed("the signal manager is shut down")
        self.submit(Batch([event]))

    def submit(self, batch: Batch) -> None:
        """Queue a batch of the stream; never waits: ask `has_room` before."""
        self._emitted += len(batch.events)
        self.recent.note(batch.events)
        if self.on_batch is not None:
            self.on_batch(batch.events)
        if self._cleanup is None:
            self._cleanup = asyncio.get_running_loop().create_task(self._clean_up_for_ever(), name="cdc-cleanup")
        self.pool.submit(batch)

    @property
    def has_room(self) -> bool:
        """Whether the queue is below its bounds."""
        return self.pool.has_room

    async def shutdown(self, timeout: float | None = None) -> bool:
        """Take nothing more, let the callbacks work off the queue, then close them.

        After `timeout` seconds (default `drain_timeout_seconds`) what is not done stays undone: calls in
        work are cancelled, nothing of it is settled. True when all was done.
        """
        self._closed = True
        self._room.set()  # whoever waits in `emit` learns of it
        drained = await self.drain(timeout)
        if self._cleanup is not None:
            self._cleanup.cancel()
        self.pool.close_parking()
        await self.pool.close(list(self.pool.lanes), GRACE_SECONDS)
        await self._teller.close(GRACE_SECONDS)
        return drained

    async def drain(self, timeout: float | None = None) -> bool:
        """Wait until the queue is worked off, at most `timeout` seconds; True when it is."""
        try:
            async with asyncio.timeout(self.config.drain_timeout_seconds if timeout is None else timeout):
                await self.pool.drained()
        except TimeoutError:
            return False
        return True

    def get_stats(self) -> SignalStats:
        """Figures since the start of the manager."""
        outcomes = self.registry.outcomes
        return SignalStats(
            events_emitted=self._emitted,
            events_processed=outcomes["ok"],
            events_failed=outcomes["failed"],
            events_timed_out=outcomes["timeout"],
            events_missed=outcomes["missed"],
            callbacks=self.callback_count(),
            callbacks_removed=self.registry.removed_total.total(),
            queued_events=self.pool.queued_events,
            queued_bytes=self.pool.queued_bytes,
            uptime_seconds=monotonic() - self._started,
            performance={item.name: CallbackPerformance.of(item, self._rates.of(item)) for item in self.registry},
        )

    async def clean_up(self) -> None:
        """One periodic cleanup: inactive callbacks of code, what removed ones leave, rates per callback."""
        if self.config.auto_remove_inactive_callbacks:
            await self._remove_inactive(monotonic() - self.config.inactive_callback_threshold_seconds)
        gone = {CallbackState.REMOVED, CallbackState.PAUSED}
        removed = [item for item in self.registry if item.state in gone]
        await self.pool.close(filter(self._is_idle, removed), GRACE_SECONDS)
        self.registry.forget_unsubscribed()
        self._rates.look(self.registry)

    async def _remove_inactive(self, since: float) -> None:
        inactive = [
            item
            for item in self.registry.active
            if not item.configured and item.last_active < since and self._is_idle(item)
        ]
        for registration in inactive:
            log.info("callback_inactive", callback=registration.name)
        await self._end_subscriptions(inactive, "inactive")

    def _is_idle(self, registration: Registration) -> bool:
        return all(lane.is_idle for lane in self.pool.lanes.get(registration, ()))

    async def _clean_up_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self.config.cleanup_interval_seconds)
            await self.clean_up()

    async def may_begin(self) -> None:
        """Of the pool (see `PoolListener`): whether callbacks may be called at the moment."""
        while self.may_deliver is not None and not self.may_deliver():  # noqa: ASYNC110 - time alone decides it
            await asyncio.sleep(FENCE_POLL_SECONDS)

    async def keep_failed(self, registration: Registration, failure: Failure) -> bool:
        """Of the pool (see `PoolListener`): an event has failed."""
        if self.keeper is None or not registration.configured or registration.state is CallbackState.UNSUBSCRIBED:
            return False
        await self.keeper.keep_failed(registration, failure)
        return True

    async def keep_parked(self, registration: Registration, events: Sequence[DatabaseEvent]) -> int:
        """Of the pool (see `PoolListener`): events of a removed callback."""
        return await self.keeper.keep_parked(registration, events) if self.keeper is not None else 0

    def broke(self, error: BaseException) -> None:
        """Of the pool (see `PoolListener`): a mistake of ours."""
        log.error("lane_broken", error=type(error).__name__, exc_info=error)
        if self.on_broken is not None:
            self.on_broken(error)

    def event_failed(self, registration: Registration, event: DatabaseEvent, error: BaseException) -> None:
        """Of the pool (see `PoolListener`): an event failed."""
        log.warning(
            "callback_failed",
            callback=registration.name,
            position=str(event.position),
            table=event.kind.table,
            error=type(error).__name__,  # never its text: it may hold values of the row
            consecutive_failures=registration.consecutive_failures,
            **trace_fields(event),
        )
        self._teller.tell(error, event, registration.name)

    def callback_removed(self, registration: Registration, reason: str, position: Position) -> None:
        """Of the pool (see `PoolListener`): a callback is removed."""
        if registration.state is CallbackState.PAUSED:
            log.warning("callback_paused", callback=registration.name, reason=reason, position=str(position))
        if registration.state is CallbackState.REMOVED:
            log.error("callback_removed", callback=registration.name, reason=reason, position=str(position))
            error = CallbackError(
                f"callback {registration.name!r} is removed after {registration.consecutive_failures} failures",
                callback=registration.name,
                code=Code.CALLBACK_REMOVED,
            )
            self._teller.tell(error, None, registration.name)
            if self.keeper is not None and registration.configured:
                self.keeper.note_removed(registration, reason, position)

    def room_again(self) -> None:
        """Of the pool (see `PoolListener`): the queue is below its bounds again."""
        if self._room is not None:
            self._room.set()
        if self.on_room is not None:
            self.on_room()
