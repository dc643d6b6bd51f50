"""The throw-away cluster: what the demo, the tests and the bench build on."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from cdc.demo import cluster as cluster_module
from cdc.demo import processes
from cdc.demo.cluster import Cluster, ClusterError
from cdc.demo.processes import children, free_port, is_alive, wait_until_gone
from tests.conftest import Database, OwnCluster, drop_database

SECONDS = 60  # for what ends at once; the machine may be busy
PEEK = "SELECT data FROM pg_logical_slot_peek_changes('s', NULL, NULL, 'format-version', '2')"


def postmaster(cluster: Cluster) -> int:
    """The process id of the running server."""
    return int((cluster.data / "postmaster.pid").read_text().splitlines()[0])


def test_wal2json_decodes_an_insert_on_a_fresh_cluster(database: Database) -> None:
    """A slot of wal2json gives Begin, Insert and Commit, on servers that must be told to allow it, too."""
    database.execute("SELECT pg_create_logical_replication_slot('s', 'wal2json')")
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    database.execute("INSERT INTO t VALUES (7)")

    actions = [json.loads(data)["action"] for (data,) in database.execute(PEEK)]

    assert actions[-3:] == ["B", "I", "C"]


def test_server_version_is_that_of_the_running_server(cluster: Cluster) -> None:
    """The version read from the program is the one that the server reports."""
    with cluster.connect() as connection:
        assert connection.info.server_version == cluster.server_version


def test_output_plugin_list_is_set_only_where_the_server_knows_it(cluster: Cluster) -> None:
    """Servers with `output_plugin_libraries` name wal2json in it, beside the server's own defaults."""
    with cluster.connect() as connection:
        row = connection.execute("SELECT current_setting('output_plugin_libraries', true)").fetchone()

    assert row is not None
    assert (row[0] is not None) == cluster.has_output_plugin_list
    if row[0] is not None:
        assert {"pgoutput", "wal2json"} <= set(row[0].replace(" ", "").split(","))


def test_data_and_port_survive_stop_and_start(own_cluster: OwnCluster) -> None:
    """A stopped server starts again with its rows, on the port its clients know."""
    server = own_cluster()
    port = server.port
    with server.connect() as connection:
        connection.execute("CREATE TABLE t AS SELECT 42 AS n")

    server.stop()
    assert not server.is_running()
    with pytest.raises(psycopg.OperationalError):
        server.connect()
    server.start()

    assert server.port == port
    with server.connect() as connection:
        assert connection.execute("SELECT n FROM t").fetchone() == (42,)


@pytest.mark.parametrize("mode", ["smart", "fast", "immediate"])
def test_restart_replaces_the_postmaster(own_cluster: OwnCluster, mode: cluster_module.StopMode) -> None:
    """Every mode of stopping ends the old server before the new one starts."""
    server = own_cluster()
    before = postmaster(server)

    server.restart(mode)

    assert not is_alive(before)
    assert postmaster(server) != before


def test_kill_ends_all_processes_and_the_server_recovers(own_cluster: OwnCluster) -> None:
    """After SIGKILL nothing of the server lives, committed rows are there again after the next start."""
    server = own_cluster()
    family = [postmaster(server), *children(postmaster(server))]
    assert len(family) > 1
    with server.connect() as connection:
        connection.execute("CREATE TABLE t AS SELECT 42 AS n")

        server.kill()

        assert not any(map(is_alive, family))
        assert not server.is_running()
    server.start()
    with server.connect() as connection:
        assert connection.execute("SELECT n FROM t").fetchone() == (42,)


def test_settings_are_applied_and_read_again_by_every_start(own_cluster: OwnCluster) -> None:
    """A setting, quotes included, reaches the server; one changed later is there after a restart."""
    server = own_cluster({"wal_sender_timeout": "3s", "cluster_name": "it's a \\ test"})

    def value(name: str) -> str:
        with server.connect() as connection:
            row = connection.execute("SELECT current_setting(%s)", [name]).fetchone()
        assert row is not None
        return str(row[0])

    assert value("wal_sender_timeout") == "3s"
    assert value("cluster_name") == "it's a \\ test"
    assert value("wal_level") == "logical"
    server.settings["wal_sender_timeout"] = "4s"
    server.restart()
    assert value("wal_sender_timeout") == "4s"


def test_start_with_a_setting_the_server_refuses_says_why(own_cluster: OwnCluster) -> None:
    """The error holds the end of the server's own log, not only that it failed."""
    server = own_cluster()
    server.stop()
    server.settings["no_such_setting"] = "1"

    with pytest.raises(ClusterError, match="no_such_setting"):
        server.start()


