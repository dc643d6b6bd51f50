"""PostgreSQL's own client, writing to a file: the pace of the walsender, and so the limit for all others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bench.contenders.contender import ENVIRONMENT, Contender, Job, Outcome
from bench.processes import Measured
from bench.server import BenchError, Server

__all__ = ["RecvLogical", "command"]

ROWS = (b'{"action":"I"', b'{"action":"U"', b'{"action":"D"')


class RecvLogical(Contender):
    """`pg_recvlogical` with our options. It writes and never syncs: the disk is no part of the limit."""

    def run(self, job: Job) -> Outcome:
        """See `Contender`. It is done when it ends."""
        output = job.folder / "stream.jsonl"
        arguments = [*command(job.server, job.slot, job.options, output), f"--endpos={job.backlog.end_lsn}"]
        with Measured(arguments, ENVIRONMENT, job.folder / "log") as process:
            process.wait(job.timeout)
        changes = count_changes(output)
        if changes != job.backlog.changes:
            raise BenchError(f"pg_recvlogical wrote {changes} changes of {job.backlog.changes}")
        return Outcome(process.started, process.ended, process.peak_bytes, process.cpu_seconds)


def command(server: Server, slot: str, options: Mapping[str, str], output: Path | str) -> list[str | Path]:
    """The command line that streams `slot` to `output` (``-`` is its standard output) for ever."""
    return [
        server.cluster.bindir / "pg_recvlogical",
        "--start",
        "--no-loop",
        "--fsync-interval=0",
        f"--dbname={server.dsn}",
        f"--slot={slot}",
        f"--file={output}",
        *(f"--option={key}={value}" for key, value in options.items()),
    ]


def count_changes(file: Path) -> int:
    """Inserts, updates and deletes in what it has written."""
    with file.open("rb") as lines:
        return sum(line.startswith(ROWS) for line in lines)
