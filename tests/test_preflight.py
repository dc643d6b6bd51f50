"""`cdc check` from the inside: each lack of a real server or machine, and the statement that mends it."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cdc.config import Config, HandlerConfig, HttpConfig, SourceConfig, StateConfig
from cdc.demo.cluster import Cluster
from cdc.demo.processes import free_port
from cdc.events import Position
from cdc.lsn import Lsn
from cdc.preflight import Finding, Severity, check, connections, is_running, plugins, server
from cdc.preflight.connections import Trial, try_plugin
from cdc.state import Checkpoint, Source, open_state
from tests.conftest import Database, OwnCluster
from tests.running import wait_until
from tests.waiting import eventually, make_config, running


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that stands still for some seconds is not one that waits for a transaction."""
    monkeypatch.setattr(connections, "PLUGIN_SECONDS", 30.0)


def trial_is_gone(cluster: Cluster) -> None:
    """Wait until the server has taken notice of the end of the last check: its walsender goes, and its slot with it."""
    gone = (
        "SELECT NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name LIKE 'cdc_check%')"
        " AND NOT EXISTS (SELECT FROM pg_stat_activity"
        " WHERE backend_type = 'walsender' AND application_name = 'cdc check')"
    )
    with cluster.connect() as connection:
        wait_until(lambda: connection.execute(gone.encode()).fetchone() == (True,), what="the trial's slot is gone")


def settings(dsn: str, folder: Path, **source: Any) -> Config:
    """A configuration for this database, its state in `folder`, with a handler that can be loaded."""
    return Config(
        source=SourceConfig(dsn=dsn, **{"slot": "preflight", **source}),
        state=StateConfig(url=f"sqlite:///{folder}/state.db"),
        http=HttpConfig(enabled=False),
        handlers=(HandlerConfig(callback="builtins:print", name="printer"),),
    )


def found(findings: Sequence[Finding], code: str) -> Finding:
    """The one finding with this code."""
    (one,) = (finding for finding in findings if finding.code == code)
    return one


def errors(findings: Sequence[Finding]) -> set[str]:
    """Codes of the errors."""
    return {finding.code for finding in findings if finding.severity is Severity.ERROR}


def warnings(findings: Sequence[Finding]) -> set[str]:
    """Codes of the warnings."""
    return {finding.code for finding in findings if finding.severity is Severity.WARNING}


@contextmanager
def role_of(database: Database, rights: str) -> Iterator[str]:
    """The DSN of a role that goes after the block."""
    name = f"role_{secrets.token_hex(6)}"
    database.execute(f"CREATE ROLE {name} {rights}")
    try:
        yield database.cluster.dsn(database.name, user=name)
    finally:
        database.execute(f"DROP ROLE {name}")


async def test_fit_server_has_no_errors_and_keeps_no_slot(database: Database, tmp_path: Path) -> None:
    """All is looked at, nothing is changed: the slot of the trial is gone."""
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")

    with role_of(database, "LOGIN REPLICATION") as dsn:
        findings = await check(settings(dsn, tmp_path))

    assert errors(findings) == set()
    expected = {
        "wal_level",
        "server_encoding",
        "role",
        "plugin",
        "plugin_version",
        "tls",
        "slot",
        "tables",
        "handler",
        "state_folder",
    }
    assert expected <= {finding.code for finding in findings if finding.severity is Severity.OK}
    trial_is_gone(database.cluster)
    assert not (tmp_path / "state.db").exists()


async def test_unreachable_server_is_told_without_its_password(tmp_path: Path) -> None:
    """And what concerns this machine is looked at all the same."""
    dsn = f"host={tmp_path} dbname=x user=y password=s3cret"

    findings = await check(settings(dsn, tmp_path))

    assert errors(findings) == {"unreachable"}
    assert "pg_isready" in found(findings, "unreachable").fix
    assert found(findings, "handler").severity is Severity.OK
    assert "s3cret" not in repr(findings)


async def test_wrong_password_and_database_have_their_own_remedies(database: Database, tmp_path: Path) -> None:
    """What libpq says decides what is advised."""
    wrong = database.cluster.dsn(database.name, tcp=True, password="wrong")
    assert "password" in found(await check(settings(wrong, tmp_path)), "unreachable").fix

    absent = database.cluster.dsn("no_such_database")
    assert "psql -l" in found(await check(settings(absent, tmp_path)), "unreachable").fix


