"""Callbacks as facts: what was registered, which events it wants, how it fares, whether it is removed.

No tasks, threads or clocks of its own: workers report here, the manager and the metrics read here.
"""

from __future__ import annotations

import inspect
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

from cdc.config import SignalConfig
from cdc.errors import CallbackError, TooManyCallbacks
from cdc.events import DatabaseEvent, EventType, Kind, Position, Row
from cdc.patterns import TablePatterns, TagPatterns
from cdc.values import PostgresValue

__all__ = [
    "OTHER",
    "SECONDS_BUCKETS",
    "CallbackState",
    "ColumnView",
    "Histogram",
    "Invocation",
    "MissedRange",
    "Registration",
    "Registry",
    "Tally",
    "parse_event_types",
    "refuse_awaitable",
]

MASK = "***"
SECONDS_BUCKETS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0)
"""From "did nothing" to the default timeout."""

MAX_KINDS = 1_000
"""Tables and types whose answer a callback remembers. An event made by hand has a kind of its own."""

MAX_RETIRED = 1_000
"""Names of callbacks that are gone whose counts are kept apart; an application that subscribes and leaves
under ever new names shares one more, `OTHER`."""
OTHER = "_other"


class CallbackState(Enum):
    """Whether a callback gets events; `value` is the word shown to people and programs."""

    ACTIVE = "active"
    REMOVED = "removed"  # failed too often, or by an operator; its events are parked, or counted as missed
    RESUMING = "resuming"  # it gets what was parked; what comes meanwhile is parked behind it
    UNSUBSCRIBED = "unsubscribed"  # by its owner, or as inactive: it wants no events any more

    def __str__(self) -> str:
        return self.value


class Invocation:
    """How a callback is called: its functions, and whether they are coroutines and take batches."""

    __slots__ = ("close", "function", "is_async", "is_batch", "open")

    def __init__(self, callback: object) -> None:
        self.open: Callable[[], Any] | None = getattr(callback, "open", None)
        self.close: Callable[[], Any] | None = getattr(callback, "close", None)
        batch = getattr(callback, "handle_batch", None)
        function = batch or getattr(callback, "handle", None)
        if function is None:
            function = callback
            self.open = self.close = None  # a plain function; what it may carry is not ours
        if isinstance(callback, type) or not callable(function):
            what = "is a class, not an object of it" if isinstance(callback, type) else "cannot be called"
            raise CallbackError(
                f"{callback!r} {what}",
                hint="a callback is a function, or an object with `handle` or `handle_batch`",
            )
        self.function: Callable[[Any], Any] = function
        self.is_batch = batch is not None
        called = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004
        self.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)
        if any(is_generator(what) for is_generator in _GENERATORS for what in (function, called)):
            raise CallbackError(f"{callback!r} is a generator: calling it does nothing", hint="leave out the `yield`")


_GENERATORS = (inspect.isgeneratorfunction, inspect.isasyncgenfunction)


def refuse_awaitable(result: object) -> None:
    """CallbackError when a plain function has returned something that must be awaited: nothing was done."""
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()  # it will never run; this keeps Python from complaining about that, too
        raise CallbackError("the callback is a plain function but returns an awaitable", hint="make it `async def`")


def parse_event_types(words: Collection[EventType | str]) -> frozenset[EventType]:
    """The types a callback asks for; CallbackError for an unknown word, and for none at all."""
    try:
        wanted = frozenset(map(EventType, words))
    except ValueError as error:
        raise CallbackError(str(error), hint=f"event types are {', '.join(map(str, EventType))}") from None
    if not wanted:
        raise CallbackError("no event type is asked for", hint="leave event_types out: all but truncate")
    return wanted


@dataclass(frozen=True, slots=True)
class ColumnView(Row):
    """A callback's own view of rows: some columns left out, some masked. Made by :meth:`of`."""

    row: Row
    excluded: frozenset[str]
    masked: frozenset[str]

    @classmethod
    def of(cls, event: DatabaseEvent, excluded: frozenset[str], masked: frozenset[str]) -> DatabaseEvent:
        """`event` as its callback sees it. NULL stays NULL under a mask."""
        return event.with_row(cls(event.row, excluded, masked))

    def _seen(self, values: Mapping[str, PostgresValue]) -> dict[str, PostgresValue]:
        return {
            name: MASK if name in self.masked and value is not None else value
            for name, value in values.items()
            if name not in self.excluded
        }

    def payload(self) -> Mapping[str, PostgresValue]:
        """See `cdc.events.Row`."""
        return self._seen(self.row.payload())

    def before(self) -> Mapping[str, PostgresValue] | None:
        """See `cdc.events.Row`."""
        before = self.row.before()
        return None if before is None else self._seen(before)

    def unchanged(self) -> frozenset[str]:
        """See `cdc.events.Row`."""
        return self.row.unchanged() - self.excluded

    def record_id(self) -> str | None:
        """See `cdc.events.Row`; the key stays readable, it is the event's identity."""
        return self.row.record_id()

    def previous_record_id(self) -> str | None:
        """See `cdc.events.Row`."""
        return self.row.previous_record_id()


