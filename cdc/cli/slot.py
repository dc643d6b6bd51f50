"""`cdc slot create|show|drop`: the slot of the configuration."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from cdc.cli.output import ConfigOption, JsonOption, console, human_bytes, pairs, print_json
from cdc.codes import Code
from cdc.config import SourceConfig, find, load
from cdc.errors import CdcError, SlotBusy, SlotMissing
from cdc.preflight.connections import connected
from cdc.preflight.slots import read
from cdc.replication import ReplicationConnection
from cdc.slots import SlotInfo

__all__ = ["app", "slot_table"]

app = typer.Typer(help="Create, show or drop the replication slot.", no_args_is_help=True)


@app.command()
def create(config: ConfigOption = None) -> None:
    """Create the slot; from then on the server keeps its WAL until the service has received it."""
    source = _source(config)
    asyncio.run(_create(source))
    out = console()
    out.print(Text(f"created slot {source.slot}; the server keeps WAL for it from now on"))
    out.print(Text("next: cdc run"))


@app.command()
def show(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show how the slot fares; exit 1 when there is none."""
    source = _source(config)
    slot = asyncio.run(_read(source))
    if as_json:
        print_json(slot.to_dict() if slot else None)
        raise typer.Exit(0 if slot else 1)
    if slot is None:
        raise _missing(source)
    console().print(slot_table(slot))


@app.command()
def drop(
    config: ConfigOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Drop the slot: changes that were not received yet are lost to this service."""
    source = _source(config)
    slot = asyncio.run(_read(source))
    if slot is None:
        raise _missing(source)
    if slot.active_pid is not None:
        raise SlotBusy(
            f"slot {slot.name} is in use by {_holder(slot)}",
            hint="stop that consumer first",
        )
    if not yes:
        _ask(slot)
    asyncio.run(_drop(source))
    console().print(Text(f"dropped slot {source.slot}"))


def slot_table(slot: SlotInfo) -> Table:
    """For people."""
    return pairs(
        f"slot {slot.name}",
        [
            ("plugin", slot.plugin),
            ("database", slot.database),
            ("in use by", _holder(slot)),
            ("confirmed", slot.confirmed_flush_lsn),
            ("server", slot.server_lsn),
            ("waiting", human_bytes(slot.lag_bytes)),
            ("WAL kept", human_bytes(slot.retained_bytes)),
            ("WAL status", slot.wal_status),
            (
                "until lost",
                human_bytes(slot.safe_wal_bytes) if slot.safe_wal_bytes is not None else "unlimited",
            ),
            ("invalidated", slot.invalidation or "no"),
            *_of_newer_servers(slot),
        ],
    )


def _of_newer_servers(slot: SlotInfo) -> Iterator[tuple[str, object]]:
    """What PostgreSQL 17 and newer say."""
    if slot.failover is not None:
        yield "failover", "yes" if slot.failover else "no"
    if slot.synced:
        yield "synchronized", "from the primary"
    if slot.inactive_since is not None:
        yield "unused since", slot.inactive_since


def _holder(slot: SlotInfo) -> str:
    if slot.active_pid is None:
        return "nobody"
    return f"process {slot.active_pid} ({slot.active_application or 'unnamed'})"


def _source(config: Path | None) -> SourceConfig:
    return load(find(config)).source


def _ask(slot: SlotInfo) -> None:
    question = f"Drop slot {slot.name}? {human_bytes(slot.lag_bytes)} of WAL were not received yet and are lost."
    if not sys.stdin.isatty():
        raise CdcError(
            f"slot {slot.name} is not dropped without a yes", hint="cdc slot drop --yes", code=Code.CONFIRMATION_MISSING
        )
    typer.confirm(question, abort=True, err=True)


def _missing(source: SourceConfig) -> SlotMissing:
    return SlotMissing(f"slot {source.slot} does not exist", hint="cdc slot create, or mend source.slot")


async def _read(source: SourceConfig) -> SlotInfo | None:
    async with connected(source.dsn) as connection:
        return await read(connection, source.slot)


async def _create(source: SourceConfig) -> None:
    if await _read(source) is not None:
        raise CdcError(f"slot {source.slot} exists already", hint="look at it: cdc slot show", code=Code.SLOT_EXISTS)
    connection = await ReplicationConnection.connect(source.dsn)
    try:
        await connection.create_slot(source.slot, source.plugin, failover=source.failover)
    finally:
        await connection.close()


async def _drop(source: SourceConfig) -> None:
    async with connected(source.dsn) as connection:
        await connection.execute("SELECT pg_drop_replication_slot(%s)", [source.slot])
