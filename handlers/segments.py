"""The files of the event log: segments that end and never change again, plain or compressed.

A segment is named after its number, which rises in the order of writing, and the position of its first event
(``0000000003-00000000016B3748-0000000001.jsonl``); inside a segment positions rise. A compressed one
(``...jsonl.zst``) has the position of its last event in the name, too: nobody unpacks it to learn its range.

Owns the names, and writing and reading segments; must not know what stands in a line, which is
`handlers.log_lines`, nor when an event is settled.
"""

from __future__ import annotations

import os
import re
import sys
import time
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from cdc import CdcError, Position
from handlers.log_lines import identity, is_whole, record_of
from handlers.zstd import TornFile, require_zstandard, unpacked

__all__ = [
    "COMPRESSED",
    "DamagedLog",
    "Range",
    "Segment",
    "checked_lines",
    "compressed_path",
    "identities",
    "in_order",
    "is_segment",
    "number_of",
    "opened",
    "range_of",
    "read",
    "segments",
    "sync",
    "whole_bytes",
    "whole_lines",
]

COMPRESSED = ".zst"
_PLACE = r"([0-9A-F]{8})([0-9A-F]{8})-(\d{10})"
_NAME = re.compile(rf"(\d{{10}})-{_PLACE}(?:\.jsonl|-{_PLACE}\.jsonl\.zst)")
_TAIL_BYTES = 64 * 1024  # first try for the last line: longer than nearly every row
_WHOLE = sys.maxsize  # the size of a segment that is read to its end


class DamagedLog(CdcError):
    """A line that was whole once cannot be read: `path`, `line` (from 1) and `offset` in bytes say which.

    The offset is that of what is inside, where the file is compressed.
    """

    default_code = "log_unreadable"

    def __init__(self, path: Path, line: int, offset: int) -> None:
        super().__init__(
            f"{path} is damaged in line {line}, at byte {offset}; the lines before it are whole",
            hint="restore the file from a backup, or move it out of the folder",
        )
        self.path = path
        self.line = line
        self.offset = offset


class Range(NamedTuple):
    """A segment and the positions in it; of its bytes, unpacked, the first `size` count."""

    path: Path
    first: Position
    last: Position
    size: int


class Segment:
    """The segment being written, a new file: lines are collected, and count when synced."""

    def __init__(self, directory: Path, number: int, first: Position, *, fsync: bool) -> None:
        self.path = directory / f"{number:010d}-{_place(first)}.jsonl"
        self.size = 0  # with the collected lines
        self.last = Position(first.commit_lsn, 0)  # before any event of the transaction
        self._first = first
        self._fsync = fsync
        self._started = time.monotonic()
        self._lines: list[bytes] = []
        self._synced = (0, self.last)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(self.path, flags, 0o600)

    def age(self) -> float:
        """Seconds since its first event."""
        return time.monotonic() - self._started

    def range(self) -> Range:
        """What is synced of it."""
        size, last = self._synced
        return Range(self.path, self._first, last, size)

    def add(self, line: bytes, position: Position) -> None:
        """Collect a line; positions rise."""
        self._lines.append(line)
        self.size += len(line)
        self.last = position

    def sync(self) -> None:
        """Write the collected lines and wait for the disk."""
        if self._lines:
            data = memoryview(b"".join(self._lines))
            while data:
                data = data[os.write(self._descriptor, data) :]
            if self._fsync:
                os.fsync(self._descriptor)
            self._lines.clear()
            self._synced = (self.size, self.last)

    def roll_back(self) -> bool:
        """Cut the file to what is synced; False if that is nothing."""
        size, _ = self._synced
        os.ftruncate(self._descriptor, size)
        if self._fsync:
            os.fsync(self._descriptor)
        return size > 0

    def close(self) -> None:
        """Close the file; what is collected and not synced is lost."""
        os.close(self._descriptor)


# --- names -------------------------------------------------------------------------------------------


def segments(directory: Path) -> list[Path]:
    """The segments in the order of writing; other files are left out.

    Of one that lies there plain and compressed, because a process ended in between, the compressed one.
    """
    return in_order(filter(is_segment, directory.iterdir()))


def is_segment(path: Path) -> bool:
    """Whether it is named as one."""
    return _NAME.fullmatch(path.name) is not None


def in_order(paths: Iterable[Path]) -> list[Path]:
    """Segments of one folder by their numbers, each once."""
    return list({number_of(path): path for path in sorted(paths, key=_rank)}.values())  # the last of each number


