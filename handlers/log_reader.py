"""Events read back from a log, in the order of writing, and how far one is: what `cdc replay` reads with.

Owns which files are read and in which order; must not know who gets the events.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from cdc import CdcError, DatabaseEvent
from handlers.log_lines import event_of
from handlers.segments import checked_lines, in_order, is_segment, opened, segments

__all__ = ["LogReader"]

LINES_A_LOOK = 256  # how far one is need not be known more often
_HINT = "name folders or files that a file_wal handler has written"


class LogReader:
    """Iterate over the events of `sources`: logs (folders) and segments, plain and compressed.

    Segments of one folder come in the order of their numbers, folders and other files as they are given. Nothing is
    written, and a service may write the log meanwhile: what it adds after the start is read or not. CdcError for a
    source that is not there, holds no log, or is damaged (`DamagedLog`); ModuleNotFoundError for compressed segments
    without the extra. `total_bytes` is that of the files, `done_bytes` how much of it is read; `read_bytes` is that of
    the lines, unpacked.
    """

    def __init__(self, sources: Sequence[Path]) -> None:
        self.paths = _files(sources)
        self.total_bytes = sum(map(_size, self.paths))
        self.done_bytes = self.read_bytes = 0

    def __iter__(self) -> Iterator[DatabaseEvent]:
        last = {path.parent: path for path in self.paths}  # a folder's end may be being written
        done = 0
        for path in self.paths:
            number = 0
            torn_tail = not is_segment(path) or last[path.parent] is path
            with opened(path) as (lines, file):
                for number, line in enumerate(checked_lines(path, lines, torn_tail=torn_tail), 1):
                    self.read_bytes += len(line)
                    if number % LINES_A_LOOK == 0:
                        self.done_bytes = done + file.tell()
                    yield _event(path, number, line)
                end = file.tell()
            if end and not number and not is_segment(path):
                raise CdcError(f"{path} holds no event", hint=_HINT, code="log_unreadable")
            done += end
            self.done_bytes = done


def _files(sources: Sequence[Path]) -> list[Path]:
    """Each once; segments that are named one by one are put in order with their neighbours."""
    groups: dict[Path, list[Path]] = {}
    for source in map(Path.resolve, sources):
        if source.is_dir():
            found = segments(source)
            if not found:
                raise CdcError(f"{source} holds no segment of a log", hint=_HINT, code="log_unreadable")
            groups.setdefault(source, []).extend(found)
        elif not source.exists():
            raise CdcError(f"{source} is not there", hint=_HINT, code="log_unreadable")
        else:
            groups.setdefault(source.parent if is_segment(source) else source, []).append(source)
    return [path for group in groups.values() for path in (in_order(group) if len(group) > 1 else group)]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # compressed or moved meanwhile
        return 0


def _event(path: Path, number: int, line: bytes) -> DatabaseEvent:
    try:
        return event_of(line)
    except ValueError as error:
        raise CdcError(
            f"{path} line {number}: {error}", hint="is it of a newer version?", code="log_unreadable"
        ) from None
