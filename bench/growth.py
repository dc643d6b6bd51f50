"""Events per second while one thing grows: callbacks, tables, the width of rows, the rows of a transaction.

Each value has `pg_recvlogical` beside it in the same rounds, over the same backlog: what the server itself pays for
more tables or wider rows is no cost of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from bench.backlog import Backlog, mixed
from bench.contenders import REFERENCE, CdcRun, RecvLogical
from bench.results import GrowthPoint, GrowthResult, Run, Spread, ratios
from bench.rounds import Say, in_rounds
from bench.server import BenchError, Server
from bench.shapes import many_tables, wide_rows

__all__ = ["AXES", "measure"]

CALLBACKS = (1, 10, 100)
TABLES = (1, 100, 1_000)
WIDTHS = (100, 1_000, 10_000, 1_000_000)
TRANSACTION_ROWS = (1, 10, 100, 1_000)
WIDEST_BYTES = 2_000  # per change: at a width above it the backlog has fewer changes, so that it stays as large


@dataclass(frozen=True, slots=True)
class Group:
    """One backlog, and the services that read it, by the value that each stands for."""

    backlog: AbstractContextManager[Backlog]
    services: Mapping[int, CdcRun]


def _callbacks(server: Server, changes: int) -> Iterator[Group]:
    yield Group(mixed(server, changes, 1000), {number: _service(number, number) for number in CALLBACKS})


def _tables(server: Server, changes: int) -> Iterator[Group]:
    for number in TABLES:
        yield Group(many_tables(server, changes, number), {number: _service(number)})


def _widths(server: Server, changes: int) -> Iterator[Group]:
    for width in WIDTHS:
        fitting = max(1, min(changes, changes * WIDEST_BYTES // width))
        yield Group(wide_rows(server, fitting, width), {width: _service(width)})


def _transactions(server: Server, changes: int) -> Iterator[Group]:
    for rows in TRANSACTION_ROWS:
        yield Group(mixed(server, changes, rows), {rows: _service(rows)})


def _service(value: int, callbacks: int = 1) -> CdcRun:
    return CdcRun(f"service-{value}", f"cdc run at {value:,}", callbacks=callbacks)


AXES: Mapping[str, tuple[str, Callable[[Server, int], Iterator[Group]]]] = {
    "callbacks": ("no-op callbacks", _callbacks),
    "tables": ("tables, row after row in another", _tables),
    "width": ("bytes per row", _widths),
    "transactions": ("rows per transaction", _transactions),
}


def measure(
    server: Server, options: Mapping[str, str], axis: str, *, changes: int, rounds: int, say: Say
) -> GrowthResult:
    """All values of one axis, over backlogs of `changes` changes (fewer of the widest rows)."""
    title, groups = AXES[axis]
    points: list[GrowthPoint] = []
    for group in groups(server, changes):
        say(f"growth: {title}: {', '.join(f'{value:,}' for value in group.services)}")
        contenders = [RecvLogical(REFERENCE, "pg_recvlogical"), *group.services.values()]
        with group.backlog as backlog:
            runs = in_rounds(server, contenders, backlog, options, rounds=rounds, say=say)
        points += [
            _point(value, backlog, runs[service.name], runs[REFERENCE]) for value, service in group.services.items()
        ]
    return GrowthResult(axis, title, rounds, points)


def _point(value: int, backlog: Backlog, runs: Sequence[Run], reference: Sequence[Run]) -> GrowthPoint:
    ratio = ratios(runs, reference)
    if ratio is None:
        raise BenchError("nothing to compare with")
    return GrowthPoint(
        value=value,
        changes=backlog.changes,
        changes_per_second=Spread.of([run.changes_per_second for run in runs]),
        reference_changes_per_second=Spread.of([run.changes_per_second for run in reference]),
        ratio=ratio,
        peak_bytes=Spread.of([run.peak_bytes for run in runs]),
        cpu_seconds_per_million=Spread.of([run.cpu_seconds_per_million for run in runs]),
    )
