"""All callbacks there are, at most so many of them, and what those have done that are gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from cdc.callbacks import CallbackState, Registration
from cdc.codes import Code
from cdc.config import SignalConfig
from cdc.errors import CallbackError, TooManyCallbacks
from cdc.histogram import Histogram

__all__ = ["OTHER", "Registry", "Tally"]

MAX_RETIRED = 1_000
"""Names of callbacks that are gone whose counts are kept apart; an application that subscribes and leaves
under ever new names shares one more, `OTHER`."""
OTHER = "_other"


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
    def outcomes(self) -> Counter[str]:
        """What became of events, of all callbacks together, those that are gone included."""
        total: Counter[str] = Counter()
        gone, there = self.retired.values(), self._registrations.values()
        for outcomes in (*(one.outcomes for one in gone), *(one.outcomes for one in there)):
            total.update(dict(outcomes))  # a copy: a lane's thread may be counting
        return total

    @property
    def active(self) -> list[Registration]:
        """Those that get events, or will have what is parked for them, in order of registration."""
        return [item for item in self._registrations.values() if item.is_called]

    def add(self, make: Callable[[int], Registration], *, bounded: bool = True) -> Registration:
        """Take one more; TooManyCallbacks past the bound, CallbackError for a name in use."""
        if bounded and len(self.active) >= self._config.max_callbacks:
            raise TooManyCallbacks(
                f"{self._config.max_callbacks} callbacks are registered already",
                hint="raise signal.max_callbacks, or remove one",
            )
        registration = make(self._next_id)
        if self._is_taken(registration.name):
            self.forget_unsubscribed()
        if self._is_taken(registration.name):
            raise CallbackError(
                f"a callback named {registration.name!r} exists already",
                hint="choose another name",
                code=Code.CALLBACK_WRONG,
            )
        self._next_id += 1
        self._registrations[registration.id] = registration
        return registration

    def _is_taken(self, name: str) -> bool:
        return any(item.name == name for item in self._registrations.values())

    def remove(self, registration: Registration, state: CallbackState, reason: str) -> bool:
        """No more events for it; False when that was so before. What has failed can still be unsubscribed."""
        if registration.state in (state, CallbackState.UNSUBSCRIBED):
            return False
        if CallbackState.PAUSED is not state and registration.state is not CallbackState.REMOVED:
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
            self.retire(item)
        return gone

    def retire(self, registration: Registration) -> None:
        """Drop a callback that is gone, whatever its state; what it has done stays in the counts of its name."""
        if self._registrations.pop(registration.id, None) is None:
            return
        registration.state = CallbackState.UNSUBSCRIBED
        if not registration.is_routed and registration.leaves_at is None:
            return  # it never began
        known = registration.name in self.retired or len(self.retired) < MAX_RETIRED
        self.retired.setdefault(registration.name if known else OTHER, Tally()).add(registration)