async def test_wal_level_replica_is_an_error_and_the_statement_mends_it(
    own_cluster: OwnCluster, tmp_path: Path
) -> None:
    """The fix, run as it is printed, and a restart make the server fit."""
    cluster = own_cluster(logical=True)
    cluster.settings["wal_level"] = "replica"
    cluster.restart()

    finding = found(await check(settings(cluster.dsn(), tmp_path)), "wal_level")
    assert finding.severity is Severity.ERROR

    del cluster.settings["wal_level"]
    cluster.settings["max_replication_slots"] = "1"
    with cluster.connect() as connection:
        connection.execute(finding.fix.partition("--")[0].encode())
    cluster.restart()
    assert errors(await check(settings(cluster.dsn(), tmp_path))) == set()

    trial_is_gone(cluster)
    with cluster.connect() as connection:
        connection.execute("SELECT pg_create_physical_replication_slot('taken')")
    full = await check(settings(cluster.dsn(), tmp_path))
    assert errors(full) == {"replication_slots"}
    assert "max_replication_slots = 6" in found(full, "replication_slots").fix


async def test_role_without_replication_is_an_error_and_the_statement_mends_it(
    database: Database, tmp_path: Path
) -> None:
    """The role's name is quoted, whatever it holds."""
    role = f'Reader "{database.name}"'
    quoted = sql.Identifier(role).as_string()
    database.execute(f"CREATE ROLE {quoted} LOGIN")
    try:
        dsn = database.cluster.dsn(database.name, user=role)
        finding = found(await check(settings(dsn, tmp_path)), "role")
        assert (finding.severity, finding.fix) == (
            Severity.ERROR,
            f"ALTER ROLE {quoted} WITH LOGIN REPLICATION;",
        )

        database.execute(finding.fix)
        assert errors(await check(settings(dsn, tmp_path))) == set()
    finally:
        database.execute(f"DROP ROLE {quoted}")


async def test_plugin_that_the_server_lacks_is_told_with_the_package(database: Database) -> None:
    """The server itself is asked, with a name it does not have."""
    dsn = database.dsn
    if database.cluster.has_output_plugin_list:  # whose refusal would come before the look for the file
        dsn = make_conninfo(dsn, options="-c output_plugin_libraries=pgoutput,no_such_plugin")
    objection = await try_plugin(dsn, "no_such_plugin")
    facts = server.Server(150018, "cdc", True, True, False, 0, 0, {})

    (finding,) = plugins.judge_answer("no_such_plugin", objection, facts)

    assert objection.objection is not None
    assert finding.severity is Severity.ERROR
    assert "postgresql-15-wal2json" in finding.fix


@pytest.mark.parametrize(
    ("setting", "names", "fix"),
    [
        ("pgoutput, test_decoding", ["pgoutput", "test_decoding"], "pgoutput, test_decoding, wal2json"),
        ("pgoutput,wal2json", ["pgoutput", "wal2json"], None),
        ("", [], "wal2json"),
        ('"pgoutput, wal2json"', ["pgoutput, wal2json"], "pgoutput, wal2json"),
        ('pgoutput, "My Plugin"', ["pgoutput", "My Plugin"], 'pgoutput, "My Plugin", wal2json'),
    ],
)
def test_list_of_allowed_plugins_is_read_as_the_server_reads_it(
    setting: str, names: list[str], fix: str | None
) -> None:
    """One quoted string is one name, and what was allowed stays allowed."""
    facts = server.Server(150020, "cdc", True, True, False, 0, 0, {"output_plugin_libraries": setting})

    (finding,) = plugins.judge_list(facts)

    assert plugins.names_in(setting) == names
    assert (finding.severity is Severity.OK) == (fix is None)
    assert fix is None or f"SET output_plugin_libraries = {fix};" in finding.fix


def test_refused_plugin_is_mended_in_the_list() -> None:
    """What servers from August 2026 say on an existing slot, too."""

    class Refused(psycopg.errors.InsufficientPrivilege):
        sqlstate = "42501"

    objection = Refused('library "wal2json" may not be used as an output plugin')
    facts = server.Server(150020, "cdc", True, True, False, 0, 0, {"output_plugin_libraries": "pgoutput"})

    (finding,) = plugins.judge_answer("wal2json", Trial(objection), facts)

    assert "pgoutput, wal2json" in finding.fix


@pytest.mark.parametrize(
    ("version", "severity"),
    [
        (120022, Severity.ERROR),
        (130020, Severity.WARNING),
        (150012, Severity.WARNING),
        (150019, Severity.WARNING),
        (150020, Severity.OK),
        (170004, Severity.WARNING),
        (180001, Severity.OK),
        (190000, Severity.OK),
    ],
)
def test_version_is_judged_by_what_its_minor_corrects(version: int, severity: Severity) -> None:
    """Too old is an error, a minor with known faults of decoding a warning."""
    facts = server.Server(version, "cdc", True, True, False, 0, 0, {"wal_level": "logical", "server_encoding": "UTF8"})

    assert found(list(server.judge(facts, slot_exists=True)), "server_version").severity is severity


