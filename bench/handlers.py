"""The callbacks that `cdc run` is measured with. Each counts, and reports once when the backlog is done.

Runs inside the measured process: it must cost nothing but the count, and import nothing heavy.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bench.reporting import Report
from cdc import DatabaseEvent

__all__ = ["Bystander", "NoOp", "ReadsEveryValue", "Stamps", "StampsChange"]


class NoOp:
    """Does nothing with an event."""

    def __init__(self, changes: int, report: Path) -> None:
        self._left = changes
        self._report = Report(report)

    async def handle(self, event: DatabaseEvent) -> None:  # noqa: ARG002 - that is the point
        """Count."""
        self._left -= 1
        if self._left == 0:
            self._report.done()


class ReadsEveryValue:
    """Reads every value of the row, in its Python type."""

    def __init__(self, changes: int, report: Path) -> None:
        self._left = changes
        self._report = Report(report)

    async def handle(self, event: DatabaseEvent) -> None:
        """Read and count."""
        for _ in event.payload.values():
            pass
        self._left -= 1
        if self._left == 0:
            self._report.done()


class Bystander:
    """Is configured to get nothing: it tells how much CPU time had gone when the stream had not begun."""

    def __init__(self, changes: int, report: Path) -> None:  # noqa: ARG002 - the options that all have
        Report(report).started()

    async def handle(self, event: DatabaseEvent) -> None:
        """Never called."""
        raise AssertionError(event)


class Stamps:
    """Notes when it was called with each event, and when the event's transaction was committed."""

    def __init__(self, changes: int, report: Path) -> None:
        self._left = changes
        self._report = Report(report)
        self._samples: list[tuple[str, float]] = []

    async def handle(self, event: DatabaseEvent) -> None:
        """Look at the clock first."""
        now = time.time()
        self._note(event.timestamp.isoformat(), now)

    def _note(self, committed: str, received: float) -> None:
        self._samples.append((committed, received))
        self._left -= 1
        if self._left == 0:
            self._report.done(samples=self._samples)


class StampsChange(Stamps):
    """The same for the psycopg2 loop, which calls it with the message as it was parsed."""

    async def handle(self, event: Any) -> None:
        """Look at the clock first."""
        now = time.time()
        self._note(event["timestamp"], now)
