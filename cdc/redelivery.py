"""Does what operators ask for, by way of the state: removes and resumes callbacks, tries dead letters again.

A resumed callback gets what was parked, in order, while what the stream brings is parked behind it; with the
last of it in the callback's own queue, the stream goes there too: no gap, and no overtaking. What was
delivered is dropped from the state afterwards, so that a kill in between delivers it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog

from cdc.callbacks import CallbackState, Registration
from cdc.errors import StateError
from cdc.events import DatabaseEvent
from cdc.letters import DeadLetters
from cdc.progress import Batch
from cdc.signals import GRACE_SECONDS, SignalManager
from cdc.state import DeadLetter, LetterFilter, LetterState, StateStore, StateThread

__all__ = ["Redelivery"]

log = structlog.get_logger("cdc.redelivery")

LOOK_SECONDS = 0.5
"""An operator at the command line sees the effect within a second; a look costs one tiny read."""
PAGE_LETTERS = 256
PAGE_BYTES = 1 << 20
"""Bounds of what is in memory at once for a callback: as much as a batch of the stream."""


OPERATOR = "operator"
"""The reason of what somebody has ordered."""
ORDERED = {
    (CallbackState.REMOVED, CallbackState.ACTIVE),
    (CallbackState.REMOVED, CallbackState.RESUMING),
    (CallbackState.REMOVED, CallbackState.PAUSED),
    (CallbackState.PAUSED, CallbackState.ACTIVE),
    (CallbackState.PAUSED, CallbackState.RESUMING),
}
"""What is wanted by an order, and what is: then the callback is taken out of the stream."""


@dataclass(frozen=True, slots=True)
class _Delivery:
    """Letters on their way to their callback; `over` when all of them are settled or given back."""

    name: str
    letters: Sequence[DeadLetter]
    batch: Batch
    over: asyncio.Future[None]

    def end(self, _: Batch) -> None:
        """All is settled."""
        if not self.over.done():
            self.over.set_result(None)

    def delivered(self) -> set[int]:
        """Ids of those that the callback has handled, so far."""
        unsettled = [event for share in self.batch.shares for event in share.rest()]
        left = {event.position for event in (*self.batch.undelivered, *unsettled)}
        return {letter.id for letter in self.letters if letter.position not in left}


class Redelivery:
    """See the module. One `run` at a time, until it is cancelled; then `close`."""

    def __init__(self, store: StateStore, thread: StateThread, letters: DeadLetters, manager: SignalManager) -> None:
        self._store = store
        self._thread = thread
        self._letters = letters
        self._manager = manager
        self._version: int | None = None
        self._wanted = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._deliveries: dict[str, _Delivery] = {}

    async def run(self) -> None:
        """Look at the state again and again, for ever."""
        while True:
            if self._wanted.is_set():
                self._wanted.clear()
                self._version = None
            with suppress(StateError):  # whoever writes finds out, and says so
                version = await self._thread.run(self._store.version)
                if version != self._version and await self._look():
                    self._version = version
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._wanted.wait()

    def look_soon(self) -> None:
        """The service itself has written an order down, which the state's version does not show it."""
        self._wanted.set()

    async def close(self) -> None:
        """Stop; put on record what was delivered by now. The callbacks are not called any more."""
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values())
        delivered = {id_ for delivery in self._deliveries.values() for id_ in delivery.delivered()}
        if delivered:
            with suppress(StateError):  # then they are delivered again
                await self._thread.run(self._store.remove_letters, delivered)

    async def _look(self) -> bool:
        """Compare what is asked for with what is; False when that must be done once more."""
        removals = self._letters.removals
        records = {record.name: record.state for record in await self._letters.ask(self._store.callbacks)}
        await self._letters.refresh()
        if removals != self._letters.removals:
            return False  # what was read is older than a removal of ours
        for registration in self._manager.registry:
            if registration.configured and registration.is_routed:
                self._act(registration, records.get(registration.name, CallbackState.ACTIVE))
        return not self._tasks

    def _act(self, registration: Registration, wanted: CallbackState) -> None:
        name, state = registration.name, registration.state
        failed = self._letters.totals().get((name, LetterState.FAILED))
        if (wanted, state) in ORDERED:
            self._manager.pool.remove(registration, wanted, OPERATOR)
        elif name in self._tasks:
            return
        elif wanted is CallbackState.RESUMING and state in (CallbackState.REMOVED, CallbackState.PAUSED):
            self._tasks[name] = asyncio.create_task(self._ending(name, self._resume(registration)), name="cdc-resume")
        elif wanted is CallbackState.RESUMING and state is CallbackState.ACTIVE:  # it was taken out, for us unseen
            self._tasks[name] = asyncio.create_task(self._ending(name, self._end_resuming(name)), name="cdc-resume")
        elif state is CallbackState.ACTIVE and failed is not None and failed.retry:
            self._tasks[name] = asyncio.create_task(self._ending(name, self._retry(registration)), name="cdc-retry")

    async def _ending(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Do `work`; the state may fail us at any moment, then the next look begins it anew."""
        try:
            await work
        except StateError as error:
            log.warning("redelivery_interrupted", code=error.code, callback=name, error=str(error))
        finally:
            self._tasks.pop(name, None)

    async def _resume(self, registration: Registration) -> None:
        name, pool = registration.name, self._manager.pool
        parked = LetterFilter(callback=name, state=LetterState.PARKED)
        log.info("handler_resuming", callback=name)
        async with pool.exchanging:
            if registration.is_routed:
                await pool.revive(registration, GRACE_SECONDS)
        events = 0
        while _is_resuming(registration):
            letters, is_last = await self._page(parked)
            if is_last:
                await pool.pause_parking(registration)
                letters, is_last = await self._page(parked)
            if not _is_resuming(registration):
                break
            delivery = self._send(registration, letters, lenient=False)
            if is_last:
                pool.go_live(registration)
            else:
                pool.park_again(registration)
            events += await self._end(delivery)
        if registration.state is CallbackState.ACTIVE:
            await self._end_resuming(name)
            log.info("handler_resumed", callback=name, events=events)

    async def _end_resuming(self, name: str) -> None:
        await self._letters.ask(lambda: self._store.mark_active(name))

    async def _retry(self, registration: Registration) -> None:
        wanted = LetterFilter(callback=registration.name, state=LetterState.FAILED, retry=True)
        is_last = False
        tried = delivered = 0
        while not is_last and _is_active(registration):
            letters, is_last = await self._page(wanted)
            if not _is_active(registration):
                break
            tried += len(letters)
            delivered += await self._end(self._send(registration, letters, lenient=True))
        log.info("dead_letters_retried", callback=registration.name, letters=tried, delivered=delivered)

    async def _page(self, wanted: LetterFilter) -> tuple[list[tuple[DeadLetter, DatabaseEvent]], bool]:
        """The first of them, in order, and whether these are all. What cannot be read is set aside as failed."""
        letters = await self._letters.ask(lambda: self._store.letters(wanted, limit=PAGE_LETTERS, max_bytes=PAGE_BYTES))
        if not letters:
            return [], True
        last = letters[-1].callback, letters[-1].position
        more = await self._letters.ask(lambda: self._store.letters(wanted, after=last, limit=1))
        return await self._letters.readable(letters), not more

    def _send(
        self, registration: Registration, letters: Sequence[tuple[DeadLetter, DatabaseEvent]], *, lenient: bool
    ) -> _Delivery:
        """Queue letters for their callback."""
        batch = Batch([event for _, event in letters], live=False, lenient=lenient)
        over = asyncio.get_running_loop().create_future()
        delivery = _Delivery(registration.name, [letter for letter, _ in letters], batch, over)
        if not letters:
            over.set_result(None)
            return delivery
        batch.on_settled = delivery.end
        self._letters.bring_back(registration.name, delivery.letters)
        self._deliveries[registration.name] = delivery
        self._manager.pool.put(registration, batch)
        return delivery

    async def _end(self, delivery: _Delivery) -> int:
        """Wait until the callback is through with them, and drop from the state what it has handled: how many."""
        await delivery.over
        delivered = delivery.delivered()
        await self._letters.drop([letter for letter in delivery.letters if letter.id in delivered])
        self._letters.forget_under_way(delivery.name, delivery.letters)
        self._deliveries.pop(delivery.name, None)
        return len(delivered)


def _is_resuming(registration: Registration) -> bool:
    """It may have been removed again at any moment."""
    return registration.state is CallbackState.RESUMING and registration.is_routed


def _is_active(registration: Registration) -> bool:
    """It may have been removed, or have left the configuration."""
    return registration.state is CallbackState.ACTIVE and registration.is_routed
