"""Lets a server that is being stopped go while a callback blocks the event loop, where nobody else can hear of it.

A thread of its own: while the loop is late it tries, every now and then, to connect; a server that refuses
because it is shutting down waits for our walsender, whose feedback goes on from another thread. After the time that a
drain may take the connection is cut. Nothing more was settled meanwhile, and nothing is acknowledged by it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic

import psycopg

from cdc.lookout import SHUTTING_DOWN
from cdc.replication.connection import source_conninfo

__all__ = ["Watchman"]

LOOK_SECONDS = 1.0
LATE_SECONDS = 2.0
"""A loop that is later than this is blocked, not busy; the monitor on it would have heard by now."""


class Watchman:
    """`beat` on the event loop, several times a second; `cut` is called by the thread, and ends the stream."""

    def __init__(self, dsn: str, patience: float, cut: Callable[[], None]) -> None:
        self._conninfo = source_conninfo(dsn, connect_timeout="2")
        self._patience = patience  # seconds that a server in its stop waits for us
        self._cut = cut
        self._last_beat = monotonic()
        self._stopping_since: float | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="cdc-watchman", daemon=True).start()

    def beat(self) -> None:
        """The event loop runs."""
        self._last_beat = monotonic()

    def close(self) -> None:
        """Watch no more."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            if monotonic() - self._last_beat < LATE_SECONDS or not self._is_stopping():
                self._stopping_since = None
            else:
                self._stopping_since = self._stopping_since or self._last_beat + LATE_SECONDS
                if monotonic() - self._stopping_since >= self._patience:
                    self._cut()

    def _is_stopping(self) -> bool:
        try:
            psycopg.connect(self._conninfo).close()
        except psycopg.Error as error:
            return SHUTTING_DOWN in str(error)
        return False
