"""The event loop's own heartbeat: how long callbacks have blocked it, and the sign of life that the watchman wants."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from cdc.watchman import Watchman

__all__ = ["Heartbeat"]

BEAT_SECONDS = 0.25
BLOCKED_SECONDS = 0.1
"""A beat that comes this much too late tells of a callback that blocked the event loop."""


class Heartbeat:
    """See the module. `run` for ever; `cut` and `patience` are the watchman's."""

    def __init__(self, dsn: str, patience: float, cut: Callable[[], None]) -> None:
        self._dsn = dsn
        self._patience = patience
        self._cut = cut
        self.blocked_seconds = 0.0

    async def run(self) -> None:
        """Beat until cancelled."""
        watchman = Watchman(self._dsn, self._patience, self._cut)
        try:
            while True:
                watchman.beat()
                began = monotonic()
                await asyncio.sleep(BEAT_SECONDS)
                late = monotonic() - began - BEAT_SECONDS
                if late > BLOCKED_SECONDS:
                    self.blocked_seconds += late
        finally:
            watchman.close()
