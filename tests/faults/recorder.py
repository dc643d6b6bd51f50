"""In the service under fault: callbacks that put each event on a tape, with its values.

The tape is a row of files of a few megabytes, so that its reader may delete what it has read. An event is
one line, written by one `os.write`: whole, or cut off by the next process (see `tests/running.py`).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SEGMENT_BYTES = 4 << 20

Row = dict[str, Any]


def canon(value: object) -> Any:
    """A value as JSON can hold it: equal if and only if the values are, with their types where these matter."""
    if isinstance(value, bytes | bytearray | memoryview):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, datetime):
        return {"time": value.astimezone(UTC).isoformat()}
    if isinstance(value, dict):
        return {"json": json.dumps(value, sort_keys=True)}
    if isinstance(value, list):
        return [canon(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    return {type(value).__name__: str(value)}  # Decimal('1.10') is not Decimal('1.1')


def canon_row(row: Mapping[str, Any]) -> Row:
    """All values of a row."""
    return {name: canon(value) for name, value in row.items()}


def segment(path: Path, number: int) -> Path:
    """One file of the tape."""
    return path.with_name(f"{path.name}.{number:06}")


class Tape:
    """The end of a tape, to write."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        numbers = [int(file.suffix[1:]) for file in self._path.parent.glob(f"{self._path.name}.[0-9]*")]
        self._number = max(numbers, default=0)
        self._fd = self._open()

    def _open(self) -> int:
        fd = os.open(segment(self._path, self._number), os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._size = os.pread(fd, os.fstat(fd).st_size, 0).rfind(b"\n") + 1
        os.ftruncate(fd, self._size)
        return fd

    def write(self, line: bytes) -> None:
        """One line; its newline is added."""
        with self._lock:
            if self._size > SEGMENT_BYTES:
                os.close(self._fd)
                self._number += 1
                self._fd = self._open()
            self._size += os.write(self._fd, line + b"\n")


_tapes: dict[str, Tape] = {}


def tape_of(path: str) -> Tape:
    """The only one of that path in this process: at a reload the handler before writes on while the next is made.

    With a tape each, one would go on to the next file while the other still wrote to the last, whose reader is gone.
    """
    if path not in _tapes:
        _tapes[path] = Tape(path)
    return _tapes[path]


class Record:
    """Puts each event on the tape; `seconds` is how long it takes for it."""

    def __init__(self, path: str, seconds: float = 0.0) -> None:
        self.tape = tape_of(path)
        self.seconds = seconds

    async def handle(self, event: Any) -> None:
        if self.seconds:
            await asyncio.sleep(self.seconds)
        self.write(event)

    def write(self, event: Any) -> None:
        """What the oracle wants to know of an event."""
        fields = {
            "run": os.getpid(),
            "id": event.id,
            "position": str(event.position),
            "type": str(event.event_type),
            "table": event.table_name,
            "key": event.record_id,
            "before": None if event.before is None else canon_row(event.before),
            "row": canon_row(event.payload),
            "unchanged": sorted(event.unchanged),
        }
        self.tape.write(json.dumps(fields).encode())


class Parallel(Record):
    """For several events at once: takes a random while, and says when two of the same record overlap."""

    def __init__(self, path: str, seconds: float = 0.0) -> None:
        super().__init__(path, seconds)
        self.in_work: set[tuple[str, str | None]] = set()

    async def handle(self, event: Any) -> None:
        record = (event.table_name, event.record_id)
        if record in self.in_work:
            self.tape.write(json.dumps({"overlap": record}).encode())
        self.in_work.add(record)
        try:
            if random.random() < 0.05:
                await asyncio.sleep(random.random() * 0.002)
            self.write(event)
        finally:
            self.in_work.discard(record)


class InThread(Record):
    """A plain function."""

    def handle(self, event: Any) -> None:  # type: ignore[override]
        self.write(event)


class FailsAfterwards(Record):
    """Has its effect, and fails at the first attempt of each event all the same."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.failed: set[int] = set()

    async def handle(self, event: Any) -> None:
        self.write(event)
        if event.id not in self.failed:
            self.failed.add(event.id)
            raise OSError("the answer was lost")
