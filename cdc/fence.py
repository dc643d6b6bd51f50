"""Whether callbacks may be called: only while the state is ours alone, for certain.

Another service may have taken over what we do not hear of; and the owner before us, if it did not say goodbye, may go
on until it misses its answer.
"""

from __future__ import annotations

from time import monotonic

from cdc.errors import StateBusy
from cdc.state import StateThread

__all__ = ["Fence"]

FENCE_SECONDS = 2.5
"""A state that was silent for so long may have another owner soon: its server gives up a silent one after 4 s."""


class Fence:
    """See the module. It stands open for a state that nobody had before us."""

    def __init__(self, state: StateThread) -> None:
        self._state = state
        self._owner_seen: float | None = None  # when the owner before us was last known to live, monotonic seconds
        self._open_from = 0.0  # monotonic seconds

    def owner_lives(self, busy: StateBusy) -> None:
        """Another one has the state."""
        self._owner_seen = monotonic() - (busy.silent_seconds or 0.0)

    def taken_over(self) -> None:
        """The state is ours, and its owner before us did not give it back."""
        seen = monotonic() if self._owner_seen is None else self._owner_seen
        self._open_from = seen + FENCE_SECONDS

    def is_open(self) -> bool:
        """Whether they may be called at this moment."""
        now = monotonic()
        return now - self._state.last_alive < FENCE_SECONDS and now >= self._open_from
