"""`cdc run` with the built-in `file_wal` handler, as users configure it.

When it is done is seen from outside, for the handler is to run as it is: twice a second the service is asked
how many events it has settled, and the time of the last one is that of the last write to its files, as the
file system has it. That is before the fsync of the last of thousands of batches, and so a few milliseconds early.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from urllib.request import urlopen

from bench.contenders.contender import Job, Outcome
from bench.contenders.service import CdcRun, Section, log_lines
from bench.processes import Measured

__all__ = ["FileWalRun"]

NAME = "log"
ASK_SECONDS = 0.5  # an answer costs the service a millisecond


class FileWalRun(CdcRun):
    """Beside it is a callback that wants nothing, and only says how much CPU the start has taken."""

    def __init__(self, name: str, title: str) -> None:
        super().__init__(name, title, callback="Bystander", handler={"tables": ["nothing.at_all"]})
        self._next_question = 0.0

    def handlers(self, job: Job) -> list[Section]:
        """See `CdcRun`."""
        wal = {"name": NAME, "callback": "file_wal", "options": {"directory": str(_files(job))}}
        return [*super().handlers(job), wal]

    def is_done(self, job: Job) -> bool:
        """See `CdcRun`."""
        if time.monotonic() < self._next_question:
            return False
        self._next_question = time.monotonic() + ASK_SECONDS
        ports = [line["port"] for line in log_lines(job.folder / "log") if line["event"] == "http_listening"]
        if not ports:
            return False
        with urlopen(f"http://127.0.0.1:{ports[0]}/status", timeout=job.timeout) as answer:
            callbacks = json.loads(answer.read())["callbacks"]
        return any(one["name"] == NAME and one["ok"] >= job.backlog.changes for one in callbacks)

    def run(self, job: Job) -> Outcome:
        """See `Contender`."""
        with self.start(job) as process:
            process.wait_until(lambda: self.is_done(job), job.timeout)
            ended = max(file.stat().st_mtime for file in _files(job).rglob("*"))
            process.stop()
        return self._outcome(process, job, ended)

    def _outcome(self, process: Measured, job: Job, ended: float) -> Outcome:
        [report] = self.reports(job)
        cpu_at_start = json.loads(report.read_text())["cpu_at_start"]
        return Outcome(process.started, ended, process.peak_bytes, process.cpu_seconds - cpu_at_start)


def _files(job: Job) -> Path:
    return job.folder / "events"
