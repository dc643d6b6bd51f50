"""The real service as a child process, with callbacks that leave a line per event in a file.

A line is written by one `os.write` to a file opened with O_APPEND: it survives `kill -9` of the child and
stands in the order of the calls. The kernel writes page by page: a reader may see the first part of a line
whose rest is on its way, and a kill may leave it so. So only what ends in a newline is a line, and the next
process cuts off the rest.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from cdc.demo.cluster import Cluster
from cdc.events import Position
from cdc.lsn import Lsn
from cdc.slots import SlotInfo, slot_query
from cdc.state import StateStore, open_state
from tests.conftest import Database

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 30
POLL_SECONDS = 0.02

RECORDS = '''
import asyncio, os, time
from pathlib import Path


opened = set()


class Recorder:
    """Writes a line per event."""

    def __init__(self, path, seconds=0.0):
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        if path not in opened:  # after a reload the one before writes still: it has no torn line
            opened.add(path)
            whole = os.pread(self.fd, os.fstat(self.fd).st_size, 0).rfind(b"\\n") + 1
            os.ftruncate(self.fd, whole)
        self.seconds = seconds

    def write(self, event):
        payload = " ".join(f"{name}={value!r}" for name, value in event.payload.items())
        fields = (event.position, event.id, event.event_type, event.table_name, event.record_id, payload)
        os.write(self.fd, (" ".join(map(str, fields)).replace("\\n", " ") + "\\n").encode())


class Record(Recorder):
    """At once, or some time after the call began."""

    async def handle(self, event):
        if self.seconds:
            await asyncio.sleep(self.seconds)
        self.write(event)


class InThread(Recorder):
    """A plain function."""

    def handle(self, event):
        time.sleep(self.seconds)
        self.write(event)


class Gated(Recorder):
    """Waits before each event until the gate, a file, is there."""

    def __init__(self, path, gate):
        super().__init__(path)
        self.gate = Path(gate)

    async def handle(self, event):
        while not self.gate.exists():
            await asyncio.sleep(0.01)
        self.write(event)


class BlocksLoop(Recorder):
    """Its first call blocks the event loop."""

    async def handle(self, event):
        seconds, self.seconds = self.seconds, 0
        time.sleep(seconds)
        self.write(event)


class Batches(Recorder):
    """Many events in a call."""

    async def handle_batch(self, events):
        await asyncio.sleep(self.seconds)
        for event in events:
            self.write(event)


class Unopenable(Record):
    """Its `open` fails."""

    async def open(self):
        raise OSError("its server is away")


class Fails(Recorder):
    """Every call fails."""

    async def handle(self, event):
        raise ValueError("no")


class Hang(Recorder):
    """Writes, and never returns."""

    async def handle(self, event):
        self.write(event)
        await asyncio.Event().wait()


class Counts(Recorder):
    """Does nothing but for the rows of a table called done."""

    async def handle(self, event):
        if event.table_name == "done":
            self.write(event)
'''


def wait_until(condition: Callable[[], object], timeout: float = 30, what: str = "") -> None:
    """Return once `condition` is true; AssertionError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what or condition}"
        time.sleep(POLL_SECONDS)


@dataclass(frozen=True, slots=True)
class Line:
    """What a callback has written of one event."""

    position: Position
    id: int
    event_type: str
    table: str
    record_id: str
    payload: str

    @classmethod
    def parse(cls, text: str) -> Line:
        """Read one line."""
        position, event_id, event_type, table, record_id, payload = text.split(" ", 5)
        return cls(Position.parse(position), int(event_id), event_type, table, record_id, payload)


