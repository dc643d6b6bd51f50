"""The running stream on a real server: order, what may be flushed, feedback, memory, sessions, bad messages."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cdc import pump, session
from cdc.demo.cluster import Cluster
from cdc.lsn import Lsn
from cdc.replication import ReplicationConnection, stream
from tests.conftest import Database, OwnCluster, drop_database
from tests.running import (
    Child,
    assert_once_in_order,
    child,
    confirmed,
    server_lsn,
    wait_until,
    walsender,
)
from tests.waiting import eventually, make_config, running

ITEMS = "CREATE TABLE items (id int PRIMARY KEY, note text)"
MEMORY = 150 * 1024 * 1024
"""What the issue allows the whole process, whatever the size of a transaction."""
FREQUENT = "-c wal_sender_timeout=2s"
"""The server asks soon, so that a test need not wait for its idle keepalives. On a machine that stands still it may
give the connection up: tests that use it must not depend on it."""
PATIENCE = "-c wal_sender_timeout=5s"
"""For connections that must last: a third of it is between two words of ours, and the rest is for a busy machine."""
SILENCE_SECONDS = 8.0
"""Longer than that."""


@pytest.fixture
def service(database: Database, tmp_path: Path) -> Iterator[Child]:
    """A child on the test's own database with a table `items`, not started yet."""
    database.execute(ITEMS)
    with child(tmp_path, database.dsn) as made:
        yield made


def gated(folder: Path) -> tuple[dict[str, dict[str, object]], Path]:
    """A handler that waits for a file, and the file."""
    gate = folder / "gate"
    return {"audit": {"callback": "records:Gated", "options": {"gate": str(gate)}}}, gate


def test_events_arrive_in_commit_order_with_dense_ids(database: Database, service: Child) -> None:
    """Inserts, updates and deletes of many small transactions."""
    service.start()
    for number in range(20):
        database.execute(f"INSERT INTO items SELECT {number} * 10 + i FROM generate_series(1, 5) i")
    database.execute("UPDATE items SET note = 'x'; DELETE FROM items")
    lines = service.wait_for_lines(300)

    assert_once_in_order(lines)
    assert [line.event_type for line in lines] == ["create"] * 100 + ["update"] * 100 + ["delete"] * 100
    assert [line.position.ordinal for line in lines[:5]] == [1, 2, 3, 4, 5]


def test_flushed_lsn_equals_the_commit_end_once_settled(database: Database, service: Child) -> None:
    """Not its start, which would bring the transaction again, and nothing beyond it."""
    service.start()
    with database.connect() as connection:
        connection.execute("INSERT INTO items VALUES (1)")
        end = service.wait_for_lines(1)[0].position.commit_lsn
        wait_until(lambda: confirmed(database.cluster, service.slot) >= end)
    assert service.flushed() >= end


def test_flushed_lsn_waits_for_an_unsettled_commit(database: Database, tmp_path: Path) -> None:
    """Neither later commits nor keepalives move it past the event that a callback has in work."""
    database.execute(ITEMS)
    handlers, gate = gated(tmp_path)
    handlers["quick"] = {"callback": "records:Record"}
    with child(tmp_path, f"{database.dsn} options='{FREQUENT}'", handlers) as service:
        service.start()
        for number in range(30):
            database.execute(f"INSERT INTO items VALUES ({number})")
        quick = service.wait_for_lines(30, "quick")
        first, end = quick[0].position.commit_lsn, quick[-1].position.commit_lsn
        # The quick one's positions are on record, so that checkpoints were made meanwhile.
        wait_until(lambda: settled(service, "quick") >= end)
        assert service.flushed() < first
        assert confirmed(database.cluster, service.slot) < first
        gate.touch()
        last = service.wait_for_lines(30)[-1].position.commit_lsn
        wait_until(lambda: confirmed(database.cluster, service.slot) >= last)


def settled(service: Child, handler: str) -> int:
    """A callback's own position in the checkpoint."""
    state = service.state()
    try:
        checkpoint = state.load()
    finally:
        state.close()
    assert checkpoint is not None
    return checkpoint.callbacks[handler].commit_lsn


