"""A server that is being stopped is let go: it is noticed at once, and told apart from a lost connection."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest

from cdc import lookout, monitor
from cdc.demo.cluster import Cluster
from cdc.lsn import Lsn
from cdc.monitor import Monitor
from tests.conftest import FAST, Database
from tests.running import child, server_lsn, wait_until, walsender
from tests.waiting import eventually

APPLICATION = "lookout_of_the_test"


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    """A server for this file, which its tests stop and start again."""
    with Cluster(settings=FAST) as made:
        yield made


@pytest.fixture(autouse=True)
def _runs(server: Cluster) -> None:
    """Each test begins with a server that runs."""
    if not server.is_running():
        server.start()


@asynccontextmanager
async def watching(server: Cluster) -> AsyncIterator[Monitor]:
    """A monitor at work, that has looked once."""
    made = Monitor(server.dsn(application_name=APPLICATION), "none")
    running = asyncio.create_task(made.run())
    try:
        await eventually(lambda: made.looked_time is not None)
        await eventually(lambda: backend(server))
        yield made
    finally:
        running.cancel()
        await asyncio.wait([running])
        await made.close()


def backend(server: Cluster) -> int | None:
    """Process id of the monitor's connection."""
    with server.connect() as connection:
        row = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND state = 'idle'", [APPLICATION]
        ).fetchone()
    return row[0] if row else None


async def test_a_fast_stop_is_noticed_at_once(server: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at the next look: the monitor hears the end of its own connection, and that there is no other."""
    monkeypatch.setattr(monitor, "SLOT_SECONDS", 3600.0)
    told: list[float] = []
    async with watching(server) as made:
        made.on_server_stopping = lambda: told.append(time.monotonic())
        assert made.server_stopping is None
        server.stop("fast", wait=False)
        await eventually(lambda: made.server_stopping, timeout=30)
        assert len(told) == 1
        wait_until(lambda: not server.is_running())
        server.start()
        made.look_soon()
        await eventually(lambda: made.server_stopping is None)
        assert len(told) == 1


async def test_a_terminated_connection_is_no_stop(server: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """pg_terminate_backend sends the same words; the monitor connects again, and looks."""
    monkeypatch.setattr(monitor, "SLOT_SECONDS", 3600.0)
    async with watching(server) as made:
        looked, pid = made.looked_time, backend(server)
        with server.connect() as connection:
            connection.execute("SELECT pg_terminate_backend(%s)", [pid])
        await eventually(lambda: made.looked_time != looked)
        assert made.server_stopping is None
        await eventually(lambda: backend(server) not in (None, pid))


async def test_a_smart_stop_does_not_wait_for_the_monitor(server: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for ordinary connections: this one goes when it is due for renewal, and calls it no fast stop."""
    monkeypatch.setattr(monitor, "SLOT_SECONDS", 0.1)
    monkeypatch.setattr(lookout, "RENEW_SECONDS", 0.3)
    monkeypatch.setattr(lookout, "LAST_WORD_SECONDS", 0.1)
    async with watching(server) as made:
        server.stop("smart", wait=False)
        await eventually(lambda: not server.is_running())
        assert made.server_stopping is None
        looked = made.looked_time
        server.start()
        await eventually(lambda: made.looked_time != looked)


async def test_a_crash_of_the_server_is_no_stop(server: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """All its connections end, and it takes none for a while; then it is back by itself."""
    monkeypatch.setattr(monitor, "SLOT_SECONDS", 0.1)
    told: list[float] = []
    async with watching(server) as made:
        made.on_server_stopping = lambda: told.append(time.monotonic())
        pid = backend(server)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

        def is_back() -> bool:
            try:
                return backend(server) not in (None, pid)
            except psycopg.OperationalError:  # it recovers
                return False

        await eventually(is_back, timeout=30)
        looked = made.looked_time
        await eventually(lambda: made.looked_time != looked)
        assert made.server_stopping is None
        assert told == []


DRAIN_SECONDS = 2
GRACE_SECONDS = 5
BUSY_SECONDS = 15
"""What a busy machine may add; without us the server would wait for an hour."""


@pytest.mark.parametrize(
    ("handler", "options"),
    [("Hang", {}), ("InThread", {"seconds": 3600}), ("BlocksLoop", {"seconds": 3600})],
    ids=["hangs", "thread_hangs", "loop_blocked"],
)
def test_a_fast_stop_is_over_in_time_whatever_the_handlers_do(
    server: Cluster, tmp_path: Path, handler: str, options: dict[str, int]
) -> None:
    """Within the drain deadline and five seconds; what was not settled is not acknowledged, and comes again."""
    name = f"stop_{handler.lower()}"
    server.create_database(name)
    database = Database(server, name)
    database.execute("CREATE TABLE items (id bigint PRIMARY KEY)")
    settings = {"drain_timeout_seconds": DRAIN_SECONDS, "callback_timeout_seconds": 3600}
    handlers = {"audit": {"callback": f"records:{handler}", "options": options}}
    with child(tmp_path, database.dsn, handlers, signal=settings) as service:
        service.start()
        database.execute("INSERT INTO items VALUES (1)")
        database.execute("INSERT INTO items VALUES (2)")
        end = server_lsn(database)
        wait_until(lambda: sent(server, service.slot) >= end)
        began = time.monotonic()
        server.stop("fast", timeout=30)
        took = time.monotonic() - began
        assert took < DRAIN_SECONDS + GRACE_SECONDS + BUSY_SECONDS
        service.kill()
        server.start()
        ends = unconfirmed(database, service.slot)
        assert len(ends) == 2
        assert service.flushed() < ends[0]
        again = len(service.lines())
        service.begin()
        if handler == "Hang":
            assert service.wait_for_lines(again + 1)[-1].record_id == "1"
        wait_until(lambda: walsender(server, service.slot) is not None)


def unconfirmed(database: Database, slot: str) -> list[Lsn]:
    """The ends of the transactions that the slot, which nobody holds, has still to give."""
    rows = database.execute(
        "SELECT data::json->>'nextlsn' FROM pg_logical_slot_peek_changes"
        f"('{slot}', NULL, NULL, 'format-version', '2', 'include-lsn', 'on') WHERE data::json->>'action' = 'C'"
    )
    return [Lsn.parse(end) for (end,) in rows]


def sent(server: Cluster, slot: str) -> Lsn:
    """How far the server has sent to the consumer of the slot."""
    with server.connect() as connection:
        row = connection.execute(
            "SELECT r.sent_lsn::text FROM pg_stat_replication r"
            " JOIN pg_replication_slots s ON s.active_pid = r.pid WHERE s.slot_name = %s",
            [slot],
        ).fetchone()
    return Lsn.parse(row[0]) if row and row[0] else Lsn(0)
