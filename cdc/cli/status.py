"""`cdc status`: what the database says of the slot, the state of the callbacks, the service of itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import psycopg
import typer
from rich.text import Text

from cdc import endpoint
from cdc.cli import watching
from cdc.cli.output import ConfigOption, JsonOption, console, human_bytes, pairs, print_json, refuse_usage, table
from cdc.cli.slot import slot_table
from cdc.codes import Code
from cdc.config import Config, find, load
from cdc.errors import StateError
from cdc.logs import clean
from cdc.preflight import slots
from cdc.preflight.connections import connected, first_line
from cdc.preflight.position import has_state
from cdc.refusals import connect_error
from cdc.slots import SlotInfo
from cdc.state import CallbackRecord, CallbackState, Checkpoint, Gap, LetterTotal, open_state
from cdc.workers.daemon import DaemonThread

app = typer.Typer()

WATCH_SECONDS = 2.0


@dataclass(slots=True)
class Status:
    """What could be learnt, and what is wrong: texts, and their codes in the same order."""

    slot: SlotInfo | None = None
    checkpoint: Checkpoint | None = None
    callbacks: list[CallbackRecord] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    letters: list[LetterTotal] = field(default_factory=list)
    live: dict[str, Any] | None = None
    problems: list[str] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)

    def note(self, code: str, problem: str) -> None:
        """Something is wrong."""
        self.problems.append(problem)
        self.codes.append(str(code))

    def hear(self, live: dict[str, Any]) -> None:
        """What the running service says, its own troubles among it."""
        self.live = live
        for state in ("not_ready", "not_alive"):
            for code, problem in zip(live[f"{state}_codes"], live[state], strict=True):
                self.note(code, problem)

    def to_dict(self) -> dict[str, Any]:
        """As `cdc status --json` prints it; `live` is what the running service says, or null."""
        return {
            "slot": self.slot.to_dict() if self.slot else None,
            "checkpoint": _checkpoint(self.checkpoint) if self.checkpoint else None,
            "callbacks": [_callback(record) for record in self.callbacks],
            "gaps": [_gap(gap) for gap in self.gaps],
            "live": self.live,
            "problems": self.problems,
            "problem_codes": self.codes,
        }


@app.command()
def status(
    seconds: Annotated[float | None, typer.Argument(min=0.1, help="With --watch: how often; default 2.")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again and again, until Ctrl-C.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show slot, checkpoint, callbacks and the running service; exit 1 when one of them is in trouble.

    With --watch what the running service says, its rates and who holds the slot; without a service, what server and
    state say. In place on a terminal, else one picture after the other; with --json one object per line. Exit 0.
    """
    if seconds is not None and not watch:
        refuse_usage(f"{seconds:g} of what?", f"cdc status --watch {seconds:g}")
    settings = load(find(config))
    if watch:
        watching.watch(partial(_look, settings), settings.source.slot, seconds or WATCH_SECONDS, as_json=as_json)
        return
    found = asyncio.run(_all(settings))
    if as_json:
        print_json(found.to_dict())
    else:
        _print(found)
    raise typer.Exit(1 if found.problems else 0)


async def _all(config: Config) -> Status:
    """Service, server and state."""
    found = Status()
    await _ask(config, found)
    return await _gather(config, found)


async def _look(config: Config) -> Status:
    """The service's own words where it answers; server and state are asked when it does not."""
    found = Status()
    await _ask(config, found)
    return found if found.live is not None else await _gather(config, found)


async def _gather(config: Config, found: Status) -> Status:
    """What server and state say, put into `found`."""
    try:
        async with connected(config.source.dsn) as connection:
            found.slot = await slots.read(connection, config.source.slot)
    except psycopg.Error as problem:
        found.note(connect_error(problem).code, f"the database cannot be asked: {first_line(problem)}")
    else:
        if found.slot is None:
            found.note(Code.SLOT_MISSING, f"slot {config.source.slot} does not exist")
        elif found.slot.invalidation and Code.SLOT_INVALIDATED not in found.codes:  # else the service has told it
            found.note(Code.SLOT_INVALIDATED, f"slot {found.slot.name} is invalidated: {found.slot.invalidation}")
    thread = DaemonThread("cdc-status")  # the state's server may be away: nobody waits for it after Ctrl-C
    await thread.submit(partial(_read_state, config, found))
    thread.end()
    if found.live is None:  # a service that answers has told it
        names = [handler.name for handler in config.handlers]
        for record in found.callbacks:
            if record.state is CallbackState.REMOVED and record.name in names:
                found.note(Code.CALLBACK_REMOVED, f"handler {record.name!r} is removed")
    return found


async def _ask(config: Config, found: Status) -> None:
    """What the running service says, unless it is one of another slot."""
    if not (config.http.enabled and config.http.port) or (live := await endpoint.ask(config.http)) is None:
        return
    slot = (live.get("slot") or {}).get("name", config.source.slot)
    if slot == config.source.slot:
        found.hear(live)
    else:
        found.note(Code.HTTP_PORT_UNAVAILABLE, f"port {config.http.port} answers for another slot: {slot}")


def _read_state(config: Config, found: Status) -> None:
    if not has_state(config):
        return
    try:
        state = open_state(config.state.url, read_only=True)
        try:
            found.checkpoint, found.callbacks, found.gaps = state.load(), state.callbacks(), state.gaps()
            found.letters = list(state.letter_totals())
        finally:
            state.close()
    except StateError as problem:
        found.note(problem.code, problem.message)


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
        out.print(pairs("service", _service(found.live)))
    for code, problem in zip(found.codes, found.problems, strict=True):
        out.print(Text.assemble((f"problem[{code}]: ", "bold red"), clean(problem)))
    if found.problems:
        out.print(Text("what mends it: cdc check; docs/runbook.md explains each code"))


def _service(live: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """What fits in a line each."""
    for name, value in live.items():
        if isinstance(value, bool):
            yield name, "yes" if value else "no"
        elif isinstance(value, float):
            yield name, f"{value:,.1f}"
        elif isinstance(value, str | int):
            yield name, value
        elif name == "queue":
            yield name, f"{value['events']:,} events, {human_bytes(value['bytes'])}"


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