def test_keepalives_do_not_move_the_slot_while_a_transaction_is_unsettled(
    cluster: Cluster, database: Database, tmp_path: Path
) -> None:
    """Other databases write on, the server says so, and the slot stays before the event in work."""
    database.execute(ITEMS)
    handlers, gate = gated(tmp_path)
    with child(tmp_path, f"{database.dsn} options='{FREQUENT}'", handlers) as service:
        service.start()
        database.execute("INSERT INTO items VALUES (1)")
        end = server_lsn(database)
        with cluster.connect() as elsewhere:
            elsewhere.execute("SELECT pg_logical_emit_message(false, 'x', repeat('y', 100000))")
            beyond = server_lsn(database)

            def replied() -> object:
                """When the consumer last answered a server that has sent all of that; None while it has not."""
                row = elsewhere.execute(
                    "SELECT r.reply_time FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid"
                    " WHERE s.slot_name = %s AND r.sent_lsn >= %s::pg_lsn",
                    [service.slot, str(beyond)],
                ).fetchone()
                return row[0] if row else None

            wait_until(replied)
            for _ in range(3):
                last = replied()
                wait_until(lambda last=last: replied() not in (None, last))  # type: ignore[misc]
        assert confirmed(cluster, service.slot) < end
        gate.touch()
        commit = service.wait_for_lines(1)[0].position.commit_lsn
        wait_until(lambda: confirmed(cluster, service.slot) >= commit)


def test_interleaved_transactions_arrive_in_commit_order(database: Database, service: Child) -> None:
    """The one that commits later has the lower LSNs; flushed never goes backwards."""
    service.start()
    with database.connect() as one, database.connect() as other:
        for connection in (one, other):
            connection.autocommit = False
        one.execute("INSERT INTO items SELECT i, 'one' FROM generate_series(1, 10) i")
        other.execute("INSERT INTO items SELECT i, 'other' FROM generate_series(11, 20) i")
        other.commit()
        between = service.wait_for_lines(10)[-1].position.commit_lsn
        wait_until(lambda: confirmed(database.cluster, service.slot) >= between)
        one.execute("INSERT INTO items VALUES (21, 'one')")
        one.commit()
    lines = service.wait_for_lines(21)

    assert [line.record_id for line in lines] == [*map(str, range(11, 21)), *map(str, range(1, 11)), "21"]
    assert_once_in_order(lines)


def test_a_callback_that_blocks_the_event_loop_does_not_cost_the_connection(database: Database, tmp_path: Path) -> None:
    """time.sleep for longer than the server's patience, in a coroutine."""
    database.execute(ITEMS)
    handlers = {"audit": {"callback": "records:BlocksLoop", "options": {"seconds": SILENCE_SECONDS}}}
    with child(tmp_path, f"{database.dsn} options='{PATIENCE}'", handlers) as service:
        service.start()
        pid = walsender(database.cluster, service.slot)
        database.execute("INSERT INTO items VALUES (1)")
        service.wait_for_lines(1)
        assert walsender(database.cluster, service.slot) == pid
        assert timed_out(database.cluster, pid) == []


def test_a_full_queue_does_not_cost_the_connection(database: Database, tmp_path: Path) -> None:
    """The reader is held back for longer than the server's patience; then everything arrives."""
    database.execute(ITEMS)
    handlers, gate = gated(tmp_path)
    queue = {"max_queued_events": 500}
    with child(tmp_path, f"{database.dsn} options='{PATIENCE}'", handlers, signal=queue) as service:
        service.start()
        pid = walsender(database.cluster, service.slot)
        database.execute("INSERT INTO items SELECT i, repeat('x', 200) FROM generate_series(1, 50000) i")
        began = time.monotonic()
        wait_until(lambda: time.monotonic() > began + SILENCE_SECONDS)
        assert walsender(database.cluster, service.slot) == pid
        gate.touch()
        assert_once_in_order(service.wait_for_lines(50_000))
        assert walsender(database.cluster, service.slot) == pid
        assert timed_out(database.cluster, pid) == []


