"""For applications that write to the database: tag the transaction, so that its events carry the tags.

Speaks to a connection of the application's own (psycopg, or SQLAlchemy over psycopg); knows no service.
"""

from __future__ import annotations

from typing import Any

from cdc.traces import TAG, parse_traceparent

__all__ = ["TAG_PREFIX", "emit_tags"]

TAG_PREFIX = "cdc.tags"
"""The default of `source.tag_message_prefix`."""

_EMIT = "SELECT pg_logical_emit_message(true, %s, %s)"


def emit_tags(connection: Any, *tags: str, traceparent: str | None = None, prefix: str = TAG_PREFIX) -> Any:
    """Tag every later change of the transaction that `connection` is in.

    `connection` is a psycopg connection or cursor, or a SQLAlchemy connection or session's connection over a
    psycopg driver; of an asynchronous one the result must be awaited. Rolled back with the transaction;
    outside of one it tags nothing. `traceparent` is the W3C header of the trace that the transaction is part of:
    `cdc.traceparent(event)` gives it to a callback. ValueError for a tag that is empty or holds a comma or a NUL,
    and for a traceparent that is malformed.
    """
    if traceparent is not None:
        if parse_traceparent(traceparent) is None:
            raise ValueError(f"{traceparent!r} is no traceparent like 00-<32 digits>-<16 digits>-01")
        tags = (*tags, TAG + traceparent)
    for tag in tags:
        if not tag.strip() or "," in tag or "\0" in tag:
            raise ValueError(f"{tag!r} is no tag: it is empty, or holds a comma or a NUL")
    execute = getattr(connection, "exec_driver_sql", None) or connection.execute
    return execute(_EMIT, (prefix, ",".join(tags)))
