"""The `file_wal` handler: an append-only log of events in files, on the disk before an event is settled.

Owns what is written, once, and when; must not know the files' format, which is `handlers.segments`.
"""

from __future__ import annotations

import fcntl
import logging
import os
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Annotated

from pydantic import AfterValidator, ByteSize, TypeAdapter, ValidationError

from cdc import DatabaseEvent, Position
from handlers.segments import (
    DamagedLog,
    Range,
    Segment,
    encoded,
    identities,
    identity,
    number_of,
    range_of,
    read,
    segments,
    sync,
    whole_bytes,
)

__all__ = ["DamagedLog", "FileWal", "read"]

_log = logging.getLogger(__name__)


def _size(value: int | str) -> int:
    """Bytes from 67108864 or "64MiB"; ValueError for anything else."""
    try:
        size = int(TypeAdapter(ByteSize).validate_python(value))
    except ValidationError:
        size = 0
    if size <= 0:
        raise ValueError(f"segment_bytes: {value!r} is not a size such as 64MiB")
    return size


Size = Annotated[int | str, AfterValidator(_size)]


class FileWal:
    """Append each event to a log in `directory`, once, however often it is delivered.

    Options: a segment ends at `segment_bytes` (a number, or text such as "64MiB") or `segment_seconds`
    after its first event, whichever comes first, and with the process. `fsync` false leaves the writing to
    the kernel: an event is then settled when it would survive the process, but not the machine. Files have
    mode 0600.

    Guarantee: `handle_batch` returns when all its events are on the disk; one that is in the log already,
    known by its position and commit time, is not written again. Leave the callback's `concurrency` at 1:
    more is not faster here, and costs the order of commits. One log has one writer: a second handler or
    service on the same directory is refused.

    Errors: OSError of the file system, which may pass (what of the batch is not on the disk is taken back);
    :class:`DamagedLog` at `open`.
    """

    def __init__(
        self,
        *,
        directory: Path,
        segment_bytes: Size = "64MiB",
        segment_seconds: float = 3600.0,
        fsync: bool = True,
    ) -> None:
        if segment_seconds <= 0:
            raise ValueError(f"segment_seconds: {segment_seconds} is not more than 0")
        self.directory = directory
        self.torn_bytes = 0  # cut off by `open`: half a line of a process that was killed while writing
        self.duplicates = 0  # delivered again and not written again
        self.late = 0  # written although later ones were there before
        self._segment_bytes = _size(segment_bytes)
        self._segment_seconds = segment_seconds
        self._fsync = fsync
        self._batch = Lock()  # an attempt that was given up may still be writing when its retry comes
        self._folder: int | None = None
        self._number = 0
        self._closed: list[Range] = []
        self._segment: Segment | None = None
        self._unfinished = False  # a batch is in work, or could not be taken back
        self._end: Position | None = None  # the highest position in the log
        self._known = lru_cache(maxsize=2)(identities)  # 8 bytes per event

    def open(self) -> None:
        """Make the directory if it is missing, cut off a torn tail, and find the end of the log."""
        with self._batch:
            if self._folder is not None:
                return
            self._folder = self._locked_folder()
            try:
                self._find_end()
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
            try:
                if self._unfinished:
                    self._drop_unsynced()
                self._close_segment()
            finally:
                os.close(self._folder)
                self._folder = None

    def _find_end(self) -> None:
        paths = segments(self.directory)
        while paths and not self._repair(paths[-1]):
            del paths[-1]
        self._closed = [range_of(path) for path in paths]
        self._number = number_of(paths[-1]) if paths else 0
        self._end = self._closed_end()

    def _write(self, events: Sequence[DatabaseEvent]) -> None:
        if self._segment is not None and self._segment.age() >= self._segment_seconds:
            self._close_segment()
        for event in events:
            self._append(event)
        if self._segment is not None:
            self._segment.sync()

    def _append(self, event: DatabaseEvent) -> None:
        position = event.position
        if position.commit_lsn == 0:  # made by hand, and cannot be told from others made by hand
            raise ValueError(f"event {event.id} has no position: file_wal cannot write it once")
        if self._end is not None and position <= self._end:
            if self._is_written(event):
                self.duplicates += 1
                return
            self._tell_late(position)
        line = encoded(event)
        segment = self._segment
        if segment is None or segment.size + len(line) > self._segment_bytes or position <= segment.last:
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
                "event %s is written after %s to the log in %s. Retried dead letters come late; if it is "
                "none, look whether concurrency is 1 and the log not that of another database cluster",
                position,
                self._end,
                self.directory,
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
            self._closed.append(self._segment.range())
            self._segment.close()
            self._segment = None

    def _drop_unsynced(self) -> None:
        """Take back what a failed batch wrote: after a failed fsync nobody knows what of it is there."""
        segment = self._segment
        if segment is not None:
            if segment.roll_back():
                self._closed.append(segment.range())
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
        whole = whole_bytes(path)
        torn = path.stat().st_size - whole
        if torn:
            _log.warning("%s: cut off %d bytes of events that were not written to their end", path, torn)
            self.torn_bytes += torn
        if whole:
            os.truncate(path, whole)
            if self._fsync:
                sync(path)  # of a killed process: written, but perhaps not on the disk
        else:
            path.unlink()
            self._sync_folder()
        return whole > 0