def test_a_transaction_of_a_million_rows_passes_in_bounded_memory(database: Database, tmp_path: Path) -> None:
    """Under 150 MB in the whole process, with the server hearing from us all the time."""
    database.execute(f"{ITEMS}; CREATE TABLE done (id int PRIMARY KEY)")
    handlers = {"audit": {"callback": "records:Counts"}}
    with child(tmp_path, f"{database.dsn} options='{PATIENCE}'", handlers) as service:
        service.start()
        pid = walsender(database.cluster, service.slot)
        database.execute(
            "INSERT INTO items SELECT i, 'note of some length ' || i FROM generate_series(1, 1000000) i;"
            "INSERT INTO done VALUES (1)"
        )
        (done,) = service.wait_for_lines(1, timeout=90)
        assert done.id == done.position.ordinal == 1_000_001
        assert service.peak_memory() < MEMORY
        assert walsender(database.cluster, service.slot) == pid
        assert timed_out(database.cluster, pid) == []


def test_wide_rows_pass_in_bounded_memory(database: Database, tmp_path: Path) -> None:
    """20,000 rows of 10 kB in one transaction, to a callback slower than the stream."""
    database.execute(f"{ITEMS}; CREATE TABLE done (id int PRIMARY KEY)")
    handlers = {"audit": {"callback": "records:Counts"}, "slow": {"callback": "records:InThread"}}
    with child(tmp_path, database.dsn, handlers) as service:
        service.start()
        database.execute(
            "INSERT INTO items SELECT i, repeat(md5(i::text), 313) FROM generate_series(1, 20000) i;"
            "INSERT INTO done VALUES (1)"
        )
        service.wait_for_lines(1, timeout=60)
        assert service.peak_memory() < MEMORY


def timed_out(cluster: Cluster, pid: int | None) -> list[str]:
    """What the server's log says of a walsender that it gave up."""
    log = cluster.log_file.read_text(errors="replace")
    return re.findall(rf"\[{pid}\].*terminating walsender process.*", log)


def test_session_settings_of_role_and_database_change_nothing(
    cluster: Cluster, database: Database, service: Child
) -> None:
    """What the plugin's output depends on is pinned."""
    database.execute(
        "CREATE TABLE kinds (id int PRIMARY KEY, bytes bytea, day date, time timestamptz, span interval,"
        " number float8, price money, class regclass)"
    )
    row = (
        "INSERT INTO kinds VALUES ({}, '\\xdeadbeef', '2026-02-01', '2026-02-01 12:00+00', '1 day 02:00', 0.1,"
        " 12.5, 'items')"
    )
    service.start()
    database.execute(row.format(1))
    service.wait_for_lines(1)
    service.stop()
    settings = {
        "bytea_output": "escape",
        "datestyle": "'SQL, DMY'",
        "intervalstyle": "iso_8601",
        "timezone": "'Asia/Kolkata'",
        "extra_float_digits": "-10",
        "search_path": "public, pg_catalog",
        "quote_all_identifiers": "on",
    }
    for name, value in settings.items():
        database.execute(f"ALTER DATABASE {database.name} SET {name} = {value}")
    database.execute(f"ALTER ROLE postgres IN DATABASE {database.name} SET bytea_output = escape")
    service.start()
    database.execute(row.format(2))
    one, other = service.wait_for_lines(2)

    assert other.payload.replace("id=2", "id=1") == one.payload
    assert "\\xde\\xad\\xbe\\xef" in one.payload


def test_a_latin1_database_is_decoded(cluster: Cluster, tmp_path: Path) -> None:
    """The payload comes in the server's encoding, whatever the client's."""
    name = "latin1"
    with cluster.connect() as connection:
        connection.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    database = Database(cluster, name)
    try:
        with child(tmp_path, database.dsn) as service, database.connect(client_encoding="UTF8") as connection:
            connection.execute(ITEMS)
            service.start()
            connection.execute("INSERT INTO items VALUES (1, 'café Ærø')")
            assert "café Ærø" in service.wait_for_lines(1)[0].payload
            service.stop()
    finally:
        drop_database(cluster, name)


