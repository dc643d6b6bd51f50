"""When going on would lose events the service stops: exit 1, one line that says why, one that says what to do."""

from __future__ import annotations

import json
import re
import shutil
import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cdc.codes import Code
from cdc.demo.cluster import Cluster
from cdc.errors import ServerUnfit, SlotMissing
from cdc.events import Position
from cdc.lsn import Lsn
from cdc.refusals import command_error
from cdc.replication import ReplicationConnection, ReplicationStream
from cdc.state import open_state
from tests.conftest import Database, OwnCluster, drop_database
from tests.running import Child, assert_once_in_order, child, confirmed, slot_info, wait_until, walsender
from tests.waiting import make_config, running

ITEMS = "CREATE TABLE items (id bigint PRIMARY KEY, note text)"


@pytest.fixture
def service(database: Database, tmp_path: Path) -> Iterator[Child]:
    """A child on the test's own database with a table `items`, not started yet."""
    database.execute(ITEMS)
    with child(tmp_path, database.dsn) as made:
        yield made


def deliver(database: Database, service: Child, number: int = 1) -> None:
    """A first run that leaves a checkpoint behind an event."""
    seen = len(service.lines())
    service.start()
    database.execute(f"INSERT INTO items VALUES ({number})")
    service.wait_for_lines(seen + 1)
    service.stop()
    released(database.cluster, service.slot)


def released(cluster: Cluster, slot: str) -> None:
    """Wait until the server has noticed that its consumer is gone: it has read its last words, and lets the slot go."""
    wait_until(lambda: walsender(cluster, slot) is None, what=f"slot {slot} is free")


def assert_refused(service: Child, *said: str, arguments: tuple[str, ...] = (), exit_code: int = 1) -> None:
    """It ends with that exit code, its last line of log says why and what to do, by a code; no traceback."""
    code, output = service.run(*arguments)
    assert code == exit_code, output
    entries = [json.loads(line) for line in output.splitlines()]
    end = entries[-1]
    assert (end["event"], end["level"], end["exit_code"]) == ("service_failed", "error", exit_code)
    assert end["code"] in set(Code)
    assert end["hint"]
    for words in said:
        assert words in end["error"] + end["hint"], output


def drop_slot(database: Database, slot: str) -> None:
    """As somebody else would."""
    released(database.cluster, slot)
    database.execute(f"SELECT pg_drop_replication_slot('{slot}')")


def make_slot(database: Database, slot: str, plugin: str = "wal2json") -> None:
    """As somebody else would."""
    database.execute(f"SELECT pg_create_logical_replication_slot('{slot}', '{plugin}')")


# The slot ---------------------------------------------------------------------------------------------


def test_a_slot_that_is_gone_is_not_made_anew(database: Database, service: Child) -> None:
    """With a checkpoint; --accept-gap makes it, puts the gap on record, and the ids go on."""
    deliver(database, service)
    flushed = service.flushed()
    drop_slot(database, service.slot)
    assert_refused(service, f"slot '{service.slot}' is gone", "--accept-gap", f"in doubt: [{flushed}, ")
    assert slot_info(database.cluster, service.slot) is None

    service.start("--accept-gap")
    database.execute("INSERT INTO items VALUES (2)")
    assert_once_in_order(service.wait_for_lines(2))
    service.stop()
    assert_gap(service, flushed)
    deliver(database, service, 3)
    assert_once_in_order(service.lines())


def assert_gap(service: Child, first: Lsn) -> None:
    """The state has one gap of the whole stream, from there on."""
    with closing(service.state()) as state:
        (gap,) = state.gaps()
    assert (gap.callback, gap.reason, gap.first) == ("", "accepted", Position(first, 0))
    assert gap.last.commit_lsn > first


