"""W3C Trace Context in the tags of a transaction: ``traceparent:00-<trace id>-<parent id>-<flags>``.

Reads what an application has put there (https://www.w3.org/TR/trace-context-1, 3.2); makes no spans and knows no
tracer. Nothing is looked at before somebody asks. A `tracestate` holds commas, which separate tags: it is not carried.
"""

from __future__ import annotations

import re
from typing import Protocol

import structlog

__all__ = ["TAG", "Tagged", "parse_traceparent", "trace_fields", "traceparent"]

log = structlog.get_logger("cdc.traces")

TAG = "traceparent:"
_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_told: set[str] = set()  # what the log has said in this process


class Tagged(Protocol):
    """What has tags: a `DatabaseEvent`."""

    @property
    def tags(self) -> tuple[str, ...]:
        """In the order in which they were given."""


def traceparent(event: Tagged) -> str | None:
    """The trace that an event belongs to, as the value of a `traceparent` header; None when it has none.

    Of several the last. One that is malformed is a tag like any other; the log says so once.
    """
    if not event.tags:
        return None
    for tag in reversed(event.tags):
        if tag.startswith(TAG):
            if (parsed := parse_traceparent(tag.removeprefix(TAG))) is not None:
                return parsed
            _tell_malformed()
    return None


def parse_traceparent(text: str) -> str | None:
    """`text` if it is a traceparent of version 00, one of a later version as version 00; None for anything else."""
    if (match := _FORM.fullmatch(text)) is None:
        return None
    version, trace, parent, flags, more = match.groups()
    if version == "ff" or (version == "00" and more is not None) or not (trace.strip("0") and parent.strip("0")):
        return None
    return f"00-{trace}-{parent}-{flags}"


def trace_fields(event: Tagged) -> dict[str, str]:
    """For a line of the log about the event: its `trace_id`, or nothing."""
    found = traceparent(event)
    return {} if found is None else {"trace_id": found.split("-")[1]}


def _tell_malformed() -> None:
    if "malformed" not in _told:
        _told.add("malformed")
        log.warning("traceparent_malformed", hint="a tag that is not as W3C Trace Context has it is ignored")