class Child:
    """One configuration in a folder of its own, and the process that runs it."""

    def __init__(
        self,
        folder: Path,
        dsn: str,
        handlers: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        slot: str = "",
        **sections: Mapping[str, Any],
    ) -> None:
        self.folder = folder
        self.slot = slot or f"slot_{secrets.token_hex(6)}"
        self.state_path = folder / "state.db"
        self.process: subprocess.Popen[bytes] | None = None
        self.program = "cdc.cli"  # the module that is run
        self.environment: dict[str, str] = {}  # beside that of the tests
        (folder / "records.py").write_text(RECORDS)
        settings: dict[str, dict[str, Any]] = {
            "source": {"dsn": dsn, "slot": self.slot},
            "state": {"url": f"sqlite:///{self.state_path}", "checkpoint_interval_seconds": 0.1},
            "signal": {"drain_timeout_seconds": 5},
            "http": {"enabled": False},
            "log": {"format": "json", "level": "info"},
        }
        for name, values in sections.items():
            settings[name] = settings[name] | dict(values)
        self._settings = settings
        self._handlers = handlers or {"audit": {"callback": "records:Record"}}
        self.write()

    def write(self, **sections: Mapping[str, Any]) -> None:
        """Write cdc.toml, with some settings changed."""
        for name, values in sections.items():
            self._settings[name] = self._settings[name] | dict(values)
        lines = ['python_path = ["."]']
        for section, values in self._settings.items():
            lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
        for name, handler in self._handlers.items():
            options = {"path": str(self.path(name))} | dict(handler.get("options", {}))
            plain = {key: value for key, value in handler.items() if key != "options"}
            lines += ["[[handlers]]", f"name = {json.dumps(name)}"]
            lines += [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
            lines += ["[handlers.options]", *(f"{key} = {json.dumps(value)}" for key, value in options.items())]
        (self.folder / "cdc.toml").write_text("\n".join(lines) + "\n")

    def path(self, handler: str) -> Path:
        """The file that the handler writes to."""
        return self.folder / f"{handler}.lines"

    @property
    def log_path(self) -> Path:
        """Standard error of all its processes."""
        return self.folder / "child.log"

    @property
    def output_path(self) -> Path:
        """Standard output of all its processes."""
        return self.folder / "child.out"

    def begin(self, *arguments: str) -> None:
        """Start the process."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **self.environment}
        with self.log_path.open("ab") as log, self.output_path.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.program, "run", "--config", "cdc.toml", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                cwd=self.folder,
                env=environment,
                start_new_session=True,
            )

    def start(self, *arguments: str) -> None:
        """Start the process and wait until it streams."""
        before = len(self.log("streaming"))
        self.begin(*arguments)
        self.wait_for_log("streaming", before + 1)

    def run(self, *arguments: str, timeout: float = START_SECONDS) -> tuple[int, str]:
        """Start the process, and wait for its end: exit code, and what it said on standard error."""
        seen = self.log_path.stat().st_size if self.log_path.exists() else 0
        self.begin(*arguments)
        code = self.wait(timeout)
        return code, self.log_path.read_bytes()[seen:].decode()

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """SIGKILL, in whatever state it is."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def terminate(self) -> None:
        """SIGTERM."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    def hang_up(self) -> None:
        """SIGHUP."""
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def reload(self) -> dict[str, Any]:
        """Write cdc.toml as it is wanted now, SIGHUP, and wait for what comes of it: the log's line."""
        self.write()
        before = len(self.reloads())
        self.hang_up()
        wait_until(lambda: len(self.reloads()) > before, START_SECONDS, f"a reload:\n{self.tail()}")
        return self.reloads()[-1]

    def reloads(self) -> list[dict[str, Any]]:
        """The log's line of each reload that is over."""
        ends = {"reload_applied", "reload_unchanged", "reload_refused"}
        return [entry for entry in self.log() if entry["event"] in ends]

    def freeze(self) -> None:
        """SIGSTOP: it is there, and does nothing; returns when that is so of all its threads."""
        os.kill(self.pid, signal.SIGSTOP)
        wait_until(self._is_frozen, what="it is stopped")

    def _is_frozen(self) -> bool:
        threads = Path(f"/proc/{self.pid}/task").glob("*/stat")
        try:
            return {file.read_text().rpartition(")")[2].split()[0] for file in threads} == {"T"}
        except OSError:  # a thread has ended while we looked
            return False

    def thaw(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def wait(self, timeout: float = START_SECONDS) -> int:
        """Its exit code."""
        assert self.process is not None
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s:\n{self.tail()}") from None

    def stop(self, timeout: float = START_SECONDS) -> None:
        """SIGTERM, and a clean end."""
        self.terminate()
        code = self.wait(timeout)
        assert code == 0, f"exit {code}:\n{self.tail()}"

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self.process is not None and self.process.poll() is None

    def log(self, event: str | None = None) -> list[dict[str, Any]]:
        """What it has logged, of one kind or all; lines that are not JSON are left out."""
        entries: list[dict[str, Any]] = []
        for line in whole_lines(self.log_path):
            with suppress(ValueError):  # a traceback; or what a kill has torn, with the next process's first behind it
                entries += [json.loads(line)] if line.startswith("{") else []
        return [entry for entry in entries if event is None or entry["event"] == event]

    def tail(self) -> str:
        """The end of its log."""
        return self.log_path.read_bytes()[-3000:].decode(errors="replace") if self.log_path.exists() else "(no log)"

    def wait_for_log(self, event: str, count: int = 1, timeout: float = START_SECONDS) -> dict[str, Any]:
        """Wait until it has logged that event `count` times; the last."""

        def logged() -> bool:
            runs = self.is_running  # looked at first: what ends may log until then
            if len(self.log(event)) >= count:
                return True
            assert runs, f"it has ended:\n{self.tail()}"
            return False

        try:
            wait_until(logged, timeout)
        except AssertionError as error:
            raise AssertionError(f"{count} times {event!r} in the log: {error}\n{self.tail()}") from None
        return self.log(event)[-1]

    def lines(self, handler: str = "audit") -> list[Line]:
        """All that the handler has written."""
        return [Line.parse(line) for line in self._written(handler)]

    def record_ids(self, handler: str = "audit") -> set[str]:
        """Of all that the handler has written; cheaper than `lines`."""
        return {line.split(" ", 5)[4] for line in self._written(handler)}

    def _written(self, handler: str) -> list[str]:
        return whole_lines(self.path(handler))

    def wait_for_lines(self, count: int, handler: str = "audit", timeout: float = 30) -> list[Line]:
        """Wait until the handler has written that many lines at least."""

        def written() -> bool:
            path = self.path(handler)
            return path.exists() and path.read_bytes().count(b"\n") >= count

        try:
            wait_until(written, timeout)
        except AssertionError:
            raise AssertionError(f"{len(self.lines(handler))} of {count} lines:\n{self.tail()}") from None
        return self.lines(handler)

    def peak_memory(self) -> int:
        """The most that was resident, bytes."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmHWM")

    def state(self) -> StateStore:
        """Its state, to read; the caller closes it."""
        return open_state(f"sqlite:///{self.state_path}", read_only=True)

    def flushed(self) -> Lsn:
        """The checkpoint's position."""
        state = self.state()
        try:
            checkpoint = state.load()
        finally:
            state.close()
        assert checkpoint is not None
        return checkpoint.flushed_lsn


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that somebody writes to, without one that is not there to its end; none without a file."""
    return [line.decode() for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


@contextmanager
def child(folder: Path, dsn: str, *args: Any, **kwargs: Any) -> Iterator[Child]:
    """A child that is killed at the end of the block, if it still runs."""
    made = Child(folder, dsn, *args, **kwargs)
    try:
        yield made
    finally:
        made.kill()


def slot_info(cluster: Cluster, slot: str) -> SlotInfo | None:
    """How the slot fares."""
    with cluster.connect() as connection:
        row = connection.execute(slot_query(slot)).fetchone()
    return SlotInfo.of(row[0]) if row else None


def confirmed(cluster: Cluster, slot: str) -> Lsn:
    """`confirmed_flush_lsn` of the slot."""
    info = slot_info(cluster, slot)
    assert info is not None
    assert info.confirmed_flush_lsn is not None
    return info.confirmed_flush_lsn


def walsender(cluster: Cluster, slot: str) -> int | None:
    """Process id of the slot's walsender, None while nobody streams."""
    info = slot_info(cluster, slot)
    return info.active_pid if info else None


def server_lsn(database: Database) -> Lsn:
    """How far the server has written."""
    return Lsn.parse(database.execute("SELECT pg_current_wal_lsn()::text")[0][0])


def missing(expected: Sequence[str], lines: Sequence[Line]) -> set[str]:
    """Record ids that have not arrived."""
    return set(expected) - {line.record_id for line in lines}


def assert_once_in_order(lines: Sequence[Line]) -> None:
    """Ids rise by one, positions rise: nothing is lost, doubled or out of order."""
    ids = [line.id for line in lines]
    assert ids == list(range(ids[0], ids[0] + len(ids))) if ids else True
    positions = [line.position for line in lines]
    assert all(one < other for one, other in pairwise(positions))


def assert_at_least_once_in_order(lines: Sequence[Line]) -> None:
    """What comes again carries the same id and position, and goes on from there; ids have no gap."""
    known: dict[int, tuple[Any, ...]] = {}
    highest = lines[0].id - 1 if lines else 0
    last = highest
    for line in lines:
        facts = (line.position, line.event_type, line.table, line.record_id, line.payload)
        assert known.setdefault(line.id, facts) == facts, f"event {line.id} has changed"
        if line.id != last + 1:
            assert line.id <= highest, f"{line.id} after {last}: some are missing"
        highest, last = max(highest, line.id), line.id
    ordered = [known[event_id][0] for event_id in sorted(known)]
    assert all(one < other for one, other in pairwise(ordered))