def number_of(path: Path) -> int:
    """The segment's number."""
    return int(path.name.partition("-")[0])


def compressed_path(segment: Range) -> Path:
    """What the segment is called once it is compressed."""
    return segment.path.with_name(f"{segment.path.stem}-{_place(segment.last)}.jsonl{COMPRESSED}")


def range_of(path: Path) -> Range:
    """A closed segment's, from its name and, of a plain one, its last line."""
    match = _NAME.fullmatch(path.name)
    assert match is not None  # noqa: S101 - segments gives no others
    first = _position(*match.group(2, 3, 4))
    if path.suffix == COMPRESSED:
        return Range(path, first, _position(*match.group(5, 6, 7)), _WHOLE)
    line = _last_line(path)
    if not is_whole(line):
        for line in whole_lines(path, torn_tail=False):  # noqa: B007 - says which line is damaged
            pass
        raise DamagedLog(path, 1, 0)
    return Range(path, first, Position.parse(record_of(line)["position"]), path.stat().st_size)


def _rank(path: Path) -> tuple[int, bool]:
    return number_of(path), path.suffix == COMPRESSED


def _place(position: Position) -> str:
    # Not {lsn:X}: an Lsn formats as X/X.
    return f"{int(position.commit_lsn):016X}-{position.ordinal:010d}"


def _position(high: str, low: str, ordinal: str) -> Position:
    return Position.parse(f"{high}/{low}:{int(ordinal)}")


# --- reading -----------------------------------------------------------------------------------------


def read(source: Path | Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Give back the events of a log, in the order of writing: `DatabaseEvent.to_dict` with JSON's values.

    `source` is the directory, or segments in the order wanted. Reading while the handler writes is fine: a
    torn line at the very end is taken for one that is being written. DamagedLog for any other.
    """
    if isinstance(source, Path):
        source = segments(source) if source.is_dir() else [source]
    paths = list(source)
    for path in paths:
        for line in whole_lines(path, torn_tail=path is paths[-1]):
            yield record_of(line)


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The lines of a segment, unpacked, and the file itself, whose place tells how far one is.

    A plain segment that has been compressed meanwhile is read where it is now. ModuleNotFoundError for a
    compressed one without the extra.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        moved = sorted(path.parent.glob(f"{path.stem}-*.jsonl{COMPRESSED}"))
        if path.suffix == COMPRESSED or not moved:
            raise
        path = moved[0]
        file = path.open("rb")
    with file:
        if path.suffix == COMPRESSED:
            require_zstandard(f"{path.name} is compressed")
            try:
                with unpacked(file) as lines:
                    yield lines, file
            except TornFile:
                raise DamagedLog(path, 1, 0) from None
        else:
            yield file, file


def whole_lines(path: Path, *, torn_tail: bool) -> Iterator[bytes]:
    """The whole lines of a segment; one that is not, with nothing whole behind it, may end it."""
    with opened(path) as (lines, _):
        yield from checked_lines(path, lines, torn_tail=torn_tail)


def checked_lines(path: Path, lines: BinaryIO, *, torn_tail: bool) -> Iterator[bytes]:
    """The same of a segment that is open."""
    torn_tail = torn_tail and path.suffix != COMPRESSED  # which has its name only once it is whole
    offset = number = 0
    try:
        for number, line in enumerate(lines, 1):
            if not is_whole(line):
                if torn_tail and not any(map(is_whole, lines)):
                    return
                raise DamagedLog(path, number, offset)
            offset += len(line)
            yield line
    except TornFile:
        raise DamagedLog(path, number + 1, offset) from None


def whole_bytes(path: Path) -> int:
    """The length of a segment without a torn end; DamagedLog for a line torn before that."""
    return sum(map(len, whole_lines(path, torn_tail=True)))


def identities(path: Path, size: int) -> array[int]:
    """Of the events in the first `size` bytes of a segment, sorted; none if the file is gone."""
    found, offset = [], 0
    with suppress(FileNotFoundError):
        for line in whole_lines(path, torn_tail=True):
            if offset >= size:
                break
            offset += len(line)
            found.append(identity(line))
    return array("q", sorted(found))


def _last_line(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = _TAIL_BYTES
        while True:
            file.seek(max(size - length, 0))
            tail = file.read()
            start = tail.rfind(b"\n", 0, -1) + 1
            if start or length >= size:
                break
            length *= 4
    return tail[start:]


def sync(path: Path) -> None:
    """Wait until the file, or the entries of the folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
