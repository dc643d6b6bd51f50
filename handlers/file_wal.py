"""The `file_wal` handler: an append-only log of events in files, on the disk before an event is settled.

Owns what is written, once, and when; must not know the files' format, which is that of `handlers.segments` and
`handlers.log_lines`, nor how a closed segment is compressed.
"""

from __future__ import annotations

import fcntl
import os
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Annotated, Literal

import structlog
from pydantic import ByteSize, Field, field_validator

from cdc import DatabaseEvent, HandlerOptions, PermanentError, Position
from handlers.compaction import Compactor, tidy
from handlers.log_lines import encoded, identity
from handlers.log_reader import LogReader
from handlers.segments import (
    COMPRESSED,
    DamagedLog,
    Range,
    Segment,
    identities,
    number_of,
    range_of,
    read,
    segments,
    sync,
    whole_bytes,
)
from handlers.zstd import require_zstandard

__all__ = ["DamagedLog", "FileWal", "FileWalOptions", "LogReader", "read"]

_log = structlog.get_logger(__name__)


class FileWalOptions(HandlerOptions):
    """`[handlers.options]` of `file_wal`."""

    directory: Path = Field(description="The folder of the log, made when it is missing; one writer each.")
    segment_bytes: ByteSize = Field(
        default=ByteSize(64 << 20), gt=0, description="A segment ends before it grows past this."
    )
    segment_seconds: float = Field(
        default=3600.0, gt=0, description="A segment ends with the first batch so many seconds after its first event."
    )
    fsync: bool = Field(
        default=True,
        description="Wait for the disk before a batch is settled; without, an event outlives the process, not the"
        " machine.",
    )
    compression: Literal["none", "zstd"] = Field(
        default="none", description='`"zstd"` compresses each segment once it is closed; needs the extra `file_wal`.'
    )
    compression_level: Annotated[int, Field(ge=1, le=19)] = Field(
        default=3, description="Of zstd: 1 is fast, 19 is small."
    )

    @field_validator("segment_bytes", mode="wrap")
    @classmethod
    def _is_a_size(cls, value: object, handler: Callable[[object], ByteSize]) -> ByteSize:
        try:
            return handler(value)
        except ValueError:
            raise ValueError("not a size such as 64MiB, more than 0") from None


