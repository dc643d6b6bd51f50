"""The demonstration from its first line to its last: what is started, watched, told and cleared away.

Owns the order of things, and that nothing is left of them. The parts know nothing of each other.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
import time
from collections import Counter
from importlib.resources import as_file, files

import psycopg
from rich.console import Console

from cdc.demo import shop, summary
from cdc.demo.child import ChildService, DemoError
from cdc.demo.cluster import Cluster
from cdc.demo.folder import CLUSTER, DemoFolder
from cdc.demo.interrupts import Interrupted, Interrupts
from cdc.demo.latency import measurements
from cdc.demo.processes import free_port
from cdc.demo.summary import Figures, Kept
from cdc.demo.traffic import Committed, Traffic

__all__ = ["run"]

STREAMING_SECONDS = 30  # the service streams within two; a busy machine takes longer
CATCH_UP_SECONDS = 15  # the slot follows the checkpoint, once a second
INTERRUPTED = 130  # as a shell tells of a program that Ctrl-C has ended
PIPE_WIDTH = 200  # without a terminal nothing is folded

SLOT = "cdc_demo"  # as in cdc.toml
LAG = """
SELECT greatest(pg_current_wal_flush_lsn() - confirmed_flush_lsn, 0)::bigint, confirmed_flush_lsn >= %s::pg_lsn
FROM pg_replication_slots WHERE slot_name = %s
"""


def run(seconds: float, keep: bool) -> int:
    """Show it for so many seconds, 0 until Ctrl-C; with `keep`, leave server and files.

    Ctrl-C (SIGTERM, SIGHUP) while events stream is an end like any other: the service drains, the summary is
    shown. The result is the exit code: 0, 1 when events are missing, 130 when Ctrl-C came before the first
    event, or a second time, which kills the service. CdcError when something cannot be started.
    """
    with Interrupts() as interrupts:
        demo = Demo(interrupts)
        try:
            demo.prepare(seconds, keep=keep)
            demo.play(seconds)
            return demo.finish(keep=keep)
        except Interrupted:
            return INTERRUPTED
        finally:
            demo.clean_up()


class Demo:
    """All that lives during a demonstration."""

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        self._screen = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
        self._folder = DemoFolder()
        self._config = self._folder.path / "cdc.toml"
        self._cluster: Cluster | None = None
        self._service: ChildService | None = None
        self._traffic: Traffic | None = None
        self._environment: dict[str, str] = {}
        self._kept = False
        self._seconds = 0.0

    def prepare(self, seconds: float, *, keep: bool) -> None:
        """A server, a shop in it, and the service connected to it."""
        self._announce(seconds, keep=keep)
        example = files("cdc.demo").joinpath("cdc.toml")
        with as_file(example) as path:
            shutil.copyfile(path, self._config)
        self._config.chmod(0o600)
        cluster = self._cluster = Cluster(self._folder.path / CLUSTER)
        cluster.create()
        self._interrupts.check()
        cluster.start()
        self._interrupts.check()
        cluster.create_database(shop.DATABASE)
        with cluster.connect(shop.DATABASE) as connection:
            shop.create(connection)
        port = os.environ.get("CDC_HTTP_PORT") or str(free_port())
        self._environment = {"CDC_DSN": cluster.dsn(shop.DATABASE, user=shop.ROLE), "CDC_HTTP_PORT": port}
        self._screen.print(f"Status page: http://127.0.0.1:{port}/\n")
        self._interrupts.check()
        self._start_service()

    def play(self, seconds: float) -> None:
        """Traffic, until the time is over or somebody asks to stop."""
        assert self._cluster is not None  # noqa: S101 - made by `prepare`
        assert self._service is not None  # noqa: S101
        began = time.monotonic()
        traffic = self._traffic = Traffic(self._cluster.dsn(shop.DATABASE))
        traffic.start()
        with contextlib.suppress(Interrupted):
            while traffic.error is None and (not seconds or time.monotonic() - began < seconds):
                self._interrupts.pause()
                self._service.check()
        self._seconds = time.monotonic() - began

    def finish(self, *, keep: bool) -> int:
        """Let the service receive what was committed, stop it, and tell how it went."""
        assert self._cluster is not None  # noqa: S101 - made by `prepare`
        assert self._service is not None  # noqa: S101
        assert self._traffic is not None  # noqa: S101 - made by `play`
        self._traffic.stop()
        with self._cluster.connect(shop.DATABASE) as connection:
            lag = self._catch_up(connection, self._traffic.end_lsn)
            self._service.stop(self._pause_while_stopping)
            lag_at_end, _ = self._lag(connection, self._traffic.end_lsn)
        self._service_is_gone()
        figures = self._figures(lag, lag_at_end)
        kept = self._keep() if keep else None
        summary.show(self._screen, figures, self._folder.path, kept)
        return 0 if figures.complete else 1

    def clean_up(self) -> None:
        """Nothing is left, in whatever state we are, but what is meant to be kept."""
        if self._service is not None:
            self._service.kill()
            self._service_is_gone()
        if self._cluster is not None and not self._kept:
            self._cluster.remove()
        if self._kept:
            self._folder.leave()
        else:
            self._folder.remove()

    def _pause_while_stopping(self) -> None:
        self._interrupts.pause(stopping=True)

    def _announce(self, seconds: float, *, keep: bool) -> None:
        end = f"Ends after {seconds:g} s or with Ctrl-C" if seconds else "Ends with Ctrl-C"
        rest = "leaves server and files" if keep else "leaves nothing behind"
        self._screen.print(
            f"[bold]walsignal demo[/bold] in {self._folder.path}: a throw-away PostgreSQL,\n"
            "a small shop with live traffic, and the real service (cdc run), which prints every change.\n"
            f"{end}, shows figures, {rest}.\n"
        )

    def _start_service(self) -> None:
        assert self._cluster is not None  # noqa: S101 - made by `prepare`
        service = self._service = ChildService(self._config, self._environment, self._folder.path / "service.log")
        self._folder.guard_service(service.pid)
        deadline = time.monotonic() + STREAMING_SECONDS
        with self._cluster.connect(shop.DATABASE) as connection:
            while not self._is_streaming(connection):
                self._interrupts.pause()
                service.check()
                if time.monotonic() > deadline:
                    raise DemoError(f"the service does not stream after {STREAMING_SECONDS} s")

    def _is_streaming(self, connection: psycopg.Connection) -> bool:
        row = connection.execute("SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'").fetchone()
        return row is not None

    def _service_is_gone(self) -> None:
        self._service = None
        self._folder.guard_service(None)

    def _catch_up(self, connection: psycopg.Connection, end_lsn: str) -> int:
        """Wait until the slot has passed `end_lsn`; the lag in bytes at the beginning."""
        assert self._service is not None  # noqa: S101 - made by `prepare`
        lag, done = self._lag(connection, end_lsn)
        deadline = time.monotonic() + CATCH_UP_SECONDS
        while not done and time.monotonic() < deadline:
            self._pause_while_stopping()
            self._service.check()
            _, done = self._lag(connection, end_lsn)
        return lag

    def _lag(self, connection: psycopg.Connection, end_lsn: str) -> tuple[int, bool]:
        slot = SLOT
        row = connection.execute(LAG, [end_lsn, slot]).fetchone()
        if row is None:
            raise DemoError(f"the replication slot {slot} is gone")
        return int(row[0]), bool(row[1])

    def _figures(self, lag: int, lag_at_end: int) -> Figures:
        assert self._traffic is not None  # noqa: S101 - made by `play`
        measured = list(measurements(self._folder.path / "latency.tsv"))
        received: Committed = Counter((one.table, one.event_type) for one in measured)
        return Figures(
            seconds=self._seconds,
            transactions=self._traffic.transactions,
            rolled_back=self._traffic.rolled_back,
            committed=self._traffic.committed,
            received=received,
            latencies=[one.seconds for one in measured],
            lag_bytes=lag,
            lag_bytes_at_end=lag_at_end,
        )

    def _keep(self) -> Kept:
        assert self._cluster is not None  # noqa: S101 - made by `prepare`
        cluster = self._cluster
        cluster.release()
        self._kept = True
        folder = self._folder.path
        pid_file = cluster.data / "postmaster.pid"
        return Kept(
            environment={**self._environment, "CDC_CONFIG": str(self._config)},
            psql=f"{cluster.bindir / 'psql'} {shlex.quote(cluster.dsn(shop.DATABASE))}",
            # The server removes the file when it has stopped: what it writes until then would be in the way.
            stop=f"kill -INT $(head -n 1 {pid_file}) && while [ -e {pid_file} ]; do sleep 0.1; done && rm -r {folder}",
        )
