"""For applications that write to the database: tag the transaction, so that its events carry the tags.

Speaks to a connection of the application's own (psycopg, or SQLAlchemy over psycopg); knows no service.
"""

from __future__ import annotations

from typing import Any

__all__ = ["TAG_PREFIX", "emit_tags"]

TAG_PREFIX = "cdc.tags"
"""The default of `source.tag_message_prefix`."""

_EMIT = "SELECT pg_logical_emit_message(true, %s, %s)"


def emit_tags(connection: Any, *tags: str, prefix: str = TAG_PREFIX) -> Any:
    """Tag every later change of the transaction that `connection` is in.

    `connection` is a psycopg connection or cursor, or a SQLAlchemy connection or session's connection over a
    psycopg driver; of an asynchronous one the result must be awaited. Rolled back with the transaction;
    outside of one it tags nothing. ValueError for a tag that is empty or holds a comma or a NUL.
    """
    for tag in tags:
        if not tag.strip() or "," in tag or "\0" in tag:
            raise ValueError(f"{tag!r} is no tag: it is empty, or holds a comma or a NUL")
    execute = getattr(connection, "exec_driver_sql", None) or connection.execute
    return execute(_EMIT, (prefix, ",".join(tags)))
