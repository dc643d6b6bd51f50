"""All that was measured, as one value, and as JSON in a file: the tables, charts and verdicts are made of it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from bench.backlog import MIX
from bench.results import FaultsResult, GrowthResult, LatencyResult, MemoryResult, ThroughputResult
from bench.server import SETTINGS, BenchError, Server

__all__ = ["Report", "read", "write"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured, and on what. `measured_at` tells when each part was taken; by default all at once."""

    machine: Mapping[str, object]
    server_settings: Mapping[str, str]
    plugin_options: Mapping[str, str]
    mix: str
    measured_at: Mapping[str, str]
    throughput: Sequence[ThroughputResult] = ()
    latency: Sequence[LatencyResult] = ()
    memory: Sequence[MemoryResult] = ()
    growth: Sequence[GrowthResult] = ()
    faults: FaultsResult | None = None

    @classmethod
    def on(cls, server: Server, options: Mapping[str, str], parts: Mapping[str, Any]) -> Report:
        """A report of what was measured on `server`."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(machine(server), SETTINGS, options, MIX, dict.fromkeys(parts, now), **parts)

    def over(self, older: Report) -> Report:
        """With the parts of `older` that were not measured anew, and its tables of other sizes."""
        return replace(
            self,
            measured_at={**older.measured_at, **self.measured_at},
            throughput=_joined(self.throughput, older.throughput, lambda one: one.transaction_rows),
            latency=_joined(self.latency, older.latency, lambda one: one.rate),
            memory=_joined(self.memory, older.memory, lambda one: one.transaction_rows),
            growth=_joined(self.growth, older.growth, lambda one: one.axis),
            faults=self.faults or older.faults,
        )


def read(file: Path) -> Report:
    """What `write` has written; BenchError when it is not there, or of another version of the bench."""
    try:
        return TypeAdapter(Report).validate_json(file.read_bytes())
    except FileNotFoundError:
        raise BenchError(f"{file} is not there: measure first") from None
    except ValidationError as error:
        raise BenchError(
            f"{file} is of another version of the bench: measure anew ({error.error_count()} errors)"
        ) from None


def write(report: Report, file: Path) -> None:
    """JSON for programs: the fields of `Report`, seconds and bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asdict(report), indent=2) + "\n")


def machine(server: Server) -> dict[str, object]:
    """What figures depend on. `load_average` tells whether something else was running."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cpus": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "postgresql": server.value("SHOW server_version"),
    }


def _joined(new: Sequence[T], old: Sequence[T], key: Callable[[T], Any]) -> list[T]:
    taken = {key(one) for one in new}
    return sorted([*new, *(one for one in old if key(one) not in taken)], key=key)
