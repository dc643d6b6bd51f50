"""Real servers for the handlers' tests: each in a folder and on a port of its own, to be stopped, killed and frozen.

Owns the process; the protocol tells when it is ready, never a clock. PostgreSQL is `cdc.demo.cluster`. When Python
ends without a word, a guard of each server kills it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self, TypeVar

from cdc.demo.cluster import Cluster
from cdc.demo.processes import children, free_port
from cdc.demo.programs import clean_environment

__all__ = [
    "NatsServer",
    "PostgresServer",
    "RabbitServer",
    "RedisServer",
    "Server",
    "ServerError",
    "ServerProcess",
    "Servers",
    "find_program",
]

POLL_SECONDS = 0.02
STATE_SECONDS = 30  # a signal is heeded at once, unless the machine stands still
PORT_ATTEMPTS = 5  # another process may take a free port between our look and the server's
LOG_TAIL_BYTES = 2000
LOOPBACK = "127.0.0.1"
# Where distributions keep servers that only root starts; scripts/system-packages.sh looks in the same folders.
SERVER_FOLDERS = ("/usr/lib/rabbitmq/bin", "/usr/sbin", "/usr/local/sbin")

# Waits until its pipe from us is closed. If we said `leave` before, all is well; else the server goes as by kill -9.
GUARD = """
read -r word
if [ "$word" = leave ]; then exit 0; fi
kill -s KILL -- "-$1"
"""


class ServerError(Exception):
    """A server cannot be found, started or ended; says what its log says."""


def find_program(name: str) -> str:
    """The path of a server's program; ServerError names what installs it."""
    # Debian's rabbitmq-server in /usr/sbin changes user and folder: the one behind it, which comes first, does not.
    path = os.pathsep.join([SERVER_FOLDERS[0], os.environ.get("PATH", ""), *SERVER_FOLDERS[1:]])
    found = shutil.which(name, path=path)
    if found is None:
        raise ServerError(f"there is no program {name}: scripts/system-packages.sh servers")
    return found


class Server(Protocol):
    """What a test does to a server, whichever it is."""

    def start(self) -> None:
        """Return once it answers; nothing when it runs."""

    def stop(self) -> None:
        """As an operator stops it."""

    def kill(self) -> None:
        """As a crash."""

    def freeze(self) -> None:
        """It keeps its connections and answers nothing, until `thaw`."""

    def thaw(self) -> None:
        """After `freeze`: it goes on."""


class ServerProcess(ABC):
    """A server that comes back on the same port, with the same files; ``with`` starts it and kills it."""

    program: ClassVar[str]
    start_seconds: ClassVar[float] = 60.0  # on a busy machine; most are ready in a tenth of a second

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0  # chosen by the first start
        self.log_file = folder / f"{self.program}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """Program and arguments, for `port` and `folder`."""

    @abstractmethod
    def is_ready(self, connection: socket.socket) -> bool:
        """Whether the server answers on a new connection as its clients want it."""

    def environment(self) -> Mapping[str, str]:
        """Variables beside PATH."""
        return {}

    @property
    def address(self) -> str:
        """host:port."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def is_running(self) -> bool:
        """Whether its process lives, frozen or not."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Return once it answers; on the port it had before, if it had one."""
        if self.is_running:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.port:
            self._try_start()
            return
        for attempt in range(PORT_ATTEMPTS):
            self.port = free_port()
            try:
                self._try_start()
            except ServerError:
                if attempt == PORT_ATTEMPTS - 1:
                    raise
            else:
                return

    def stop(self, timeout: float = 30) -> None:
        """As an operator stops it (SIGTERM), and wait for its end."""
        self._end(signal.SIGTERM, timeout)

    def kill(self) -> None:
        """As a crash: SIGKILL to the server and all it has started."""
        self._end(signal.SIGKILL, STATE_SECONDS)

    def freeze(self) -> None:
        """It keeps its connections and answers nothing, until `thaw`; returns when its last thread has stopped."""
        self._signal(signal.SIGSTOP)
        if self._process is not None:
            _wait_until_stopped(_group(self._process.pid))

    def thaw(self) -> None:
        """After `freeze`: it goes on."""
        self._signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _try_start(self) -> None:
        with self.log_file.open("ab") as log:
            process = self._process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**clean_environment(), **self.environment()},
                start_new_session=True,  # a process group of its own: all of it is frozen and killed
            )
        self._guard = _guarded(process)
        deadline = time.monotonic() + self.start_seconds
        while not self._answers():
            if process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise ServerError(f"{self.program} did not start:\n{self._log_tail()}")
            time.sleep(POLL_SECONDS)

    def _answers(self) -> bool:
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=1) as connection:
                return self.is_ready(connection)
        except OSError:
            return False

    def _end(self, how: signal.Signals, timeout: float) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)  # the frozen do not hear SIGTERM
            os.killpg(process.pid, how)
        try:
            process.wait(timeout)
            _wait(lambda: not _group(process.pid))  # what it has started holds its port
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout)
            raise ServerError(f"{self.program} did not end within {timeout} s:\n{self._log_tail()}") from None
        finally:
            if self._guard is not None:
                self._guard.communicate(b"leave\n")
                self._guard = None

    def _signal(self, which: signal.Signals) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, which)

    def _log_tail(self) -> str:
        return self.log_file.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")


