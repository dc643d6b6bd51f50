"""One contender once through a backlog, and all of them in rounds: the one way in which everything is timed.

The clock starts when the server receives the contender's START_REPLICATION (from the server's log) and stops when
the contender has handled the last change of the backlog. pg_recvlogical has when it ends: it ends by itself behind
the last change. A Python contender has when the callback (of several, the last) has returned that change's count.
Start-up, from the start of the process to START_REPLICATION, is a figure of its own, and its CPU time is not
counted. A contender that must warm up has a later start of its clock: see `bench.contenders.debezium`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench.backlog import Backlog
from bench.contenders import Contender, Job
from bench.results import MILLION, Run
from bench.server import Server

__all__ = ["Say", "in_rounds", "one_run"]

Say = Callable[[str], None]


def in_rounds(
    server: Server,
    contenders: Sequence[Contender],
    backlog: Backlog,
    options: Mapping[str, str],
    *,
    rounds: int,
    say: Say,
) -> dict[str, list[Run]]:
    """Each contender's runs, by its name. The first of all is thrown away: it brings the WAL into the page cache."""
    runs: dict[str, list[Run]] = {contender.name: [] for contender in contenders}
    one_run(server, contenders[0], backlog, options, 0)
    for number in range(rounds):
        # Each begins a round once: what the one before leaves behind must not always meet the same.
        shift = number % len(contenders)
        for contender in [*contenders[shift:], *contenders[:shift]]:
            run = one_run(server, contender, backlog, options, number + 1)
            say(f"round {run.round}: {contender.title}: {run.changes_per_second:,.0f} changes/s")
            runs[contender.name].append(run)
    return runs


def one_run(server: Server, contender: Contender, backlog: Backlog, options: Mapping[str, str], number: int) -> Run:
    """The contender over its own copy of the slot."""
    slot = backlog.slots[contender.plugin]
    with server.copy_of(slot) as copy, tempfile.TemporaryDirectory(prefix="walsignal-bench-") as folder:
        cpu_before = server.cpu_seconds()
        outcome = contender.run(Job(server, backlog, copy, Path(folder), options))
        cpu_after = server.cpu_seconds()
        streamed = server.stream_began(copy)
    began = streamed if outcome.began is None else outcome.began
    seconds = outcome.ended - began
    counted = backlog.changes - outcome.warm_up_changes
    return Run(
        round=number,
        seconds=seconds,
        start_up_seconds=streamed - outcome.started,
        warm_up_changes=outcome.warm_up_changes,
        changes_per_second=counted / seconds,
        peak_bytes=outcome.peak_bytes,
        cpu_seconds_per_million=outcome.cpu_seconds * MILLION / counted,
        server_cpu_seconds_per_million=None
        if cpu_before is None or cpu_after is None
        else (cpu_after - cpu_before) * MILLION / backlog.changes,
    )
