"""What is printed: a table for each part of a report."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.report import Report
from bench.results import (
    ContenderResult,
    FaultsResult,
    GrowthResult,
    LatencyResult,
    MemoryResult,
    Spread,
    ThroughputResult,
)
from bench.targets import Verdict

__all__ = ["console", "show", "show_verdicts", "spread"]

MIB = 1024**2
WIDTH = 140  # where the output is no terminal


def console(stream: Any = None) -> Console:
    """For tables; wide enough for them where the output is no terminal."""
    out = stream or sys.stdout
    return Console(file=out, width=None if out.isatty() else WIDTH)


def show(to: Console, report: Report) -> None:
    """All tables of the report."""
    for table in _tables(report):
        to.print(table)
    missing = [result.missing for result in report.throughput] + [result.missing for result in report.latency]
    for line in dict.fromkeys(line for lines in missing for line in lines):
        to.print(f"left out: {line}")


def show_verdicts(to: Console, verdicts: list[Verdict]) -> None:
    """What it must reach, and what it has reached."""
    table = _table("What it must reach; median (min..max) of the rounds", "case", "bound", "reached", "verdict")
    for verdict in verdicts:
        reached = "-" if verdict.reached is None else spread(verdict.reached, verdict.style)
        style = {"pass": "green", "short": "red"}.get(verdict.word, "dim")
        table.add_row(verdict.case, verdict.bound, reached, f"[{style}]{verdict.word}[/]")
    to.print(table)


def spread(values: Spread | None, style: str, factor: float = 1) -> str:
    """``median (min..max)``; a dash for None."""
    if values is None:
        return "-"
    median, least, most = (f"{value * factor:{style}}" for value in (values.median, values.min, values.max))
    return f"{median} ({least}..{most})"


def _tables(report: Report) -> Iterator[Table]:
    yield from map(_throughput, report.throughput)
    yield from map(_latency, report.latency)
    if report.memory:
        yield _memory(list(report.memory))
    yield from map(_growth, report.growth)
    if report.faults is not None:
        yield _faults(report.faults)


def _throughput(result: ThroughputResult) -> Table:
    table = _table(
        f"{result.changes:,} changes in transactions of {result.transaction_rows:,}; "
        f"median (min..max) of {result.rounds} rounds",
        "contender", "changes/s", "ratio", "start-up s", "peak MiB", "CPU s", "server CPU s",
    )  # fmt: skip
    table.caption = "ratio: to pg_recvlogical in the same round; CPU: seconds per million changes, start-up left out"
    for contender in result.contenders:
        if warm_up := min(run.warm_up_changes for run in contender.runs):
            table.caption += f"\n{contender.title}: after a warm-up of {warm_up:,} changes"
        table.add_row(contender.title, *_cells(contender))
    return table


def _cells(contender: ContenderResult) -> list[str]:
    server_cpu = contender.server_cpu_seconds_per_million
    return [
        spread(contender.changes_per_second, ",.0f"),
        spread(contender.ratio, ".2f"),
        f"{contender.start_up_seconds.median:.2f}",
        f"{contender.peak_bytes.max / MIB:.0f}",
        f"{contender.cpu_seconds_per_million.median:.2f}",
        "-" if server_cpu is None else f"{server_cpu.median:.2f}",
    ]


def _latency(result: LatencyResult) -> Table:
    table = _table(
        f"commit to callback at {result.rate:,} transactions/s, ms; {result.rounds} rounds of {result.seconds} s",
        "contender", "p50", "p99", "p99.9", "p50 / pipe", "p99 / pipe", "reached tx/s",
    )  # fmt: skip
    for one in result.contenders:
        reached = Spread.of([run.transactions_per_second for run in one.runs])
        table.add_row(
            one.title,
            *(spread(values, ".2f", 1000) for values in (one.p50, one.p99, one.p999)),
            *(spread(values, ".1f") for values in (one.ratio_p50, one.ratio_p99)),
            f"{reached.median:,.0f}",
        )
    return table


def _memory(results: list[MemoryResult]) -> Table:
    table = _table(
        "one transaction, cdc run, 1 no-op callback",
        "rows", "seconds", "peak MiB", "CPU s", "status updates", "longest between them, s",
    )  # fmt: skip
    for result in results:
        table.add_row(
            f"{result.transaction_rows:,}",
            f"{result.seconds:.1f}",
            f"{result.peak_bytes / MIB:.0f}",
            f"{result.cpu_seconds:.1f}",
            str(result.status_updates),
            f"{result.longest_between_status_updates_seconds:.1f}",
        )
    return table


def _growth(result: GrowthResult) -> Table:
    table = _table(
        f"growth: {result.title}; median (min..max) of {result.rounds} rounds",
        "value", "changes", "changes/s", "pg_recvlogical", "ratio", "peak MiB", "CPU s",
    )  # fmt: skip
    for point in result.points:
        table.add_row(
            f"{point.value:,}",
            f"{point.changes:,}",
            spread(point.changes_per_second, ",.0f"),
            spread(point.reference_changes_per_second, ",.0f"),
            spread(point.ratio, ".2f"),
            f"{point.peak_bytes.max / MIB:.0f}",
            f"{point.cpu_seconds_per_million.median:.1f}",
        )
    return table


def _faults(result: FaultsResult) -> Table:
    table = _table(f"what starts, faults and stops cost; {result.rounds} rounds", "case", "seconds")
    for case, values in (
        ("cdc run → START_REPLICATION", result.start_to_stream),
        ("cdc run → the service says streaming", result.start_to_phase),
        ("the server was killed, and away for", result.away),
        ("server back → START_REPLICATION", result.back_to_stream),
        ("server back → the service says streaming", result.back_to_phase),
        ("SIGTERM in the middle of a backlog → ended", result.drain),
    ):
        table.add_row(case, spread(values, ".2f"))
    return table


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title)
    table.add_column(first)
    for name in columns:
        table.add_column(name, justify="right")
    return table
