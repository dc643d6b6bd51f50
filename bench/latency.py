"""From the commit to the callback, under a steady rate of transactions of one row.

The time is that from the commit's timestamp, as it is in the stream, to `time.time()` as the first thing that the
callback does: both are the clock of this machine. The server takes the timestamp just before it writes the commit to
the WAL; a time taken by the statement would count the rest of the statement and the client's way, too.

Each contender alone listens while pgbench writes, one after the other, in rounds: writers, server and contender share
the machine's cores, as in life. What was committed in the first second is left out. `fsync` is off: the disk's time,
which is the same for all, is no part of it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from math import ceil
from pathlib import Path
from typing import Protocol

from bench import load
from bench.backlog import WAL2JSON, Backlog
from bench.contenders import CdcRun, Job, Pipe, Psycopg2Loop
from bench.processes import Measured
from bench.results import LatencyResult, LatencyRun, latency_of
from bench.rounds import Say
from bench.server import BenchError, Server

__all__ = ["LISTENERS", "PIPE", "measure"]

SKIPPED_SECONDS = 1
START_SECONDS = 30.0


class Listener(Protocol):
    """A contender that can be started before there is anything to read."""

    name: str
    title: str

    @property
    def missing(self) -> str:
        """See `bench.contenders.Contender`."""

    def start(self, job: Job) -> Measured:
        """Start it."""

    def is_done(self, job: Job) -> bool:
        """Whether the last change was handled."""

    def reports(self, job: Job) -> list[Path]:
        """Where its callback tells of each change."""


PIPE = "pipe"
LISTENERS: tuple[Listener, ...] = (
    Pipe(PIPE, "pg_recvlogical through a pipe"),
    CdcRun("noop", "cdc run, 1 no-op callback", callback="Stamps"),
    Psycopg2Loop("psycopg2", "psycopg2 loop with wait_for", callback="StampsChange"),
)


def measure(
    server: Server, options: Mapping[str, str], *, rate: int, seconds: int, rounds: int, say: Say
) -> LatencyResult:
    """All listeners, `rounds` times, `seconds` each."""
    able = [listener for listener in LISTENERS if not listener.missing]
    runs: dict[str, list[LatencyRun]] = {listener.name: [] for listener in able}
    say(f"latency: {rate:,} transactions/s")
    for number in range(rounds):
        shift = number % len(able)
        for listener in able[shift:] + able[:shift]:
            run = _one_run(server, listener, options, rate, seconds, number + 1)
            say(f"round {run.round}: {listener.title}: p50 {run.p50 * 1000:.2f} ms, p99 {run.p99 * 1000:.2f} ms")
            runs[listener.name].append(run)
    return LatencyResult(
        rate=rate,
        seconds=seconds,
        rounds=rounds,
        contenders=[latency_of(one.name, one.title, runs[one.name], runs[PIPE]) for one in able],
        missing=[f"{one.title}: {one.missing}" for one in LISTENERS if one.missing],
    )


def _one_run(
    server: Server, listener: Listener, options: Mapping[str, str], rate: int, seconds: int, number: int
) -> LatencyRun:
    transactions = ceil(rate * (SKIPPED_SECONDS + seconds) / load.CLIENTS) * load.CLIENTS
    load.prepare(server)
    with server.slot("latency") as slot, tempfile.TemporaryDirectory(prefix="walsignal-bench-") as folder:
        job = Job(server, Backlog({WAL2JSON: slot}, transactions, 1, ""), slot, Path(folder), options)
        with listener.start(job) as process:
            process.wait_until(lambda: server.is_streamed(slot), START_SECONDS)
            load.run(server, rate, transactions, job.folder)
            process.wait_until(lambda: listener.is_done(job), job.timeout)
            process.stop()
        [report] = listener.reports(job)
        samples = json.loads(report.read_text())["samples"]
    return _run_of(number, [(datetime.fromisoformat(commit).timestamp(), time) for commit, time in samples])


def _run_of(number: int, samples: Sequence[tuple[float, float]]) -> LatencyRun:
    """From pairs of commit and call, seconds since 1970."""
    first = min(commit for commit, _ in samples) + SKIPPED_SECONDS
    commits = sorted(commit for commit, _ in samples if commit >= first)
    waits = sorted(received - commit for commit, received in samples if commit >= first)
    if not waits:
        raise BenchError("nothing was committed after the first second")
    return LatencyRun(
        round=number,
        samples=len(waits),
        transactions_per_second=len(commits) / max(commits[-1] - commits[0], 1e-6),
        p50=percentile(waits, 50),
        p99=percentile(waits, 99),
        p999=percentile(waits, 99.9),
        longest=waits[-1],
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """Of sorted `values` the least that `percent` of them do not exceed (nearest rank)."""
    return values[max(0, ceil(len(values) * percent / 100) - 1)]
