"""`file_wal` under the contract: its server is the disk, which can be full.

That settled events survive kill -9 of the process that runs the handler: `tests/test_file_wal.py`.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from typing import Any, ClassVar

from cdc import DatabaseEvent
from handlers.file_wal import read
from tests.handlers.contract import Clause, Subject

LARGE = "x" * 65_536  # a row: what else this process writes (its captured output) stays below the limit

MOST_LARGE = 300


class Disk:
    """The file system; `kill` fills it: no file of this process may grow to the size of one row."""

    def __init__(self) -> None:
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def start(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)

    def kill(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(LARGE), self._limits[1]))

    stop = kill

    def freeze(self) -> None:
        raise NotImplementedError

    def thaw(self) -> None:
        """It is never frozen."""


class FileWalSubject(Subject[Disk]):
    """Effects are the lines of the log."""

    name = "file_wal"
    wrong_options: ClassVar = {"segment_bytes": "lots", "segment_seconds": 0, "compression": "zip", "fsync": "perhaps"}
    exempt: ClassVar = {
        Clause.DURABLE: "a full disk takes nothing away; test_file_wal.py kills the process that writes",
        Clause.SLOW: "a local disk cannot be frozen; a thread that hangs is held up in test_workers.py",
        Clause.CANCELLED: "a thread is not cancelled; test_file_wal.py has the retry beside an attempt given up",
    }

    def make_server(self) -> Disk:
        return Disk()

    def options(self) -> dict[str, Any]:
        return {"directory": "wal"}

    def events(self, count: int) -> list[DatabaseEvent]:
        """For the contract rows that a full disk has no room for; the bench, which asks for more, has usual ones."""
        if count > MOST_LARGE:
            return super().events(count)
        return [
            DatabaseEvent.of(
                event.event_type,
                event.table_name,
                {**event.payload, "large": LARGE},
                id=event.id,
                record_id=event.record_id,
                position=event.position,
                timestamp=event.timestamp,
            )
            for event in super().events(count)
        ]

    async def effects(self) -> Sequence[str]:
        return [record["position"] for record in read(self.folder / "wal")]


class CompressedFileWalSubject(FileWalSubject):
    """The same with compression."""

    variant = "zstd"

    def options(self) -> dict[str, Any]:
        return {"directory": "wal", "compression": "zstd", "segment_bytes": "1MiB"}
