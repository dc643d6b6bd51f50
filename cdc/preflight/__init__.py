"""Everything that would keep the service from working, looked at before it starts, each with its remedy.

Owns the questions and the judgement; changes nothing on the server but a temporary slot that goes with its
connection. The service does not rely on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from cdc.config import Config
from cdc.errors import CdcError
from cdc.patterns import TablePatterns
from cdc.preflight import encryption, local, plugins, port, position, server, slots, tables
from cdc.preflight.connections import connected, first_line, try_plugin
from cdc.preflight.findings import Finding, Severity, error, warning
from cdc.refusals import remedy
from cdc.replication import ReplicationConnection
from cdc.state import Checkpoint

__all__ = ["Finding", "Severity", "check", "is_running"]

_DIRECT = "name the server itself in source.dsn: a stream needs a connection of its own, and its settings"


async def check(config: Config) -> list[Finding]:
    """Look at server, slot, tables and this machine; the findings in the order in which to mend them."""
    findings = [finding async for finding in _remote(config)]
    findings += local.check(config)  # in this thread: modules are imported where the service would import them
    if config.http.enabled:
        findings.append(await port.look(config, is_running=is_running(findings)))
    return findings


def is_running(findings: Sequence[Finding]) -> bool:
    """Whether the slot is in the hands of a service, on whatever machine."""
    return any(finding.code == "slot_active" and finding.severity is Severity.OK for finding in findings)


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
    if (finding_of_state := encryption.judge_state(config.state.url)) is not None:
        yield finding_of_state
    # A slot that is wrong in itself was told with its own remedy.
    if checkpoint is not None and told.isdisjoint({"slot_mismatch", "slot_invalidated"}):
        for finding in await _position(config, checkpoint):
            yield finding


async def _database(config: Config, connection: AsyncConnection[TupleRow]) -> AsyncIterator[Finding]:
    source = config.source
    facts = await server.read(connection)
    slot = await slots.read(connection, source.slot)
    found = [
        *server.judge(facts, slot_exists=slot is not None, failover=source.failover),
        encryption.judge(encryption.settings_of(connection), encrypted=bool(connection.pgconn.ssl_in_use)),
        *_pooler(connection, facts),
        *plugins.judge_list(facts),
    ]
    for finding in found:
        yield finding
    broken = {finding.code for finding in found if finding.severity is Severity.ERROR}
    if broken.isdisjoint({"wal_level", "role", "standby", "wal_senders"}):
        is_pooled = any(finding.code == "pooler" for finding in found)
        for finding in await _plugin(config, facts, is_pooled=is_pooled, slot_exists=slot is not None):
            yield finding
    for finding in slots.judge(slot, source, connection.info.dbname):
        yield finding
    chosen = await tables.read(connection, TablePatterns(source.tables, source.exclude_tables))
    for finding in tables.judge(chosen):
        yield finding


def _pooler(connection: AsyncConnection[TupleRow], facts: server.Server) -> Iterator[Finding]:
    """A pooler answers with a process id of its own, and not always the same server process is behind it."""
    if facts.backend_pid != connection.info.backend_pid:
        yield warning("pooler", "a connection pooler stands between us and the server", _DIRECT)


async def _plugin(config: Config, facts: server.Server, *, is_pooled: bool, slot_exists: bool) -> list[Finding]:
    if facts.slots >= facts.number("max_replication_slots"):
        return [warning("plugin", "not tried whether the server loads it: no replication slot is free")]
    try:
        trial = await try_plugin(config.source.dsn, config.source.plugin)
    except psycopg.Error as problem:
        text = f"the server refuses a replication connection: {first_line(problem)}"
        return [error("replication_connection", text, _DIRECT if is_pooled else remedy(problem))]
    return list(plugins.judge_answer(config.source.plugin, trial, facts, slot_exists=slot_exists))


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
