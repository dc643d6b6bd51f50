"""The server that all contenders read from: one cluster, and one copy of a slot for each run.

Owns the server's settings, the slots, and what is read off the server about a run. It must not know
who the contenders are.

The state of the server is the same for every run: nothing but the contender uses it, there is no
checkpoint, no vacuum and no writing meanwhile, and the WAL lies in the page cache (a first run is thrown
away). ``fsync = off`` makes the backlog quicker and nothing else: decoding reads. The contender's own
files, our checkpoints among them, are written and synced as ever.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from cdc.demo.cluster import Cluster
from cdc.demo.processes import children

__all__ = ["SETTINGS", "BenchError", "Server"]

SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "checkpoint_timeout": "1h",
    "max_wal_size": "32GB",
    "shared_buffers": "256MB",
    "log_replication_commands": "on",  # tells when a stream began, by the server's own clock
    "log_line_prefix": "%n ",  # seconds since 1970
}
QUIET_SECONDS = 10.0  # a walsender ends at once when its client has gone
POLL_SECONDS = 0.01
_STARTED = re.compile(
    rb'^([0-9]+\.[0-9]+) .*received replication command: START_REPLICATION SLOT "?([a-z0-9_]+)"?', re.MULTILINE
)
_CPU_OF_ENDED_CHILDREN = slice(13, 15)  # cutime, cstime in /proc/PID/stat, counted after the program's name


class BenchError(Exception):
    """A measurement could not be taken; the message says what failed, in the program's last words."""


class Server:
    """A running cluster of the bench's own, and a connection to it while in a `with` block."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._connection = cluster.connect()
        self._copies = 0
        self._postmaster = int((cluster.data / "postmaster.pid").read_text().split()[0])
        self._family = set(children(self._postmaster))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    @property
    def dsn(self) -> str:
        """The libpq connection string, through the unix socket."""
        return self.cluster.dsn()

    def execute(self, statement: str, *parameters: object) -> list[tuple[object, ...]]:
        """Run one statement in autocommit and return its rows."""
        cursor = self._connection.execute(statement.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []

    def value(self, statement: str, *parameters: object) -> str:
        """The first column of the first row, as text."""
        return str(self.execute(statement, *parameters)[0][0])

    def understands(self, slot: str, option: str, value: str) -> bool:
        """Whether the slot's plugin knows the option."""
        try:
            self.execute("SELECT pg_logical_slot_peek_changes(%s, NULL, 1, %s, %s)", slot, option, value)
        except psycopg.Error:
            return False
        return True

    @contextmanager
    def slot(self, name: str, plugin: str = "wal2json") -> Iterator[str]:
        """A slot that has all that is written in the block."""
        self.execute("SELECT pg_create_logical_replication_slot(%s, %s)", name, plugin)
        try:
            yield name
        finally:
            self._drop(name)

    @contextmanager
    def copy_of(self, slot: str) -> Iterator[str]:
        """A slot with the same contents, for one run."""
        self._copies += 1
        copy = f"{slot}_{self._copies}"
        self.execute("SELECT pg_copy_logical_replication_slot(%s, %s)", slot, copy)
        try:
            yield copy
        finally:
            self._drop(copy)

    def stream_began(self, slot: str) -> float:
        """When the server was told to stream the slot, seconds since 1970; of several times, the last."""
        for time_, name in reversed(_STARTED.findall(self.cluster.log_file.read_bytes())):
            if name.decode() == slot:
                return float(time_)
        raise BenchError(f"nobody has streamed the slot {slot}; see {self.cluster.log_file}")

    def is_streamed(self, slot: str) -> bool:
        """Whether somebody reads the slot now."""
        return self.value("SELECT active FROM pg_replication_slots WHERE slot_name = %s", slot) == "True"

    def times(self, text: str) -> list[float]:
        """When the server has logged lines that end in `text`, in order, seconds since 1970."""
        lines = self.cluster.log_file.read_text(errors="replace").splitlines()
        return [float(line.split(maxsplit=1)[0]) for line in lines if line.endswith(text)]

    def cpu_seconds(self) -> float | None:
        """CPU time of all the server's processes that have ended; None on a system without /proc.

        Waits until the walsenders are among them. Between two calls only a contender's processes end.
        """
        self._wait_until_quiet()
        try:
            fields = Path(f"/proc/{self._postmaster}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return sum(map(int, fields[_CPU_OF_ENDED_CHILDREN])) / os.sysconf("SC_CLK_TCK")

    def _wait_until_quiet(self) -> None:
        """Until the processes of others have ended; pg_stat_activity forgets them a little too early."""
        deadline = time.monotonic() + QUIET_SECONDS
        query = "SELECT count(*) FROM pg_stat_replication"
        while self.value(query) != "0" or set(children(self._postmaster)) - self._family:
            if time.monotonic() > deadline:
                raise BenchError("the server still has guests: is anybody else using it?")
            time.sleep(POLL_SECONDS)

    def _drop(self, slot: str) -> None:
        self._wait_until_quiet()
        self.execute("SELECT pg_drop_replication_slot(%s)", slot)
