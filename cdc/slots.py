"""The slot as pg_replication_slots tells it, on every server version: one query, one value.

The query has no parameters, so that it runs on a replication connection too. It knows no connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from psycopg import sql

from cdc.lsn import Lsn

__all__ = ["SlotInfo", "slot_query"]

# As JSON, because columns vary by version: what a server does not have is a missing key. How far the
# server has come is another function on a standby.
_QUERY = sql.SQL("""
SELECT to_jsonb(s) || jsonb_build_object(
    'application_name', a.application_name,
    'server_lsn', CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END)
FROM pg_catalog.pg_replication_slots s LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid
WHERE s.slot_name = {}
""")


def slot_query(name: str) -> sql.Composed:
    """One row with one JSON object for `SlotInfo.of`, or no row."""
    return _QUERY.format(sql.Literal(name))


@dataclass(frozen=True, slots=True)
class SlotInfo:
    """One slot. Sizes in bytes; `invalidation` is "" for a slot that works.

    None for what the server is too old to say: `failover` and `synced` (copied from a primary by this
    standby) came with PostgreSQL 17, and so did `inactive_since`, a time as the server prints it.
    """

    name: str
    slot_type: str
    plugin: str
    database: str
    temporary: bool
    active_pid: int | None
    active_application: str
    restart_lsn: Lsn | None
    confirmed_flush_lsn: Lsn | None
    server_lsn: Lsn | None
    wal_status: str
    safe_wal_bytes: int | None
    invalidation: str
    failover: bool | None = None
    synced: bool | None = None
    inactive_since: str | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> SlotInfo:
        """From the JSON object of `slot_query`."""
        return cls(
            name=row["slot_name"],
            slot_type=row["slot_type"],
            plugin=row["plugin"] or "",
            database=row["database"] or "",
            temporary=row["temporary"],
            active_pid=row["active_pid"],
            active_application=row.get("application_name") or "",
            restart_lsn=_lsn(row["restart_lsn"]),
            confirmed_flush_lsn=_lsn(row["confirmed_flush_lsn"]),
            server_lsn=_lsn(row.get("server_lsn")),
            wal_status=row.get("wal_status") or "",
            safe_wal_bytes=row.get("safe_wal_size"),
            invalidation=_invalidation(row),
            failover=row.get("failover"),
            synced=row.get("synced"),
            inactive_since=row.get("inactive_since"),
        )

    @property
    def retained_bytes(self) -> int | None:
        """WAL that the server keeps because of this slot."""
        return _distance(self.server_lsn, self.restart_lsn)

    @property
    def lag_bytes(self) -> int | None:
        """WAL that was not confirmed yet."""
        return _distance(self.server_lsn, self.confirmed_flush_lsn)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; LSNs as PostgreSQL prints them."""
        fields = {key: str(value) if isinstance(value, Lsn) else value for key, value in asdict(self).items()}
        derived = {"retained_bytes": self.retained_bytes, "lag_bytes": self.lag_bytes}
        return fields | {"active": self.active_pid is not None} | derived


def _invalidation(row: Mapping[str, Any]) -> str:
    """Why the slot is dead. A reason that we do not know is a reason all the same.

    A slot that somebody is making at this moment has no restart_lsn either.
    """
    if row.get("invalidation_reason"):
        return str(row["invalidation_reason"])
    if row.get("conflicting"):
        return "conflict with recovery"
    unreserved = row["restart_lsn"] is None and row["active_pid"] is None
    return "wal_removed" if row.get("wal_status") == "lost" or unreserved else ""


def _lsn(text: str | None) -> Lsn | None:
    return None if text is None else Lsn.parse(text)


def _distance(end: Lsn | None, start: Lsn | None) -> int | None:
    return None if end is None or start is None else max(0, int(end) - int(start))
