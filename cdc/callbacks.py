"""A callback as facts: which events it gets, how it fares, what it has missed, whether it is removed.

No tasks, threads or clocks of its own: workers report here, the manager and the metrics read here.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import Enum

from cdc.columns import ColumnView
from cdc.events import DatabaseEvent, EventType, Kind, Position
from cdc.histogram import Histogram
from cdc.invocation import Invocation
from cdc.patterns import TablePatterns, TagPatterns
from cdc.terms import Terms

__all__ = ["CallbackState", "MissedRange", "Registration"]

MAX_KINDS = 1_000
"""Tables and types whose answer a callback remembers. An event made by hand has a kind of its own."""


class CallbackState(Enum):
    """Whether a callback gets events; `value` is the word shown to people and programs."""

    ACTIVE = "active"
    REMOVED = "removed"  # failed too often, or by an operator; its events are parked, or counted as missed
    PAUSED = "paused"  # by an operator; all of its events are parked, and where there is no room, they wait
    RESUMING = "resuming"  # it gets what was parked; what comes meanwhile is parked behind it
    UNSUBSCRIBED = "unsubscribed"  # by its owner, or as inactive: it wants no events any more

    def __str__(self) -> str:
        return self.value


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
    """One callback: its terms, and how it fares. `settled` is where it had come to before this run.

    The terms lie flat in it: each share of the stream asks for them.
    """

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
    is_routed: bool = True  # False: the stream brings it nothing, not yet or not any more
    leaves_at: Position | None = None  # it has left the configuration: what lies behind is not for it
    missed: dict[str, MissedRange] = field(default_factory=dict)  # by reason
    lock: threading.Lock = field(default_factory=threading.Lock)  # of the counts, which several threads may raise
    _wants: dict[Kind, bool] = field(default_factory=dict)

    @property
    def is_called(self) -> bool:
        """Whether what comes for it goes to the callback: now, or behind what was parked."""
        return self.state in (CallbackState.ACTIVE, CallbackState.RESUMING)

    @property
    def terms(self) -> Terms:
        """What it is registered with."""
        return Terms(**{one.name: getattr(self, one.name) for one in fields(Terms)})

    def adopt(self, terms: Terms) -> None:
        """Go on with other terms; its lanes must be made anew."""
        for name, value in terms.by_name().items():
            setattr(self, name, value)
        self._wants.clear()

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

    def failed(
        self, event: DatabaseEvent, error: BaseException, outcome: str, *, kept: bool = False, lenient: bool = False
    ) -> None:
        """An event has failed, or timed out: `outcome`. Unless it is `kept` as a dead letter, it is missed.

        A `lenient` failure brings nobody nearer to a removal: the event had failed before.
        """
        if not kept:
            self._lose(outcome, event, 1)
        self.consecutive_failures += not lenient
        self.outcomes[outcome] += 1
        self.last_error = type(error).__name__  # not its text: it may hold values of the row
