"""The random workload under random faults, for minutes or hours: `python -m tests.faults.soak --minutes 60`.

Two services follow the same database, each with a slot of its own. `killed` has every fault, those of its own
process included, so that its processes are young. `steady` has only those around it, and lives from the first
to the last moment: what grows in it grows for ever, and is measured. Exit 1 when an event is lost, doubled or
wrong, when a service does not come back, when the lag stays, or when `steady` grows.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import psycopg

from cdc.demo.cluster import Cluster
from tests.conftest import Database
from tests.faults import schedule
from tests.faults.conftest import SETTINGS
from tests.faults.scene import Scene, scene
from tests.running import slot_info, wait_until

SAMPLE_SECONDS = 1.0
SETTLED_BYTES = 1 << 20
"""Lag at the end: what a checkpoint and a running xacts record may lie behind, and nothing of ours."""
LAG_SECONDS = 60
GROWTH_BYTES = 12 << 20
"""By which the memory of the last third may exceed that of the middle third: arenas of the allocator."""
GROWTH_HANDLES = 4
"""The same for descriptors and threads: a connection more at the moment of a sample."""
MB = 1 << 20

STEADY = schedule.AROUND | schedule.OF_THE_NETWORK
KILLED = schedule.OF_THE_PROCESS | schedule.AROUND | schedule.OF_THE_NETWORK


@dataclass(frozen=True, slots=True)
class Sample:
    """Of one process at one moment; `at` is seconds since the beginning."""

    at: float
    pid: int
    rss: int
    fds: int
    threads: int


@dataclass(slots=True)
class Figures:
    """What was measured of one service; samples are thinned out so that hours fit into memory."""

    samples: list[Sample] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    _every: int = 1
    _seen: int = 0

    LIMIT: ClassVar[int] = 4000

    def add(self, sample: Sample, lag: float) -> None:
        """One more, or one more left out."""
        self._seen += 1
        if self._seen % self._every:
            return
        self.samples.append(sample)
        self.lags.append(lag)
        if len(self.samples) > self.LIMIT:
            self.samples, self.lags = self.samples[::2], self.lags[::2]
            self._every *= 2

    def third(self, name: str, number: int) -> float:
        """Median of a third of the time, 0 to 2."""
        begin, end = (self.samples[-1].at * part / 3 for part in (number, number + 1))
        values = [getattr(sample, name) for sample in self.samples if begin <= sample.at <= end]
        return statistics.median(values) if values else 0.0

    def slope(self, name: str) -> float:
        """Per hour, over the last two thirds."""
        late = [sample for sample in self.samples if sample.at >= self.samples[-1].at / 3]
        if len(late) < 3:
            return 0.0
        times, values = [sample.at / 3600 for sample in late], [float(getattr(sample, name)) for sample in late]
        return statistics.linear_regression(times, values).slope


def sample(pid: int, at: float) -> Sample | None:
    """Of a process of ours; None when it is gone."""
    folder = Path(f"/proc/{pid}")
    try:
        status = dict(line.split(":\t", 1) for line in (folder / "status").read_text().splitlines() if ":\t" in line)
        fds = len(list((folder / "fd").iterdir()))
        return Sample(at, pid, int(status["VmRSS"].split()[0]) * 1024, fds, int(status["Threads"]))
    except (OSError, KeyError):
        return None


class Soak:
    """One run."""

    def __init__(self, seed: int, killed: Scene, steady: Scene) -> None:
        self._chance = random.Random(seed)
        self.scenes = {"killed": killed, "steady": steady}
        self.figures = {name: Figures() for name in self.scenes}
        self.faults: Counter[str] = Counter()
        self._began = time.monotonic()
        self._steady_pid = 0

    def run(self, seconds: float, *, between: tuple[float, float], faults: int = 0, transactions: int = 0) -> None:
        """Faults, `between` so many seconds apart, for that long; then all must come to rest, and be right.

        It goes on until there were so many `faults`, and each service has had so many `transactions`.
        """
        for one in self.scenes.values():
            one.service.start()
        steady = self.scenes["steady"]
        self._steady_pid = steady.service.pid
        workload = self.scenes["killed"].workload
        workload.open_accounts(steady.database)
        workload.start()
        self._began = time.monotonic()
        try:
            while time.monotonic() < self._began + seconds or not self._has_had(faults, transactions):
                self._watch(time.monotonic() + self._chance.uniform(*between))
                self._fault()
        finally:
            workload.stop()
        self._rest()

    def _has_had(self, faults: int, transactions: int) -> bool:
        had = min(one.ordered.transactions for one in self.scenes.values())
        return self.faults.total() >= faults and had >= transactions

    def _watch(self, until: float) -> None:
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(SAMPLE_SECONDS, left))
            for name, one in self.scenes.items():
                one.read()
                taken = sample(one.service.pid, time.monotonic() - self._began)
                if taken is not None:
                    self.figures[name].add(taken, lag(one))
            self._expect_running()

    def _expect_running(self) -> None:
        for name, one in self.scenes.items():
            assert one.service.is_running, f"{name} has ended:\n{one.service.tail()}"
        assert self.scenes["steady"].service.pid == self._steady_pid

    def _fault(self) -> None:
        """Of the server, which both notice, or of one of the two."""
        name = self._chance.choice(["killed", "killed", "steady", "server"])
        if name == "server":
            faults, one = schedule.OF_THE_SERVER, self.scenes["killed"]
        else:
            faults, one = (KILLED if name == "killed" else STEADY), self.scenes[name]
        fault = self._chance.choice(list(faults))
        self.faults[f"{name}: {fault}"] += 1
        for attempt in range(3):
            try:
                faults[fault](one, self._chance)
                return
            except psycopg.OperationalError:  # the server is just recovering from the fault before
                assert attempt < 2
                time.sleep(1)

    def _rest(self) -> None:
        """Nothing more is committed: all arrives, shadow and source are equal, the lag goes."""
        for one in self.scenes.values():
            one.settle(LAG_SECONDS)
        for one in self.scenes.values():
            wait_until(partial(caught_up, one), LAG_SECONDS, "the lag returns to nothing")
        self._expect_running()
        for one in self.scenes.values():
            one.stop()

    def grown(self) -> list[str]:
        """What of `steady` has not stayed flat: the last third against the middle one."""
        figures, said = self.figures["steady"], []
        for name, allowed in (("rss", GROWTH_BYTES), ("fds", GROWTH_HANDLES), ("threads", GROWTH_HANDLES)):
            middle, last = figures.third(name, 1), figures.third(name, 2)
            if last > middle + allowed:
                said.append(f"{name} of steady grew from {middle:,.0f} to {last:,.0f}")
        return said


def lag(one: Scene) -> float:
    """Bytes of WAL that the slot holds back; nan while the server is away."""
    try:
        info = slot_info(one.database.cluster, one.service.slot)
    except psycopg.OperationalError:
        return float("nan")
    if info is None or info.server_lsn is None or info.confirmed_flush_lsn is None:
        return float("nan")
    return float(info.server_lsn - info.confirmed_flush_lsn)


def table(soak: Soak) -> Iterator[str]:
    """The figures, for people."""
    for name, one in soak.scenes.items():
        yield (
            f"{name:7} {one.ordered.transactions:,} transactions, {one.ordered.events:,} events of which"
            f" {one.ordered.repeated:,} came again (parallel: {one.parallel.events:,}, {one.parallel.repeated:,})"
        )
    yield "faults: " + ", ".join(f"{fault} {count}" for fault, count in sorted(soak.faults.items()))
    yield f"{'':16}{'first third':>12}{'median':>12}{'last third':>12}{'per hour':>14}"
    for name, figures in soak.figures.items():
        if not figures.samples:
            continue
        for field_name, unit, word in (("rss", MB, "MB"), ("fds", 1, ""), ("threads", 1, "")):
            values = [getattr(taken, field_name) for taken in figures.samples]
            row = (figures.third(field_name, 0), statistics.median(values), figures.third(field_name, 2))
            columns = "".join(f"{value / unit:>12.1f}" for value in row)
            slope = f"{figures.slope(field_name) / unit:>+14.1f}" if name == "steady" else f"{'':>14}"
            yield f"{name:8}{field_name:8}{columns}{slope} {word}".rstrip()
        lags = sorted(value for value in figures.lags if not math.isnan(value)) or [math.nan]
        median, most = lags[len(lags) // 2] / MB, lags[-1] / MB
        yield f"{name:8}lag     median {median:.1f} MB, most {most:.1f} MB, in the end {lag_text(soak.scenes[name])}"


def caught_up(one: Scene) -> bool:
    """Whether next to nothing is held back."""
    return lag(one) < SETTLED_BYTES


def lag_text(one: Scene) -> str:
    """As it is now."""
    return f"{lag(one) / MB:.2f} MB"


@contextmanager
def prepared(database: Database, folder: Path, seed: int) -> Iterator[Soak]:
    """Both services on an empty database."""
    options = "-c wal_sender_timeout=5s"
    with ExitStack() as stack:
        killed = stack.enter_context(scene(database, folder / "killed", seed, through_proxy=True, options=options))
        steady = stack.enter_context(
            scene(database, folder / "steady", seed, through_proxy=True, options=options, prepare=False)
        )
        yield Soak(seed, killed, steady)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--between", type=float, nargs=2, default=(10.0, 60.0), metavar=("LEAST", "MOST"))
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}, {options.minutes:g} minutes", flush=True)
    with Cluster(settings=SETTINGS) as cluster, tempfile.TemporaryDirectory(prefix="walsignal-soak-") as folder:
        cluster.create_database("soak")
        with prepared(Database(cluster, "soak"), Path(folder), options.seed) as soak:
            problem = ""
            try:
                soak.run(options.minutes * 60, between=tuple(options.between))
            except AssertionError as error:
                problem = str(error)
            print("\n".join(table(soak)))
            problems = [problem, *soak.grown()] if problem else soak.grown()
    for text in problems:
        print(f"FAILED: {text}")
    print("seed", options.seed, "failed" if problems else "passed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
