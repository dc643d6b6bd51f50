"""`cdc check` against servers in every condition that matters: roles, standbys, poolers, transactions, what is kept."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import psycopg
import pytest

from cdc.config import StateConfig
from cdc.demo.cluster import Cluster
from cdc.demo.processes import free_port
from cdc.demo.programs import unprivileged_account
from cdc.errors import StateError
from cdc.preflight import Severity, check, connections, plugins, server, standbys
from cdc.preflight.connections import PLUGIN_SECONDS, Trial
from cdc.state import open_state
from tests.conftest import Database, OwnCluster
from tests.handlers.servers import find_program
from tests.running import server_lsn, slot_info, wait_until
from tests.test_failover import Standby
from tests.test_preflight import errors, found, role_of, settings, trial_is_gone, warnings
from tests.test_state_postgres import state_url

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that stands still for some seconds is not one that waits for a transaction."""
    monkeypatch.setattr(connections, "PLUGIN_SECONDS", 30.0)


async def test_superuser_is_warned_of_and_few_connections_are_mended(database: Database, tmp_path: Path) -> None:
    """More rights than are needed, and fewer connections: the statement, run as printed, ends the latter."""
    told = found(await check(settings(database.dsn, tmp_path)), "role")
    assert (told.severity, "CREATE ROLE" in told.fix) == (Severity.WARNING, True)

    with role_of(database, "LOGIN REPLICATION CONNECTION LIMIT 3") as dsn:
        told = found(await check(settings(dsn, tmp_path)), "connection_limit")
        assert told.severity is Severity.WARNING
        database.execute(told.fix)
        findings = await check(settings(dsn, tmp_path))
    assert "connection_limit" not in {finding.code for finding in findings}
    assert found(findings, "role").severity is Severity.OK


async def test_walsenders_of_other_roles_are_counted(database: Database, tmp_path: Path) -> None:
    """The server shows an ordinary role less of their sessions; they take their places all the same."""
    database.execute(f"SELECT pg_create_logical_replication_slot('{database.name}', 'wal2json')")
    with role_of(database, "LOGIN REPLICATION") as dsn:

        async def used() -> int:
            return int(found(await check(settings(dsn, tmp_path)), "wal_senders").message.partition(" ")[0])

        trial_is_gone(database.cluster)  # that of a test before, in a database that stays
        before = await used()
        trial_is_gone(database.cluster)
        with database.connect(replication="database") as walsender:
            walsender.execute(f"START_REPLICATION SLOT {database.name} LOGICAL 0/0".encode())
            assert await used() == before + 1
            walsender.pgconn.finish()


