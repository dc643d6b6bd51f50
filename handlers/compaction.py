"""Closed segments of the event log become compressed ones, in the background and one at a time.

The plain file goes only after the compressed one is on the disk and was read back whole: a crash at any instant
leaves at least one of both. Owns the thread that does it; must not know when a segment is closed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import BinaryIO
from zlib import crc32

import structlog

from handlers.segments import (
    COMPRESSED,
    Range,
    compressed_path,
    is_segment,
    number_of,
    opened,
    sync,
)
from handlers.zstd import TornFile, compressor, unpacked

__all__ = ["Compactor", "compress", "tidy"]

_log = structlog.get_logger(__name__)

PART = ".part"
CHUNK_BYTES = 1 << 18  # between two looks whether it shall end: milliseconds, and tenths of a second at level 19


class Compactor:
    """Compresses the segments that it is given, in order; `done` is told of each, in the compactor's thread.

    A segment that cannot be compressed (the disk is full) stays plain until the log is opened again.
    """

    def __init__(self, level: int, done: Callable[[Range, Range], None]) -> None:
        self._level = level
        self._done = done
        self._ending = Event()
        self._segments: SimpleQueue[Range | None] = SimpleQueue()
        # A daemon: a disk that hangs must not keep the process from ending; what is plain stays so.
        self._thread = Thread(target=self._run, name="cdc-file-wal-zstd", daemon=True)
        self._thread.start()

    def put(self, segment: Range) -> None:
        """Compress it some time; it is never written to again."""
        self._segments.put(segment)

    def close(self, seconds: float = 1.0) -> None:
        """Go on for so many seconds at most, then leave the rest plain: less than the time a `close` may take."""
        self._segments.put(None)
        self._thread.join(seconds)
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while (segment := self._segments.get()) is not None and not self._ending.is_set():
            try:
                compressed = compress(segment, self._level, self._ending)
                if compressed is not None:
                    self._done(segment, compressed)
            except FileNotFoundError:
                continue  # somebody has moved it away
            except Exception as error:  # noqa: BLE001 - whatever it is, the log goes on without
                _log.warning("segment_not_compressed", path=str(segment.path), error=_told(error))


def compress(segment: Range, level: int, ending: Event | None = None) -> Range | None:
    """Write a compressed copy beside the segment, and name it when it is on the disk and whole.

    None when `ending` was set meanwhile. Errors leave nothing behind.
    """
    target = compressed_path(segment)
    part = target.with_name(target.name + PART)
    try:
        checksum = _write(segment, part, level, ending)
        if checksum is None:
            return None
        if not _is_same(part, checksum):
            raise OSError(f"{part} was not read back as it was written")
        part.rename(target)
        sync(target.parent)
    finally:
        part.unlink(missing_ok=True)
    return segment._replace(path=target)


def tidy(directory: Path) -> None:
    """Remove what a process left behind that was killed while it compressed."""
    compressed = {number_of(path): path for path in directory.glob(f"*{COMPRESSED}") if is_segment(path)}
    for path in directory.iterdir():
        if path.name.endswith(COMPRESSED + PART) and is_segment(path.with_name(path.name.removesuffix(PART))):
            path.unlink()
        elif path.suffix != COMPRESSED and is_segment(path) and number_of(path) in compressed:
            twin = compressed[number_of(path)]
            if _checksum_of(twin) == _checksum_of(path):
                path.unlink()
            else:
                _log.warning("segment_left_out", path=str(path), twin=twin.name)


def _told(error: Exception) -> str:
    """Without the text of errors that may have read a row."""
    return f"{type(error).__name__}: {error}" if isinstance(error, OSError) else type(error).__name__


def _write(segment: Range, part: Path, level: int, ending: Event | None) -> int | None:
    checksum, left = 0, segment.size
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with segment.path.open("rb") as source, os.fdopen(descriptor, "wb") as file:
        frame = compressor(level, left)
        while left:
            if ending is not None and ending.is_set():
                return None
            chunk = source.read(min(CHUNK_BYTES, left))
            if not chunk:
                raise OSError(f"{segment.path} is shorter than it was")
            checksum = crc32(chunk, checksum)
            left -= len(chunk)
            file.write(frame.compress(chunk))
        file.write(frame.flush())
        file.flush()
        os.fsync(file.fileno())  # also where the log leaves it to the kernel: the plain file will be gone
    return checksum


def _is_same(part: Path, checksum: int) -> bool:
    try:
        with part.open("rb") as file, unpacked(file) as lines:
            return _checksum(lines) == checksum
    except TornFile:
        return False


def _checksum_of(path: Path) -> int:
    with opened(path) as (lines, _):
        return _checksum(lines)


def _checksum(lines: BinaryIO) -> int:
    checksum = 0
    while chunk := lines.read(CHUNK_BYTES):
        checksum = crc32(chunk, checksum)
    return checksum