async def test_a_slot_that_goes_just_before_the_stream_starts_is_gone_like_any(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropped between our look at it and the start: told with the gap and what accepts it, not with how to make one."""
    start = ReplicationConnection.start

    async def too_late(self: ReplicationConnection, slot: str, *args: Any, **kwargs: Any) -> ReplicationStream:
        drop_slot(database, slot)
        return await start(self, slot, *args, **kwargs)

    async def to_its_end() -> None:
        config = make_config(database.dsn, tmp_path)
        async with running(config) as run:
            monkeypatch.setattr(ReplicationConnection, "start", too_late)
            database.execute(f"SELECT pg_terminate_backend({walsender(database.cluster, config.source.slot)})")
            await run.task

    with pytest.raises(SlotMissing, match="is gone, and with it all events after") as caught:
        await to_its_end()
    assert caught.value.code == Code.SLOT_GONE
    assert "--accept-gap" in caught.value.hint


def test_a_slot_that_was_dropped_and_made_anew_is_refused(database: Database, service: Child) -> None:
    """It has the right name, plugin and database, and lacks the events in between."""
    deliver(database, service)
    flushed = service.flushed()
    drop_slot(database, service.slot)
    database.execute("INSERT INTO items VALUES (2)")
    make_slot(database, service.slot)
    anew = confirmed(database.cluster, service.slot)
    assert_refused(service, "was advanced or made anew by somebody else", f"in doubt: [{flushed}, {anew})")
    assert confirmed(database.cluster, service.slot) == anew

    service.start("--accept-gap")
    database.execute("INSERT INTO items VALUES (3)")
    lines = service.wait_for_lines(2)
    service.stop()
    assert [line.record_id for line in lines] == ["1", "3"]
    assert_gap(service, flushed)


def test_a_slot_that_somebody_advanced_is_refused(database: Database, service: Child) -> None:
    """Also when it happens while the service runs and its connection is lost."""
    service.start()
    database.execute("INSERT INTO items VALUES (1)")
    service.wait_for_lines(1)
    service.stop()
    released(database.cluster, service.slot)
    database.execute("INSERT INTO items VALUES (2)")
    database.execute(f"SELECT pg_replication_slot_advance('{service.slot}', pg_current_wal_lsn())")
    advanced = confirmed(database.cluster, service.slot)
    said = f"in doubt: [{service.flushed()}, {advanced})"
    assert_refused(service, "was advanced or made anew by somebody else", said)
    assert confirmed(database.cluster, service.slot) == advanced


def test_a_slot_replaced_while_the_connection_is_lost_ends_the_service(database: Database, service: Child) -> None:
    """Nobody may take it that the rest of the stream follows what was delivered."""
    service.start()
    database.execute("INSERT INTO items VALUES (1)")
    service.wait_for_lines(1)
    service.freeze()  # so that it does not connect again before we are done
    database.execute(f"SELECT pg_terminate_backend({walsender(database.cluster, service.slot)}, 30000)")
    drop_slot(database, service.slot)
    make_slot(database, service.slot)
    service.thaw()
    assert service.wait() == 1
    assert "made anew by somebody else" in service.tail()
    assert_refused(service, "made anew by somebody else")


@pytest.mark.parametrize("plugin", ["test_decoding", "physical"])
def test_a_slot_of_another_plugin_is_refused(database: Database, service: Child, plugin: str) -> None:
    """Also a physical one; it stays as it is."""
    if plugin == "physical":
        database.execute(f"SELECT pg_create_physical_replication_slot('{service.slot}', true)")
    else:
        make_slot(database, service.slot, plugin)
    try:
        before = slot_info(database.cluster, service.slot)
        assert_refused(service, service.slot, "source.slot")
        after = slot_info(database.cluster, service.slot)
        assert before is not None
        assert after is not None
        assert (after.plugin, after.confirmed_flush_lsn) == (before.plugin, before.confirmed_flush_lsn)
    finally:
        drop_slot(database, service.slot)


def test_a_slot_of_another_database_is_refused(cluster: Cluster, database: Database, service: Child) -> None:
    """Slots are named cluster-wide, and each belongs to one database."""
    cluster.create_database("another")
    another = Database(cluster, "another")
    try:
        make_slot(another, service.slot)
        before = confirmed(cluster, service.slot)
        assert_refused(service, "'another'", f"'{database.name}'")
        assert confirmed(cluster, service.slot) == before
    finally:
        drop_database(cluster, "another")


LIMITED = {"max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB", "max_wal_size": "32MB"}


def invalidate(database: Database) -> None:
    """Write more WAL than the server keeps for a slot, and let it notice."""
    for _ in range(4):
        database.execute("SELECT pg_switch_wal()")
        database.execute("SELECT pg_logical_emit_message(false, 'x', 'y')")
    database.execute("CHECKPOINT")


def test_a_slot_invalidated_while_connected_ends_the_service_at_once(own_cluster: OwnCluster, tmp_path: Path) -> None:
    """The server ends the walsender with the words of a termination; one look at the slot tells: no second attempt."""
    server = own_cluster(LIMITED)
    database = Database(server, "postgres")
    database.execute(ITEMS)
    handlers = {"audit": {"callback": "records:Gated", "options": {"gate": str(tmp_path / "gate")}}}
    with child(tmp_path, database.dsn, handlers) as service:
        service.start()
        database.execute("INSERT INTO items VALUES (1)")
        invalidate(database)
        assert service.wait() == 3
        assert "is invalidated" in service.tail()
        assert "accept-gap" in service.tail()
        assert service.lines() == []
        # The server marks the slot only after the walsender has gone: an attempt in between finds it held still, or
        # takes it, and is ended as well.
        ended = re.findall(r"terminating (?:process|walsender) \d+ .*replication slot", server.log_file.read_text())
        assert len(service.log("stream_lost")) <= 2 * len(ended)
        info = slot_info(server, service.slot)
        assert info is not None
        assert info.invalidation
        assert_refused(service, "is invalidated", "in doubt: [", exit_code=3)


def test_a_slot_invalidated_while_away_is_made_anew_only_on_demand(own_cluster: OwnCluster, tmp_path: Path) -> None:
    """With the range on record; and events go on behind it, with the ids going on."""
    server = own_cluster(LIMITED)
    database = Database(server, "postgres")
    database.execute(ITEMS)
    with child(tmp_path, database.dsn) as service:
        deliver(database, service)
        flushed = service.flushed()
        database.execute("INSERT INTO items VALUES (2)")
        invalidate(database)
        assert_refused(service, "is invalidated", f"in doubt: [{flushed}, ", exit_code=3)
        assert_refused(service, "is invalidated", exit_code=3)
        service.start("--accept-gap")
        database.execute("INSERT INTO items VALUES (3)")
        lines = service.wait_for_lines(2)
        service.stop()
        assert [line.record_id for line in lines] == ["1", "3"]
        assert_once_in_order(lines)
        assert_gap(service, flushed)
        deliver(database, service, 4)


def test_an_invalidated_slot_is_not_dropped_where_others_make_it(own_cluster: OwnCluster, tmp_path: Path) -> None:
    """create_slot = false: --accept-gap or not, it stays, and the commands are named."""
    server = own_cluster(LIMITED)
    database = Database(server, "postgres")
    database.execute(ITEMS)
    with child(tmp_path, database.dsn) as service:
        deliver(database, service)
        invalidate(database)
        service.write(source={"create_slot": False})
        assert_refused(service, "cdc slot drop; cdc slot create", arguments=("--accept-gap",), exit_code=3)
        info = slot_info(server, service.slot)
        assert info is not None
        assert info.invalidation


def test_failover_needs_a_newer_server(database: Database, service: Child) -> None:
    """source.failover on a server before PostgreSQL 17 is told before anything is made."""
    if database.cluster.server_version >= 170000:
        service.write(source={"failover": True})
        service.start()
        info = slot_info(database.cluster, service.slot)
        assert info is not None
        assert info.failover
        return
    service.write(source={"failover": True})
    assert_refused(service, "source.failover needs PostgreSQL 17", "source.failover = false")
    assert slot_info(database.cluster, service.slot) is None
    service.write(source={"failover": False})
    deliver(database, service)
    service.write(source={"failover": True})
    assert_refused(service, "source.failover needs PostgreSQL 17")


# Server and role --------------------------------------------------------------------------------------


def test_a_server_without_logical_wal_is_refused(own_cluster: OwnCluster, tmp_path: Path) -> None:
    """wal_level = replica, with the statement that mends it."""
    server = own_cluster({"wal_level": "replica"})
    with child(tmp_path, server.dsn()) as service:
        assert_refused(service, "wal_level is 'replica'", "ALTER SYSTEM SET wal_level = logical")


def test_a_role_without_replication_is_refused(cluster: Cluster, database: Database, tmp_path: Path) -> None:
    """With the statement that mends it."""
    with cluster.connect() as connection:
        connection.execute("CREATE ROLE plain LOGIN")
    try:
        with child(tmp_path, cluster.dsn(database.name, user="plain")) as service:
            assert_refused(service, "cannot connect", "ALTER ROLE", "REPLICATION")
    finally:
        with cluster.connect() as connection:
            connection.execute("DROP ROLE plain")


def test_a_database_that_does_not_exist_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    """It will not come into being by itself."""
    with child(tmp_path, cluster.dsn("no_such_database")) as service:
        assert_refused(service, 'database "no_such_database" does not exist')


def test_a_database_of_unknown_encoding_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    """SQL_ASCII may hold anything."""
    with cluster.connect() as connection:
        connection.execute("CREATE DATABASE ascii ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    try:
        with child(tmp_path, cluster.dsn("ascii")) as service:
            assert_refused(service, "SQL_ASCII", "UTF8")
            assert slot_info(cluster, service.slot) is None
    finally:
        drop_database(cluster, "ascii")


def test_a_plugin_that_the_server_does_not_allow_is_named(database: Database) -> None:
    """Servers of August 2026 and later; the error comes with the setting that mends it."""
    text = 'library "wal2json" may not be used as an output plugin'
    with database.connect() as connection, pytest.raises(psycopg.Error) as caught:
        connection.execute(f"DO $$ BEGIN RAISE EXCEPTION '{text}' USING ERRCODE = '42501'; END $$")
    error = command_error(caught.value)

    assert isinstance(error, ServerUnfit)
    assert text in error.message
    assert "output_plugin_libraries" in error.hint


def test_a_plugin_that_the_server_does_not_allow_is_refused(own_cluster: OwnCluster, tmp_path: Path) -> None:
    """Where the server has that setting at all, with the real thing; where not, such a library is just used."""
    server = own_cluster({})
    if not server.has_output_plugin_list:
        with child(tmp_path, server.dsn()) as service:
            service.start()
            return
    with server.connect() as connection:
        connection.execute("ALTER SYSTEM SET output_plugin_libraries = pgoutput, test_decoding")
        connection.execute("SELECT pg_reload_conf()")
    with child(tmp_path, server.dsn()) as service:
        assert_refused(service, "may not be used as an output plugin", "output_plugin_libraries")


# The checkpoint ---------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_cluster_is_refused(
    database: Database, service: Child, own_cluster: OwnCluster
) -> None:
    """The same names everywhere, and another system identifier."""
    deliver(database, service)
    other = own_cluster({})
    other.create_database(database.name)
    make_slot(Database(other, database.name), service.slot)
    before = confirmed(other, service.slot)
    service.write(source={"dsn": other.dsn(database.name)})
    assert_refused(service, "the checkpoint is of cluster", "source.dsn")
    assert_refused(service, "the checkpoint is of cluster", arguments=("--accept-gap",))
    assert confirmed(other, service.slot) == before


def test_a_checkpoint_beyond_the_servers_wal_is_refused(database: Database, service: Child) -> None:
    """A restored backup, or a standby that was behind: the server would silently send nothing."""
    deliver(database, service)
    with closing(open_state(f"sqlite:///{service.state_path}", owner=True)) as state:
        checkpoint = state.load()
        assert checkpoint is not None
        state.save(replace(checkpoint, flushed_lsn=Lsn(checkpoint.flushed_lsn + (1 << 40))))
    before = confirmed(database.cluster, service.slot)
    assert_refused(service, "lies beyond this server's WAL", "in doubt: [")
    assert confirmed(database.cluster, service.slot) == before


def test_a_torn_state_file_is_refused(database: Database, service: Child) -> None:
    """Never a fresh start: exit 1, and the file stays as it is."""
    deliver(database, service)
    with closing(sqlite3.connect(service.state_path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    whole = service.state_path.read_bytes()
    service.state_path.write_bytes(whole[: len(whole) // 2 + 100])
    before = confirmed(database.cluster, service.slot)
    assert_refused(service, "state.db", "backup")
    assert confirmed(database.cluster, service.slot) == before
    assert service.state_path.read_bytes() == whole[: len(whole) // 2 + 100]


# The stream -------------------------------------------------------------------------------------------


class Spoiler:
    """A TCP proxy before a server that changes some bytes of what the server says."""

    def __init__(self, port: int, old: bytes, new: bytes) -> None:
        assert len(old) == len(new)
        self._server = ("127.0.0.1", port)
        self._old, self._new = old, new
        self._sockets = [socket.create_server(("127.0.0.1", 0))]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        self.port = self._sockets[0].getsockname()[1]

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._sockets[0].accept()
                server = socket.create_connection(self._server)
                self._sockets += [client, server]
                for one, other, spoil in ((client, server, False), (server, client, True)):
                    self._threads.append(threading.Thread(target=self._carry, args=(one, other, spoil)))
                    self._threads[-1].start()

    def _carry(self, one: socket.socket, other: socket.socket, spoil: bool) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data.replace(self._old, self._new) if spoil else data)
        _shut(one, other)

    def close(self) -> None:
        """End all connections, and accept no more."""
        _shut(*self._sockets)
        for thread in self._threads:
            thread.join()
        for one in self._sockets:
            one.close()


def _shut(*sockets: socket.socket) -> None:
    for one in sockets:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


def test_a_message_that_cannot_be_decoded_stops_the_service(
    cluster: Cluster, database: Database, service: Child
) -> None:
    """With its LSN and structure, without a value of the row; what was settled is kept, it itself is not passed."""
    direct = cluster.dsn(database.name, tcp=True, sslmode="disable")
    spoiler = Spoiler(cluster.port, b'"poison', b'"poi"on')
    try:
        service.write(source={"dsn": make_conninfo("", **conninfo_to_dict(direct) | {"port": spoiler.port})})
        service.start()
        database.execute("INSERT INTO items VALUES (1, 'well')")
        service.wait_for_lines(1)
        database.execute("INSERT INTO items VALUES (2, 'poison and a secret')")
        database.execute("INSERT INTO items VALUES (3, 'behind it')")
        assert service.wait() == 1
    finally:
        spoiler.close()
    end = service.lines()[-1].position.commit_lsn
    assert [line.record_id for line in service.lines()] == ["1"]
    wait_until(lambda: walsender(cluster, service.slot) is None)
    poisoned = database.execute(
        "SELECT (json_array_elements(to_json(array_agg(data)))#>>'{}')::json->>'lsn' FROM"
        f" pg_logical_slot_peek_changes('{service.slot}', NULL, NULL, 'format-version', '2', 'include-lsn', 'on',"
        " 'include-transaction', 'off') WHERE data LIKE '%poison%'"
    )[0][0]
    log = service.tail()
    assert f"cannot be decoded at {poisoned}" in log
    assert '\\"schema\\":\\"public\\",\\"table\\":\\"items\\"' in log
    assert "note" in log
    assert "secret" not in log
    assert "Traceback" not in log
    assert confirmed(cluster, service.slot) <= service.flushed() <= Lsn.parse(poisoned)
    assert service.flushed() >= end

    service.write(source={"dsn": direct})
    service.start()
    assert_once_in_order(service.wait_for_lines(3))


def test_an_old_state_file_is_refused(database: Database, service: Child, tmp_path: Path) -> None:
    """A backup of the state, put back: the slot has moved on since, and with it what the file does not know."""
    deliver(database, service)
    shutil.copy(service.state_path, tmp_path / "backup")
    deliver(database, service, 2)
    for suffix in ("", "-wal", "-shm"):
        service.state_path.with_name(service.state_path.name + suffix).unlink(missing_ok=True)
    shutil.copy(tmp_path / "backup", service.state_path)
    assert_refused(service, "somebody else", "--accept-gap")
