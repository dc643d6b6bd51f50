"""The tables of a state in a PostgreSQL schema: made whole or not at all, refused when they are not ours.

Must not know the records; what the columns mean is said where they are written.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql

from cdc.codes import Code
from cdc.errors import StateError
from cdc.state import lock
from cdc.state.server import PRIMARY, Server, Session, quoted

__all__ = ["only_row", "require_layout", "require_makeable", "require_primary"]

_VERSION = 1  # of the layout below
_LAYOUT = """
CREATE TABLE service (
    id INTEGER PRIMARY KEY CHECK (id = 1), layout INTEGER NOT NULL,
    version BIGINT NOT NULL,  -- raised by every writing transaction, whose lock it is
    term BIGINT NOT NULL,     -- raised by every new owner
    owner TEXT NOT NULL       -- '' once the owner has closed the state
) WITH (fillfactor = 50);
INSERT INTO service VALUES (1, {version}, 0, 0, '');
-- LSNs and positions are text that says what it means elsewhere; those of letters sort as text.
CREATE TABLE checkpoint (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    system_identifier TEXT NOT NULL, timeline BIGINT NOT NULL, "database" TEXT NOT NULL,
    slot TEXT NOT NULL, plugin TEXT NOT NULL, selection TEXT NOT NULL,
    flushed_lsn TEXT NOT NULL, last_event_id BIGINT NOT NULL
) WITH (fillfactor = 50);
CREATE TABLE settled (
    callback TEXT COLLATE "C" PRIMARY KEY, position TEXT NOT NULL,
    named INTEGER NOT NULL  -- 1: by the last checkpoint
) WITH (fillfactor = 50);
CREATE TABLE removed (
    callback TEXT COLLATE "C" PRIMARY KEY, state TEXT NOT NULL, position TEXT NOT NULL, "time" TEXT NOT NULL,
    reason TEXT NOT NULL
);
CREATE TABLE gap (
    callback TEXT COLLATE "C", "first" TEXT COLLATE "C", reason TEXT COLLATE "C", "last" TEXT NOT NULL,
    events BIGINT NOT NULL, first_time TEXT NOT NULL, last_time TEXT NOT NULL,
    PRIMARY KEY (callback, "first", reason)
);
CREATE TABLE letter (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    callback TEXT COLLATE "C" NOT NULL, position TEXT COLLATE "C" NOT NULL, state TEXT COLLATE "C" NOT NULL,
    table_name TEXT NOT NULL, event_type TEXT NOT NULL,
    first_time TEXT COLLATE "C" NOT NULL, last_time TEXT COLLATE "C" NOT NULL,
    error TEXT NOT NULL, attempts INTEGER NOT NULL, retry INTEGER NOT NULL, size BIGINT NOT NULL,
    UNIQUE (callback, position)
);
CREATE TABLE letter_body (id BIGINT PRIMARY KEY, error_text TEXT NOT NULL, event BYTEA NOT NULL);
"""
_FOREIGN = "name another schema in state.url: ?schema=NAME"


def require_layout(session: Session, server: Server, *, read_only: bool) -> None:
    """See to it that the schema is there, whole and ours."""
    if not _has_layout(session, server):
        if read_only:
            raise StateError(
                f"{server} does not exist",
                hint="cdc run makes it at its start; is state.url right?",
                code=Code.STATE_MISSING,
            )
        with session.transaction():
            lock.creating(session, server.schema)
            if not _has_layout(session, server):
                _create(session, server)
    (version,) = only_row(session, "SELECT layout FROM service")
    if version != _VERSION:
        age = "a newer" if version > _VERSION else "an unknown"
        raise StateError(
            f"{server} was written by {age} version of cdc (layout {version}, this one knows {_VERSION})",
            hint="start the version of cdc that wrote it",
            code=Code.STATE_NEWER,
        )


def _has_layout(session: Session, server: Server) -> bool:
    row = session.execute(
        "SELECT count(*) FILTER (WHERE c.relname = 'service'), count(*) FROM pg_catalog.pg_class c "
        "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s",
        [server.schema],
    ).fetchone()
    ours, all_ = row or (0, 0)
    if all_ and not ours:
        raise StateError(f"{server} is of another program", hint=_FOREIGN, code=Code.STATE_FOREIGN)
    return bool(ours)


def _create(session: Session, server: Server) -> None:
    exists, _ = _rights(session, server)
    try:
        if not exists:
            session.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(server.schema)))
        session.execute(_LAYOUT.format(version=_VERSION).encode())
    except psycopg.errors.InsufficientPrivilege:
        raise _not_permitted(session, server, exists=exists) from None


def require_makeable(session: Session, server: Server) -> None:
    """StateError when a first start could not make the schema and its tables; changes nothing."""
    require_primary(session, server, "made")
    exists, may_create = _rights(session, server)
    if not may_create:
        raise _not_permitted(session, server, exists=exists)


def require_primary(session: Session, server: Server, what: str) -> None:
    """StateError when the server is a standby: it tells of the same tables and privileges as its primary.

    `what` cannot be done there, as a participle.
    """
    if session.execute("SELECT pg_is_in_recovery()").fetchone() == (True,):
        raise StateError(
            f"{server} cannot be {what}, its server is a standby", hint=PRIMARY, code=Code.STATE_NOT_PERMITTED
        )


def _rights(session: Session, server: Server) -> tuple[bool, bool]:
    """Whether the schema is there, and whether the role may create what is missing."""
    row = session.execute(
        "SELECT n.oid IS NOT NULL, CASE WHEN n.oid IS NULL"
        " THEN has_database_privilege(current_database(), 'CREATE') ELSE has_schema_privilege(n.oid, 'CREATE') END"
        " FROM (VALUES (%s)) AS wanted (name) LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = wanted.name",
        [server.schema],
    ).fetchone()
    exists, may_create = row or (False, False)
    return exists, may_create


def _not_permitted(session: Session, server: Server, *, exists: bool) -> StateError:
    name, role = quoted(server.schema), quoted(session.info.user)
    command = f"ALTER SCHEMA {name} OWNER TO {role};" if exists else f"CREATE SCHEMA {name} AUTHORIZATION {role};"
    return StateError(
        f"{server} cannot be made by role {session.info.user}",
        hint=f"let an owner of the database run: {command}",
        code=Code.STATE_NOT_PERMITTED,
    )


def only_row(session: Session, query: str) -> tuple[Any, ...]:
    """What `query` tells of the one row of `service`."""
    row: tuple[Any, ...] | None = session.execute(query.encode()).fetchone()
    if row is None:
        raise StateError(
            "the state has lost its row of service", hint="restore the schema from a backup", code=Code.STATE_DAMAGED
        )
    return row