@pytest.mark.parametrize(
    ("encoding", "severity"),
    [("SQL_ASCII", Severity.ERROR), ("EUC_JP", Severity.ERROR), ("LATIN1", Severity.WARNING)],
)
async def test_encoding_other_than_utf8_is_told(
    database: Database, tmp_path: Path, encoding: str, severity: Severity
) -> None:
    """Text without a known encoding cannot be decoded; any other costs time."""
    name = f"{database.name}_{encoding.lower()}"
    database.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'")
    try:
        findings = await check(settings(database.cluster.dsn(name), tmp_path))
    finally:
        trial_is_gone(database.cluster)  # a database with a slot in use cannot be dropped, by force neither
        database.execute(f"DROP DATABASE {name} WITH (FORCE)")  # the check's sessions may not have ended yet

    assert found(findings, "server_encoding").severity is severity


async def test_limits_that_invalidate_or_fill_a_disk_are_warned_of(own_cluster: OwnCluster, tmp_path: Path) -> None:
    """An unlimited slot, and a sender that gives up at once; a sane server has neither warning."""
    cluster = own_cluster({"wal_sender_timeout": "1s"})
    told = warnings(await check(settings(cluster.dsn(), tmp_path)))
    assert {"max_slot_wal_keep_size", "wal_sender_timeout"} <= told

    cluster.settings |= {"wal_sender_timeout": "60s", "max_slot_wal_keep_size": "10GB"}
    cluster.restart()
    told = warnings(await check(settings(cluster.dsn(), tmp_path)))
    assert told.isdisjoint({"max_slot_wal_keep_size", "wal_sender_timeout"})


async def test_slot_of_another_kind_is_an_error(database: Database, tmp_path: Path) -> None:
    """Wrong plugin, wrong database, not logical at all."""
    slot = database.name
    config = settings(database.dsn, tmp_path, slot=slot)
    database.execute(f"SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')")
    assert "test_decoding" in found(await check(config), "slot_mismatch").message

    database.execute(f"SELECT pg_drop_replication_slot('{slot}')")
    database.execute(f"SELECT pg_create_logical_replication_slot('{slot}', 'wal2json')")
    elsewhere = settings(database.cluster.dsn("postgres"), tmp_path, slot=slot)
    assert database.name in found(await check(elsewhere), "slot_mismatch").message
    assert errors(await check(config)) == set()

    database.execute(f"SELECT pg_drop_replication_slot('{slot}')")
    database.execute(f"SELECT pg_create_physical_replication_slot('{slot}')")
    try:
        assert "physical" in found(await check(config), "slot_mismatch").message
    finally:
        database.execute(f"SELECT pg_drop_replication_slot('{slot}')")


async def test_missing_slot_is_an_error_only_when_nobody_creates_it(database: Database, tmp_path: Path) -> None:
    """`create_slot = false` asks for one that is there."""
    assert found(await check(settings(database.dsn, tmp_path)), "slot").severity is Severity.OK

    finding = found(await check(settings(database.dsn, tmp_path, create_slot=False)), "slot")
    assert (finding.severity, finding.fix) == (Severity.ERROR, "cdc slot create")


async def test_slot_in_use_names_its_holder(database: Database, tmp_path: Path) -> None:
    """A second consumer waits; whoever looks is told for whom."""
    slot = database.name
    database.execute(f"SELECT pg_create_logical_replication_slot('{slot}', 'wal2json')")
    with database.connect(replication="database", application_name="other tool") as walsender:
        walsender.execute(f"START_REPLICATION SLOT {slot} LOGICAL 0/0".encode())
        findings = await check(settings(database.dsn, tmp_path, slot=slot))
        walsender.pgconn.finish()

    finding = found(findings, "slot_active")
    assert "other tool" in finding.message
    assert "pg_terminate_backend(" in finding.fix


async def test_invalidated_slot_is_an_error(own_cluster: OwnCluster, tmp_path: Path) -> None:
    """The server has removed WAL that the slot needed."""
    cluster = own_cluster({"max_slot_wal_keep_size": "1MB", "wal_keep_size": "0"})
    with cluster.connect() as connection:
        connection.execute("SELECT pg_create_logical_replication_slot('preflight', 'wal2json')")
        for _ in range(3):
            connection.execute("SELECT pg_logical_emit_message(false, '', ''); SELECT pg_switch_wal()")
        connection.execute("CHECKPOINT")

    finding = found(await check(settings(cluster.dsn(), tmp_path)), "slot_invalidated")

    assert finding.severity is Severity.ERROR
    assert "--accept-gap" in finding.fix


