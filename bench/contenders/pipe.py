"""`pg_recvlogical` through a pipe into Python: the program `bench.pipe_reader`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bench.contenders.contender import ENVIRONMENT, Contender, Job, Outcome, outcome
from bench.contenders.recvlogical import command
from bench.processes import Measured

__all__ = ["Pipe"]


class Pipe(Contender):
    """The C client, and a reader that does nothing but look at the clock."""

    def run(self, job: Job) -> Outcome:
        """See `Contender`. It ends by itself."""
        with self.start(job) as process:
            process.wait(job.timeout)
        return outcome(process, self.reports(job))

    def start(self, job: Job) -> Measured:
        """Start reader and client."""
        [report] = self.reports(job)
        task = {
            "command": list(map(str, command(job.server, job.slot, job.options, "-"))),
            "changes": job.backlog.changes,
            "report": str(report),
        }
        return Measured([sys.executable, "-m", "bench.pipe_reader", json.dumps(task)], ENVIRONMENT, job.folder / "log")

    def is_done(self, job: Job) -> bool:
        """Whether the last row has come."""
        return all(report.exists() for report in self.reports(job))

    def reports(self, job: Job) -> list[Path]:
        """The file that the reader writes at its end."""
        return [job.folder / "report.json"]
