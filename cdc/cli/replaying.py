"""A log's events once more through handlers: the real manager, and an account of what became of each.

Owns the way from a reader of events to the handlers' end. It must not know files, and touches neither the state nor
the slot: what fails is counted, never kept, and no checkpoint moves.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol

from cdc.callbacks import CallbackState, Registration
from cdc.config import Config, HandlerConfig
from cdc.enrolment import load_terms, register
from cdc.events import DatabaseEvent, EventType
from cdc.patterns import TablePatterns, TagPatterns
from cdc.progress import Batch
from cdc.signals import SignalManager

__all__ = ["Account", "Conditions", "Reader", "Replay"]

BATCH_EVENTS = 256  # as the service reads at most at once
BATCH_BYTES = 1 << 20  # and not many large rows
MEMORY_FACTOR = 3
"""A line's bytes → those of the values that are made of it, about: the queue is bounded by memory as well."""
SHOWN_FAILURES = 100


class Reader(Protocol):
    """Gives events in order, and says how far it is; `read_bytes` counts lines, the others files."""

    total_bytes: int
    done_bytes: int
    read_bytes: int

    def __iter__(self) -> Iterator[DatabaseEvent]: ...


@dataclass(frozen=True, slots=True)
class Conditions:
    """Which events of a log are meant; all that are given must hold."""

    since: datetime | None = None
    until: datetime | None = None
    tables: TablePatterns = field(default_factory=TablePatterns)
    event_types: frozenset[EventType] = frozenset(EventType)
    tags: TagPatterns = field(default_factory=TagPatterns)

    def hold(self, event: DatabaseEvent) -> bool:
        """`since` is the first moment that is meant, `until` the first that is not."""
        return (
            event.event_type in self.event_types
            and (self.since is None or event.timestamp >= self.since)
            and (self.until is None or event.timestamp < self.until)
            and self.tables.matches(event.schema, event.table_name)
            and self.tags.matches(event.tags)
        )


@dataclass(slots=True)
class Account:
    """What became of the events for one handler; `failures` are the first of them, without row values."""

    name: str
    matched: int = 0
    delivered: int = 0
    failed: int = 0
    not_called: int = 0
    removed: bool = False
    errors: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, str]] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether it has handled all that it was meant to."""
        return not (self.failed or self.not_called or self.removed)

    def to_dict(self) -> dict[str, Any]:
        """As `cdc replay --json` prints it."""
        return {
            "name": self.name,
            "matched": self.matched,
            "delivered": self.delivered,
            "failed": self.failed,
            "not_called": self.not_called,
            "removed": self.removed,
            "errors": dict(self.errors),
            "failures": self.failures,
        }


class Replay:
    """One run: handlers by their configuration, with its conditions, retries and limits.

    `read` counts the events of the log, `selected` those that the conditions let pass; `last` was given out last.
    A handler that fails too often in a row is called no more, as in the service; when all are, the replay ends.
    """

    def __init__(self, config: Config, handlers: Sequence[HandlerConfig], conditions: Conditions) -> None:
        self._conditions = conditions
        self._manager = SignalManager(config.signal)
        self._manager.set_error_handler(self._failed)
        self._manager.on_room = self._look
        self._drain_seconds = config.signal.drain_timeout_seconds
        self._handles = [
            # Nobody keeps what fails or comes after it: it is counted.
            register(self._manager, item.name, replace(load_terms(item, config, config.signal), parks=False), None)
            for item in handlers
        ]
        self.accounts = {handle.name: Account(handle.name) for handle in self._handles}
        self.read = self.selected = 0
        self.last: DatabaseEvent | None = None
        self.stopped = False
        self._wake = asyncio.Event()

    @property
    def is_clean(self) -> bool:
        """Whether every event came to its end, and well."""
        return not self.stopped and all(account.is_clean for account in self.accounts.values())

    def count(self, reader: Reader, tell: Callable[[], None]) -> None:
        """Only see which handler would get how many; nobody is called."""
        for events, _ in self._batches(reader):
            self._match(events)
            tell()

    async def run(self, reader: Reader, tell: Callable[[], None]) -> None:
        """Give all events to all handlers, until the end or SIGINT; `tell` is called now and then.

        CallbackError when a handler cannot be opened, and whatever the reader raises; what was given out before is
        worked off in any case.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        try:
            await self._manager.open()
            try:
                await self._feed(reader, tell)
            finally:
                await self._drain()
        finally:
            await self._manager.shutdown(0)
            self._settle_accounts()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def _feed(self, reader: Reader, tell: Callable[[], None]) -> None:
        for events, size in self._batches(reader):
            while not (self._manager.has_room or self.stopped):
                self._wake.clear()
                await self._wake.wait()
            if self.stopped or not self._are_called:
                self.stopped = True
                return
            self._match(events)
            self._manager.submit(Batch(events, size=size * MEMORY_FACTOR))
            self.last = events[-1]
            tell()
            await asyncio.sleep(0)  # the handlers have their turn

    async def _drain(self) -> None:
        """As long as it takes; after a stop, as long as the service would give it."""
        while not self.stopped:
            if await self._manager.drain(1.0):
                return
        await self._manager.drain(self._drain_seconds)

    def _batches(self, reader: Reader) -> Iterator[tuple[list[DatabaseEvent], int]]:
        """The events that are meant, and about how many bytes of the log they are."""
        events: list[DatabaseEvent] = []
        begin = 0
        for event in reader:
            self.read += 1
            if self._conditions.hold(event):
                self.selected += 1
                events.append(event)
            if len(events) >= BATCH_EVENTS or reader.read_bytes - begin >= BATCH_BYTES:
                if events:
                    yield events, reader.read_bytes - begin
                events, begin = [], reader.read_bytes
        if events:
            yield events, reader.read_bytes - begin

    @property
    def _registrations(self) -> list[Registration]:
        found = (self._manager.registry.get(handle.id) for handle in self._handles)
        return [registration for registration in found if registration is not None]

    @property
    def _are_called(self) -> bool:
        return any(registration.state is CallbackState.ACTIVE for registration in self._registrations)

    def _match(self, events: Sequence[DatabaseEvent]) -> None:
        kinds = {event.kind for event in events}
        for registration in self._registrations:
            self.accounts[registration.name].matched += len(registration.select(events, kinds))

    def _failed(self, error: BaseException, event: DatabaseEvent | None, name: str) -> None:
        if event is None:
            return
        account, kind = self.accounts[name], type(error).__name__  # never its text: it may hold values of the row
        account.errors[kind] += 1
        if len(account.failures) < SHOWN_FAILURES:
            account.failures.append({"position": str(event.position), "table": event.kind.table, "error": kind})

    def _settle_accounts(self) -> None:
        for registration in self._registrations:
            account = self.accounts[registration.name]
            account.delivered = registration.outcomes["ok"]
            account.failed = account.errors.total()
            account.removed = registration.state is not CallbackState.ACTIVE
            account.not_called = account.matched - account.delivered - account.failed

    def _stop(self) -> None:
        if self.stopped:  # a second time: at once
            raise KeyboardInterrupt
        self.stopped = True
        self._look()

    def _look(self) -> None:
        self._wake.set()
