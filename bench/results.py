"""What was measured, as values: runs, and what they say together. Pure arithmetic; no clock, no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Self

__all__ = ["ContenderResult", "MemoryResult", "Run", "Spread", "ThroughputResult", "summed_up"]

MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Run:
    """One contender once through the backlog; CPU without the start-up's, the server's None where unknown."""

    round: int
    seconds: float  # from START_REPLICATION to the last change handled
    start_up_seconds: float  # from the start of the process to START_REPLICATION
    changes_per_second: float
    peak_bytes: int
    cpu_seconds_per_million: float
    server_cpu_seconds_per_million: float | None


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of the rounds, and how far they lie apart."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Of one value or more."""
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class ContenderResult:
    """All runs of one contender; `ratio` is to the reference within the same round, None without one."""

    name: str
    title: str
    changes_per_second: Spread
    ratio: Spread | None
    start_up_seconds: Spread
    peak_bytes: Spread
    cpu_seconds_per_million: Spread
    server_cpu_seconds_per_million: Spread | None
    runs: Sequence[Run]


@dataclass(frozen=True, slots=True)
class ThroughputResult:
    """All contenders on one backlog; `missing` says who could not run, and why."""

    changes: int
    transaction_rows: int
    rounds: int
    contenders: Sequence[ContenderResult]
    missing: Sequence[str]


@dataclass(frozen=True, slots=True)
class MemoryResult:
    """`cdc run` with one no-op callback through one large transaction."""

    transaction_rows: int
    seconds: float
    peak_bytes: int
    status_updates: int  # as seen by the server while the transaction was under way
    longest_between_status_updates_seconds: float


def summed_up(name: str, title: str, runs: Sequence[Run], reference: Sequence[Run]) -> ContenderResult:
    """Medians and spreads of one contender's runs; `reference` are those of the contender to compare with."""
    pace = {run.round: run.changes_per_second for run in reference}
    ratios = [run.changes_per_second / pace[run.round] for run in runs if run.round in pace]
    server_cpu = [run.server_cpu_seconds_per_million for run in runs]
    return ContenderResult(
        name=name,
        title=title,
        changes_per_second=Spread.of([run.changes_per_second for run in runs]),
        ratio=Spread.of(ratios) if ratios else None,
        start_up_seconds=Spread.of([run.start_up_seconds for run in runs]),
        peak_bytes=Spread.of([run.peak_bytes for run in runs]),
        cpu_seconds_per_million=Spread.of([run.cpu_seconds_per_million for run in runs]),
        server_cpu_seconds_per_million=Spread.of([cpu for cpu in server_cpu if cpu is not None])
        if None not in server_cpu
        else None,
        runs=runs,
    )