def test_start_takes_another_port_when_the_first_is_taken(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port lost to another process between looking and starting costs one attempt, not the start."""
    offered = [cluster.port]

    def offer() -> int:
        offered.append(free_port())
        return offered[-2]

    monkeypatch.setattr(cluster_module, "free_port", offer)

    with Cluster() as second:
        assert second.port in offered[1:-1]


def test_a_port_is_given_once_until_all_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two servers that are about to start, or one that is down for a moment, do not get in each other's way."""
    ports = [free_port() for _ in range(8)]
    monkeypatch.setattr(processes, "PORTS", ports)
    monkeypatch.setattr(processes, "_given", set())
    assert sorted(free_port() for _ in ports) == sorted(ports)
    assert free_port() in ports


def test_cluster_begins_with_the_files_of_its_template(own_cluster: OwnCluster, initdb: Cluster) -> None:
    """Instead of initdb's: the same password, and what is written in one is not in the other."""
    first, second = own_cluster(), own_cluster()
    first.create_database("of the first")

    assert first.password == second.password == initdb.password
    for server, databases in ((first, ["of the first", "postgres"]), (second, ["postgres"])):
        with psycopg.connect(server.dsn(tcp=True)) as connection:
            query = "SELECT datname FROM pg_database WHERE NOT datistemplate ORDER BY 1"
            assert [name for (name,) in connection.execute(query)] == databases


def test_tcp_asks_for_the_password_and_dsn_knows_it(cluster: Cluster) -> None:
    """Over the loopback, open to every user of the machine, only the password opens the door."""
    with psycopg.connect(cluster.dsn(tcp=True)) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(cluster.dsn(tcp=True, password="wrong"))


def test_server_does_not_run_as_root(cluster: Cluster) -> None:
    """Whoever we are, the server belongs to an ordinary user."""
    assert cluster.data.stat().st_uid != 0


def test_socket_path_stays_short_in_a_deep_folder(tmp_path: Path) -> None:
    """A folder deeper than a socket's path may be long gets its socket elsewhere, and both are removed."""
    deep = tmp_path / ("d" * 100)
    server = Cluster(deep)
    try:
        if os.geteuid() == 0:
            pytests = [parent for parent in deep.parents if parent.stat().st_mode & 0o777 == 0o700]
            for parent in pytests:  # closed to the server's user
                parent.chmod(0o711)
        server.create()
        server.start()
        with server.connect() as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    finally:
        server.remove()
    assert not deep.exists()
    assert not server.socket_dir.exists()


def test_a_folder_with_files_in_it_is_refused(tmp_path: Path) -> None:
    """`remove` deletes the whole folder, so it never takes one that was in use."""
    (tmp_path / "thesis.txt").write_text("years of work")

    with pytest.raises(ClusterError, match="not empty"):
        Cluster(tmp_path).create()

    assert (tmp_path / "thesis.txt").exists()


def test_remove_leaves_no_process_and_no_folder() -> None:
    """After `remove`, and after a second one, nothing is left."""
    server = Cluster(settings={"fsync": "off"})
    server.create()
    server.start()
    family = [postmaster(server), *children(postmaster(server))]

    server.remove()
    server.remove()

    assert wait_until_gone(family, SECONDS) == []
    assert not server.folder.exists()
    assert not server.socket_dir.exists()


def test_remove_after_kill_leaves_no_folder(own_cluster: OwnCluster) -> None:
    """A killed server is removed like a living one."""
    server = own_cluster()
    server.kill()

    server.remove()

    assert not server.folder.exists()


def start_in_a_child(ending: str) -> tuple[int, Path]:
    """Start a cluster in another Python that ends in the given way; its postmaster and folder."""
    script = f"""
import os, signal, sys
from cdc.demo.cluster import Cluster
cluster = Cluster(settings={{"fsync": "off"}})
cluster.create()
cluster.start()
pid = (cluster.data / "postmaster.pid").read_text().splitlines()[0]
print(pid, cluster.folder, flush=True)
{ending}
"""
    result = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=100)
    pid, folder = result.stdout.split()
    return int(pid), Path(folder)


@pytest.mark.parametrize(
    "ending",
    [
        "sys.exit()",
        "raise RuntimeError",
        "os._exit(1)",
        "os.kill(os.getpid(), signal.SIGINT)",
        "os.kill(os.getpid(), signal.SIGKILL)",
    ],
)
def test_server_and_folder_go_with_the_process_that_made_them(ending: str) -> None:
    """However Python ends, SIGKILL included, no server and no folder stay behind."""
    pid, folder = start_in_a_child(ending)

    assert wait_until_gone([pid], SECONDS) == []
    guard = [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if is_guard_of(folder, entry)]
    assert wait_until_gone(guard, SECONDS) == []
    assert not folder.exists()


def is_guard_of(folder: Path, process: Path) -> bool:
    """Is this /proc entry the shell that cleans up the folder?"""
    try:
        return os.fsencode(folder) in (process / "cmdline").read_bytes()
    except OSError:
        return False


def test_released_cluster_outlives_its_process() -> None:
    """What `release` has let go of keeps running when Python ends."""
    pid, folder = start_in_a_child("cluster.release()")
    try:
        assert is_alive(pid)
        assert (folder / "data").is_dir()
    finally:
        os.kill(pid, signal.SIGQUIT)  # PostgreSQL's immediate stop
        assert wait_until_gone([pid], SECONDS) == []
        subprocess.run(["rm", "-rf", folder], check=True)


def test_missing_programs_are_named_with_the_way_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without a server is refused with the command that mends it."""
    monkeypatch.setenv("PG_BINDIR", str(tmp_path))

    with pytest.raises(ClusterError, match="make setup"):
        Cluster()


def test_database_goes_with_its_slot_and_its_walsender(cluster: Cluster) -> None:
    """The `database` fixture's end drops a database although a consumer still streams from its slot."""
    name = f"busy_{secrets.token_hex(6)}"
    cluster.create_database(name)
    with cluster.connect(name) as connection:
        connection.execute("SELECT pg_create_logical_replication_slot(%s, 'wal2json')", [name])
    consumer = cluster.connect(name, replication="database")
    consumer.execute(f"START_REPLICATION SLOT {name} LOGICAL 0/0".encode())

    drop_database(cluster, name)

    consumer.close()
    with cluster.connect() as connection:
        assert connection.execute("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", [name]).fetchall() == []
        assert connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchall() == []