def _group(leader: int) -> list[int]:
    """The living processes of a process group."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended while we looked
            state, _, group = file.read_text().rpartition(")")[2].split()[:3]
            if int(group) == leader and state != "Z":
                found.append(int(file.parent.name))
    return found


def _is_stopped(process: int) -> bool:
    """Whether each of its threads is, or has gone: on a busy machine, a signal is on its way for a while."""
    for file in Path(f"/proc/{process}/task").glob("*/stat"):
        with contextlib.suppress(OSError):
            if file.read_text().rpartition(")")[2].split()[0] not in "TtZX":
                return False
    return True


def _wait_until_stopped(processes: Iterable[int]) -> None:
    """After SIGSTOP."""
    _wait(lambda: all(map(_is_stopped, processes)))


def _wait(condition: Callable[[], bool]) -> None:
    """Until processes are in the state that they were told to be in; ServerError."""
    deadline = time.monotonic() + STATE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise ServerError(f"a process does not heed its signal within {STATE_SECONDS} s")
        time.sleep(POLL_SECONDS)


def _guarded(process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    """A guard of the process, which leads a group of its own: kills it when this Python has ended without a word."""
    command = ["/bin/sh", "-c", GUARD, "walsignal-guard", str(process.pid)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def _receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := connection.recv(count - len(data))):
        data += more
    return data


class RedisServer(ServerProcess):
    """A Redis that has each write on its disk before it answers. `settings` are those of redis.conf."""

    program = "redis-server"

    def __init__(self, folder: Path, **settings: str) -> None:
        super().__init__(folder)
        self._settings = {name.replace("_", "-"): value for name, value in settings.items()}

    @property
    def url(self) -> str:
        """redis://host:port."""
        return f"redis://{self.address}"

    def command(self) -> list[str]:
        settings = {
            "port": str(self.port),
            "bind": LOOPBACK,
            "dir": str(self.folder),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "always",
            **self._settings,
        }
        return [
            find_program(self.program),
            *(word for name, value in settings.items() for word in (f"--{name}", value)),
        ]

    def is_ready(self, connection: socket.socket) -> bool:
        connection.sendall(b"PING\r\n")
        return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))  # not while it loads its file


class NatsServer(ServerProcess):
    """A NATS server with JetStream in files. `config` is more of its configuration file."""

    program = "nats-server"

    def __init__(self, folder: Path, config: str = "") -> None:
        super().__init__(folder)
        self._config = config

    @property
    def url(self) -> str:
        """nats://host:port."""
        return f"nats://{self.address}"

    def command(self) -> list[str]:
        file = self.folder / "nats.conf"
        # Before 2.10 there is no sync_interval; what was acknowledged is in the kernel's hands and survives kill -9.
        store = self.folder / "jetstream"
        file.write_text(f'listen: "{self.address}"\njetstream {{ store_dir: "{store}" }}\n{self._config}\n')
        return [find_program(self.program), "--config", str(file)]

    def is_ready(self, connection: socket.socket) -> bool:
        return connection.recv(4096).startswith(b"INFO ")


