"""The files of the event log: lines with a checksum, in segments that end and never change again.

A line is one event as JSON with its checksum in front, so that ``jq`` reads it as it is::

    {"crc32":"1c291ca3","id":7,"event_type":"create", ... ,"position":"0/16B3748:1","transaction_id":731}

The checksum is that of the bytes after its comma, to the closing brace. A segment is named after its
number, which rises in the order of writing, and the position of its first event
(``0000000003-00000000016B3748-0000000001.jsonl``); inside a segment positions rise.

Owns the format, and writing, reading and checking it; must not know when an event is settled.
"""

from __future__ import annotations

import json
import os
import re
import time
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import orjson

from cdc import DatabaseEvent, Position

__all__ = [
    "DamagedLog",
    "Range",
    "Segment",
    "encoded",
    "identities",
    "identity",
    "number_of",
    "range_of",
    "read",
    "segments",
    "sync",
    "whole_bytes",
]

_PREFIX = b'{"crc32":"'
_START = len(_PREFIX) + 8 + 2  # of the bytes under the checksum: after 8 digits, a quote and a comma
_NAME = re.compile(r"(\d{10})-([0-9A-F]{8})([0-9A-F]{8})-(\d{10})\.jsonl")
_TAIL_BYTES = 64 * 1024  # first try for the last line: longer than nearly every row


class DamagedLog(Exception):
    """A line that was whole once cannot be read: `path`, `line` (from 1) and `offset` in bytes say which."""

    def __init__(self, path: Path, line: int, offset: int) -> None:
        super().__init__(
            f"{path} is damaged in line {line}, at byte {offset}; the lines before it are whole: "
            "restore the file from a backup, or move it out of the folder"
        )
        self.path = path
        self.line = line
        self.offset = offset


def read(source: Path | Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Give back the events of a log, in the order of writing: `DatabaseEvent.to_dict` with JSON's values.

    `source` is the directory, or segments in the order wanted. Reading while the handler writes is fine: a
    torn line at the very end is taken for one that is being written. DamagedLog for any other.
    """
    if isinstance(source, Path):
        source = segments(source) if source.is_dir() else [source]
    paths = list(source)
    for path in paths:
        for line in _lines(path, torn_tail=path is paths[-1]):
            yield _parsed(line)


class Range(NamedTuple):
    """A segment and the positions in it."""

    path: Path
    first: Position
    last: Position
    size: int


class Segment:
    """The segment being written, a new file: lines are collected, and count when synced."""

    def __init__(self, directory: Path, number: int, first: Position, *, fsync: bool) -> None:
        # Not {lsn:X}: an Lsn formats as X/X.
        name = f"{number:010d}-{int(first.commit_lsn):016X}-{first.ordinal:010d}.jsonl"
        self.path = directory / name
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


def encoded(event: DatabaseEvent) -> bytes:
    """The event's line."""
    rest = event.to_json()[1:]
    return b'%b%08x",%b\n' % (_PREFIX, crc32(rest), rest)


def _is_whole(line: bytes) -> bool:
    return (
        line.endswith(b"}\n")
        and line.startswith(_PREFIX)
        and line[len(_PREFIX) : _START] == b'%08x",' % crc32(line[_START:-1])
    )


def _lines(path: Path, *, torn_tail: bool) -> Iterator[bytes]:
    """The whole lines of a segment; one that is not, with nothing whole behind it, may end it."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not _is_whole(line):
                if torn_tail and not any(map(_is_whole, file)):
                    return
                raise DamagedLog(path, number, offset)
            offset += len(line)
            yield line


def whole_bytes(path: Path) -> int:
    """The length of a segment without a torn end; DamagedLog for a line torn before that."""
    return sum(map(len, _lines(path, torn_tail=True)))


def _parsed(line: bytes) -> dict[str, Any]:
    # json, not orjson, which reads integers beyond 64 bits as floats.
    record: dict[str, Any] = json.loads(b"{" + line[_START:])
    return record


def identity(data: bytes) -> int:
    """64 bits of position and commit time: the same when delivered again, another on another cluster."""
    try:
        record = orjson.loads(data)
    except orjson.JSONDecodeError:  # deep nesting
        record = json.loads(data)
    return hash((record["position"], record["timestamp"]))


def identities(path: Path, size: int) -> array[int]:
    """Of the events in the first `size` bytes of a segment, sorted; none if the file is gone."""
    found, offset = [], 0
    with suppress(FileNotFoundError):
        for line in _lines(path, torn_tail=True):
            if offset >= size:
                break
            offset += len(line)
            found.append(identity(line))
    return array("q", sorted(found))


def segments(directory: Path) -> list[Path]:
    """The segments in the order of writing; other files are left out."""
    return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name))


def number_of(path: Path) -> int:
    """The segment's number."""
    return int(path.name.partition("-")[0])


def range_of(path: Path) -> Range:
    """A closed segment's, from its name and its last line."""
    match = _NAME.fullmatch(path.name)
    assert match is not None  # noqa: S101 - segments gives no others
    first = Position.parse(f"{match[2]}/{match[3]}:{int(match[4])}")
    line = _last_line(path)
    if not _is_whole(line):
        for line in _lines(path, torn_tail=False):  # noqa: B007 - says which line is damaged
            pass
        raise DamagedLog(path, 1, 0)
    return Range(path, first, Position.parse(_parsed(line)["position"]), path.stat().st_size)


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
