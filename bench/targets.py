"""What it must reach, and whether it does: pure arithmetic over a report.

Throughput is that of transactions of 1,000 rows. The ratios are of runs of the same round; the bounds are asked of
their median, for the machines are noisy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from bench.contenders import REFERENCE
from bench.report import Report
from bench.results import LatencyContender, Run, Spread, ratios

__all__ = ["Verdict", "verdicts"]

TRANSACTION_ROWS = 1000
RATE = 1000
LARGE_ROWS = 5_000_000
PACES = (
    # contender, compared with, at least, case
    ("noop", REFERENCE, 0.90, "one no-op callback / pg_recvlogical"),
    ("values", REFERENCE, 0.75, "one callback reading every value / pg_recvlogical"),
    ("noop10", REFERENCE, 0.75, "10 no-op callbacks / pg_recvlogical"),
    ("noop", "debezium", 4.5, "one no-op callback / Debezium's engine, warm"),
    ("noop", "psycopg2", 4.0, "one no-op callback / psycopg2 loop with wait_for"),
)
LATENCIES: tuple[tuple[Callable[[LatencyContender], Spread], float, str], ...] = (
    (lambda one: one.p50, 0.0005, "p50 latency at 1,000 tx/s, s"),
    (lambda one: one.p99, 0.003, "p99 latency at 1,000 tx/s, s"),
    (lambda one: one.ratio_p50, 2.0, "p50 at 1,000 tx/s / that of the pipe"),
    (lambda one: one.ratio_p99, 2.0, "p99 at 1,000 tx/s / that of the pipe"),
)
LARGE_MEGABYTES = 150.0
START_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line of the table; `reached` is None when it was not measured."""

    case: str
    bound: str
    reached: Spread | None
    passed: bool
    style: str  # of the figures, a format specification

    @property
    def word(self) -> str:
        """pass, short, or not measured."""
        if self.reached is None:
            return "not measured"
        return "pass" if self.passed else "short"


def verdicts(report: Report) -> list[Verdict]:
    """A line for each bound."""
    return [*_paces(report), *_latencies(report), _large(report), _start(report)]


def _paces(report: Report) -> Iterator[Verdict]:
    runs: Mapping[str, list[Run]] = {
        contender.name: list(contender.runs)
        for result in report.throughput
        if result.transaction_rows == TRANSACTION_ROWS
        for contender in result.contenders
    }
    for name, other, least, case in PACES:
        reached = ratios(runs.get(name, []), runs.get(other, []))
        yield Verdict(case, f"at least {least:g}", reached, reached is not None and reached.median >= least, ".2f")


def _latencies(report: Report) -> Iterator[Verdict]:
    found = [one for result in report.latency if result.rate == RATE for one in result.contenders if one.name == "noop"]
    for read, most, case in LATENCIES:
        yield _at_most(case, most, read(found[0]) if found else None, ".5f" if most < 1 else ".2f")


def _large(report: Report) -> Verdict:
    peaks = [result.peak_bytes / 1e6 for result in report.memory if result.transaction_rows == LARGE_ROWS]
    case = f"peak resident, one transaction of {LARGE_ROWS:,} rows, MB"
    return _at_most(case, LARGE_MEGABYTES, Spread.of(peaks) if peaks else None, ".0f")


def _start(report: Report) -> Verdict:
    reached = None if report.faults is None else report.faults.start_to_stream
    return _at_most("cdc run to streaming, warm disk, s", START_SECONDS, reached, ".2f")


def _at_most(case: str, most: float, reached: Spread | None, style: str) -> Verdict:
    return Verdict(case, f"at most {most:g}", reached, reached is not None and reached.median <= most, style)
