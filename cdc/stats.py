"""The figures that an application asks its `SignalManager` for: of all callbacks, and of each.

Reads what is counted anyway. What operators see of a service is `cdc.status`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Self

from cdc.callbacks import CallbackState, Registration

__all__ = ["CallbackPerformance", "Rates", "SignalStats"]


@dataclass(frozen=True, slots=True)
class CallbackPerformance:
    """How one callback fares. `events_per_second` is that of the last cleanup interval."""

    name: str
    state: CallbackState
    ok: int
    failed: int
    timeouts: int
    missed: int
    consecutive_failures: int
    mean_seconds: float
    events_per_second: float
    last_error: str

    @classmethod
    def of(cls, registration: Registration, events_per_second: float) -> Self:
        """As it is now."""
        calls, outcomes = registration.seconds.count, registration.outcomes
        return cls(
            name=registration.name,
            state=registration.state,
            ok=outcomes["ok"],
            failed=outcomes["failed"],
            timeouts=outcomes["timeout"],
            missed=outcomes["missed"],
            consecutive_failures=registration.consecutive_failures,
            mean_seconds=registration.seconds.sum / calls if calls else 0.0,
            events_per_second=events_per_second,
            last_error=registration.last_error,
        )


@dataclass(frozen=True, slots=True)
class SignalStats:
    """The manager's figures since its start."""

    events_emitted: int
    events_processed: int
    events_failed: int
    events_timed_out: int
    events_missed: int
    callbacks: int
    callbacks_removed: int
    queued_events: int
    queued_bytes: int
    uptime_seconds: float
    performance: Mapping[str, CallbackPerformance]


class Rates:
    """Events that each callback has handled per second, from one look to the next."""

    def __init__(self) -> None:
        self._looked = monotonic()
        self._done: Mapping[int, int] = {}
        self._rates: Mapping[int, float] = {}

    def look(self, registrations: Iterable[Registration]) -> None:
        """Work them out anew."""
        now = monotonic()
        done = {item.id: item.outcomes["ok"] for item in registrations}
        elapsed = max(now - self._looked, 0.001)
        self._rates = {id_: (ok - self._done.get(id_, 0)) / elapsed for id_, ok in done.items()}
        self._looked, self._done = now, done

    def of(self, registration: Registration) -> float:
        """0 before the first look at it."""
        return self._rates.get(registration.id, 0.0)