def test_tables_whose_names_need_escaping_can_be_chosen(database: Database, service: Child) -> None:
    """Dots, spaces, stars, commas, quotes and backslashes reach the plugin as they are."""
    names = ["my.table", "two words", "st*r", "com,ma", "it''s", "back\\slash", 'quo"te']
    quoted = ['"{}"'.format(name.replace("''", "'").replace('"', '""')) for name in names]
    for number, name in enumerate(quoted):
        database.execute(f"CREATE TABLE {name} (id int PRIMARY KEY DEFAULT {number})")
    service.write(source={"tables": [f"public.{name}" for name in quoted]})
    service.start()
    for name in ["items", *quoted]:
        database.execute(f"INSERT INTO {name} DEFAULT VALUES" if name != "items" else "INSERT INTO items VALUES (99)")
    lines = service.wait_for_lines(len(names))

    assert [line.id for line in lines] == list(range(1, len(names) + 1))
    service.stop()
    assert len(service.lines()) == len(names)


@contextmanager
def standing_still(server: Cluster, what: str) -> Iterator[None]:
    """One of the server's background processes does nothing."""
    with server.connect() as connection:
        row = connection.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = %s", [what]).fetchone()
    assert row is not None
    os.kill(row[0], signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(row[0], signal.SIGCONT)


def is_at_the_socket(server: Cluster, end: int) -> bool:
    """Whether the server's only walsender has sent all up to `end`, or waits until somebody reads."""
    with server.connect() as connection:
        row = connection.execute(
            "SELECT r.sent_lsn >= %s::pg_lsn OR a.wait_event = 'WalSenderWriteData'"
            " FROM pg_stat_replication r JOIN pg_stat_activity a USING (pid)",
            [str(Lsn(end))],
        ).fetchone()
    return bool(row and row[0])


async def test_a_burst_that_fills_the_buffers_is_read_to_its_end(
    own_cluster: OwnCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By count or, with rows of some kilobytes, by bytes; nothing then lies unread until more arrives.

    More never arrives here: nobody writes WAL by himself, and neither side asks the other for a word.
    """
    monkeypatch.setattr(session, "LONGEST_STATUS_SECONDS", 3600.0)
    monkeypatch.setattr(pump, "BATCH_BYTES", 1 << 16)  # less than a socket holds: the rest lies in libpq's memory
    server = own_cluster({"autovacuum": "off", "checkpoint_timeout": "1h", "max_wal_size": "4GB"})
    database = Database(server, "postgres")
    database.execute(ITEMS)
    config = make_config(f"{database.dsn} options='-c wal_sender_timeout=0'", tmp_path)
    async with running(config) as run:
        with standing_still(server, "background writer"):
            for size in (1, 3_000, 8_000, 60_000):
                database.execute("TRUNCATE items")
                wanted = len(run.callbacks.seen) + 400
                database.execute(f"INSERT INTO items SELECT i, repeat('x', {size}) FROM generate_series(1, 400) i")
                end = server_lsn(database)
                wait_until(lambda end=end: is_at_the_socket(server, end))  # type: ignore[misc] # the loop reads nothing yet
                await eventually(lambda wanted=wanted: len(run.callbacks.seen) == wanted, timeout=30)  # type: ignore[misc]


async def test_slot_is_free_once_its_stream_is_closed(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever stops the service may drop the slot, or start another: the server lets it go after the stream's end."""
    monkeypatch.setattr(stream, "COPY_DONE_SECONDS", 60.0)  # it answers at once, unless the machine stands still
    with database.connect() as connection:
        connection.execute("SELECT pg_create_logical_replication_slot(current_database(), 'wal2json')")
        active = []
        for _ in range(40):  # it was free by chance two times in three
            replication = await ReplicationConnection.connect(database.dsn)
            streamed = await replication.start(
                database.name, 0, {"format-version": "2"}, status_interval=60, notice=lambda _: None
            )
            await streamed.close()
            row = connection.execute(
                "SELECT active FROM pg_replication_slots WHERE slot_name = current_database()"
            ).fetchone()
            active.append(row)
    assert set(active) == {(False,)}
