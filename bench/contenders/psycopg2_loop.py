"""The loop of `bench.psycopg2_loop`, as a process of its own."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

from bench.contenders.contender import ENVIRONMENT, Contender, Job, Outcome, outcome
from bench.processes import Measured

__all__ = ["Psycopg2Loop"]


class Psycopg2Loop(Contender):
    """`callback` names a class of `bench.handlers`."""

    def __init__(self, name: str, title: str, callback: str = "NoOp") -> None:
        super().__init__(name, title)
        self._callback = callback

    @property
    def missing(self) -> str:
        """See `Contender`."""
        return "" if importlib.util.find_spec("psycopg2") else "psycopg2 is not installed"

    def run(self, job: Job) -> Outcome:
        """See `Contender`. It is done when its callback has reported."""
        with self.start(job) as process:
            process.wait_until(lambda: self.is_done(job), job.timeout)
            process.stop()
        return outcome(process, self.reports(job))

    def start(self, job: Job) -> Measured:
        """Start the process."""
        [report] = self.reports(job)
        task = {
            "dsn": job.server.dsn,
            "slot": job.slot,
            "options": dict(job.options),
            "callback": self._callback,
            "changes": job.backlog.changes,
            "report": str(report),
        }
        command = [sys.executable, "-m", "bench.psycopg2_loop", json.dumps(task)]
        return Measured(command, ENVIRONMENT, job.folder / "log")

    def is_done(self, job: Job) -> bool:
        """Whether the callback has seen the last change."""
        return all(report.exists() for report in self.reports(job))

    def reports(self, job: Job) -> list[Path]:
        """The file that the callback writes when it has seen all changes."""
        return [job.folder / "report.json"]