async def test_tables_without_identity_are_named_and_mended(database: Database, tmp_path: Path) -> None:
    """Every way to have none, odd names too; the statements, run as printed, end the warnings."""
    database.execute(
        """
        CREATE TABLE fine (id int PRIMARY KEY);
        CREATE TABLE "No Key" (a int);
        CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
        CREATE TABLE later (id int PRIMARY KEY DEFERRABLE);
        CREATE TABLE by_index (id int NOT NULL, CONSTRAINT u UNIQUE (id));
        ALTER TABLE by_index REPLICA IDENTITY USING INDEX u; ALTER TABLE by_index DROP CONSTRAINT u;
        CREATE TABLE whole (a int); ALTER TABLE whole REPLICA IDENTITY FULL;
        CREATE UNLOGGED TABLE unlogged (a int);
        CREATE TABLE skipped (a int);
        CREATE TABLE parts (a int) PARTITION BY RANGE (a);
        CREATE TABLE part_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
        """
    )
    config = settings(database.dsn, tmp_path, exclude_tables=["*.skipped"])

    told = [one for one in await check(config) if one.code == "replica_identity"]

    assert {one.fix.partition(";")[0] for one in told} == {
        'ALTER TABLE "public"."No Key" REPLICA IDENTITY FULL',
        'ALTER TABLE "public"."nothing" REPLICA IDENTITY DEFAULT',
        'ALTER TABLE "public"."later" REPLICA IDENTITY FULL',
        'ALTER TABLE "public"."by_index" REPLICA IDENTITY FULL',
        'ALTER TABLE "public"."part_1" REPLICA IDENTITY FULL',
    }
    assert {one.severity for one in told} == {Severity.WARNING}
    for finding in told:
        database.execute(finding.fix.partition("--")[0])
    assert "replica_identity" not in warnings(await check(config))


async def test_tables_with_large_values_are_listed_until_identity_is_full(database: Database, tmp_path: Path) -> None:
    """What an update leaves out when it did not change."""
    database.execute("CREATE TABLE doc (id int PRIMARY KEY, body text, size int, meta jsonb)")
    config = settings(database.dsn, tmp_path)

    finding = found(await check(config), "toast")
    assert "public.doc (body, meta)" in finding.message

    database.execute(finding.fix.partition("--")[0])
    assert "toast" not in {one.code for one in await check(config)}


async def test_patterns_without_a_table_are_warned_of(database: Database, tmp_path: Path) -> None:
    """A misspelt name would otherwise just be quiet."""
    database.execute("CREATE TABLE users (id int PRIMARY KEY)")

    findings = await check(settings(database.dsn, tmp_path, tables=["public.user"]))

    assert found(findings, "tables").severity is Severity.WARNING


def saved(config: Config, source: Source, flushed: Lsn) -> None:
    """A state with this checkpoint."""
    state = open_state(config.state.url)
    state.save(Checkpoint(source, flushed, 1, {"printer": Position(flushed, 1)}))
    state.close()


async def test_checkpoint_is_compared_with_server_and_slot(database: Database, tmp_path: Path) -> None:
    """Of this cluster and slot, of another, ahead of the server or behind its slot, and without one."""
    slot = database.name
    database.execute(f"SELECT pg_create_logical_replication_slot('{slot}', 'wal2json')")
    ((system, timeline, now),) = database.execute(
        "SELECT system_identifier::text, timeline_id, pg_current_wal_flush_lsn()::text"
        " FROM pg_control_system(), pg_control_checkpoint()"
    )
    good = Source(system, timeline, database.name, slot, "wal2json", "")

    async def codes(number: int, source: Source, flushed: Lsn) -> set[str]:
        folder = tmp_path / str(number)
        folder.mkdir()
        config = settings(database.dsn, folder, slot=slot)
        await asyncio.to_thread(saved, config, source, flushed)
        return {finding.code for finding in await check(config) if finding.code.startswith("checkpoint")}

    flushed = Lsn.parse(now)
    assert await codes(1, good, flushed) == {"checkpoint"}
    assert await codes(2, Source("1", timeline, database.name, slot, "wal2json", ""), flushed) == {
        "checkpoint_mismatch"
    }
    assert await codes(3, Source(system, timeline, database.name, "old", "wal2json", ""), flushed) == {
        "checkpoint_mismatch"
    }
    assert await codes(4, good, Lsn(flushed + (1 << 40))) == {"checkpoint_mismatch"}
    assert await codes(5, Source(system, 0, database.name, slot, "wal2json", ""), flushed) == {
        "checkpoint",
        "checkpoint_timeline",
    }
    assert await codes(7, good, Lsn(1)) == {"checkpoint_slot_moved"}
    database.execute(f"SELECT pg_drop_replication_slot('{slot}')")
    assert await codes(6, good, flushed) == {"checkpoint_without_slot"}


