"""A throw-away PostgreSQL cluster, for the demo, the tests and the bench.

Owns one folder (data, socket, log) and the server that runs in it, from initdb to removal. It must not
know what is done in the cluster, and must never touch a server that it did not start.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from weakref import WeakSet

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from cdc.demo.processes import EXIT_SECONDS, children, free_port, is_alive, wait_until_gone
from cdc.demo.programs import (
    ClusterError,
    clean_environment,
    find_bindir,
    server_version,
    unprivileged_account,
)

__all__ = ["Cluster", "ClusterError", "StopMode"]

StopMode = Literal["smart", "fast", "immediate"]
SOCKET_PATH_LIMIT = 103  # bytes of sun_path: 107 on Linux, 103 on macOS and the BSDs
START_SECONDS = 60  # a start takes a tenth of a second; recovery on a slow, busy disk takes many
PORT_ATTEMPTS = 10  # only other clusters that start in the same instant compete
LOG_TAIL_LINES = 15  # a refused start says why in its last few lines

# Waits until its pipe from us is closed. If we said `leave` before, all is well. If we died without a word
# (SIGKILL, os._exit), it stops the server and deletes the folders.
GUARD = """
read -r word
if [ "$word" = leave ]; then exit 0; fi
"$1/pg_ctl" stop --silent --pgdata="$2/data" --mode=immediate --timeout=10
rm -rf -- "$2" "$3"
"""


class Cluster:
    """A PostgreSQL cluster of our own in a temporary folder: unix socket and loopback TCP on a free port.

    `directory` must be new or empty; `remove` deletes all of it. `settings` are those of postgresql.conf,
    read again by every `start`. With `logical`, wal2json can be used, whatever the server's version demands
    for that. When Python ends, in whatever way, so does the server, and the folder goes, unless `release`
    was called. Of a `template`, which was created and never started, the files are copied, in a tenth of the time
    of initdb: its password and its system identifier are those of the copy.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        settings: Mapping[str, str] | None = None,
        initdb_args: Sequence[str] = (),
        logical: bool = True,
        template: Cluster | None = None,
    ) -> None:
        self.bindir = find_bindir(wal2json=logical)
        self.server_version = server_version(self.bindir)
        self.settings = dict(settings or {})
        self.superuser = "postgres"
        # Over TCP: every user of the machine reaches the loopback.
        self.password: str = template.password if template else secrets.token_urlsafe(16)
        self.port = 0  # chosen by the first start
        self.has_output_plugin_list = False  # known after create: servers of August 2026 and later
        self._initdb_args = tuple(initdb_args)
        self._logical = logical
        self._template = template
        self._wanted_folder = directory
        self._account = unprivileged_account()
        self._owner_pid = os.getpid()
        self._made = False
        self._released = False
        self._guard: subprocess.Popen[bytes] | None = None
        self._set_folder(directory or Path(tempfile.gettempdir()) / "walsignal-not-made-yet")

    # Life -------------------------------------------------------------------------------------------

    def create(self) -> None:
        """Make the folder and run initdb in it, as an ordinary user when we are root."""
        self._make_folder()
        try:
            if self._template is None:
                self._initdb()
            else:
                self._copy(self._template)
            self._allow_plugin()
        except BaseException:
            self.remove()
            raise

    def start(self) -> None:
        """Start the server and wait until it accepts connections; the first start chooses a free port."""
        if not self._made:
            raise ClusterError("the cluster does not exist", hint="call create() first")
        problem = "no free port"
        if self.port:
            problem = self._try_start()  # a restart keeps the port: clients come back to it
        else:
            for _ in range(PORT_ATTEMPTS):
                self.port = free_port()
                problem = self._try_start()
                # Another process may have taken the port between our look and the server's.
                if "could not bind" not in problem:
                    break
        if problem:
            raise ClusterError(f"PostgreSQL did not start:\n{problem}", hint=f"its log: {self.log_file}")

    def stop(self, mode: StopMode = "fast", timeout: float = 60, wait: bool = True) -> None:
        """Stop the server, if it runs. Without `wait`, return as soon as it has been told."""
        if not self.is_running():
            return
        result = self._run(
            "pg_ctl",
            "stop",
            f"--pgdata={self.data}",
            f"--mode={mode}",
            f"--timeout={max(1, round(timeout))}",
            "--wait" if wait else "--no-wait",
        )
        if result.returncode != 0 and self.is_running():
            raise ClusterError(
                f"PostgreSQL did not stop ({mode}) within {timeout:g} s:\n{self._log_since(0)}",
                hint="a walsender waits for its consumer; mode 'immediate' does not",
            )

    def restart(self, mode: StopMode = "fast", timeout: float = 60) -> None:
        """Stop and start, on the same port."""
        self.stop(mode, timeout)
        self.start()

    def kill(self) -> None:
        """SIGKILL to the postmaster and all its children, as when the machine loses its power."""
        postmaster = self._postmaster_pid()
        if postmaster is None:
            return
        family = [postmaster, *children(postmaster)]
        for pid in family:  # the postmaster first: it would answer a child's death with a crash restart
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if left := wait_until_gone(family):
            raise ClusterError(f"killed, but still there: {left}", hint="look: ps ax | grep postgres")
        if Path(f"/proc/{postmaster}").exists():
            # A zombie, in a container without an init process: to the next start it looks like a server.
            self._free_shared_memory()
            for lock in (self.data / "postmaster.pid", self.socket_dir / f".s.PGSQL.{self.port}.lock"):
                lock.unlink(missing_ok=True)

    def is_running(self) -> bool:
        """Is there a postmaster of this cluster?"""
        return self._postmaster_pid() is not None

    def release(self) -> None:
        """Let server and folder outlive this process and the `with` block; `remove` still works."""
        self._released = True
        self._dismiss_guard()
        _living.discard(self)

    def remove(self) -> None:
        """Stop the server at once and delete the folder; in any state, any number of times."""
        if not self._made:
            return
        try:
            self.stop("immediate", timeout=EXIT_SECONDS)
        except ClusterError:
            self.kill()
        self._free_shared_memory()
        self._dismiss_guard()
        for folder in (self.socket_dir, self.folder):
            shutil.rmtree(folder, ignore_errors=True)
        self._made = False
        _living.discard(self)

    def __enter__(self) -> Self:
        self.create()
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._released:
            self.remove()

    # Use --------------------------------------------------------------------------------------------

    def dsn(self, dbname: str = "postgres", *, user: str | None = None, tcp: bool = False, **params: str) -> str:
        """The libpq connection string, through the socket or, with `tcp`, through 127.0.0.1.

        Over TCP a password is asked for; the superuser's is filled in.
        """
        parts = {"host": str(self.socket_dir), "user": user or self.superuser, "dbname": dbname}
        if tcp:
            parts["host"] = "127.0.0.1"
            if parts["user"] == self.superuser:
                parts["password"] = self.password
        return make_conninfo("", **{"port": str(self.port), **parts, **params})

    def connect(self, dbname: str = "postgres", **params: str) -> psycopg.Connection:
        """A connection in autocommit, as the superuser unless `params`, which are libpq's, say otherwise."""
        return psycopg.connect(make_conninfo(self.dsn(dbname), **params), autocommit=True)

    def create_database(self, name: str, *, template: str | None = None, owner: str | None = None) -> None:
        """CREATE DATABASE; the name may hold any character."""
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template is not None:
            statement += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
        if owner is not None:
            statement += sql.SQL(" OWNER {}").format(sql.Identifier(owner))
        with self.connect() as connection:
            connection.execute(statement)

    # Folder and settings ----------------------------------------------------------------------------

    def _set_folder(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.socket_dir = folder / "run"
        self.log_file = folder / "server.log"

    def _make_folder(self) -> None:
        if self._made:
            raise ClusterError("the cluster exists already", hint="remove() it first")
        if self._wanted_folder is None:
            self._set_folder(Path(tempfile.mkdtemp(prefix="walsignal-")))
        else:
            self._set_folder(self._wanted_folder.resolve())
            if self.folder.exists() and any(self.folder.iterdir()):
                raise ClusterError(f"{self.folder} is not empty", hint="name a folder that may be deleted")
            self.folder.mkdir(parents=True, exist_ok=True)
        self._made = True
        self._hand_over(self.folder, 0o700)  # nobody else reaches the socket, which asks for no password
        if len(os.fsencode(self.socket_dir / ".s.PGSQL.65535")) > SOCKET_PATH_LIMIT:
            self.socket_dir = Path(tempfile.mkdtemp(prefix="walsignal-", dir="/tmp"))
        self.socket_dir.mkdir(exist_ok=True)
        self._hand_over(self.socket_dir, 0o700)
        self._start_guard()
        _living.add(self)

    def _initdb(self) -> None:
        password_file = self.folder / "password"
        password_file.write_text(self.password)
        self._hand_over(password_file, 0o600)
        result = self._run(
            "initdb",
            f"--pgdata={self.data}",
            f"--username={self.superuser}",
            f"--pwfile={password_file}",
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",  # after a crash of the machine there is nothing here worth keeping
            *self._initdb_args,
        )
        password_file.unlink()
        if result.returncode != 0:
            raise ClusterError(
                f"initdb failed:\n{_tail(result.stdout)}",
                hint=f"has {self.folder} room, and may the user `postgres` enter all folders above it?",
            )
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.write("\ninclude_if_exists 'cluster.conf'\n")

    def _copy(self, template: Cluster) -> None:
        result = self._run(Path("/bin/cp"), "-a", str(template.data), str(self.data))
        if result.returncode != 0:
            raise ClusterError(f"the files of the template cannot be copied:\n{_tail(result.stdout)}")

    def _allow_plugin(self) -> None:
        allowed = self._output_plugin_list()
        self.has_output_plugin_list = allowed is not None
        if self._logical and allowed is not None:
            self.settings.setdefault("output_plugin_libraries", f"{allowed}, wal2json")

    def _output_plugin_list(self) -> str | None:
        """The server's `output_plugin_libraries`; None on older ones, which do not start with it."""
        result = self._run("postgres", "-C", "output_plugin_libraries", "-D", str(self.data), errors=False)
        return result.stdout.strip() if result.returncode == 0 else None

    def _write_settings(self) -> None:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.socket_dir),
            "wal_level": "logical" if self._logical else "replica",
            "max_wal_senders": "20",
            "max_replication_slots": "20",
            "shared_buffers": "32MB",  # several clusters may run side by side on a small machine
            "dynamic_shared_memory_type": "mmap",  # in the data folder: a killed server litters no other
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_line_prefix": "%m [%p] %q%a ",
            **self.settings,
        }
        file = self.data / "cluster.conf"
        file.write_text("".join(f"{name} = {_conf_quoted(value)}\n" for name, value in settings.items()))
        self._hand_over(file, 0o600)

    def _hand_over(self, path: Path, mode: int) -> None:
        """Give the file to the server's user."""
        path.chmod(mode)
        if self._account:
            os.chown(path, self._account["user"], self._account["group"])

    def _log_since(self, offset: int) -> str:
        try:
            return _tail(self.log_file.read_bytes()[offset:].decode(errors="replace"))
        except FileNotFoundError:
            return ""

    # Processes --------------------------------------------------------------------------------------

    def _run(self, program: str | Path, *arguments: str, errors: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program, of the server unless by its path, as the server's user, out of reach of our Ctrl-C."""
        return subprocess.run(
            [self.bindir / program, *arguments],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if errors else subprocess.DEVNULL,
            text=True,
            cwd=self.folder,
            env=clean_environment(),
            start_new_session=True,
            **self._account,
        )

    def _try_start(self) -> str:
        """Empty when the server runs, else the reason why not."""
        self._write_settings()
        seen = self.log_file.stat().st_size if self.log_file.exists() else 0
        result = self._run(
            "pg_ctl",
            "start",
            f"--pgdata={self.data}",
            f"--log={self.log_file}",
            f"--timeout={START_SECONDS}",
            "--wait",
        )
        return "" if result.returncode == 0 else self._log_since(seen) or _tail(result.stdout)

    def _start_guard(self) -> None:
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "walsignal-guard", self.bindir, self.folder, self.socket_dir],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=clean_environment(),
            start_new_session=True,
            **self._account,
        )

    def _dismiss_guard(self) -> None:
        if self._guard is not None:
            self._guard.communicate(b"leave\n")
            self._guard = None

    def _postmaster_pid(self) -> int | None:
        """The living postmaster's process id, from the file that the server itself keeps."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().splitlines()[0])
        except (OSError, ValueError, IndexError):
            return None
        return pid if pid > 0 and is_alive(pid) else None

    def _free_shared_memory(self) -> None:
        """Free the System V segment that a killed server has left; a stopped one has freed its own."""
        with contextlib.suppress(OSError, IndexError, ValueError):
            segment = (self.data / "postmaster.pid").read_text().splitlines()[6].split()[1]
            subprocess.run(["ipcrm", "-m", segment], check=False, capture_output=True)  # noqa: S607


_living: WeakSet[Cluster] = WeakSet()


@atexit.register
def _remove_living() -> None:
    for cluster in list(_living):
        if cluster._owner_pid == os.getpid():  # a forked child inherits the list, but not the servers
            cluster.remove()


def _conf_quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def _tail(text: str) -> str:
    return "\n".join(text.rstrip().splitlines()[-LOG_TAIL_LINES:])