class RabbitServer(ServerProcess):
    """A RabbitMQ node with its own Erlang port mapper; its start takes seconds, so share it.

    `config` is more of its rabbitmq.conf.
    """

    program = "rabbitmq-server"
    start_seconds = 90.0  # an Erlang system boots, on a busy machine

    def __init__(self, folder: Path, config: str = "") -> None:
        super().__init__(folder)
        self._config = config
        self._name = f"walsignal-{secrets.token_hex(4)}@localhost"
        self._mapper_port = 0
        self._mapper: subprocess.Popen[bytes] | None = None
        self._mapper_guard: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """amqp://guest:guest@host:port/."""
        return f"amqp://guest:guest@{self.address}/"

    def start(self) -> None:
        if self._mapper is None or self._mapper.poll() is not None:
            self._mapper_port = free_port()
            self._mapper = subprocess.Popen(
                [find_program("epmd"), "-address", LOOPBACK, "-port", str(self._mapper_port)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._mapper_guard = _guarded(self._mapper)
        super().start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._mapper is not None:
            self._mapper.kill()
            self._mapper.wait()
        if self._mapper_guard is not None:
            self._mapper_guard.communicate(b"leave\n")

    def command(self) -> list[str]:
        limits = "disk_free_limit.absolute = 1MB\nvm_memory_high_watermark.absolute = 1GB\n"  # no alarm blocks a test
        (self.folder / "rabbitmq.conf").write_text(limits + self._config)
        (self.folder / "enabled_plugins").write_text("[].\n")
        return [find_program(self.program)]

    def environment(self) -> Mapping[str, str]:
        folder = self.folder
        return {
            "HOME": str(folder),  # the cookie
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "ERL_EPMD_PORT": str(self._mapper_port),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "no-env.conf"),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "generated"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_NODENAME": self._name,
            "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_PID_FILE": str(folder / "rabbitmq.pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }

    def is_ready(self, connection: socket.socket) -> bool:
        connection.sendall(b"AMQP\x00\x00\x09\x01")
        return _receive(connection, 1) == b"\x01"  # a method frame: Connection.Start


class PostgresServer:
    """A cluster of `cdc.demo.cluster` that can also be frozen; ``with`` makes, starts and removes it."""

    def __init__(self, _folder: Path) -> None:
        # As in tests/conftest.py: SIGKILL of the server loses nothing that the kernel has. Not in the test's folder:
        # the server is another user, who may not enter it.
        self.cluster = Cluster(settings={"fsync": "off"})
        self._frozen: list[int] = []

    def dsn(self, database: str = "postgres") -> str:
        """The libpq connection string, through the socket."""
        return self.cluster.dsn(database)

    def start(self) -> None:
        if not self.cluster.is_running():
            self.cluster.start()

    def stop(self) -> None:
        self.thaw()
        self.cluster.stop()

    def kill(self) -> None:
        self._frozen = []
        self.cluster.kill()

    def freeze(self) -> None:
        """Postmaster and backends: who is connected waits, who comes waits, too."""
        postmaster = int((self.cluster.data / "postmaster.pid").read_text().splitlines()[0])
        os.kill(postmaster, signal.SIGSTOP)  # first: from now on it starts no other
        _wait_until_stopped([postmaster])
        self._frozen = [*children(postmaster), postmaster]
        for pid in self._frozen[:-1]:
            os.kill(pid, signal.SIGSTOP)
        _wait_until_stopped(self._frozen)

    def thaw(self) -> None:
        frozen, self._frozen = self._frozen, []
        for pid in frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        self.cluster.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.thaw()
        self.cluster.remove()


class _Managed(Server, AbstractContextManager[Any], Protocol):
    """A server that ``with`` starts and removes."""


S = TypeVar("S", bound=_Managed)


class Servers:
    """One server of each kind for a whole session, started when first asked for, running whenever it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[type, Any] = {}
        self._stack = contextlib.ExitStack()

    def of(self, kind: Callable[[Path], S]) -> S:
        """The server of this class, thawed, or started again if a test has left it down."""
        assert isinstance(kind, type)
        server: S | None = self._running.get(kind)
        if server is None:
            server = self._running[kind] = self._stack.enter_context(kind(self._folder / kind.__name__))
        server.thaw()
        server.start()
        return server

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