class Histogram:
    """Durations in seconds: counts per bucket of `SECONDS_BUCKETS` (the last is "more"), and their sum."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS_BUCKETS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """One call that took `seconds`."""
        self.counts[bisect_left(SECONDS_BUCKETS, seconds)] += 1
        self.sum += seconds

    def observe_fast(self, calls: int, seconds: float) -> None:
        """`calls` calls, each within the first bucket, that took `seconds` together."""
        self.counts[0] += calls
        self.sum += seconds

    @property
    def count(self) -> int:
        """How many calls were seen."""
        return sum(self.counts)

    def add(self, other: Histogram) -> None:
        """All that `other` has seen, too."""
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum


@dataclass(slots=True)
class Tally:
    """What callbacks of one name have done, once they are gone: a counter must not fall when they go."""

    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: Histogram = field(default_factory=Histogram)
    retries: int = 0

    def add(self, other: Tally | Registration) -> None:
        """Take over the counts of `other`."""
        self.outcomes.update(dict(other.outcomes))  # a copy: a lane's thread may be counting
        self.seconds.add(other.seconds)
        self.retries += other.retries


@dataclass(slots=True)
class MissedRange:
    """Events that a callback did not handle for one reason: the first, the last, and how many."""

    first: Position
    first_time: datetime
    last: Position
    last_time: datetime
    events: int = 0

    def add(self, event: DatabaseEvent, events: int) -> None:
        """`events` more, of which `event` is the first or the last."""
        position = event.position
        if position < self.first:
            self.first, self.first_time = position, event.timestamp
        if position > self.last:
            self.last, self.last_time = position, event.timestamp
        self.events += events


@dataclass(slots=True, eq=False)
class Registration:
    """One callback: what it wants, and how it fares. `settled` is where it had come to before this run."""

    id: int
    name: str
    invocation: Invocation
    tables: TablePatterns
    event_types: frozenset[EventType]
    tags: TagPatterns
    excluded: frozenset[str]
    masked: frozenset[str]
    concurrency: int
    timeout_seconds: float
    configured: bool  # from the configuration file: never removed for being inactive
    settled: Position | None = None
    max_attempts: int = 1
    blocks: bool = False  # tries for ever instead of failing
    parks: bool = False  # once it is removed, its events are kept as dead letters
    state: CallbackState = CallbackState.ACTIVE
    consecutive_failures: int = 0
    retries: int = 0  # attempts but the first
    outcomes: Counter[str] = field(default_factory=Counter)  # ok failed timeout parked missed skipped
    seconds: Histogram = field(default_factory=Histogram)
    last_active: float = 0.0  # monotonic seconds
    last_error: str = ""
    missed: dict[str, MissedRange] = field(default_factory=dict)  # by reason
    lock: threading.Lock = field(default_factory=threading.Lock)  # of the counts, which several threads may raise
    _wants: dict[Kind, bool] = field(default_factory=dict)

    def wants(self, kind: Kind) -> bool:
        """Whether events of this table and type are for this callback (their tags not yet asked)."""
        try:
            return self._wants[kind]
        except KeyError:
            wanted = kind.event_type in self.event_types and self.tables.matches(kind.schema, kind.table_name)
            if len(self._wants) >= MAX_KINDS:
                self._wants.clear()
            self._wants[kind] = wanted
            return wanted

    def select(self, events: Sequence[DatabaseEvent], kinds: Collection[Kind]) -> Sequence[DatabaseEvent]:
        """The events for this callback, as it sees them; `kinds` are those that occur in `events`."""
        wanted = set(filter(self.wants, kinds))
        if len(wanted) < len(kinds):
            events = [event for event in events if event.kind in wanted]
        if self.tags.globs:
            events = [event for event in events if self.tags.matches(event.tags)]
        if self.settled is not None and events:
            events = self._not_yet_settled(events)
        if self.excluded or self.masked:
            events = [ColumnView.of(event, self.excluded, self.masked) for event in events]
        return events

    def _not_yet_settled(self, events: Sequence[DatabaseEvent]) -> Sequence[DatabaseEvent]:
        """Leave out what this callback had settled before the service was restarted."""
        settled = self.settled
        if settled is None or events[0].position > settled:
            self.settled = None  # passed for good: positions only rise
            return events
        rest = [event for event in events if event.position > settled]
        self.outcomes["skipped"] += len(events) - len(rest)
        return rest

    def drop(self, events: Sequence[DatabaseEvent]) -> None:
        """Record events, in their order, that this callback does not get: missed, or skipped if it left."""
        if self.state is CallbackState.UNSUBSCRIBED:
            self.outcomes["skipped"] += len(events)
        elif events:
            self._lose("removed", events[0], len(events))
            self._lose("removed", events[-1], 0)
            self.outcomes["missed"] += len(events)

    def _lose(self, reason: str, event: DatabaseEvent, events: int) -> None:
        if reason not in self.missed:
            time, position = event.timestamp, event.position
            self.missed[reason] = MissedRange(position, time, position, time)
        self.missed[reason].add(event, events)

    def succeeded(self) -> None:
        """A call came to a good end; the count of failures starts again."""
        self.consecutive_failures = 0

    def failed(self, event: DatabaseEvent, error: BaseException, outcome: str, *, kept: bool = False) -> None:
        """An event has failed, or timed out: `outcome`. Unless it is `kept` as a dead letter, it is missed."""
        if not kept:
            self._lose(outcome, event, 1)
        self.consecutive_failures += 1
        self.outcomes[outcome] += 1
        self.last_error = type(error).__name__  # not its text: it may hold values of the row


class Registry:
    """All callbacks, by id; at most `max_callbacks` of them get events."""

    def __init__(self, config: SignalConfig) -> None:
        self._config = config
        self._registrations: dict[int, Registration] = {}
        self._next_id = 1
        self.removed_total: Counter[str] = Counter()
        self.retired: dict[str, Tally] = {}  # by name

    def __iter__(self) -> Iterator[Registration]:
        return iter(list(self._registrations.values()))

    def get(self, callback_id: int) -> Registration | None:
        """The callback with this id, whatever its state."""
        return self._registrations.get(callback_id)

    @property
    def active(self) -> list[Registration]:
        """Those that get events, or will have what is parked for them, in order of registration."""
        getting = {CallbackState.ACTIVE, CallbackState.RESUMING}
        return [item for item in self._registrations.values() if item.state in getting]

    def add(self, make: Callable[[int], Registration]) -> Registration:
        """Take one more; TooManyCallbacks past the bound, CallbackError for a name in use."""
        if len(self.active) >= self._config.max_callbacks:
            raise TooManyCallbacks(
                f"{self._config.max_callbacks} callbacks are registered already",
                hint="raise signal.max_callbacks, or remove one",
            )
        registration = make(self._next_id)
        if self._is_taken(registration.name):
            self.forget_unsubscribed()
        if self._is_taken(registration.name):
            raise CallbackError(f"a callback named {registration.name!r} exists already", hint="choose another name")
        self._next_id += 1
        self._registrations[registration.id] = registration
        return registration

    def _is_taken(self, name: str) -> bool:
        return any(item.name == name for item in self._registrations.values())

    def remove(self, registration: Registration, state: CallbackState, reason: str) -> bool:
        """No more events for it; False when that was so before. What has failed can still be unsubscribed."""
        if registration.state in (state, CallbackState.UNSUBSCRIBED):
            return False
        if registration.state is not CallbackState.REMOVED:
            self.removed_total[reason] += 1
        registration.state = state
        return True

    def has_failed_too_often(self, registration: Registration) -> bool:
        """Whether the configuration says to remove it now."""
        return (
            self._config.remove_failing_callbacks
            and registration.consecutive_failures >= self._config.max_consecutive_failures
        )

    def forget_unsubscribed(self) -> list[Registration]:
        """Drop and return what nobody wants any more (removed ones stay: their gap is on record)."""
        gone = [item for item in self._registrations.values() if item.state is CallbackState.UNSUBSCRIBED]
        for item in gone:
            del self._registrations[item.id]
            known = item.name in self.retired or len(self.retired) < MAX_RETIRED
            self.retired.setdefault(item.name if known else OTHER, Tally()).add(item)
        return gone
