"""How fast the service goes at the moment: its counters, read once a second, against those of some seconds ago.

Reads what is counted anyway, so that the stream pays nothing. Whoever wants rates beats it; it must not know what is
shown, and has no clock of its own but the monotonic one.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from time import monotonic

from cdc.callbacks import Registration
from cdc.events import Kind
from cdc.histogram import SECONDS_BUCKETS
from cdc.service import Service

__all__ = ["BEAT_SECONDS", "MAX_ACTIVE", "Activity", "CallbackPace", "Pace", "Pulse"]

BEAT_SECONDS = 1.0
WINDOW_SECONDS = 5.0
"""Rates are means of so long: what a callback does in bursts reads as a steady figure, and a change shows at once."""
MAX_ACTIVE = 20
"""Tables and types that are told apart: the busiest. All of them are in `/metrics`."""


@dataclass(frozen=True, slots=True)
class CallbackPace:
    """Of one callback in the window. Seconds are of the calls that ended in it, failed ones too, None when none did.

    `p99_seconds` is the upper bound of the bucket that the 99th of a hundred calls lies in, at most the timeout.
    """

    events_per_second: float
    mean_seconds: float | None
    p99_seconds: float | None


@dataclass(frozen=True, slots=True)
class Activity:
    """Events of one table and type: all since the start, and per second of the window."""

    kind: Kind
    events: int
    events_per_second: float


@dataclass(frozen=True, slots=True)
class Pace:
    """Per second of the window, which is `seconds` long (0 before the second beat); `last_*` of the last beat alone."""

    seconds: float
    events: float
    transactions: float
    bytes: float
    last_events: float


@dataclass(frozen=True, slots=True)
class _Calls:
    ok: int
    counts: Sequence[int]
    sum: float
    timeout: float

    @classmethod
    def of(cls, item: Registration) -> _Calls:
        return cls(item.outcomes["ok"], tuple(item.seconds.counts), item.seconds.sum, item.timeout_seconds)

    def since(self, before: _Calls, seconds: float) -> CallbackPace:
        counts = [now - then for now, then in zip(self.counts, before.counts, strict=True)]
        calls = sum(counts)
        return CallbackPace(
            events_per_second=(self.ok - before.ok) / seconds,
            mean_seconds=(self.sum - before.sum) / calls if calls else None,
            p99_seconds=min(_percentile(counts, 0.99), self.timeout) if calls else None,
        )


_NO_CALLS = _Calls(0, (0,) * (len(SECONDS_BUCKETS) + 1), 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class _Reading:
    time: float
    events: int
    transactions: int
    bytes: int
    kinds: Mapping[Kind, int]
    callbacks: Mapping[int, _Calls]


class Pulse:
    """See the module. `beat` once in `BEAT_SECONDS`, on the service's event loop; costs microseconds per callback."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._readings: deque[_Reading] = deque()
        self.pace = Pace(0.0, 0.0, 0.0, 0.0, 0.0)
        self.active: Sequence[Activity] = ()  # the busiest first
        self.kinds = 0  # tables and types that there were events of
        self.callbacks: Mapping[int, CallbackPace] = {}  # by the registration's id

    def beat(self) -> None:
        """Read the counters, and work out the rates anew."""
        now = self._read()
        readings = self._readings
        readings.append(now)
        while len(readings) > 2 and now.time - readings[1].time >= WINDOW_SECONDS:
            readings.popleft()
        first, last = readings[0], readings[-2] if len(readings) > 1 else now
        seconds = now.time - first.time
        if seconds <= 0:
            return
        self.pace = Pace(
            seconds=seconds,
            events=(now.events - first.events) / seconds,
            transactions=(now.transactions - first.transactions) / seconds,
            bytes=(now.bytes - first.bytes) / seconds,
            last_events=(now.events - last.events) / (now.time - last.time),
        )
        self.kinds = len(now.kinds)
        self.active = _busiest(now.kinds, first.kinds, seconds)
        self.callbacks = {
            key: calls.since(first.callbacks.get(key, _NO_CALLS), seconds) for key, calls in now.callbacks.items()
        }

    def _read(self) -> _Reading:
        service, assembler = self._service, self._service.assembler
        kinds = dict(assembler.counts) if assembler is not None else {}
        return _Reading(
            time=monotonic(),
            events=sum(kinds.values()),
            transactions=assembler.transactions if assembler is not None else 0,
            bytes=service.received_bytes,
            kinds=kinds,
            callbacks={item.id: _Calls.of(item) for item in service.manager.registry},
        )


def _busiest(now: Mapping[Kind, int], first: Mapping[Kind, int], seconds: float) -> Sequence[Activity]:
    """Those with the most events in the window, and of as many, with the most of all."""
    known = first.get  # a thousand tables are four thousand kinds: looked at once each, and nothing made of them
    ranked = heapq.nlargest(
        MAX_ACTIVE, [(events - known(kind, 0), events, id(kind), kind) for kind, events in now.items()]
    )
    return [Activity(kind, events, more / seconds) for more, events, _, kind in ranked]


def _percentile(counts: Sequence[int], part: float) -> float:
    """The upper bound of the bucket in which that part of all calls is reached."""
    wanted = sum(counts) * part
    bounds = (*SECONDS_BUCKETS, float("inf"))
    return next(bound for bound, seen in zip(bounds, accumulate(counts), strict=True) if seen >= wanted)
