"""What a contender is: its task, what it says of its run, and the settings that are the same for all.

It must not know of rounds, medians or tables.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bench.backlog import WAL2JSON, Backlog
from bench.processes import Measured
from bench.server import Server
from cdc.patterns import TablePatterns
from cdc.replication.connection import SESSION
from cdc.session import NUMBERS_AS_TEXT, server_filters
from cdc.transactions import Selection
from cdc.wal2json import OPTIONS

__all__ = ["ENVIRONMENT", "REPOSITORY", "Contender", "Job", "Outcome", "outcome", "plugin_options"]

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SLOWEST_CHANGES_PER_SECOND = 2000
GRACE_SECONDS = 60.0  # for a machine with other work to do
ENVIRONMENT = {"PGOPTIONS": " ".join(f"-c {setting}" for setting in SESSION), "PYTHONPATH": str(REPOSITORY)}
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
    """A run as seen from the contender's side; times in seconds since 1970, CPU without the start-up's.

    A contender that must warm up says when it was warm (`began`) and how many changes it had handled by then:
    they and the CPU time before count for nothing.
    """

    started: float
    ended: float
    peak_bytes: int
    cpu_seconds: float
    began: float | None = None
    warm_up_changes: int = 0


class Contender(ABC):
    """Someone who can read the backlog."""

    plugin: ClassVar[str] = WAL2JSON

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


def plugin_options(server: Server) -> dict[str, str]:
    """What `cdc run` asks the plugin for with its default configuration, on this server."""
    options = OPTIONS | server_filters(Selection(TablePatterns(("*.*",), ())))
    with server.slot("options") as slot:
        [(name, value)] = NUMBERS_AS_TEXT.items()
        known = server.understands(slot, name, value)
    return options | NUMBERS_AS_TEXT if known else options


def outcome(process: Measured, reports: Sequence[Path]) -> Outcome:
    """From a process that has ended and what its callbacks have reported (`bench.reporting`)."""
    facts = [json.loads(report.read_text()) for report in reports]
    warm = facts[0].get("warm", {})
    return Outcome(
        process.started,
        max(fact["ended"] for fact in facts),
        process.peak_bytes,
        process.cpu_seconds - min(warm.get("cpu", fact["cpu_at_start"]) for fact in facts),
        began=warm.get("time"),
        warm_up_changes=warm.get("changes", 0),
    )
