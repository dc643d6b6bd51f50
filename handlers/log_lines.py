"""A line of the event log: one event as JSON with its checksum in front, so that ``jq`` reads it as it is.

::

    {"crc32":"1c291ca3","id":7,"event_type":"create", ... ,"transaction_id":731,"types":{}}

The checksum is that of the bytes after its comma, to the closing brace. Lines of older logs have no ``types``:
their events come back with the values of JSON. Owns this form; must not know files.
"""

from __future__ import annotations

import json
from typing import Any
from zlib import crc32

import orjson

from cdc import DatabaseEvent, PermanentError, dump_event, load_event

__all__ = ["encoded", "event_of", "identity", "is_whole", "record_of"]

_PREFIX = b'{"crc32":"'
_START = len(_PREFIX) + 8 + 2  # of the bytes under the checksum: after 8 digits, a quote and a comma


def encoded(event: DatabaseEvent) -> bytes:
    """The event's line. PermanentError for one that has no JSON form, as only events made by hand may have none."""
    try:
        rest = dump_event(event)[1:]
    except (TypeError, ValueError, RecursionError) as error:
        # Not its text, which may hold what could not be written.
        raise PermanentError(f"event {event.position} has no JSON form: {type(error).__name__}") from None
    return b'%b%08x",%b\n' % (_PREFIX, crc32(rest), rest)


def is_whole(line: bytes) -> bool:
    """Whether it is a line, and as it was written."""
    return (
        line.endswith(b"}\n")
        and line.startswith(_PREFIX)
        and line[len(_PREFIX) : _START] == b'%08x",' % crc32(line[_START:-1])
    )


def event_of(line: bytes) -> DatabaseEvent:
    """The event of a whole line; ValueError, without its values, when a newer version has written it."""
    return load_event(b"{" + line[_START:])


def record_of(line: bytes) -> dict[str, Any]:
    """`DatabaseEvent.to_dict` with JSON's values."""
    # json, not orjson, which reads integers beyond 64 bits as floats.
    record: dict[str, Any] = json.loads(b"{" + line[_START:])
    record.pop("types", None)
    return record


def identity(data: bytes) -> int:
    """64 bits of position and commit time: the same when delivered again, another on another cluster."""
    try:
        record = orjson.loads(data)
    except orjson.JSONDecodeError:  # deep nesting
        record = json.loads(data)
    return hash((record["position"], record["timestamp"]))
