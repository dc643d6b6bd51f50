"""Before the stream: connect, ask who the server is and how the slot fares, create it, start it.

Only the simple query protocol works on a replication connection, so nothing here has parameters
and every literal is quoted. What the server refuses becomes an error of `cdc.errors`, by SQLSTATE.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cdc.consumer import APPLICATION
from cdc.errors import ServerUnfit, StreamLost
from cdc.lsn import Lsn
from cdc.refusals import command_error, connect_error
from cdc.replication.stream import NoticeHandler, ReplicationStream
from cdc.slots import SlotInfo, slot_query

__all__ = ["ReplicationConnection", "SystemIdentity", "source_conninfo"]

SESSION = (
    "datestyle=ISO,YMD",
    "intervalstyle=postgres",
    "timezone=UTC",
    "extra_float_digits=1",
    "bytea_output=hex",
    "lc_monetary=C",
    "quote_all_identifiers=off",  # regclass and its like
    "search_path=pg_catalog",
    "client_min_messages=warning",  # the plugin's notice about rows without an identity
)
"""Settings that the plugin's output depends on; pinned, because ALTER ROLE and ALTER DATABASE ... SET reach here."""

_PINS = sql.SQL("; ").join(
    sql.SQL("SET {} = {}").format(sql.Identifier(name), sql.Literal(value))
    for name, _, value in (setting.partition("=") for setting in SESSION)
)
"""Once more by statements: PGDATESTYLE and PGTZ of the environment, which libpq sends, win over the options."""

CONNECTION = {
    "connect_timeout": "10",
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    # A peer that vanished is noticed by the kernel in half the server's default wal_sender_timeout:
    # our status updates are data that it must acknowledge.
    "tcp_user_timeout": "30000",
    "application_name": APPLICATION,
}

FAILOVER_VERSION = 170000
NO_FILE = "58P01"
TIMELINE_LINE = re.compile(r"^(\d+)\t([0-9A-Fa-f]+/[0-9A-Fa-f]+)", re.MULTILINE)
"""Of a timeline history file: the timeline that was left, where, and why."""


@dataclass(frozen=True, slots=True)
class SystemIdentity:
    """The answer to IDENTIFY_SYSTEM: which cluster, which timeline, how far its WAL is flushed.

    `history`: each earlier timeline and where this server left it, empty when it cannot say. A server that is
    `in_recovery` is a standby, and `flushed_lsn` how far it has replayed.
    """

    system_identifier: str
    timeline: int
    flushed_lsn: Lsn
    database: str
    in_recovery: bool = False
    history: tuple[tuple[int, Lsn], ...] = ()

    def left(self, timeline: int) -> Lsn | None:
        """Where this server's history left an earlier timeline; None when it is not known to have been on it."""
        return dict(self.history).get(timeline)


