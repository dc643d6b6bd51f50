"""Who owns a state in PostgreSQL: a lock of its session, which ends with the session, and a number to tell terms apart.

The lock keeps a second owner out. The number, raised with every new owner and compared in every write, is what
makes certain that whoever lost the lock without knowing it never writes again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from zlib import crc32

from cdc.errors import StateBusy
from cdc.state.server import APPLICATION, Server, Session

__all__ = ["Holder", "creating", "holder", "take"]

_OWNER = 0x63646353  # "cdcS": our locks among those of other programs
_CREATOR = _OWNER + 1
_ZOMBIE_MILLISECONDS = 1000  # a session that is told to end does so at once, unless its host swaps
_HOLDER = """
SELECT l.pid, a.backend_start, coalesce(a.application_name, ''),
    extract(epoch FROM clock_timestamp() - a.state_change)::float8
FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
    AND l.classid = %s::oid AND l.objid = %s::oid
    AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
"""


@dataclass(frozen=True, slots=True)
class Holder:
    """A session that holds the lock; `since` and `name` as far as this role may see them."""

    pid: int
    since: datetime | None
    name: str
    silent_seconds: float | None = field(default=None, compare=False)  # since its last statement

    def __str__(self) -> str:
        who = self.name.removeprefix(APPLICATION) or "somebody unknown"
        since = f", since {self.since.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if self.since else ""
        return f"{who} (server process {self.pid}{since})"


def creating(session: Session, schema: str) -> None:
    """Wait until nobody else makes the schema, until the end of this transaction."""
    session.execute("SELECT pg_advisory_xact_lock(%s::int, %s::int)", [_CREATOR, _key(schema)])


def holder(session: Session, schema: str) -> Holder | None:
    """Who owns the state now."""
    row = session.execute(_HOLDER, [_OWNER, _key(schema)]).fetchone()
    return Holder(*row) if row else None


def take(session: Session, server: Server, before: Holder | None) -> Holder:
    """Become the owner, as long as the session lasts; StateBusy when another is.

    `before` is this store's own session that was lost: the server may not know yet that it is dead, and it is
    ended here. No other one ever is.
    """
    if not _try(session, server.schema):
        other = holder(session, server.schema)
        if before is not None and other == before:
            session.execute("SELECT pg_terminate_backend(%s, %s)", [before.pid, _ZOMBIE_MILLISECONDS])
            other = holder(session, server.schema)
        if not _try(session, server.schema):
            name = str(other) if other else "somebody who has just left"
            raise StateBusy(
                f"{server} is in use by another cdc run, {name}",
                holder=name,
                silent_seconds=other.silent_seconds if other else None,
                hint="it will be waited for; for another slot name another schema in state.url: ?schema=NAME",
            )
    mine = holder(session, server.schema)
    assert mine is not None  # noqa: S101 - the session has it
    return mine


def _try(session: Session, schema: str) -> bool:
    row = session.execute("SELECT pg_try_advisory_lock(%s::int, %s::int)", [_OWNER, _key(schema)]).fetchone()
    return bool(row and row[0])


def _key(schema: str) -> int:
    """31 bits of the name: for a name that happens to share them, the lock is taken, never given twice."""
    return crc32(schema.encode()) & 0x7FFFFFFF
