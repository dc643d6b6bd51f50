"""The callbacks that `cdc run` is measured with. Each counts, and reports once when the backlog is done.

Runs inside the measured process: it must cost nothing but the count, and import nothing heavy.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from cdc import DatabaseEvent

__all__ = ["NoOp", "ReadsEveryValue", "Report"]


class Report:
    """What a measured Python process says about its run, in a file: CPU seconds before it, time of its end."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._cpu_at_start = time.process_time()

    def done(self) -> None:
        """The last event has been handled."""
        facts = {"ended": time.time(), "cpu_at_start": self._cpu_at_start}
        unfinished = self._file.with_suffix(".part")
        unfinished.write_text(json.dumps(facts))
        unfinished.rename(self._file)  # whoever sees the file sees all of it


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
