"""Servers, databases and managers for the tests. A test that cannot have its server fails; it is never skipped."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from hypothesis import settings
from psycopg import sql

from cdc.callbacks import Registration
from cdc.config import SignalConfig
from cdc.demo import processes
from cdc.demo.cluster import Cluster
from cdc.signals import CallbackHandle, SignalManager
from tests.properties import profiles  # noqa: F401 - registers them

# All run under the profile `ci`, unless pytest is told of another: --hypothesis-profile random.
if settings.get_current_profile_name() in ("default", "ci"):  # hypothesis has a `ci` of its own
    settings.load_profile("ci")

# A crash of the machine during the tests leaves nothing worth keeping. SIGKILL of the server loses nothing
# either way: what it has written is in the kernel's hands.
FAST = {
    "fsync": "off",
    "max_connections": "100",
    "autovacuum": "off",  # it writes when it likes, and its transactions are counted with those of the test
}

OwnCluster = Callable[..., Cluster]


def share_of_ports() -> range:
    """Those of this process, where several run tests side by side: no server takes a port that another's comes back to.

    A free port is only free when it is looked for, and a server that was killed wants its own again.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    return ALL_PORTS[int(number.removeprefix("gw")) :: workers]


ALL_PORTS = processes.PORTS
processes.PORTS = share_of_ports()


@dataclass(frozen=True, slots=True)
class Database:
    """A fresh database in the shared cluster; it goes after the test, with its slots and walsenders."""

    cluster: Cluster
    name: str

    @property
    def dsn(self) -> str:
        """As the superuser, through the unix socket."""
        return self.cluster.dsn(self.name)

    def connect(self, **params: str) -> psycopg.Connection:
        """A new connection in autocommit; the test closes it."""
        return self.cluster.connect(self.name, **params)

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Run SQL (several statements are one transaction) and return the rows of the last statement."""
        with self.connect() as connection:
            cursor = connection.execute(statement.encode())
            while cursor.nextset():
                pass
            return cursor.fetchall() if cursor.description else []


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One server for all tests that do not stop it or change its settings."""
    with Cluster(settings=FAST) as server:
        yield server


@pytest.fixture
def database(cluster: Cluster) -> Iterator[Database]:
    """A database of the test's own."""
    name = f"test_{secrets.token_hex(6)}"
    cluster.create_database(name)
    try:
        yield Database(cluster, name)
    finally:
        drop_database(cluster, name)


@pytest.fixture(scope="session")
def initdb() -> Iterator[Cluster]:
    """The files of a new server, for the many that begin with them; it never runs."""
    made = Cluster(settings=FAST)
    made.create()
    yield made
    made.remove()


@pytest.fixture
def own_cluster(initdb: Cluster) -> Iterator[OwnCluster]:
    """Makes running servers that the test may stop, kill and configure: own_cluster({"name": "value"}).

    They have one system identifier, that of `initdb`, but for those made with `template=None`.
    """
    with ExitStack() as stack:

        def make(settings: Mapping[str, str] | None = None, **kwargs: Any) -> Cluster:
            options = {"template": None if "initdb_args" in kwargs else initdb} | kwargs
            return stack.enter_context(Cluster(settings={**FAST, **(settings or {})}, **options))

        yield make


def drop_database(cluster: Cluster, name: str) -> None:
    """DROP DATABASE, after its replication slots: a database with slots cannot be dropped."""
    with cluster.connect() as connection:
        # From now on nobody comes back: a consumer that reconnects would take the slot again.
        connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(name)))
        connection.execute(
            # Waits until each has ended, at most a minute; a walsender lets its slot go as it ends.
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname = %s",
            [name],
        )
        connection.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s", [name]
        )
        # A prepared transaction, too, keeps its database; it can only be rolled back from inside.
        prepared = connection.execute("SELECT gid FROM pg_prepared_xacts WHERE database = %s", [name]).fetchall()
        if prepared:
            connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(sql.Identifier(name)))
            with cluster.connect(name) as inside:
                for (gid,) in prepared:
                    inside.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(gid)))
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Lets hanging threads go at the end of the test."""
    event = threading.Event()
    yield event
    event.set()


Make = Callable[..., SignalManager]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Makes managers from settings, and shuts them down without waiting for what hangs."""
    managers: list[SignalManager] = []

    def new(**settings: Any) -> SignalManager:
        managers.append(SignalManager(SignalConfig(**settings)))
        return managers[-1]

    yield new
    for manager in managers:
        await manager.shutdown(0.05)


def registered(manager: SignalManager, handle: CallbackHandle) -> Registration:
    """What the manager knows of a callback."""
    registration = manager.registry.get(handle.id)
    assert registration is not None
    return registration