async def test_transaction_that_a_new_slot_waits_for_is_named_and_ended(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe gives up soon, and the statement ends the session."""
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    with closing(database.connect()) as other:
        other.execute("BEGIN; INSERT INTO t VALUES (1)")
        with monkeypatch.context() as patch:
            patch.setattr(connections, "PLUGIN_SECONDS", PLUGIN_SECONDS)
            told = found(await check(settings(database.dsn, tmp_path)), "slot_creation")
        assert (told.severity, told.fix.partition(";")[0]) == (
            Severity.WARNING,
            f"SELECT pg_terminate_backend({other.info.backend_pid})",
        )
        database.execute(told.fix.partition("--")[0])
        assert "slot_creation" not in {one.code for one in await check(settings(database.dsn, tmp_path))}


async def test_failover_needs_a_newer_server_or_another_plan(database: Database, tmp_path: Path) -> None:
    """Before PostgreSQL 17 no standby has the slot."""
    findings = await check(settings(database.dsn, tmp_path, failover=True))
    old = database.cluster.server_version < 170000

    assert ("failover" in errors(findings)) == old


async def test_standby_and_its_primary_are_told_apart(own_cluster: OwnCluster, tmp_path: Path) -> None:
    """The primary is warned that its standby lacks the slot; the standby itself cannot decode before 16."""
    cluster = own_cluster()
    (tmp_path / "a").mkdir()
    with ExitStack() as stack:
        standby = stack.enter_context(Standby(cluster))
        standby.wait_for(server_lsn(Database(cluster, "postgres")))
        with cluster.connect() as connection:  # what it has replayed may have come with its base backup
            streams = "SELECT FROM pg_stat_replication WHERE state = 'streaming'"
            wait_until(lambda: connection.execute(streams).fetchone() is not None)
        on_primary = await check(settings(cluster.dsn(), tmp_path))
        on_standby = await check(settings(standby.dsn(), tmp_path / "a"))
        both = f"host={standby.socket_dir},{cluster.socket_dir} port={standby.port},{cluster.port} user=postgres"
        chosen = await check(settings(f"{both} dbname=postgres target_session_attrs=read-write", tmp_path / "a"))

    assert "failover" in warnings(on_primary)
    told = found(on_standby, "standby")
    assert told.severity is (Severity.ERROR if cluster.server_version < 160000 else Severity.WARNING)
    assert "target_session_attrs=read-write" in told.fix
    assert "standby" not in {finding.code for finding in chosen}


async def test_state_that_is_not_there_yet_cannot_be_made_on_a_standby(own_cluster: OwnCluster, tmp_path: Path) -> None:
    """The standby tells of the privileges that the role has on the primary."""
    cluster = own_cluster()
    with Standby(cluster) as standby:
        url = state_url(standby)
        config = settings(cluster.dsn(), tmp_path).model_copy(update={"state": StateConfig(url=url)})
        told = found(await check(config), "state")
        with pytest.raises(StateError) as caught:
            open_state(url)

    assert (told.severity, "is a standby" in told.message) == (Severity.ERROR, True)
    assert told.fix == caught.value.hint
    assert caught.value.code == "state_not_permitted"


async def test_state_that_is_there_cannot_be_written_on_a_standby(own_cluster: OwnCluster, tmp_path: Path) -> None:
    """It can be read there, and the service would end at its start."""
    cluster = own_cluster()
    open_state(state_url(cluster)).close()
    with Standby(cluster) as standby:
        url = state_url(standby)
        config = settings(cluster.dsn(), tmp_path).model_copy(update={"state": StateConfig(url=url)})
        told = found(await check(config), "state")
        with pytest.raises(StateError) as caught:
            open_state(url, owner=True)

    assert (told.severity, "is a standby" in told.message) == (Severity.ERROR, True)
    assert told.fix == caught.value.hint
    assert caught.value.code == "state_not_permitted"


@contextmanager
def pgbouncer(cluster: Cluster) -> Iterator[str]:
    """A real one before the server, in transaction mode, that answers; where its database `shop` is."""
    process, dsn = start_pgbouncer(cluster)
    try:

        def is_up() -> bool:
            nonlocal process, dsn
            if process.poll() is not None:  # somebody else was faster with the port
                process, dsn = start_pgbouncer(cluster)
            try:
                psycopg.connect(dsn).close()
            except psycopg.OperationalError:
                return False
            return process.poll() is None

        wait_until(is_up)
        yield dsn
    finally:
        process.kill()
        process.wait()


def start_pgbouncer(cluster: Cluster) -> tuple[subprocess.Popen[bytes], str]:
    """The process, and where its database `shop` is, once it is up."""
    port, account = free_port(), unprivileged_account()
    folder = cluster.folder / "pgbouncer"
    folder.mkdir(exist_ok=True)
    config = folder / "pgbouncer.ini"
    config.write_text(
        f"[databases]\n* = host={cluster.socket_dir} port={cluster.port} user=postgres\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        "pool_mode = transaction\n"
    )
    for path, mode in ((folder, 0o700), (config, 0o600)):
        cluster._hand_over(path, mode)
    process = subprocess.Popen(
        [find_program("pgbouncer"), str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **account
    )
    return process, f"host=127.0.0.1 port={port} dbname=shop user=postgres"


async def test_pooler_is_found_out(own_cluster: OwnCluster, tmp_path: Path) -> None:
    """PgBouncer answers with a process id that the server does not have, and refuses the stream."""
    cluster = own_cluster()
    with cluster.connect() as connection:
        connection.execute("CREATE DATABASE shop")
    with pgbouncer(cluster) as dsn:
        findings = await check(settings(dsn, tmp_path))
    assert found(findings, "pooler").severity is Severity.WARNING
    told = found(findings, "replication_connection")
    assert (told.severity, "the server itself" in told.fix) == (Severity.ERROR, True)


async def test_what_slots_may_keep_is_too_much_too_little_or_right(own_cluster: OwnCluster, tmp_path: Path) -> None:
    """Unlimited fills the disk, little invalidates the slot; each statement, as printed, ends the warning."""
    cluster = own_cluster()
    for value in ("-1", "64MB"):
        with cluster.connect() as connection:
            connection.execute(f"ALTER SYSTEM SET max_slot_wal_keep_size = '{value}'".encode())
            connection.execute("SELECT pg_reload_conf()")
        wait_until(lambda: setting(cluster, "max_slot_wal_keep_size") == value)  # noqa: B023
        told = found(await check(settings(cluster.dsn(), tmp_path)), "max_slot_wal_keep_size")
        assert told.severity is Severity.WARNING
        with cluster.connect() as connection:
            for statement in told.fix.partition("--")[0].strip().rstrip(";").split(";"):
                connection.execute(statement.encode())
        wait_until(lambda: setting(cluster, "max_slot_wal_keep_size") == "10GB")
        told = found(await check(settings(cluster.dsn(), tmp_path)), "max_slot_wal_keep_size")
        assert told.severity is Severity.OK


def setting(cluster: Cluster, name: str) -> str:
    """Of the server."""
    with cluster.connect() as connection:
        row = connection.execute(f"SHOW {name}".encode()).fetchone()
    assert row is not None
    return str(row[0])


async def test_slot_in_danger_is_warned_of(own_cluster: OwnCluster, tmp_path: Path) -> None:
    """`unreserved`: the server may take its WAL at the next checkpoint."""
    cluster = own_cluster({"max_slot_wal_keep_size": "1MB", "wal_keep_size": "0", "checkpoint_timeout": "1h"})
    with cluster.connect() as connection:
        connection.execute("SELECT pg_create_logical_replication_slot('preflight', 'wal2json')")
        connection.execute("SELECT pg_logical_emit_message(false, '', ''); SELECT pg_switch_wal()")
        connection.execute("SELECT pg_logical_emit_message(false, '', ''); SELECT pg_switch_wal()")
    info = slot_info(cluster, "preflight")
    assert info is not None
    assert info.wal_status == "unreserved"

    assert "slot_wal_status" in warnings(await check(settings(cluster.dsn(), tmp_path)))


STATE_OF_SERVER = """
SELECT (SELECT json_agg(s ORDER BY slot_name) FROM pg_replication_slots s WHERE database = current_database())::text,
       (SELECT md5(string_agg(name || setting, ',' ORDER BY name)) FROM pg_settings),
       (SELECT md5(string_agg(r::text, ',' ORDER BY oid)) FROM pg_roles r),
       (SELECT md5(string_agg(c::text, ',' ORDER BY oid)) FROM pg_class c WHERE relkind IN ('r', 'i', 'v')),
       (SELECT count(*) FROM pg_publication), (SELECT count(*) FROM pg_prepared_xacts)
"""


async def test_check_changes_nothing_on_the_server(database: Database, tmp_path: Path) -> None:
    """Slots with their positions, settings, roles, relations: the same before and after."""
    database.execute("CREATE TABLE t (a int); CREATE TABLE u (id int PRIMARY KEY, body text)")
    database.execute(f"SELECT pg_create_logical_replication_slot('{database.name}', 'wal2json')")
    database.execute("INSERT INTO t VALUES (1)")
    before = database.execute(STATE_OF_SERVER)

    await check(settings(database.dsn, tmp_path, slot=database.name))
    await check(settings(database.dsn, tmp_path, slot="another"))
    trial_is_gone(database.cluster)

    assert database.execute(STATE_OF_SERVER) == before
    assert not (tmp_path / "state.db").exists()


def facts(version: int, **values: str) -> server.Server:
    """What a server would say that does not run here."""
    return server.Server(version, "cdc", True, True, False, 0, 0, {"wal_level": "logical", **values})


def test_conditions_of_servers_that_are_not_here_are_judged_by_what_they_say() -> None:
    """PostgreSQL 17 to 19, and a plugin that is newer or too old: from their documented answers."""
    idle = list(server.judge(facts(180001, idle_replication_slot_timeout="86400"), slot_exists=True))
    assert found(idle, "idle_replication_slot_timeout").severity is Severity.WARNING

    effective = facts(190000, effective_wal_level="logical", wal_level="replica")
    assert found(list(server.judge(effective, slot_exists=True)), "wal_level").severity is Severity.OK

    (told,) = standbys.judge(major=17, in_recovery=False, standbys=1, failover=False)
    assert (told.severity, told.fix) == (Severity.WARNING, "source.failover = true")
    (told,) = standbys.judge(major=17, in_recovery=False, standbys=1, failover=True)
    assert told.severity is Severity.OK
    (told,) = standbys.judge(major=16, in_recovery=True, standbys=0, failover=False)
    assert told.severity is Severity.WARNING

    newer = list(plugins.judge_answer("wal2json", Trial(is_recent=True), facts(170004)))
    assert "2.6" in found(newer, "plugin_version").message
    (old,) = plugins.judge_answer("wal2json", Trial(refused_option='option "x" is unknown'), facts(140000))
    assert (old.severity, "2.5 or newer" in old.fix) == (Severity.ERROR, True)
    (prepared,) = [one for one in plugins.judge_answer("wal2json", Trial(blocked_by=()), facts(150000)) if one.fix]
    assert "pg_prepared_xacts" in prepared.fix


def test_page_names_every_code_of_a_finding() -> None:
    """docs/check.md has a line for each, and for nothing else."""
    source = "".join(path.read_text() for path in (ROOT / "cdc" / "preflight").glob("*.py"))
    used = set(re.findall(r'\b(?:error|warning|ok)\(\s*"([a-z_]+)"', source))
    used |= {"tls", "state_tls"}  # one function for both
    used |= set(re.findall(r': "([a-z_]+)",$', source, re.MULTILINE))  # of refusals, by their class
    page = (ROOT / "docs" / "check.md").read_text()

    assert set(re.findall(r"^\| `([a-z_]+)`", page, re.MULTILINE)) == used
