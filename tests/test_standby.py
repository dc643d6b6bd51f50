"""State in PostgreSQL: a second service stands by, takes over what the first leaves, and only one delivers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cdc.demo.cluster import Cluster
from cdc.state import open_state
from tests.conftest import FAST, Database, OwnCluster
from tests.faults.proxy import Proxy
from tests.running import Child, child, confirmed, server_lsn, wait_until, walsender
from tests.waiting import eventually, make_config, running

TAKEOVER_SECONDS = 5
BUSY_SECONDS = 15
"""What a busy machine may add; who learns of it from the source's server alone waits for a minute."""


@pytest.fixture
def items(database: Database) -> Database:
    """A database with a table `items`."""
    database.execute("CREATE TABLE items (id bigint PRIMARY KEY, note text)")
    return database


@pytest.fixture
def state_server(own_cluster: OwnCluster) -> Cluster:
    """Where the state lies: a server of its own."""
    return own_cluster({**FAST})


def url_of(server: Cluster, database: str = "postgres") -> str:
    """The state's URL; the server listens on a socket."""
    return f"postgresql://postgres@/{database}?host={server.socket_dir}&port={server.port}"


def insert(database: Database, first: int, last: int) -> None:
    """Rows, each in a transaction of its own."""
    with database.connect() as connection:
        for number in range(first, last + 1):
            connection.execute("INSERT INTO items VALUES (%s)", [number])


@pytest.fixture
def pair(items: Database, state_server: Cluster, tmp_path: Path) -> Iterator[tuple[Child, Child]]:
    """Two services with one slot and one state: the first streams, the second stands by."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    state: dict[str, Any] = {"url": url_of(state_server)}
    with (
        child(folders[0], items.dsn, state=state) as one,
        child(folders[1], items.dsn, slot=one.slot, state=state) as two,
    ):
        one.start()
        two.begin()
        two.wait_for_log("standby")
        yield one, two


def delivered(*services: Child) -> list[int]:
    """Record ids in the order of their first delivery, over all services in their order."""
    return list(dict.fromkeys(int(line.record_id) for service in services for line in service.lines()))


def test_a_standby_takes_over_from_one_that_is_killed(pair: tuple[Child, Child], items: Database) -> None:
    """Within seconds, without noise before, and nothing is lost."""
    one, two = pair
    insert(items, 1, 100)
    one.wait_for_lines(100)
    assert (two.lines(), len(two.log("standby"))) == ([], 1)
    one.kill()
    began = time.monotonic()
    insert(items, 101, 200)
    two.wait_for_log("streaming")
    wait_until(lambda: {str(number) for number in range(101, 201)} <= two.record_ids())
    assert time.monotonic() - began < TAKEOVER_SECONDS + BUSY_SECONDS
    assert delivered(one, two) == list(range(1, 201))
    two.stop()


def test_a_standby_outlasts_a_restart_of_the_states_server(
    pair: tuple[Child, Child], items: Database, state_server: Cluster
) -> None:
    """It stands by as before, or is the owner then; either way one of the two delivers, and nothing is lost."""
    one, two = pair
    state_server.restart("immediate")
    insert(items, 1, 20)
    wait_until(lambda: len(set(delivered(one, two))) == 20)
    assert two.is_running
    assert delivered(one, two) == list(range(1, 21))


def test_a_standby_takes_over_at_once_from_one_that_ends(pair: tuple[Child, Child], items: Database) -> None:
    """After a clean stop nothing is delivered twice, by whomever."""
    one, two = pair
    insert(items, 1, 50)
    one.wait_for_lines(50)
    one.stop()
    insert(items, 51, 60)
    lines = two.wait_for_lines(10)
    assert [int(line.record_id) for line in lines] == list(range(51, 61))
    assert [line.id for line in lines] == list(range(51, 61))
    two.stop()


def test_one_that_stood_still_delivers_nothing_after_the_takeover(pair: tuple[Child, Child], items: Database) -> None:
    """Stopped like a machine that is suspended; when it goes on, another one has the state, and it ends."""
    one, two = pair
    insert(items, 1, 10)
    one.wait_for_lines(10)
    one.freeze()
    insert(items, 11, 40)
    wait_until(lambda: {str(number) for number in range(11, 41)} <= two.record_ids())
    assert "leftover_ended" in {entry["event"] for entry in two.log()}
    one.thaw()
    assert one.wait() == 1
    assert "another cdc run" in one.tail()
    assert len(one.lines()) == 10
    insert(items, 41, 45)
    wait_until(lambda: "45" in two.record_ids())
    assert delivered(one, two) == list(range(1, 46))
    two.stop()


def test_a_live_owner_of_the_slot_is_never_ended(items: Database, state_server: Cluster, tmp_path: Path) -> None:
    """A service with another state waits for the slot, however long that takes."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    state = {"url": url_of(state_server)}
    other = {"url": url_of(state_server) + "&schema=other"}
    with (
        child(tmp_path / "one", items.dsn, state=state) as one,
        child(tmp_path / "two", items.dsn, slot=one.slot, state=other) as two,
    ):
        one.start()
        pid = walsender(items.cluster, one.slot)
        two.begin()
        assert two.wait_for_log("stream_lost")["reason"] == "slot_busy"
        insert(items, 1, 20)
        one.wait_for_lines(20)
        assert walsender(items.cluster, one.slot) == pid
        two.stop()
        one.stop()


