"""What starts, faults and stops cost: `cdc run` to streaming, a server that was killed, a stop in full work.

On a cluster of its own, for it is killed. When the stream begins is read off the server's log; when the service says
that it is streaming off the service's. How long the server is away decides how long the service has learnt to wait
between its attempts: after five seconds, which is a restart in real life, the waits have grown to seconds. The first
start is thrown away: its files came from the disk.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from bench.backlog import WAL2JSON, Backlog, mixed
from bench.contenders import CdcRun, Job
from bench.contenders.service import log_lines
from bench.processes import Measured
from bench.results import FaultsResult, Spread
from bench.rounds import Say
from bench.server import SETTINGS, BenchError, Server
from cdc.demo.cluster import Cluster

__all__ = ["measure"]

SLOT = "faults"
PATIENCE_SECONDS = 60.0
DRAIN_CHANGES = 100_000
"""In the backlog: what is left of it when a quarter is done takes longer than to send a signal."""
DRAIN_ATTEMPTS = 5
"""Per round: on a busy machine the signal may come when all is done."""
READY = "database system is ready to accept connections"


@dataclass(frozen=True, slots=True)
class _Life:
    """One start, and one death of the server."""

    start_to_stream: float
    start_to_phase: float
    away: float
    back_to_stream: float
    back_to_phase: float


def measure(options: Mapping[str, str], *, away_seconds: float, rounds: int, say: Say) -> FaultsResult:
    """`rounds` times each; the stop comes in the middle of a backlog."""
    with Cluster(settings=SETTINGS) as cluster:
        with Server(cluster) as server:
            server.execute("SELECT pg_create_logical_replication_slot(%s, 'wal2json')", SLOT)
        lives: list[_Life] = []
        for number in range(rounds + 1):
            life = _life(cluster, options, away_seconds)
            if number > 0:
                lives.append(life)
                say(
                    f"faults: round {number}: streaming {life.start_to_stream:.2f} s after the start, "
                    f"{life.back_to_stream:.2f} s after the server was back"
                )
        with Server(cluster) as server:
            server.execute("SELECT pg_drop_replication_slot(%s)", SLOT)
            drains = _drains(server, options, rounds, say)
    return FaultsResult(
        rounds=rounds,
        start_to_stream=Spread.of([life.start_to_stream for life in lives]),
        start_to_phase=Spread.of([life.start_to_phase for life in lives]),
        away=Spread.of([life.away for life in lives]),
        back_to_stream=Spread.of([life.back_to_stream for life in lives]),
        back_to_phase=Spread.of([life.back_to_phase for life in lives]),
        drain=Spread.of(drains),
    )


def _life(cluster: Cluster, options: Mapping[str, str], away_seconds: float) -> _Life:
    service = CdcRun("faults", "cdc run")
    with Server(cluster) as server, tempfile.TemporaryDirectory(prefix="walsignal-bench-") as folder:
        job = Job(server, Backlog({WAL2JSON: SLOT}, 1, 1, ""), SLOT, Path(folder), options)
        with service.start(job) as process:
            said = _said_streaming(process, job, 1)
            began = server.stream_began(SLOT)
            killed = time.time()
            cluster.kill()
            time.sleep(away_seconds)
            cluster.start()
            said_again = _said_streaming(process, job, 2)
            ready, began_again = server.times(READY)[-1], server.stream_began(SLOT)
            process.stop()
    return _Life(
        began - process.started, said - process.started, ready - killed, began_again - ready, said_again - ready
    )


def _said_streaming(process: Measured, job: Job, times: int) -> float:
    """When the service has said so for the `times`-th time, seconds since 1970."""
    log = job.folder / "log"

    def said() -> Sequence[float]:
        lines = [line for line in log_lines(log) if line["event"] == "streaming"]
        return [datetime.fromisoformat(line["timestamp"]).timestamp() for line in lines]

    process.wait_until(lambda: len(said()) >= times, PATIENCE_SECONDS)
    return said()[times - 1]


def _drains(server: Server, options: Mapping[str, str], rounds: int, say: Say) -> list[float]:
    seconds: list[float] = []
    with mixed(server, DRAIN_CHANGES, 1000) as backlog:
        for _ in range(rounds * DRAIN_ATTEMPTS):
            if (drained := _drain(server, options, backlog)) is not None:
                seconds.append(drained)
                say(f"faults: round {len(seconds)}: drained within {drained:.2f} s")
            if len(seconds) == rounds:
                return seconds
    raise BenchError("the backlog was done before the service was told to stop: the machine is too busy for this part")


def _drain(server: Server, options: Mapping[str, str], backlog: Backlog) -> float | None:
    """Seconds from SIGTERM to the end of the service; None when the machine stood still until all was done."""
    # It reports, and is told to stop, when a quarter of the backlog is done.
    service = CdcRun("drain", "cdc run", options={"changes": DRAIN_CHANGES // 4})
    with (
        server.copy_of(backlog.slots[WAL2JSON]) as slot,
        tempfile.TemporaryDirectory(prefix="walsignal-bench-") as folder,
    ):
        job = Job(server, backlog, slot, Path(folder), options)
        with service.start(job) as process:
            process.wait_until(lambda: service.is_done(job), job.timeout)
            told = time.time()
            os.kill(process.pid, signal.SIGTERM)
            process.wait(PATIENCE_SECONDS)
        query = "SELECT confirmed_flush_lsn < %s::pg_lsn FROM pg_replication_slots WHERE slot_name = %s"
        was_in_work = server.value(query, backlog.end_lsn, slot) == "True"
        return process.ended - told if was_in_work else None
