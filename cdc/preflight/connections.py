"""Short-lived connections for looking at the server, and what to do when there is none.

`cdc.replication` streams; here a walsender only tries to load the plugin, and its words are kept.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from cdc.logs import clean
from cdc.wal2json import OPTIONS

__all__ = ["Trial", "connected", "first_line", "try_plugin"]

CONNECT_SECONDS = 10  # a name, a handshake and a password over a slow line; the connection string may say more
# The plugin is loaded before the server waits for the transactions that run: whoever hears nothing for this
# long knows that it was.
PLUGIN_SECONDS = 3.0
RECENT = {"numeric-data-types-as-string": "on"}  # wal2json 2.6; the plugin does not tell its version


@asynccontextmanager
async def connected(dsn: str, *, replication: bool = False) -> AsyncIterator[AsyncConnection[TupleRow]]:
    """A connection in autocommit; with `replication` to a walsender that knows the database."""
    given = conninfo_to_dict(dsn)
    params = {"connect_timeout": str(given.get("connect_timeout") or CONNECT_SECONDS)}
    if not given.get("application_name"):
        params["application_name"] = "cdc check"
    if replication:
        params["replication"] = "database"
    connection = await AsyncConnection.connect(make_conninfo(dsn, **params), autocommit=True)
    try:
        yield connection
    finally:
        await connection.close()


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of loading the plugin: the server's `objection`, or None.

    `refused_option`: it does not know one of the options that the service asks for. `is_recent`: it knows what came
    with 2.6. `blocked_by`: processes whose transactions a new slot waits for; then the options were not tried.
    """

    objection: psycopg.Error | None = None
    refused_option: str = ""
    is_recent: bool = False
    blocked_by: Sequence[int] | None = None


async def try_plugin(dsn: str, plugin: str) -> Trial:
    """Let the server load the plugin, and decode nothing with our options, on a slot that goes with its connection.

    Without a connection the error is raised.
    """
    name = f"cdc_check_{secrets.token_hex(6)}"
    statement = sql.SQL("CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL {} NOEXPORT_SNAPSHOT").format(
        sql.Identifier(name), sql.Identifier(plugin)
    )
    async with connected(dsn, replication=True) as walsender:
        making = asyncio.ensure_future(walsender.execute(statement))
        try:
            done, _ = await asyncio.wait([making], timeout=PLUGIN_SECONDS)
            if not done:
                return Trial(blocked_by=await _blockers(dsn, walsender.info.backend_pid))
            row = await (await making).fetchone()
        except psycopg.Error as error:
            return Trial(error)
        finally:
            making.cancel()
            await asyncio.gather(making, return_exceptions=True)
        end = str(row[1]) if row else "0/0"
        if (refused := await _refusal(walsender, name, end, OPTIONS)) is not None:
            return Trial(refused_option=first_line(refused))
        return Trial(is_recent=await _refusal(walsender, name, end, OPTIONS | RECENT) is None)


async def _refusal(
    walsender: AsyncConnection[TupleRow], slot: str, end: str, options: Mapping[str, str]
) -> psycopg.Error | None:
    """Peek at what was written up to `end`, which is nothing: the plugin reads its options."""
    pairs = sql.SQL("").join(
        sql.SQL(", {}, {}").format(sql.Literal(key), sql.Literal(value)) for key, value in options.items()
    )
    query = sql.SQL("SELECT count(*) FROM pg_catalog.pg_logical_slot_peek_changes({}, {}, NULL{})").format(
        sql.Literal(slot), sql.Literal(end), pairs
    )
    try:
        await walsender.execute(query)
    except psycopg.Error as error:
        return error
    return None


async def _blockers(dsn: str, pid: int) -> Sequence[int]:
    """Processes that hold the transactions; a prepared one has none."""
    async with connected(dsn) as connection:
        row = await (await connection.execute("SELECT pg_catalog.pg_blocking_pids(%s)", [pid])).fetchone()
    return [one for one in (row[0] if row else []) if one]


def first_line(error: psycopg.Error) -> str:
    """What the server or libpq says, without its details."""
    lines = str(error).strip().splitlines()
    return clean(lines[0] if lines else type(error).__name__)