def test_a_connection_of_ours_that_was_left_over_is_ended(items: Database, tmp_path: Path) -> None:
    """Cut off while the server does not know it: the slot is free again at once, not after wal_sender_timeout."""
    with Proxy(items.cluster.port) as proxy:
        dsn = items.cluster.dsn(items.name, tcp=True, port=str(proxy.port))
        with child(tmp_path, dsn) as service:
            service.start()
            insert(items, 1, 5)
            service.wait_for_lines(5)
            assert proxy.abandon_client() > 0
            service.wait_for_log("leftover_ended")
            insert(items, 6, 10)
            service.wait_for_log("streaming", 2)
            assert [int(line.record_id) for line in service.wait_for_lines(10)] == list(range(1, 11))
            service.stop()


def test_a_standby_takes_over_from_a_host_that_has_vanished(
    items: Database, state_server: Cluster, tmp_path: Path
) -> None:
    """Nothing of it arrives any more, and nobody is told: not the source's server, not the state's."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with Proxy(items.cluster.port) as source, Proxy(state_server.port) as its_state:
        dsn = items.cluster.dsn(items.name, tcp=True, port=str(source.port))
        url = f"postgresql://postgres:{state_server.password}@127.0.0.1:{its_state.port}/postgres"
        state = {"url": url_of(state_server)}
        with (
            child(tmp_path / "one", dsn, state={"url": url}) as one,
            child(tmp_path / "two", items.dsn, slot=one.slot, state=state) as two,
        ):
            one.start()
            insert(items, 1, 20)
            one.wait_for_lines(20)
            two.begin()
            two.wait_for_log("standby")
            for way in (source, its_state):
                way.refuses = True  # or it comes back on a new connection, in time to stay the owner
                way.blacken()
            began = time.monotonic()
            two.wait_for_log("streaming")
            took = time.monotonic() - began
            insert(items, 21, 40)
            wait_until(lambda: {str(number) for number in range(21, 41)} <= two.record_ids())
            assert took < TAKEOVER_SECONDS + BUSY_SECONDS
            assert len(one.lines()) == 20
            assert delivered(one, two) == list(range(1, 41))
            two.stop()


async def test_without_its_state_nothing_is_acknowledged(
    items: Database, state_server: Cluster, tmp_path: Path
) -> None:
    """The slot is held, the service is not ready; when the server is back it goes on, and nothing is lost."""
    config = make_config(items.dsn, tmp_path, state={"url": url_of(state_server)})
    async with running(config) as run:
        items.execute("INSERT INTO items VALUES (1)")
        await eventually(lambda: len(run.callbacks.seen) == 1)
        end = server_lsn(items)
        await eventually(lambda: confirmed(items.cluster, config.source.slot) >= end)
        state_server.stop("immediate")
        items.execute("INSERT INTO items VALUES (2)")
        end = server_lsn(items)

        async def is_told() -> bool:
            status, body = await run.get("/readyz")
            return status == 503 and "state" in body

        await eventually(is_told, timeout=30)
        assert confirmed(items.cluster, config.source.slot) < end
        state_server.start()
        await eventually(lambda: confirmed(items.cluster, config.source.slot) >= end, 30)
        assert [event.record_id for event in run.callbacks.seen] == ["1", "2"]


async def test_an_idle_service_with_its_state_in_the_source_writes_nothing(
    own_cluster: OwnCluster, tmp_path: Path
) -> None:
    """Its own writes are no events, and move it no further; what others write moves the slot all the same."""
    server = own_cluster({"autovacuum": "off", "bgwriter_lru_maxpages": "0"})
    database = Database(server, "postgres")
    database.execute("CREATE TABLE items (id bigint PRIMARY KEY)")
    config = make_config(database.dsn, tmp_path, state={"url": url_of(server)})
    async with running(config) as run:
        database.execute("INSERT INTO items VALUES (1)")
        await eventually(lambda: len(run.callbacks.seen) == 1)
        looks: list[tuple[float, str]] = []

        def is_quiet() -> bool:
            lsn = str(server_lsn(database))
            if not looks or looks[0][1] != lsn:
                looks[:] = [(time.monotonic(), lsn)]
            return time.monotonic() - looks[0][0] > 4

        await eventually(is_quiet, 40)
        assert [event.table_name for event in run.callbacks.seen] == ["items"]
        database.execute("CREATE TABLE filler AS SELECT repeat('x', 1000) FROM generate_series(1, 40000)")
        end = server_lsn(database)
        await eventually(lambda: (end - confirmed(server, config.source.slot)) < 2**24, 30)
    store = open_state(url_of(server), read_only=True)
    try:
        assert [record.name for record in store.callbacks()] == ["audit"]
    finally:
        store.close()