class FileWal:
    """Append each event to a log in `directory`, once, however often it is delivered.

    A segment ends by size, by age, and with the process. Files have mode 0600. With compression, a closed segment is
    compressed in the background; what is settled lies in a plain one, on the disk, before it is settled.

    Guarantee: `handle_batch` returns when all its events are on the disk; one that is in the log already,
    known by its position and commit time, is not written again. Leave the callback's `concurrency` at 1:
    more is not faster here, and costs the order of commits. One log has one writer: a second handler or
    service on the same directory is refused.

    Errors: OSError of the file system, which may pass (what of the batch is not on the disk is taken back);
    PermanentError for an event that cannot be written; :class:`DamagedLog` at `open`.
    """

    Reader = LogReader  # for `cdc replay`

    def __init__(self, options: FileWalOptions) -> None:
        if options.compression == "zstd":
            require_zstandard('compression = "zstd"')
        self.directory = options.directory
        self.torn_bytes = 0  # cut off by `open`: half a line of a process that was killed while writing
        self.duplicates = 0  # delivered again and not written again
        self.late = 0  # written although later ones were there before
        self._options = options
        self._fsync = options.fsync
        self._batch = Lock()  # an attempt that was given up may still be writing when its retry comes
        self._folder: int | None = None
        self._number = 0
        self._closed: list[Range] = []
        self._segment: Segment | None = None
        self._unfinished = False  # a batch is in work, or could not be taken back
        self._end: Position | None = None  # the highest position in the log
        self._known = lru_cache(maxsize=2)(identities)  # 8 bytes per event
        self._compactor: Compactor | None = None

    def open(self) -> None:
        """Make the directory if it is missing, cut off a torn tail, and find the end of the log."""
        with self._batch:
            if self._folder is not None:
                return
            self._folder = self._locked_folder()
            try:
                self._find_end()
                self._begin_compaction()
            except BaseException:
                os.close(self._folder)
                self._folder = None
                raise

    def handle_batch(self, events: Sequence[DatabaseEvent]) -> None:
        """Write what is not in the log yet; everything is on the disk when it returns."""
        with self._batch:
            if self._folder is None:
                raise RuntimeError(f"the log in {self.directory} is not open")
            if self._unfinished:
                self._drop_unsynced()
            self._unfinished = True
            try:
                self._write(events)
            except BaseException:
                with suppress(OSError):  # then the next batch begins with it
                    self._drop_unsynced()
                raise
            self._unfinished = False

    def close(self) -> None:
        """Close the segment and let the directory go; a second call does nothing."""
        with self._batch:
            if self._folder is None:
                return
            folder, self._folder = self._folder, None
        try:
            with self._batch:
                if self._unfinished:
                    self._drop_unsynced()
                self._close_segment()
        finally:
            compactor, self._compactor = self._compactor, None
            if compactor is not None:
                compactor.close()  # not under the lock, which its thread takes
            os.close(folder)

    def _find_end(self) -> None:
        tidy(self.directory)
        paths = segments(self.directory)
        while paths and not self._repair(paths[-1]):
            del paths[-1]
        if any(path.suffix == COMPRESSED for path in paths):
            require_zstandard(f"the log in {self.directory} has compressed segments")
        self._closed = [range_of(path) for path in paths]
        self._number = number_of(paths[-1]) if paths else 0
        self._end = self._closed_end()

    def _begin_compaction(self) -> None:
        """Compress what was left plain, too: by a process that was killed, or without compression."""
        if self._options.compression == "zstd":
            self._compactor = Compactor(self._options.compression_level, self._compressed)
            for segment in self._closed:
                if segment.path.suffix != COMPRESSED:
                    self._compactor.put(segment)

    def _compressed(self, plain: Range, compressed: Range) -> None:
        """Of the compactor: look up what is written in the new file, and let the old one go."""
        with self._batch:
            self._closed[self._closed.index(plain)] = compressed
        plain.path.unlink(missing_ok=True)

    def _write(self, events: Sequence[DatabaseEvent]) -> None:
        if self._segment is not None and self._segment.age() >= self._options.segment_seconds:
            self._close_segment()
        for event in events:
            self._append(event)
        if self._segment is not None:
            self._segment.sync()

    def _append(self, event: DatabaseEvent) -> None:
        position = event.position
        if position.commit_lsn == 0:  # made by hand, and cannot be told from others made by hand
            raise PermanentError(f"event {event.id} has no position: file_wal cannot write it once")
        if self._end is not None and position <= self._end:
            if self._is_written(event):
                self.duplicates += 1
                return
            self._tell_late(position)
        line = encoded(event)
        segment = self._segment
        if segment is None or segment.size + len(line) > self._options.segment_bytes or position <= segment.last:
            segment = self._next_segment(position)
        segment.add(line, position)
        if self._end is None or position > self._end:
            self._end = position

    def _is_written(self, event: DatabaseEvent) -> bool:
        """Look it up: the order of positions does not tell.

        A dead letter that is retried stands before the end of the log and was never written, and on
        another cluster the same positions are other events.
        """
        position, wanted = event.position, identity(event.to_json())
        ranges = self._closed
        if self._segment is not None:
            self._segment.sync()
            ranges = [*ranges, self._segment.range()]
        for segment in ranges:
            if segment.first <= position <= segment.last:
                known = self._known(segment.path, segment.size)
                place = bisect_left(known, wanted)
                if place < len(known) and known[place] == wanted:
                    return True
        return False

    def _tell_late(self, position: Position) -> None:
        if not self.late:
            _log.warning(
                "event_written_late", position=str(position), after=str(self._end), directory=str(self.directory)
            )
        self.late += 1

    def _next_segment(self, first: Position) -> Segment:
        self._close_segment()
        self._number += 1
        self._segment = Segment(self.directory, self._number, first, fsync=self._fsync)
        self._sync_folder()
        return self._segment

    def _close_segment(self) -> None:
        if self._segment is not None:
            self._segment.sync()
            self._has_ended(self._segment.range())
            self._segment.close()
            self._segment = None

    def _has_ended(self, segment: Range) -> None:
        self._closed.append(segment)
        if self._compactor is not None:
            self._compactor.put(segment)

    def _drop_unsynced(self) -> None:
        """Take back what a failed batch wrote: after a failed fsync nobody knows what of it is there."""
        segment = self._segment
        if segment is not None:
            if segment.roll_back():
                self._has_ended(segment.range())
            else:
                segment.path.unlink(missing_ok=True)
            segment.close()
            self._segment = None
        self._end = self._closed_end()
        self._unfinished = False

    def _closed_end(self) -> Position | None:
        return max((segment.last for segment in self._closed), default=None)

    def _locked_folder(self) -> int:
        if not self.directory.is_dir():
            self.directory.mkdir(mode=0o700, parents=True)
            if self._fsync:
                sync(self.directory.parent)
        folder = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(folder)
            raise RuntimeError(
                f"another handler writes to {self.directory}: give each a directory of its own"
            ) from None
        return folder

    def _sync_folder(self) -> None:
        if self._fsync and self._folder is not None:
            os.fsync(self._folder)

    def _repair(self, path: Path) -> bool:
        """Cut the last segment after its last whole line; False if none is left and the file is gone."""
        if path.suffix == COMPRESSED:
            return True  # it was whole when it got its name
        whole = whole_bytes(path)
        torn = path.stat().st_size - whole
        if torn:
            _log.warning("torn_tail_cut_off", path=str(path), bytes=torn)
            self.torn_bytes += torn
        if whole:
            os.truncate(path, whole)
            if self._fsync:
                sync(path)  # of a killed process: written, but perhaps not on the disk
        else:
            path.unlink()
            self._sync_folder()
        return whole > 0
