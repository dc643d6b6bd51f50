"""Another server takes over: a promoted standby, an older copy of the data; what is missing is never passed over."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cdc.demo.cluster import Cluster, ClusterError
from cdc.lsn import Lsn
from tests.conftest import FAST, Database, OwnCluster
from tests.running import Child, assert_once_in_order, child, confirmed, server_lsn, wait_until, walsender

ITEMS = "CREATE TABLE items (id bigint PRIMARY KEY, note text)"


class Standby(Cluster):
    """A physical standby of another cluster, made with pg_basebackup."""

    def __init__(self, primary: Cluster, **kwargs: Any) -> None:
        super().__init__(settings=FAST, **kwargs)
        self._primary = primary

    def _initdb(self) -> None:
        result = self._run(
            "pg_basebackup",
            f"--pgdata={self.data}",
            f"--dbname={self._primary.dsn()}",
            "--write-recovery-conf",
            "--checkpoint=fast",
            "--no-sync",
        )
        if result.returncode != 0:
            raise ClusterError(result.stdout)
        self.settings = dict(self._primary.settings)

    def wait_for(self, lsn: Lsn) -> None:
        """Until it has replayed up to there."""
        with self.connect() as connection:
            wait_until(lambda: Lsn.parse(_one(connection, "SELECT pg_last_wal_replay_lsn()::text")) >= lsn)

    def take_slot(self, name: str) -> None:
        """What tools do before PostgreSQL 17: the slot's file of the primary. The standby restarts for it."""
        self.stop()
        folder = self.data / "pg_replslot" / name
        folder.mkdir()
        # The file alone: the primary puts a whole one in its place by way of another beside it.
        shutil.copyfile(self._primary.data / "pg_replslot" / name / "state", folder / "state")
        for path in (folder, folder / "state"):
            self._hand_over(path, 0o700)
        self.start()

    def promote(self) -> None:
        """Make it a primary, on a timeline of its own."""
        with self.connect() as connection:
            assert _one(connection, "SELECT pg_promote()")


def _one(connection: Any, query: str) -> Any:
    return connection.execute(query).fetchone()[0]


MakeStandby = Callable[[Cluster], Standby]


@pytest.fixture
def standby_of() -> Iterator[MakeStandby]:
    """Makes running standbys."""
    with ExitStack() as stack:
        yield lambda primary: stack.enter_context(Standby(primary))


@pytest.fixture
def primary(own_cluster: OwnCluster) -> Database:
    """A server with a table `items`."""
    database = Database(own_cluster({}), "postgres")
    database.execute(ITEMS)
    return database


def deliver(database: Database, service: Child, number: int) -> None:
    """One more row, delivered."""
    seen = len(service.lines())
    database.execute(f"INSERT INTO items VALUES ({number})")
    service.wait_for_lines(seen + 1)


def refusal(service: Child) -> str:
    """Its words: it ends with exit 1."""
    code, output = service.run()
    assert code == 1, output
    return output


def test_the_service_follows_a_promotion_and_loses_nothing(
    primary: Database, standby_of: MakeStandby, tmp_path: Path
) -> None:
    """With both servers in its DSN and a slot on either; also when its connection is lost once more after that."""
    with child(tmp_path, "") as service:
        standby = standby_of(primary.cluster)
        one, other = primary.cluster, standby
        both = f"host={one.socket_dir},{other.socket_dir} port={one.port},{other.port} user=postgres dbname=postgres"
        service.write(source={"dsn": both + " target_session_attrs=read-write"})
        service.start()
        deliver(primary, service, 1)
        standby.take_slot(service.slot)
        deliver(primary, service, 2)
        standby.wait_for(server_lsn(primary))
        primary.cluster.stop()
        standby.promote()
        service.wait_for_log("streaming", 2)
        promoted = Database(standby, "postgres")
        deliver(promoted, service, 3)
        end = server_lsn(promoted)
        wait_until(lambda: confirmed(standby, service.slot) >= end)  # past the fork, and so is our checkpoint
        promoted.execute(f"SELECT pg_terminate_backend({walsender(standby, service.slot)})")
        service.wait_for_log("streaming", 3)
        deliver(promoted, service, 4)
        service.stop()
        service.start()
        deliver(promoted, service, 5)
        service.stop()
        assert_once_in_order(service.lines())
        assert [line.record_id for line in service.lines()] == ["1", "2", "3", "4", "5"]


def test_a_standby_is_waited_for_until_its_promotion(
    primary: Database, standby_of: MakeStandby, tmp_path: Path
) -> None:
    """The address has moved to it, but it is not the primary yet; then its lack of the slot is told, with the range."""
    with child(tmp_path, primary.dsn) as service:
        service.start()
        deliver(primary, service, 1)
        service.stop()
        flushed = service.flushed()
        standby = standby_of(primary.cluster)
        standby.wait_for(server_lsn(primary))
        primary.cluster.stop()
        service.write(source={"dsn": standby.dsn()})
        service.begin()
        assert service.wait_for_log("stream_lost")["reason"] == "standby_server"
        standby.promote()
        assert service.wait() == 1
        assert f"is gone, and with it all events after {flushed}" in service.tail()
        assert f"in doubt: [{flushed}, " in service.tail()


def test_a_promoted_standby_that_was_behind_is_refused(
    primary: Database, standby_of: MakeStandby, tmp_path: Path
) -> None:
    """It has written past our checkpoint since; what it wrote before that we would never get."""
    with child(tmp_path, primary.dsn) as service:
        service.start()
        deliver(primary, service, 1)
        standby = standby_of(primary.cluster)
        standby.wait_for(server_lsn(primary))
        standby.take_slot(service.slot)
        standby.stop()
        deliver(primary, service, 2)
        service.stop()
        flushed = service.flushed()
        primary.cluster.stop()
        standby.start()
        standby.promote()
        promoted = Database(standby, "postgres")
        promoted.execute("INSERT INTO items VALUES (20)")
        promoted.execute("SELECT pg_switch_wal()")
        promoted.execute("INSERT INTO items VALUES (21)")
        assert server_lsn(promoted) > flushed
        service.write(source={"dsn": standby.dsn()})
        words = refusal(service)
        assert "left timeline 1 at" in words
        assert f", {flushed})" in words
        assert [line.record_id for line in service.lines()] == ["1", "2"]


def test_an_older_copy_of_the_data_is_refused(own_cluster: OwnCluster, tmp_path: Path) -> None:
    """Put back from a backup without recovery: the checkpoint knows of more than the server."""
    server = own_cluster({})
    database = Database(server, "postgres")
    database.execute(ITEMS)
    with child(tmp_path, database.dsn) as service:
        service.start()
        deliver(database, service, 1)
        service.stop()
        server.stop()
        copy = server.folder / "copy"
        shutil.copytree(server.data, copy, symlinks=True)
        server.start()
        service.start()
        database.execute("INSERT INTO items SELECT generate_series(2, 500)")
        service.wait_for_lines(500)
        service.stop()
        flushed = service.flushed()
        server.stop()
        shutil.rmtree(server.data)
        copy.rename(server.data)
        _own_like(server.folder, server.data)
        server.start()
        words = refusal(service)
        assert f"the checkpoint at {flushed} lies beyond this server's WAL" in words
        assert f", {flushed})" in words


def _own_like(folder: Path, tree: Path) -> None:
    """A copy made by root belongs to root; the server wants its own."""
    owner = folder.stat()
    for path in (tree, *tree.rglob("*")):
        shutil.chown(path, owner.st_uid, owner.st_gid)
