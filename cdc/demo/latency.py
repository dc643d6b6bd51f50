"""The demonstration's own handler: how long each event took from its commit to a callback.

Owns the file of measurements, written by the service and read by the summary. It must not know either.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from cdc.events import DatabaseEvent, EventType

__all__ = ["Latency", "Measurement", "measurements"]


class Measurement(NamedTuple):
    """One line of the file. `seconds` compares two clocks: the server's at the commit, ours at the call."""

    table: str
    event_type: EventType
    seconds: float


class Latency:
    """A handler; option `file`: a line per event is appended to it."""

    def __init__(self, file: Path) -> None:
        self._path = file
        self._file: IO[str] | None = None

    def open(self) -> None:
        """Open the file; what is in it stays."""
        self._file = self._path.open("a", encoding="utf-8", buffering=1 << 16)

    def handle_batch(self, events: Sequence[DatabaseEvent]) -> None:
        """Note the events; settled when written to the file."""
        now = time.time()
        assert self._file is not None  # noqa: S101 - the service opens what it calls
        for event in events:
            seconds = now - event.timestamp.timestamp()
            self._file.write(f"{event.table_name}\t{event.event_type}\t{seconds:.6f}\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None


def measurements(file: Path) -> Iterator[Measurement]:
    """What a `Latency` has written; nothing when it was never called. A torn last line is left out."""
    if not file.exists():
        return
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            table, event_type, seconds = line.split("\t")
            yield Measurement(table, EventType(event_type), float(seconds))
