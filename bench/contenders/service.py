"""`cdc run` with everything on: SQLite checkpoints, HTTP, routing, timeouts, feedback.

Owns its configuration file and its command line; of the service itself it knows no more than a user does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.contenders.contender import ENVIRONMENT, REPOSITORY, Contender, Job, Outcome, outcome
from bench.processes import Measured

__all__ = ["CdcRun", "log_lines"]

Section = Mapping[str, Any]


class CdcRun(Contender):
    """The service with callbacks of `bench.handlers`.

    `callback` names their class, `options` are more of its options than `changes` and `report`; `source`,
    `tag_rules` and `handler` are keys of the configuration beside those that all have.
    """

    def __init__(
        self,
        name: str,
        title: str,
        callback: str = "NoOp",
        callbacks: int = 1,
        *,
        options: Section | None = None,
        source: Section | None = None,
        handler: Section | None = None,
        tag_rules: Sequence[Section] = (),
    ) -> None:
        super().__init__(name, title)
        self._callback = callback
        self._callbacks = callbacks
        self._options = options or {}
        self._source = source or {}
        self._handler = handler or {}
        self._tag_rules = tag_rules

    def run(self, job: Job) -> Outcome:
        """See `Contender`. It is done when its last callback has reported."""
        with self.start(job) as process:
            process.wait_until(lambda: self.is_done(job), job.timeout)
            process.stop()
        return self.outcome(process, job)

    def start(self, job: Job, wrapper: Sequence[str | Path] = ()) -> Measured:
        """Write the configuration and start the service."""
        config = job.folder / "cdc.toml"
        config.write_text(self.configuration(job))
        command = [*wrapper, sys.executable, "-m", "cdc.cli", "run", "--config", config]
        return Measured(command, ENVIRONMENT, job.folder / "log")

    def is_done(self, job: Job) -> bool:
        """Whether the last change of the backlog has been handled."""
        return all(report.exists() for report in self.reports(job))

    def outcome(self, process: Measured, job: Job) -> Outcome:
        """Of a run that is done, and a process that has ended."""
        return outcome(process, self.reports(job))

    def reports(self, job: Job) -> list[Path]:
        """The files that the callbacks write when they have seen all changes."""
        return [job.folder / f"report-{number}.json" for number in range(self._callbacks)]

    def configuration(self, job: Job) -> str:
        """The text of `cdc.toml`."""
        source = {"dsn": job.server.dsn, "slot": job.slot, "create_slot": False, **self._source}
        lines = [
            f"python_path = {_toml([str(REPOSITORY)])}",
            f"source = {_toml(source)}",
            'http = { "port" = 0 }',
            'log = { "format" = "json" }',
        ]
        for section, tables in (("tag_rules", self._tag_rules), ("handlers", self.handlers(job))):
            for table in tables:
                lines += [f"[[{section}]]", *(f"{_toml(key)} = {_toml(value)}" for key, value in table.items())]
        return "\n".join(lines)

    def handlers(self, job: Job) -> list[Section]:
        """The tables `[[handlers]]`."""
        return [
            {
                "name": f"callback-{number}",
                "callback": f"bench.handlers:{self._callback}",
                "options": {"changes": job.backlog.changes, "report": str(report), **self._options},
                **self._handler,
            }
            for number, report in enumerate(self.reports(job))
        ]


def log_lines(log: Path) -> list[dict[str, Any]]:
    """What a service has logged so far, a dictionary for each line that is complete."""
    if not log.exists():
        return []
    lines = log.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines if line.startswith(b"{")]


def _toml(value: Any) -> str:
    """A value of TOML; `$` begins a variable in a configuration, so it is doubled."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_toml(key)} = {_toml(item)}' for key, item in value.items())} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value.replace("$", "$$") if isinstance(value, str) else value)