class ReplicationConnection:
    """A connection in replication mode, not streaming yet."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection

    @classmethod
    async def connect(cls, dsn: str, application_name: str = APPLICATION) -> ReplicationConnection:
        """Connect; StreamLost when it may work later, ServerUnfit when an operator must act."""
        conninfo = source_conninfo(dsn, replication="database", application_name=application_name)
        try:
            connection = await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
        except psycopg.Error as error:
            raise connect_error(error) from None
        return cls(connection)

    async def identify(self) -> SystemIdentity:
        """Which server this is."""
        row = await self._row(sql.SQL("IDENTIFY_SYSTEM"))
        system_identifier, timeline, flushed, database = row or ("", 0, "0/0", "")
        standby = await self._row(sql.SQL("SELECT pg_catalog.pg_is_in_recovery()"))
        return SystemIdentity(
            str(system_identifier),
            int(timeline),
            Lsn.parse(flushed),
            str(database),
            in_recovery=bool(standby and standby[0]),
            history=await self._history(int(timeline)),
        )

    async def _history(self, timeline: int) -> tuple[tuple[int, Lsn], ...]:
        if timeline <= 1:
            return ()
        try:
            row = await self._row(sql.SQL("TIMELINE_HISTORY {}").format(sql.Literal(timeline)))
        except StreamLost as error:
            if error.reason != NO_FILE:
                raise
            return ()  # an administrator has tidied up pg_wal
        content = row[1] if row else ""  # bytea before PostgreSQL 15
        text = content if isinstance(content, str) else bytes(content).decode("utf-8", "replace")
        return tuple((int(left), Lsn.parse(lsn)) for left, lsn in TIMELINE_LINE.findall(text))

    async def settings(self) -> dict[str, str]:
        """Settings that decide whether and how we stream."""
        query = "SELECT jsonb_object_agg(name, setting) FROM pg_catalog.pg_settings WHERE name IN ({})"
        names = ("wal_level", "wal_sender_timeout", "server_encoding", "server_version_num")
        row = await self._row(sql.SQL(query).format(sql.SQL(",").join(map(sql.Literal, names))))
        return dict(row[0]) if row else {}

    async def slot(self, name: str) -> SlotInfo | None:
        """How the slot fares; None when there is none."""
        row = await self._row(slot_query(name))
        return SlotInfo.of(row[0]) if row else None

    async def end_walsender(self, slot: str, application_name: str) -> bool:
        """End the connection of that name that streams from the slot; False when it is another one by now."""
        command = sql.SQL(
            "SELECT pg_catalog.pg_terminate_backend(a.pid) FROM pg_catalog.pg_replication_slots s"
            " JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid"
            " WHERE s.slot_name = {} AND a.application_name = {}"
        )
        row = await self._row(command.format(sql.Literal(slot), sql.Literal(application_name)))
        return bool(row and row[0])

    async def create_slot(self, name: str, plugin: str, *, failover: bool = False) -> Lsn:
        """Create the slot; the position from which on it has everything.

        By the replication command, not the SQL function: it reports the consistent point, and waits
        for running transactions without holding a snapshot of its own. With `failover` a standby that
        synchronizes slots has it, too; ServerUnfit before PostgreSQL 17.
        """
        if failover:
            self._require_failover()
        options = "(SNAPSHOT 'nothing', FAILOVER true)" if failover else "NOEXPORT_SNAPSHOT"
        command = sql.SQL("CREATE_REPLICATION_SLOT {} LOGICAL {} " + options)
        row = await self._row(command.format(sql.Identifier(name), sql.Identifier(plugin)))
        return Lsn.parse(row[1]) if row else Lsn(0)

    async def drop_slot(self, name: str) -> None:
        """Drop the slot; SlotBusy, and nothing has happened, when somebody uses it."""
        await self._run(sql.SQL("DROP_REPLICATION_SLOT {}").format(sql.Identifier(name)))

    async def enable_failover(self, name: str) -> None:
        """Let standbys have the slot from now on; ServerUnfit before PostgreSQL 17, SlotBusy when it is in use."""
        self._require_failover()
        await self._run(sql.SQL("ALTER_REPLICATION_SLOT {} (FAILOVER true)").format(sql.Identifier(name)))

    def _require_failover(self) -> None:
        version = self._connection.info.server_version
        if version < FAILOVER_VERSION:
            raise ServerUnfit(
                f"source.failover needs PostgreSQL 17 or newer, this is {version // 10_000}",
                hint="set source.failover = false; on this server a standby's slots are made by other tools",
            )

    async def start(
        self,
        slot: str,
        start: int,
        options: Mapping[str, str],
        *,
        status_interval: float,
        notice: NoticeHandler,
    ) -> ReplicationStream:
        """START_REPLICATION; the server sends what committed from `start` on, or from where the slot is."""
        pairs = sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(key), _literal(value)) for key, value in options.items()
        )
        command = sql.SQL("START_REPLICATION SLOT {} LOGICAL {} ({})").format(
            sql.Identifier(slot), sql.SQL(str(Lsn(start))), pairs
        )
        await self._run(_PINS)
        self._connection.add_notice_handler(notice)  # before: the first notice may come with the answer
        try:
            await self._run(command)
        except BaseException:
            self._connection.remove_notice_handler(notice)
            raise
        return ReplicationStream(self._connection, start, status_interval)

    async def close(self) -> None:
        """End the connection; harmless when it has ended."""
        await self._connection.close()

    async def _row(self, command: sql.SQL | sql.Composed) -> tuple[Any, ...] | None:
        cursor = await self._run(command)
        return await cursor.fetchone()

    async def _run(self, command: sql.SQL | sql.Composed) -> psycopg.AsyncCursor[Any]:
        try:
            return await self._connection.execute(command)
        except psycopg.Error as error:
            raise command_error(error) from None


def _literal(value: str) -> sql.SQL:
    """A string as the grammar of replication commands has it: the E'' that libpq makes for a backslash it has not."""
    return sql.SQL("'" + value.replace("'", "''") + "'")


def source_conninfo(dsn: str, **extra: str) -> str:
    """The DSN with our defaults below it and the session's settings above it."""
    given = {key: str(value) for key, value in conninfo_to_dict(dsn).items() if value is not None}
    pins = " ".join(f"-c {setting}" for setting in SESSION)
    options = f"{given.pop('options', '')} {pins}".strip()
    # UTF-8 also from a database in SQL_ASCII, whose text psycopg would not decode; the stream's payload stays as it is.
    pinned = {"options": options, "client_encoding": "UTF8"}
    return make_conninfo("", **(CONNECTION | given | pinned | extra))
