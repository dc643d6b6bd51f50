"""Who is measured: how each is started, how it says that it is done, how it is stopped.

Owns command lines and configuration files. It must not know of rounds, medians or tables.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.backlog import Backlog
from bench.processes import Measured
from bench.server import BenchError, Server
from cdc.patterns import TablePatterns
from cdc.replication.connection import SESSION
from cdc.session import NUMBERS_AS_TEXT, server_filters
from cdc.transactions import Selection
from cdc.wal2json import OPTIONS

__all__ = ["CONTENDERS", "REFERENCE", "CdcRun", "Contender", "Job", "Outcome", "plugin_options"]

REPOSITORY = Path(__file__).resolve().parent.parent
SLOWEST_CHANGES_PER_SECOND = 2000
GRACE_SECONDS = 60.0  # for a machine with other work to do
ENVIRONMENT = {"PGOPTIONS": " ".join(f"-c {setting}" for setting in SESSION)}
"""The session settings that `cdc run` streams with, for all contenders: the output depends on them."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run's task: its own copy of the slot, and an empty folder for its files."""

    server: Server
    backlog: Backlog
    slot: str
    folder: Path
    options: Mapping[str, str]

    @property
    def timeout(self) -> float:
        """Seconds after which the run has failed."""
        return GRACE_SECONDS + self.backlog.changes / SLOWEST_CHANGES_PER_SECOND


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run as seen from the contender's side; times in seconds since 1970, CPU without the start-up's."""

    started: float
    ended: float
    peak_bytes: int
    cpu_seconds: float


class Contender(ABC):
    """Someone who can read the backlog."""

    def __init__(self, name: str, title: str) -> None:
        self.name = name
        self.title = title

    @property
    def missing(self) -> str:
        """Why it cannot run on this machine; empty when it can."""
        return ""

    @abstractmethod
    def run(self, job: Job) -> Outcome:
        """Read the backlog from its first change to its last."""


class RecvLogical(Contender):
    """PostgreSQL's own client, writing to a file: the pace of the walsender."""

    def run(self, job: Job) -> Outcome:
        """See `Contender`. It is done when it ends."""
        output = job.folder / "stream.jsonl"
        command: list[str | Path] = [
            job.server.cluster.bindir / "pg_recvlogical",
            "--start",
            "--no-loop",
            "--fsync-interval=0",
            f"--dbname={job.server.dsn}",
            f"--slot={job.slot}",
            f"--endpos={job.backlog.end_lsn}",
            f"--file={output}",
        ]
        command += [f"--option={key}={value}" for key, value in job.options.items()]
        with Measured(command, ENVIRONMENT, job.folder / "log") as process:
            process.wait(job.timeout)
        changes = _count_changes(output)
        if changes != job.backlog.changes:
            raise BenchError(f"pg_recvlogical wrote {changes} changes of {job.backlog.changes}")
        return Outcome(process.started, process.ended, process.peak_bytes, process.cpu_seconds)


class CdcRun(Contender):
    """`cdc run` with everything on: SQLite checkpoints, HTTP, routing, timeouts, feedback."""

    def __init__(self, name: str, title: str, callback: str = "NoOp", callbacks: int = 1) -> None:
        super().__init__(name, title)
        self._callback = callback
        self._callbacks = callbacks

    def run(self, job: Job) -> Outcome:
        """See `Contender`. It is done when its last callback has reported."""
        with self.start(job) as process:
            reports = self.reports(job)
            process.wait_until(lambda: all(report.exists() for report in reports), job.timeout)
            process.stop()
        return outcome(process, reports)

    def start(self, job: Job, wrapper: Sequence[str | Path] = ()) -> Measured:
        """Write the configuration and start the service."""
        config = job.folder / "cdc.toml"
        config.write_text(self._configuration(job))
        command = [*wrapper, sys.executable, "-m", "cdc.cli", "run", "--config", config]
        return Measured(command, ENVIRONMENT, job.folder / "log")

    def reports(self, job: Job) -> list[Path]:
        """The files that the callbacks write when they have seen all changes."""
        return [job.folder / f"report-{number}.json" for number in range(self._callbacks)]

    def _configuration(self, job: Job) -> str:
        lines = [
            f"python_path = [{_toml(str(REPOSITORY))}]",
            "[source]",
            f"dsn = {_toml(job.server.dsn)}",
            f"slot = {_toml(job.slot)}",
            "create_slot = false",
            "[http]",
            "port = 0",
            "[log]",
            'format = "json"',
        ]
        for number, report in enumerate(self.reports(job)):
            lines += [
                "[[handlers]]",
                f'name = "callback-{number}"',
                f'callback = "bench.handlers:{self._callback}"',
                f"options = {{ changes = {job.backlog.changes}, report = {_toml(str(report))} }}",
            ]
        return "\n".join(lines)


class Psycopg2Loop(Contender):
    """The loop of `bench.psycopg2_loop`."""

    @property
    def missing(self) -> str:
        """See `Contender`."""
        return "" if importlib.util.find_spec("psycopg2") else "psycopg2 is not installed"

    def run(self, job: Job) -> Outcome:
        """See `Contender`. It is done when its callback has reported."""
        report = job.folder / "report.json"
        arguments = [job.server.dsn, job.slot, json.dumps(dict(job.options)), str(job.backlog.changes), str(report)]
        command = [sys.executable, "-m", "bench.psycopg2_loop", *arguments]
        with Measured(command, ENVIRONMENT | {"PYTHONPATH": str(REPOSITORY)}, job.folder / "log") as process:
            process.wait_until(report.exists, job.timeout)
            process.stop()
        return outcome(process, [report])


REFERENCE = "recvlogical"
CONTENDERS: tuple[Contender, ...] = (
    RecvLogical(REFERENCE, "pg_recvlogical to a file"),
    CdcRun("noop", "cdc run, 1 no-op callback"),
    CdcRun("values", "cdc run, 1 callback reads every value", callback="ReadsEveryValue"),
    CdcRun("noop10", "cdc run, 10 no-op callbacks", callbacks=10),
    Psycopg2Loop("psycopg2", "psycopg2 loop with wait_for"),
)


def plugin_options(server: Server) -> dict[str, str]:
    """What `cdc run` asks the plugin for with its default configuration, on this server."""
    options = OPTIONS | server_filters(Selection(TablePatterns(("*.*",), ())))
    with server.slot("options") as slot:
        [(name, value)] = NUMBERS_AS_TEXT.items()
        known = server.understands(slot, name, value)
    return options | NUMBERS_AS_TEXT if known else options


def outcome(process: Measured, reports: Sequence[Path]) -> Outcome:
    """From a process that has ended and what its callbacks have reported."""
    facts = [json.loads(report.read_text()) for report in reports]
    return Outcome(
        process.started,
        max(fact["ended"] for fact in facts),
        process.peak_bytes,
        process.cpu_seconds - min(fact["cpu_at_start"] for fact in facts),
    )


def _count_changes(file: Path) -> int:
    with file.open("rb") as lines:
        return sum(line.startswith((b'{"action":"I"', b'{"action":"U"', b'{"action":"D"')) for line in lines)


def _toml(text: str) -> str:
    return json.dumps(text.replace("$", "$$"))  # a basic string of TOML is written as in JSON
