"""Whether the service can use the slot as it is."""

from __future__ import annotations

from collections.abc import Iterator

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from cdc.config import SourceConfig
from cdc.consumer import APPLICATION
from cdc.preflight.findings import Finding, error, ok, warning
from cdc.slots import SlotInfo, slot_query

__all__ = ["judge", "read"]


async def read(connection: AsyncConnection[TupleRow], name: str) -> SlotInfo | None:
    """Look the slot up; None when there is none of this name."""
    row = await (await connection.execute(slot_query(name))).fetchone()
    return None if row is None else SlotInfo.of(row[0])


def judge(slot: SlotInfo | None, source: SourceConfig, database: str) -> Iterator[Finding]:
    """Whether `slot` is what the configuration wants it to be."""
    if slot is None:
        yield _missing(source)
        return
    mismatch = _mismatch(slot, source, database)
    if mismatch:
        yield error(
            "slot_mismatch",
            f"slot {source.slot} {mismatch}",
            "set source.slot to another name, or drop this one when nobody needs it: cdc slot drop",
        )
    if slot.invalidation:
        yield error(
            "slot_invalidated",
            f"slot {slot.name} is invalidated ({slot.invalidation}): the server no longer has the changes"
            f" since {slot.confirmed_flush_lsn}",
            "cdc run --accept-gap  # makes it anew and goes on from now; what was in between is lost, and on record",
        )
    elif slot.wal_status == "unreserved":
        yield warning(
            "slot_wal_status",
            f"slot {slot.name} needs WAL that the server may remove at its next checkpoint",
            "start the service now; then raise max_slot_wal_keep_size",
        )
    elif not mismatch:
        yield ok("slot", f"slot {slot.name} exists, {slot.lag_bytes or 0:,} bytes of WAL are waiting")
    if slot.active_application.startswith(APPLICATION):
        yield ok("slot_active", f"slot {slot.name} is used by process {slot.active_pid}: the service is running")
    elif slot.active_pid is not None:
        yield warning(
            "slot_active",
            f"slot {slot.name} is used by process {slot.active_pid} ({slot.active_application or 'unnamed'}):"
            " a second service waits until it is free",
            f"stop that consumer; or, when it is dead: SELECT pg_terminate_backend({slot.active_pid});",
        )


def _missing(source: SourceConfig) -> Finding:
    if source.create_slot:
        return ok("slot", f"slot {source.slot} does not exist yet; cdc run creates it")
    return error("slot", f"slot {source.slot} does not exist and source.create_slot is false", "cdc slot create")


def _mismatch(slot: SlotInfo, source: SourceConfig, database: str) -> str:
    if slot.slot_type != "logical":
        return f"is a {slot.slot_type} slot"
    if slot.plugin != source.plugin:
        return f"is of plugin {slot.plugin}, not {source.plugin}"
    if slot.database != database:
        return f"belongs to database {slot.database}, not {database}"
    return "is temporary: it goes with its connection" if slot.temporary else ""
