"""`cdc status`: what the database says of the slot, the state of the callbacks, the service of itself."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import psycopg
import typer
from rich.text import Text

from cdc.cli.output import ConfigOption, JsonOption, console, pairs, print_json, table
from cdc.cli.slot import slot_table
from cdc.config import Config, HttpConfig, find, load
from cdc.errors import StateError
from cdc.logs import clean
from cdc.preflight import slots
from cdc.preflight.connections import connected, first_line
from cdc.preflight.position import has_state
from cdc.slots import SlotInfo
from cdc.state import CallbackRecord, Checkpoint, Gap, open_state

app = typer.Typer()

SERVICE_SECONDS = 2.0  # the endpoint answers from memory; longer means that nobody listens
_ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - where a listener on all hosts is found


@dataclass(slots=True)
class Status:
    """What could be learnt, and what could not."""

    slot: SlotInfo | None = None
    checkpoint: Checkpoint | None = None
    callbacks: list[CallbackRecord] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    live: dict[str, Any] | None = None
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As `cdc status --json` prints it; `live` is what the running service says, or null."""
        return {
            "slot": self.slot.to_dict() if self.slot else None,
            "checkpoint": _checkpoint(self.checkpoint) if self.checkpoint else None,
            "callbacks": [_callback(record) for record in self.callbacks],
            "gaps": [_gap(gap) for gap in self.gaps],
            "live": self.live,
            "problems": self.problems,
        }


@app.command()
def status(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show slot, checkpoint, callbacks and the running service; exit 1 when one of them is in trouble."""
    found = asyncio.run(_gather(load(find(config))))
    if as_json:
        print_json(found.to_dict())
    else:
        _print(found)
    raise typer.Exit(1 if found.problems else 0)


async def _gather(config: Config) -> Status:
    found = Status()
    try:
        async with connected(config.source.dsn) as connection:
            found.slot = await slots.read(connection, config.source.slot)
    except psycopg.Error as problem:
        found.problems.append(f"the database cannot be asked: {first_line(problem)}")
    else:
        if found.slot is None:
            found.problems.append(f"slot {config.source.slot} does not exist")
        elif found.slot.invalidation:
            found.problems.append(f"slot {found.slot.name} is invalidated: {found.slot.invalidation}")
    await asyncio.to_thread(_read_state, config, found)
    if config.http.enabled and config.http.port:
        found.live = await _ask_service(config.http)
    return found


def _read_state(config: Config, found: Status) -> None:
    if not has_state(config):
        return
    try:
        state = open_state(config.state.url, read_only=True)
        try:
            found.checkpoint, found.callbacks, found.gaps = state.load(), state.callbacks(), state.gaps()
        finally:
            state.close()
    except StateError as problem:
        found.problems.append(problem.message)


async def _ask_service(http: HttpConfig) -> dict[str, Any] | None:
    """What the service says of itself; None when none answers, or somebody else has the port."""
    import aiohttp  # noqa: PLC0415 - a fifth of a second that only this command spends

    host = _ANY_HOST.get(http.host, http.host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{http.port}/status"
    try:
        timeout = aiohttp.ClientTimeout(total=SERVICE_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as response:
            answer = await response.json()
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return None
    return answer if isinstance(answer, dict) else None


def _print(found: Status) -> None:
    out = console()
    if found.slot:
        out.print(slot_table(found.slot))
    if found.checkpoint:
        out.print(pairs("checkpoint", _checkpoint(found.checkpoint).items()))
    if found.callbacks:
        columns = ["name", "state", "settled", "removed at", "reason"]
        rows = [[one.name, one.state, one.settled, one.removed_at, one.reason] for one in found.callbacks]
        out.print(table("callbacks", columns, rows))
    if found.gaps:
        columns = ["callback", "first", "last", "events", "reason"]
        gaps = [[one.callback or "all", one.first, one.last, one.events, one.reason] for one in found.gaps]
        out.print(table("not delivered", columns, gaps))
    if found.live is None:
        out.print(Text("the service does not answer here; start it: cdc run"))
    else:
        out.print(pairs("service", ((name, value) for name, value in found.live.items() if _is_plain(value))))
    for problem in found.problems:
        out.print(Text.assemble(("problem: ", "bold red"), clean(problem)))
    if found.problems:
        out.print(Text("what mends it: cdc check"))


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float | bool)


def _checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    source = checkpoint.source
    return {
        "flushed_lsn": str(checkpoint.flushed_lsn),
        "last_event_id": checkpoint.last_event_id,
        "system_identifier": source.system_identifier,
        "timeline": source.timeline,
        "database": source.database,
        "slot": source.slot,
        "plugin": source.plugin,
    }


def _callback(record: CallbackRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "state": str(record.state),
        "settled": str(record.settled),
        "removed_at": None if record.removed_at is None else str(record.removed_at),
        "removed_time": None if record.removed_time is None else record.removed_time.isoformat(),
        "reason": record.reason,
    }


def _gap(gap: Gap) -> dict[str, Any]:
    return {
        "callback": gap.callback,
        "first": str(gap.first),
        "last": str(gap.last),
        "events": gap.events,
        "reason": gap.reason,
        "first_time": gap.first_time.isoformat(),
        "last_time": gap.last_time.isoformat(),
    }
