"""Short-lived connections for looking at the server, and what to do when there is none.

`cdc.replication` streams; here a walsender only tries to load the plugin, and its words are kept.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from cdc.logs import clean

__all__ = ["connected", "first_line", "try_plugin"]

CONNECT_SECONDS = 10  # a name, a handshake and a password over a slow line; the connection string may say more
# The plugin is loaded before the server waits for the transactions that run: whoever hears nothing for this
# long knows that it was.
PLUGIN_SECONDS = 5.0


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


async def try_plugin(dsn: str, plugin: str) -> psycopg.Error | None:
    """Let the server load the plugin, through a slot that goes with its connection; its objection or None.

    Without a connection the error is raised.
    """
    statement = sql.SQL("CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL {} NOEXPORT_SNAPSHOT").format(
        sql.Identifier(f"cdc_check_{secrets.token_hex(6)}"), sql.Identifier(plugin)
    )
    async with connected(dsn, replication=True) as walsender:
        try:
            async with asyncio.timeout(PLUGIN_SECONDS):
                await walsender.execute(statement)
        except TimeoutError:
            return None
        except psycopg.Error as error:
            return error
    return None


def first_line(error: psycopg.Error) -> str:
    """What the server or libpq says, without its details."""
    lines = str(error).strip().splitlines()
    return clean(lines[0] if lines else type(error).__name__)
