"""One large transaction through `cdc run`: does memory stay bounded, and does the server hear from us meanwhile?"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from bench.backlog import one_transaction
from bench.contenders import CdcRun, Job
from bench.results import MemoryResult
from bench.rounds import Say
from bench.server import Server

__all__ = ["measure"]

REPLY_TIME = """
SELECT extract(epoch FROM reply_time) FROM pg_stat_replication WHERE reply_time IS NOT NULL
"""


def measure(server: Server, options: Mapping[str, str], rows: int, say: Say) -> MemoryResult:
    """One transaction of `rows` inserts, one no-op callback."""
    say(f"memory: one transaction of {rows:,} rows")
    contender = CdcRun("memory", "cdc run, 1 no-op callback")
    replies: set[float] = set()
    with (
        one_transaction(server, rows) as backlog,
        server.copy_of(backlog.slots[contender.plugin]) as slot,
        tempfile.TemporaryDirectory(prefix="walsignal-bench-") as folder,
    ):
        job = Job(server, backlog, slot, Path(folder), options)

        def done() -> bool:
            replies.update(float(str(time)) for (time,) in server.execute(REPLY_TIME))
            return contender.is_done(job)

        with contender.start(job) as process:
            process.wait_until(done, job.timeout)
            process.stop()
        end = contender.outcome(process, job)
        began = server.stream_began(slot)
    heard = [began, *sorted(reply for reply in replies if began < reply < end.ended), end.ended]
    return MemoryResult(
        transaction_rows=rows,
        seconds=end.ended - began,
        peak_bytes=end.peak_bytes,
        cpu_seconds=end.cpu_seconds,
        status_updates=len(heard) - 2,
        longest_between_status_updates_seconds=max(b - a for a, b in pairwise(heard)),
    )
