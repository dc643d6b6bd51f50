"""What was measured, as values: runs, and what they say together. Pure arithmetic; no clock, no files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Self

__all__ = [
    "ContenderResult",
    "FaultsResult",
    "GrowthPoint",
    "GrowthResult",
    "LatencyContender",
    "LatencyResult",
    "LatencyRun",
    "MemoryResult",
    "Run",
    "Spread",
    "ThroughputResult",
    "latency_of",
    "ratios",
    "summed_up",
]

MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Run:
    """One contender once through the backlog; CPU without the start-up's, the server's None where unknown."""

    round: int
    seconds: float  # from START_REPLICATION, or the end of the warm-up, to the last change handled
    start_up_seconds: float  # from the start of the process to START_REPLICATION
    warm_up_changes: int  # read before, and not counted; of all contenders but one 0
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
    cpu_seconds: float
    status_updates: int  # as seen by the server while the transaction was under way
    longest_between_status_updates_seconds: float


@dataclass(frozen=True, slots=True)
class LatencyRun:
    """One listener under load; seconds from commit to callback."""

    round: int
    samples: int
    transactions_per_second: float  # what pgbench has reached
    p50: float
    p99: float
    p999: float
    longest: float


@dataclass(frozen=True, slots=True)
class LatencyContender:
    """All runs of one listener; the ratios are to `pg_recvlogical` through a pipe in the same round."""

    name: str
    title: str
    p50: Spread
    p99: Spread
    p999: Spread
    ratio_p50: Spread
    ratio_p99: Spread
    runs: Sequence[LatencyRun]


@dataclass(frozen=True, slots=True)
class LatencyResult:
    """All listeners at one rate, transactions per second; each run took `seconds`."""

    rate: int
    seconds: int
    rounds: int
    contenders: Sequence[LatencyContender]
    missing: Sequence[str]


@dataclass(frozen=True, slots=True)
class GrowthPoint:
    """`cdc run` beside `pg_recvlogical` in the same rounds, at one value of what grows."""

    value: int
    changes: int
    changes_per_second: Spread
    reference_changes_per_second: Spread
    ratio: Spread
    peak_bytes: Spread
    cpu_seconds_per_million: Spread


@dataclass(frozen=True, slots=True)
class GrowthResult:
    """What became of the pace when one thing grew."""

    axis: str
    title: str
    rounds: int
    points: Sequence[GrowthPoint]


@dataclass(frozen=True, slots=True)
class FaultsResult:
    """What starts, faults and stops cost, in seconds."""

    rounds: int
    start_to_stream: Spread  # process started → START_REPLICATION, by the server's log
    start_to_phase: Spread  # process started → the service says `streaming`
    away: Spread  # how long the killed server was away
    back_to_stream: Spread  # the server accepts connections again → START_REPLICATION
    back_to_phase: Spread
    drain: Spread  # SIGTERM in the middle of a backlog → the process has ended


def ratios(runs: Sequence[Run], reference: Sequence[Run]) -> Spread | None:
    """Paces compared within the same round; None without a common one."""
    pace = {run.round: run.changes_per_second for run in reference}
    found = [run.changes_per_second / pace[run.round] for run in runs if run.round in pace]
    return Spread.of(found) if found else None


def latency_of(name: str, title: str, runs: Sequence[LatencyRun], reference: Sequence[LatencyRun]) -> LatencyContender:
    """Medians and spreads of one listener's runs; `reference` has a run of each round."""
    of = {run.round: run for run in reference}
    return LatencyContender(
        name=name,
        title=title,
        p50=Spread.of([run.p50 for run in runs]),
        p99=Spread.of([run.p99 for run in runs]),
        p999=Spread.of([run.p999 for run in runs]),
        ratio_p50=Spread.of([run.p50 / of[run.round].p50 for run in runs]),
        ratio_p99=Spread.of([run.p99 / of[run.round].p99 for run in runs]),
        runs=runs,
    )


def summed_up(name: str, title: str, runs: Sequence[Run], reference: Sequence[Run]) -> ContenderResult:
    """Medians and spreads of one contender's runs; `reference` are those of the contender to compare with."""
    server_cpu = [run.server_cpu_seconds_per_million for run in runs]
    return ContenderResult(
        name=name,
        title=title,
        changes_per_second=Spread.of([run.changes_per_second for run in runs]),
        ratio=ratios(runs, reference),
        start_up_seconds=Spread.of([run.start_up_seconds for run in runs]),
        peak_bytes=Spread.of([run.peak_bytes for run in runs]),
        cpu_seconds_per_million=Spread.of([run.cpu_seconds_per_million for run in runs]),
        server_cpu_seconds_per_million=Spread.of([cpu for cpu in server_cpu if cpu is not None])
        if None not in server_cpu
        else None,
        runs=runs,
    )
