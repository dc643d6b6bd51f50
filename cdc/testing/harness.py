"""The pool of the service around one handler, with everything written down that happens to its events.

Owns what was called, settled, kept and missed. What a handler meets here is the service's own
`SignalManager`; only the source of the events and the keeper of the dead letters are the harness's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from cdc.callbacks import Registration
from cdc.config import OnFailure, SignalConfig
from cdc.events import DatabaseEvent, Position
from cdc.failures import LONGEST_WAIT, Failure
from cdc.progress import Batch
from cdc.signals import SignalManager
from cdc.testing.faults import Fault, InjectedFault, Point, Wrapped

__all__ = ["Call", "HandlerHarness", "Letter"]

BATCH_EVENTS = 256  # as the service slices its stream
END_SECONDS = 1.0  # for calls in work at the end of the block, which nobody waits for


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the handler that has ended: with what, and the error it ended with (None: it has returned)."""

    positions: tuple[Position, ...]
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class Letter:
    """An event that has failed for good: the dead letter that `cdc run` would have kept."""

    event: DatabaseEvent
    error: BaseException
    attempts: int


class HandlerHarness:
    """Runs `handler` (a function, or an object with `handle` or `handle_batch`) as the service would.

    ``async with`` opens it (what its `open` raises comes as CallbackError) and closes it. Conditions are those of
    a handler in `cdc.toml`; `retry_seconds` bounds every wait between two attempts. A handler is not removed after
    failures in a row unless `max_consecutive_failures` is given. `open` false: opened before its first event.
    """

    def __init__(  # noqa: PLR0913 - a keyword and a default each
        self,
        handler: object,
        *,
        name: str = "handler",
        concurrency: int = 1,
        timeout_seconds: float = 30.0,
        max_attempts: int = 3,
        on_failure: Literal["dead_letter", "block"] = "dead_letter",
        max_consecutive_failures: int | None = None,
        retry_seconds: float = 0.02,
        open: bool = True,  # noqa: A002 - what it does
    ) -> None:
        self.calls: list[Call] = []
        self.dead_letters: list[Letter] = []
        self.parked: list[DatabaseEvent] = []
        self.manager = SignalManager(
            SignalConfig(
                remove_failing_callbacks=max_consecutive_failures is not None,
                max_consecutive_failures=max_consecutive_failures or 1,
            )
        )
        self.manager.keeper = _Keeper(self)
        self._room = asyncio.Event()
        self.manager.on_room = self._room.set
        self._wrapped = Wrapped(handler, self._note)
        self._open = open
        self._retry_seconds = retry_seconds
        self._handle = self.manager.add_callback(
            self._wrapped,
            name=name,
            event_types=("create", "update", "delete", "truncate"),
            concurrency=concurrency,
            timeout_seconds=timeout_seconds,
            max_attempts=max_attempts,
            on_failure=OnFailure(on_failure),
            configured=True,
        )

    async def __aenter__(self) -> Self:
        if self._open:
            try:
                await self.manager.open()
            except BaseException:
                await self.manager.shutdown(0)
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wrapped.released.set()
        await self.manager.shutdown(END_SECONDS)

    # Faults, by the number of the call, from 1; retries are calls of their own ------------------------

    def fail_before(self, call: int, error: BaseException | None = None) -> None:
        """This call raises before the handler sees it."""
        self._wrapped.faults[call] = Fault(Point.BEFORE, error or InjectedFault("before the call"))

    def fail_after(self, call: int, error: BaseException | None = None) -> None:
        """The handler does its work in this call, and then it raises: as a crash before the checkpoint."""
        self._wrapped.faults[call] = Fault(Point.AFTER, error or InjectedFault("after the call"))

    def hang_before(self, call: int) -> None:
        """This call hangs, before the handler sees it, until it times out."""
        self._wrapped.faults[call] = Fault(Point.BEFORE, None)

    def hang_after(self, call: int) -> None:
        """The handler does its work in this call, which then hangs until it times out."""
        self._wrapped.faults[call] = Fault(Point.AFTER, None)

    def cancel_during(self, call: int, suspension: int = 1) -> None:
        """The handler's coroutine is cancelled in this call, at its n-th suspension, and the call raises."""
        if not self._wrapped.is_async:
            raise TypeError("a plain function runs in a thread and cannot be cancelled; see hang_after")
        self._wrapped.faults[call] = Fault(Point.DURING, None, suspension)

    # Events -------------------------------------------------------------------------------------------

    async def send(self, events: Iterable[DatabaseEvent]) -> None:
        """Queue events, in batches as the service does; waits only while the queue is full."""
        waiting = list(events)
        while waiting:
            batch, waiting = waiting[:BATCH_EVENTS], waiting[BATCH_EVENTS:]
            while not self.manager.has_room:
                self._room.clear()
                await self._room.wait()
            token = LONGEST_WAIT.set(self._retry_seconds)
            try:
                self.manager.submit(Batch(batch))
            finally:
                LONGEST_WAIT.reset(token)

    async def settle(self, timeout: float = 30.0) -> None:
        """Wait until everything sent is settled; AssertionError after `timeout` seconds."""
        if not await self.manager.drain(timeout):
            raise AssertionError(
                f"not settled within {timeout:g} s: {self.manager.pool.queued_events} events; "
                f"{len(self.calls)} calls have ended, the last with {self.calls[-1].error if self.calls else None!r}"
            )

    async def deliver(self, events: Iterable[DatabaseEvent], timeout: float = 30.0) -> None:
        """Send events and wait until they are settled."""
        await self.send(events)
        await self.settle(timeout)

    async def deliver_twice(self, events: Iterable[DatabaseEvent], timeout: float = 30.0) -> None:
        """Deliver events, and all of them again, as after a crash before the checkpoint."""
        events = list(events)
        await self.deliver(events, timeout)
        await self.deliver(events, timeout)

    # What happened ------------------------------------------------------------------------------------

    @property
    def handled(self) -> list[Position]:
        """Positions of the calls that returned, in their order; twice what was delivered twice."""
        return [position for call in self.calls if call.error is None for position in call.positions]

    @property
    def retries(self) -> int:
        """Attempts after the first, so far."""
        return self._registration.retries

    @property
    def timeouts(self) -> int:
        """Events whose last attempt took longer than its timeout."""
        return self._registration.outcomes["timeout"]

    @property
    def missed(self) -> int:
        """Events that were neither handled nor kept."""
        return self._registration.outcomes["missed"]

    def assert_settled(self, events: Iterable[DatabaseEvent]) -> None:
        """AssertionError unless each of these was handled, in a call that returned, and none is a dead letter."""
        if self.manager.pool.queued_events:
            raise AssertionError(f"{self.manager.pool.queued_events} events are not settled; await settle() first")
        handled = set(self.handled)
        letters = {letter.event.position: letter for letter in self.dead_letters}
        for event in events:
            if (letter := letters.get(event.position)) is not None:
                raise AssertionError(f"{event} is a dead letter after {letter.attempts} attempts: {letter.error!r}")
            if event.position not in handled:
                raise AssertionError(f"{event} was settled without being handled: parked or missed")

    def assert_dead(self, events: Iterable[DatabaseEvent]) -> None:
        """AssertionError unless each of these has failed for good."""
        letters = {letter.event.position for letter in self.dead_letters}
        for event in events:
            if event.position not in letters:
                raise AssertionError(f"{event} is no dead letter")

    @property
    def _registration(self) -> Registration:
        registration = self.manager.registry.get(self._handle.id)
        if registration is None:
            raise RuntimeError("the handler is not registered any more")
        return registration

    def _note(self, events: Sequence[DatabaseEvent], error: BaseException | None) -> None:
        self.calls.append(Call(tuple(event.position for event in events), error))


class _Keeper:
    """Keeps in memory what `cdc run` keeps in its state."""

    def __init__(self, harness: HandlerHarness) -> None:
        self._harness = harness

    async def keep_failed(self, registration: Registration, failure: Failure) -> None:  # noqa: ARG002 - the protocol's
        self._harness.dead_letters.append(Letter(failure.event, failure.error, failure.attempts))

    async def keep_parked(self, registration: Registration, events: Sequence[DatabaseEvent]) -> int:  # noqa: ARG002
        self._harness.parked.extend(events)
        return len(events)

    def note_removed(self, registration: Registration, reason: str, position: Position) -> None:
        """Nothing to note: `parked` says it."""