async def test_damaged_state_is_an_error(database: Database, tmp_path: Path) -> None:
    """A state that cannot be trusted stops the service, so it is told here."""
    (tmp_path / "state.db").write_bytes(b"not a database" * 100)

    assert "state" in errors(await check(settings(database.dsn, tmp_path)))
    assert errors(await check(settings(f"host={tmp_path}", tmp_path))) == {"state", "unreachable"}


async def test_state_in_postgresql_that_is_not_there_yet_is_well_if_it_can_be_made(
    database: Database, tmp_path: Path
) -> None:
    """As with a file, the first `cdc run` makes it; a role that may not is told what to run, and that mends it."""
    with role_of(database, "LOGIN REPLICATION") as dsn:
        name = str(conninfo_to_dict(dsn)["user"])
        url = f"postgresql://{name}@/{database.name}?host={quote_plus(str(database.cluster.socket_dir))}"
        url += f"&port={database.cluster.port}"
        config = settings(dsn, tmp_path).model_copy(update={"state": StateConfig(url=url)})
        refused = found(await check(config), "state")
        assert refused.severity is Severity.ERROR
        database.execute(refused.fix.partition("run: ")[2])
        findings = await check(config)
        database.execute(f"DROP OWNED BY {name}")

    assert "state" not in errors(findings)
    assert "no state yet" in found(findings, "checkpoint").message


async def test_folder_of_the_state_must_be_there_and_writable(tmp_path: Path) -> None:
    """With the command that makes it so."""
    config = settings(f"host={tmp_path}", tmp_path / "gone")
    assert found(await check(config), "state_folder").fix == f"mkdir -p '{tmp_path}/gone'"

    if os.geteuid() != 0:  # root may write everywhere
        await asyncio.to_thread(tmp_path.chmod, 0o500)
        config = settings(f"host={tmp_path}", tmp_path)
        assert found(await check(config), "state_folder").severity is Severity.ERROR


async def test_taken_port_is_an_error(tmp_path: Path) -> None:
    """Somebody else listens there."""
    with socket.create_server(("127.0.0.1", free_port())) as listener:  # no outgoing connection takes it later
        http = HttpConfig(port=listener.getsockname()[1])
        config = settings(f"host={tmp_path}", tmp_path).model_copy(update={"http": http})
        taken = found(await check(config), "http_port")
    free = found(await check(config), "http_port")

    assert (taken.severity, free.severity) == (Severity.ERROR, Severity.OK)


async def test_port_of_the_running_service_is_known_as_its_own(database: Database, tmp_path: Path) -> None:
    """A check beside it warns of no port; one for another slot, or for a server elsewhere, has an error."""
    async with running(make_config(database.dsn, tmp_path)) as run:
        await eventually(lambda: run.service.monitor.slot is not None)
        assert run.server.port is not None
        http = HttpConfig(port=run.server.port)
        config = run.service.config.model_copy(update={"http": http})
        slot = config.source.slot
        own = await check(config)
        taken = {"http": http}
        another = await check(settings(database.dsn, tmp_path, slot="another").model_copy(update=taken))
        namesake = await check(settings(f"host={tmp_path}", tmp_path, slot=slot).model_copy(update=taken))

    where = f"127.0.0.1:{http.port}"
    assert found(own, "http_port") == Finding(Severity.OK, "http_port", f"{where} is the running service's own")
    assert is_running(own)
    assert not is_running(another)
    for findings in (another, namesake):
        finding = found(findings, "http_port")
        assert finding.severity is Severity.ERROR
        assert finding.message == f"{where} is taken by another service, which reads a slot {slot}"


async def test_handlers_are_loaded_and_each_problem_told(tmp_path: Path) -> None:
    """What cannot be imported, and that there are none."""
    config = settings(f"host={tmp_path}", tmp_path)
    broken = (HandlerConfig(callback="absent:x", name="a"), HandlerConfig(callback="builtins:print", name="b"))

    findings = await check(config.model_copy(update={"handlers": broken}))
    handlers = [finding for finding in findings if finding.code == "handler"]
    assert [finding.severity for finding in handlers] == [Severity.ERROR, Severity.OK]

    without = await check(config.model_copy(update={"handlers": ()}))
    assert found(without, "handlers").severity is Severity.WARNING
