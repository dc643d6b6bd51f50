"""What the demonstration has shown, in figures, and where to go from there.

Owns the wording and the look; must not measure anything itself.
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cdc.demo.traffic import Committed
from cdc.events import EventType

__all__ = ["Figures", "Kept", "quantile", "show"]


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured."""

    seconds: float  # of traffic
    transactions: int
    rolled_back: int
    committed: Committed
    received: Committed
    latencies: Sequence[float]  # seconds from commit to callback, of each event
    lag_bytes: int  # WAL between the server's end and the slot when the traffic stopped
    lag_bytes_at_end: int  # and when the service had stopped

    @property
    def complete(self) -> bool:
        """Every committed change has reached the callback, once."""
        return self.received == self.committed


@dataclass(frozen=True, slots=True)
class Kept:
    """What stays, and how to use it."""

    environment: Mapping[str, str]
    psql: str
    stop: str


def quantile(values: Sequence[float], fraction: float) -> float:
    """The smallest value that is not exceeded by `fraction` of all; NaN of none."""
    if not values:
        return math.nan
    return sorted(values)[max(math.ceil(fraction * len(values)) - 1, 0)]


def show(screen: Console, figures: Figures, folder: Path, kept: Kept | None) -> None:
    """Print all of it."""
    committed = figures.committed.total()
    screen.print(f"\n[bold]{committed} changes in {figures.transactions} transactions[/bold]")
    screen.print(_events(figures))
    screen.print(_measures(figures))
    fate = "it stays, and the server runs on" if kept else "removed now, kept with --keep"
    screen.print(f"\n[bold]What lies in {folder}[/bold] ({fate})")
    screen.print(_places(folder))
    screen.print("\n[bold]Next[/bold]" if kept else "\n[bold]Next, with a database of yours[/bold]")
    for command, purpose in _commands(kept):
        screen.print(f"{command:<24} [dim]# {purpose}[/dim]", soft_wrap=True)  # to be copied: never folded


def _events(figures: Figures) -> Table:
    table = _grid("table")
    table.show_header = True
    for event_type in EventType:
        table.add_column(event_type.value, justify="right", header_style="dim")
    for name in sorted({name for name, _ in figures.received}):
        counts = (figures.received[name, event_type] for event_type in EventType)
        table.add_row(name, *(str(count or "") for count in counts))
    return table


def _measures(figures: Figures) -> Table:
    table = _grid()
    received = figures.received.total()
    p50, p99 = (quantile(figures.latencies, fraction) * 1000 for fraction in (0.5, 0.99))
    verdict = (
        "[green]every change once[/green]"
        if figures.complete
        else f"[bold red]not what was committed: {_difference(figures)}[/bold red]"
    )
    table.add_row()
    table.add_row("events received", f"{received}, {verdict}")
    table.add_row("rolled back", f"{figures.rolled_back}, without events")
    table.add_row("rate", f"{received / figures.seconds:.1f} events/s, the pace of the traffic")
    table.add_row("commit to callback", f"p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    table.add_row(
        "lag of the slot",
        f"{figures.lag_bytes} bytes of WAL when the traffic ended, {figures.lag_bytes_at_end} at the end",
    )
    return table


def _difference(figures: Figures) -> str:
    return ", ".join(
        f"{table} {event_type} {figures.received[table, event_type]} of {figures.committed[table, event_type]}"
        for table, event_type in sorted(
            figures.committed.keys() | figures.received.keys(), key=lambda key: (key[0], key[1].value)
        )
        if figures.received[table, event_type] != figures.committed[table, event_type]
    )


def _places(folder: Path) -> Table:
    table = _grid()
    for name, what in (
        ("cdc.toml", "the service's configuration"),
        ("cdc-state.db", "its checkpoint: where to go on after a stop or a crash"),
        ("events/", "the file WAL: every event as a line of JSON"),
        ("latency.tsv", "commit to callback of every event"),
        ("service.log", "the service's log"),
        ("cluster/", "the PostgreSQL server"),
    ):
        table.add_row(name, _size(folder / name), what)
    return table


def _commands(kept: Kept | None) -> Iterator[tuple[str, str]]:
    """What to type next, and why."""
    beside = Path(sys.executable).with_name("cdc")
    cdc = "cdc" if shutil.which("cdc") or not beside.exists() else os.path.relpath(beside)
    if kept is None:
        yield f"{cdc} init", "writes a cdc.toml with every setting explained"
        yield "export CDC_DSN=...", "postgresql://user@host/database"
        yield f"{cdc} check", "what is missing, and the statement that mends it"
        yield f"{cdc} run", "the service"
    else:
        values = (f"{name}={shlex.quote(value)}" for name, value in kept.environment.items())
        yield f"export {' '.join(values)}", "for the next two"
        yield f"{cdc} status", "slot, lag, checkpoint, callbacks"
        yield f"{cdc} run", "the service again: it goes on where it stopped"
        yield kept.psql, "make changes"
        yield kept.stop, "the end of server and files"


def _grid(first: str = "") -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_header=False)
    table.add_column(first, header_style="dim")
    return table


def _size(path: Path) -> str:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    for unit, bytes_of_unit in (("MiB", 1024**2), ("KiB", 1024)):
        if size >= bytes_of_unit:
            return f"{size / bytes_of_unit:.0f} {unit}"
    return f"{size} B"
