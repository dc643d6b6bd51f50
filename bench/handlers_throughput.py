"""How many events a second each built-in handler takes, through the service's pool, against its real server.

``python -m bench.handlers_throughput [HANDLER ...]`` prints a table and writes it as JSON. The servers are those of
the handlers' contract (`tests/handlers/subject_*.py`): durable as the tests want them. Owns the measuring; must not
know any handler.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cdc import DatabaseEvent
from cdc.testing import HandlerHarness
from tests.handlers.contract import Subject, subjects
from tests.handlers.servers import Servers

__all__ = ["TARGET", "Throughput", "main", "measure", "table"]

TARGET = 5_000
"""Events a second that a handler must reach here, or say why not: see `Subject.slow_because`."""

WARM_UP_EVENTS = 2_000  # connections, prepared statements, streams and code paths
MIN_EVENTS = 512  # two batches
MAX_EVENTS = 100_000
SETTLE_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Throughput:
    """The rounds of one handler: events a second, with the queue kept full in batches of 256."""

    handler: str
    events: int  # of each round
    rates: tuple[float, ...]
    latency_seconds: float  # of one event by itself, median
    slow_because: str

    @property
    def rate(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.rates)


def measure(kind: type[Subject[Any]], servers: Servers, *, rounds: int, seconds: float) -> Throughput:
    """Measure one handler; each round takes about `seconds`."""
    with tempfile.TemporaryDirectory(prefix="walsignal-bench-") as folder, _quiet(Path(folder)):
        return asyncio.run(_measured(kind(servers, Path(folder)), rounds, seconds))


async def _measured(subject: Subject[Any], rounds: int, seconds: float) -> Throughput:
    await subject.prepare()
    try:
        handler = subject.load(**subject.bench_options)
        async with HandlerHarness(handler, name=subject.name, timeout_seconds=SETTLE_SECONDS) as harness:
            guess = await _rate(harness, subject.bench_events(MIN_EVENTS))
            guess = await _rate(harness, subject.bench_events(_count(guess, 1.0, WARM_UP_EVENTS)))
            count = _count(guess, seconds, MAX_EVENTS)
            rates = [await _rate(harness, subject.bench_events(count)) for _ in range(rounds)]
            latencies = [1 / await _rate(harness, subject.bench_events(1)) for _ in range(50)]
    finally:
        await subject.clean_up()
    return Throughput(subject.label(), count, tuple(rates), statistics.median(latencies), subject.slow_because)


def _count(rate: float, seconds: float, most: int) -> int:
    return max(MIN_EVENTS, min(most, round(rate * seconds)))


async def _rate(harness: HandlerHarness, events: Sequence[DatabaseEvent]) -> float:
    """Events a second, from the first that is queued to the last that is settled; each must have been handled."""
    gc.collect()
    before, dead = len(harness.handled), len(harness.dead_letters)
    began = time.perf_counter()
    await harness.deliver(events, SETTLE_SECONDS)
    elapsed = time.perf_counter() - began
    if len(harness.dead_letters) != dead or len(harness.handled) - before != len(events):
        raise RuntimeError(f"{harness.calls[-1]}: not every event was handled; no figure")
    return len(events) / elapsed


@contextlib.contextmanager
def _quiet(folder: Path) -> Iterator[None]:
    """What a handler writes to standard output goes to a file; its log is not the table's reader's business."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    saved = os.dup(1)
    try:
        with (folder / "stdout").open("wb") as file:
            os.dup2(file.fileno(), 1)
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        logging.getLogger().setLevel(level)


def table(results: Sequence[Throughput]) -> str:
    """For a terminal and for Markdown alike."""
    lines = ["| handler | events/s | min..max | one event | below 5,000 because |", "|---|---|---|---|---|"]
    for one in results:
        spread = f"{min(one.rates):,.0f}..{max(one.rates):,.0f}"
        reason = "" if one.rate >= TARGET else one.slow_because or "**no reason given**"
        lines.append(
            f"| `{one.handler}` | {one.rate:,.0f} | {spread} | {one.latency_seconds * 1000:.2f} ms | {reason} |"
        )
    return "\n".join(lines)


def as_json(results: Sequence[Throughput]) -> dict[str, Any]:
    """What a program reads of it."""
    return {
        "part": "handlers",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "batch": 256,
        "handlers": [asdict(one) | {"rate": one.rate} for one in results],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the handlers named, or all that have a subject."""
    kinds = {kind.label(): kind for kind in subjects()}
    parser = argparse.ArgumentParser(prog="python -m bench.handlers_throughput", description=main.__doc__)
    parser.add_argument("handlers", nargs="*", metavar="HANDLER", help=f"of {', '.join(kinds)}; default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one round, about")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args(arguments)
    if unknown := set(options.handlers) - kinds.keys():
        parser.error(f"no subject for {', '.join(sorted(unknown))}; known: {', '.join(kinds)}")
    results = []
    with tempfile.TemporaryDirectory(prefix="walsignal-servers-") as folder, Servers(Path(folder)) as servers:
        for name in options.handlers or kinds:
            results.append(measure(kinds[name], servers, rounds=options.rounds, seconds=options.seconds))
            print(table(results[-1:]) if len(results) == 1 else table(results[-1:]).splitlines()[-1], flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(results), indent=2) + "\n")


if __name__ == "__main__":
    main()
