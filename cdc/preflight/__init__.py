"""Everything that would keep the service from working, looked at before it starts, each with its remedy.

Owns the questions and the judgement; changes nothing on the server but a temporary slot that goes with its
connection. The service does not rely on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from cdc.config import Config
from cdc.errors import CdcError
from cdc.patterns import TablePatterns
from cdc.preflight import local, plugins, position, server, slots, tables
from cdc.preflight.connections import connected, first_line, try_plugin
from cdc.preflight.findings import Finding, Severity, error, warning
from cdc.refusals import remedy
from cdc.replication import ReplicationConnection
from cdc.state import Checkpoint

__all__ = ["Finding", "Severity", "check"]


async def check(config: Config) -> list[Finding]:
    """Look at server, slot, tables and this machine; the findings in the order in which to mend them."""
    findings = [finding async for finding in _remote(config)]
    # In this thread: modules are imported where the service would import them.
    is_running = any(finding.code == "slot_active" for finding in findings)
    return [*findings, *local.check(config, is_running=is_running)]


async def _remote(config: Config) -> AsyncIterator[Finding]:
    checkpoint, state_findings = await asyncio.to_thread(position.load, config)
    told: set[str] = set()
    try:
        async with connected(config.source.dsn) as connection:
            async for finding in _database(config, connection):
                told.add(finding.code)
                yield finding
    except psycopg.Error as problem:
        yield error("unreachable", f"the database cannot be asked: {first_line(problem)}", remedy(problem))
        checkpoint = None
    for finding in state_findings:
        yield finding
    # A slot that is wrong in itself was told with its own remedy.
    if checkpoint is not None and told.isdisjoint({"slot_mismatch", "slot_invalidated"}):
        for finding in await _position(config, checkpoint):
            yield finding


async def _database(config: Config, connection: AsyncConnection[TupleRow]) -> AsyncIterator[Finding]:
    source = config.source
    facts = await server.read(connection)
    slot = await slots.read(connection, source.slot)
    found = [*server.judge(facts, slot_exists=slot is not None), *plugins.judge_list(facts)]
    for finding in found:
        yield finding
    broken = {finding.code for finding in found if finding.severity is Severity.ERROR}
    if broken.isdisjoint({"wal_level", "role", "wal_senders"}):
        yield await _plugin(config, facts)
    for finding in slots.judge(slot, source, connection.info.dbname):
        yield finding
    chosen = await tables.read(connection, TablePatterns(source.tables, source.exclude_tables))
    for finding in tables.judge(chosen):
        yield finding


async def _plugin(config: Config, facts: server.Server) -> Finding:
    if facts.slots >= facts.number("max_replication_slots"):
        return warning("plugin", "not tried whether the server loads it: no replication slot is free")
    try:
        objection = await try_plugin(config.source.dsn, config.source.plugin)
    except psycopg.Error as problem:
        return error(
            "replication_connection",
            f"the server refuses a replication connection: {first_line(problem)}",
            remedy(problem),
        )
    return plugins.judge_answer(config.source.plugin, objection, facts)


async def _position(config: Config, checkpoint: Checkpoint) -> list[Finding]:
    try:
        connection = await ReplicationConnection.connect(config.source.dsn)
        try:
            slot, identity = await connection.slot(config.source.slot), await connection.identify()
        finally:
            await connection.close()
    except CdcError:
        return []  # why is told by the attempt to load the plugin
    return list(position.judge(checkpoint, config.source, slot, identity))
