"""Changes per second: every contender over its own copy of the same slot, one at a time, in rounds.

How the time is taken, the same way for all: the clock starts when the server receives the contender's
START_REPLICATION (from the server's log) and stops when the contender has handled the last change of
the backlog. pg_recvlogical has when it ends: it ends by itself behind the last change. A Python
contender has when the callback (of several, the last) has returned that change's count. Start-up, from the
start of the process to START_REPLICATION, is a figure of its own, and its CPU time is not counted.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench.backlog import Backlog, mixed
from bench.contenders import REFERENCE, Contender, Job
from bench.results import MILLION, Run, ThroughputResult, summed_up
from bench.server import BenchError, Server

__all__ = ["measure"]

Say = Callable[[str], None]


def measure(
    server: Server,
    contenders: Sequence[Contender],
    options: Mapping[str, str],
    *,
    changes: int,
    transaction_rows: int,
    rounds: int,
    say: Say,
) -> ThroughputResult:
    """All contenders, `rounds` times, over one backlog."""
    able = [contender for contender in contenders if not contender.missing]
    if not able:
        raise BenchError("; ".join(f"{one.title}: {one.missing}" for one in contenders))
    runs: dict[str, list[Run]] = {contender.name: [] for contender in able}
    say(f"backlog: {changes:,} changes in transactions of {transaction_rows}")
    with mixed(server, changes, transaction_rows) as backlog:
        say("warm-up, thrown away")
        _one_run(able[0], server, backlog, options, 0)
        for number in range(rounds):
            # Each begins a round once: what the one before leaves behind must not always meet the same.
            shift = number % len(able)
            for contender in able[shift:] + able[:shift]:
                run = _one_run(contender, server, backlog, options, number + 1)
                say(f"round {run.round}: {contender.title}: {run.changes_per_second:,.0f} changes/s")
                runs[contender.name].append(run)
    reference = runs.get(REFERENCE, [])
    return ThroughputResult(
        changes=backlog.changes,
        transaction_rows=backlog.transaction_rows,
        rounds=rounds,
        contenders=[summed_up(one.name, one.title, runs[one.name], reference) for one in able],
        missing=[f"{one.title}: {one.missing}" for one in contenders if one.missing],
    )


def _one_run(contender: Contender, server: Server, backlog: Backlog, options: Mapping[str, str], number: int) -> Run:
    with server.copy_of(backlog.slot) as slot, tempfile.TemporaryDirectory(prefix="walsignal-bench-") as folder:
        cpu_before = server.cpu_seconds()
        outcome = contender.run(Job(server, backlog, slot, Path(folder), options))
        cpu_after = server.cpu_seconds()
        began = server.stream_began(slot)
    seconds = outcome.ended - began
    millions = backlog.changes / MILLION
    return Run(
        round=number,
        seconds=seconds,
        start_up_seconds=began - outcome.started,
        changes_per_second=backlog.changes / seconds,
        peak_bytes=outcome.peak_bytes,
        cpu_seconds_per_million=outcome.cpu_seconds / millions,
        server_cpu_seconds_per_million=None
        if cpu_before is None or cpu_after is None
        else (cpu_after - cpu_before) / millions,
    )
