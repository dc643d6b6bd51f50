"""A recorded stream: events in a file, a line each, written by us, by `file_wal` or captured from the plugin.

Owns which of the formats a line has. The plugin's lines go through the service's own decoder.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import orjson

from cdc.codec import pack, unpack
from cdc.errors import DecodeError
from cdc.events import DatabaseEvent
from cdc.exact import load_event
from cdc.messages import Decoded
from cdc.patterns import TablePatterns
from cdc.transactions import Assembler, Selection
from cdc.values import Loader, Loaders
from cdc.wal2json import Decoder

__all__ = ["read_events", "write_events"]


def write_events(path: Path, events: Iterable[DatabaseEvent]) -> int:
    """Write events so that `read_events` gives them back exactly, a line each; how many there were."""
    count = 0
    # The rows of a real database, perhaps: for the owner alone, whatever the umask.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        for event in events:
            file.write(pack(event) + b"\n")
            count += 1
    return count


def read_events(path: Path) -> list[DatabaseEvent]:
    """The events of a recorded stream, in the order of the file.

    Its lines are those of `write_events`, of a `file_wal` log or `cdc.dump_event` (exact), of `event.to_json()` (values
    as JSON has them), or messages of wal2json as ``pg_recvlogical -P wal2json`` writes them with the options of
    `cdc.wal2json.OPTIONS`. ValueError, without a value of a row, for a line that is none of these.
    """
    lines = [line for line in path.read_bytes().split(b"\n") if line]
    if lines and b'"action"' in lines[0][:12]:
        return _decoded(path, lines)
    return [_event(path, number, line) for number, line in enumerate(lines, start=1)]


def _event(path: Path, number: int, line: bytes) -> DatabaseEvent:
    try:
        document = orjson.loads(line)
        return unpack(line) if "format" in document else load_event(line)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        # Not its text, which may hold what could not be read.
        raise ValueError(f"{path.name}, line {number}, is no event: {type(error).__name__}") from None


class _NoDatabase:
    """The catalog of a database that is not there: PostgreSQL's own types, others as text, no TOAST."""

    def __init__(self) -> None:
        self.loaders: Mapping[int, Loader] = Loaders(lambda _oid: None)

    def toastable(self, schema: str, table: str) -> frozenset[str]:  # noqa: ARG002 - the protocol's
        return frozenset()


def _decoded(path: Path, lines: Iterable[bytes]) -> list[DatabaseEvent]:
    selection = Selection(TablePatterns(["*.*"]))
    decoder = Decoder(_NoDatabase(), watch=selection.watched_columns)
    messages: list[Decoded] = []
    for number, line in enumerate(lines, start=1):
        try:
            messages.append(decoder.decode(line))
        except DecodeError as error:
            raise ValueError(f"{path.name}, line {number}, is no message of wal2json: {error.message}") from None
    return Assembler(selection).feed(messages, is_last=True).events
