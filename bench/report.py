"""What is printed and written: the tables on the screen, the same as JSON."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.backlog import MIX
from bench.results import ContenderResult, MemoryResult, Spread, ThroughputResult
from bench.server import SETTINGS, Server

__all__ = ["Report", "machine", "show", "write"]

MIB = 1024**2


@dataclass(frozen=True, slots=True)
class Report:
    """All that one call of the bench has measured, and on what."""

    taken_at: str
    machine: Mapping[str, object]
    server_settings: Mapping[str, str]
    plugin_options: Mapping[str, str]
    mix: str
    throughput: Sequence[ThroughputResult] = ()
    memory: MemoryResult | None = None

    @classmethod
    def on(cls, server: Server, options: Mapping[str, str], **parts: Any) -> Report:
        """A report of what was measured on `server`."""
        return cls(datetime.now(UTC).isoformat(timespec="seconds"), machine(server), SETTINGS, options, MIX, **parts)


def machine(server: Server) -> dict[str, object]:
    """What figures depend on. `load_average` tells whether something else was running."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cpus": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "postgresql": server.value("SHOW server_version"),
    }


def show(console: Console, report: Report) -> None:
    """Tables for people."""
    for result in report.throughput:
        console.print(_throughput(result))
        for line in result.missing:
            console.print(f"left out: {line}")
    if report.memory is not None:
        console.print(_memory(report.memory))


def write(report: Report, file: Path) -> None:
    """JSON for programs: the fields of `Report`, seconds and bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asdict(report), indent=2) + "\n")


def _throughput(result: ThroughputResult) -> Table:
    table = Table(
        title=f"{result.changes:,} changes in transactions of {result.transaction_rows:,}; "
        f"median (min..max) of {result.rounds} rounds",
        caption="ratio: to pg_recvlogical in the same round; CPU: seconds per million changes, start-up left out",
    )
    table.add_column("contender")
    for name in ("changes/s", "ratio", "start-up s", "peak MiB", "CPU s", "server CPU s"):
        table.add_column(name, justify="right")
    for contender in result.contenders:
        table.add_row(contender.title, *_cells(contender))
    return table


def _cells(contender: ContenderResult) -> list[str]:
    return [
        _spread(contender.changes_per_second, ",.0f"),
        _spread(contender.ratio, ".2f"),
        _median(contender.start_up_seconds, ".2f"),
        f"{contender.peak_bytes.max / MIB:.0f}",
        _median(contender.cpu_seconds_per_million, ".2f"),
        _median(contender.server_cpu_seconds_per_million, ".2f"),
    ]


def _spread(spread: Spread | None, style: str) -> str:
    if spread is None:
        return "-"
    return f"{spread.median:{style}} ({spread.min:{style}}..{spread.max:{style}})"


def _median(spread: Spread | None, style: str) -> str:
    return "-" if spread is None else f"{spread.median:{style}}"


def _memory(result: MemoryResult) -> Table:
    table = Table(title=f"one transaction of {result.transaction_rows:,} rows, cdc run, 1 no-op callback")
    for name in ("seconds", "peak MiB", "status updates", "longest between them, s"):
        table.add_column(name, justify="right")
    table.add_row(
        f"{result.seconds:.1f}",
        f"{result.peak_bytes / MIB:.0f}",
        str(result.status_updates),
        f"{result.longest_between_status_updates_seconds:.1f}",
    )
    return table


def console(stream: Any = None) -> Console:
    """For tables; wide enough for them where the output is no terminal."""
    out = stream or sys.stdout
    return Console(file=out, width=None if out.isatty() else 140)
