"""deploy/sql and deploy/postgres on a real server: the role is enough for the service, and for nothing more."""

from __future__ import annotations

import os
import secrets
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from cdc import emit_tags
from cdc.demo.cluster import Cluster
from cdc.demo.programs import clean_environment
from cdc.patterns import TablePatterns
from cdc.preflight import tables
from tests.conftest import Database, OwnCluster
from tests.deploy.files import DEPLOY
from tests.running import child

SQL = DEPLOY / "sql"
INIT = DEPLOY / "postgres" / "initdb.d" / "10-walsignal.sh"
PASSWORD = 'it\'s a $(secret) `with` "everything" \\ in it'


def environment(database: Database) -> dict[str, str]:
    """For psql: this server, as the superuser."""
    cluster = database.cluster
    connection = {"PGHOST": str(cluster.socket_dir), "PGPORT": str(cluster.port), "PGUSER": cluster.superuser}
    path = f"{cluster.bindir}:{os.environ['PATH']}"
    return clean_environment() | connection | {"PGDATABASE": database.name, "PATH": path}


def psql(database: Database, *arguments: str | Path) -> str:
    """psql's output; AssertionError when it fails."""
    result = subprocess.run(
        ["psql", "--no-psqlrc", *arguments], check=False, capture_output=True, text=True, env=environment(database)
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def role(cluster: Cluster) -> Iterator[str]:
    """The name of a role, which is dropped when the database has gone."""
    name = f"cdc_{secrets.token_hex(6)}"
    yield name
    with cluster.connect() as connection:
        connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(name)))


@dataclass(frozen=True, slots=True)
class Prepared:
    """A database after the postgres image's own script, and who may do what in it."""

    database: Database
    role: str
    dsn: str


@pytest.fixture
def prepared(role: str, database: Database, tmp_path: Path) -> Prepared:
    """Run what the image runs when it has made a cluster."""
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n")
    variables = {
        "POSTGRES_USER": database.cluster.superuser,
        "POSTGRES_DB": database.name,
        "CDC_ROLE": role,
        "CDC_SQL": str(SQL),
        "CDC_PASSWORD_FILE": str(file),
    }
    result = subprocess.run(
        ["bash", INIT], check=False, capture_output=True, text=True, env=environment(database) | variables
    )
    assert result.returncode == 0, result.stderr
    assert PASSWORD not in result.stdout + result.stderr
    dsn = make_conninfo(
        database.cluster.dsn(database.name, user=role, tcp=True), password=PASSWORD, require_auth="scram-sha-256"
    )
    return Prepared(database, role, dsn)


def test_the_service_runs_as_the_least_privileged_role(prepared: Prepared, tmp_path: Path) -> None:
    """Over scram, stream and state; an ordinary application tags by cdc.tag(), and only what it has tagged arrives."""
    database = prepared.database
    application = f"app_{secrets.token_hex(6)}"
    database.execute(
        f"""CREATE TABLE orders (id int PRIMARY KEY);
        CREATE ROLE {application} LOGIN; GRANT INSERT ON orders TO {application}"""
    )
    handlers = {"audit": {"callback": "records:Record", "tags": ["audit:*"]}}
    state = f"postgresql://{prepared.role}@/{database.name}?schema=walsignal"
    try:
        with child(tmp_path, prepared.dsn, handlers, state={"url": state}) as service:
            service.environment = {
                "PGHOST": "127.0.0.1",
                "PGPORT": str(database.cluster.port),
                "PGPASSWORD": PASSWORD,
            }
            service.start()
            with database.connect(user=application) as connection:
                connection.execute("INSERT INTO orders VALUES (1)")
                with connection.transaction():
                    connection.execute("SELECT cdc.tag('audit:required', 'user:42')")
                    connection.execute("INSERT INTO orders VALUES (2)")
                with connection.transaction(force_rollback=True):
                    connection.execute("SELECT cdc.tag('audit:required')")
                connection.execute("INSERT INTO orders VALUES (3)")
                with connection.transaction():
                    emit_tags(connection, "audit:required")
                    connection.execute("INSERT INTO orders VALUES (4)")
            lines = service.wait_for_lines(2)
            used = database.execute(
                f"SELECT count(*), max(rolconnlimit) FROM pg_stat_activity JOIN pg_roles ON rolname = usename "
                f"WHERE usename = '{prepared.role}'"
            )
            service.stop()
        assert [line.record_id for line in lines] == ["2", "4"]
        connections, limit = used[0]
        assert 2 <= connections <= limit / 2, "no room for the commands beside it, or for a standby"
        owner = "SELECT tableowner FROM pg_tables WHERE schemaname = 'walsignal'"
        assert {row[0] for row in database.execute(owner)} == {prepared.role}
    finally:
        database.execute(f"DROP OWNED BY {application}; DROP ROLE {application}")


def test_the_role_can_do_nothing_else(prepared: Prepared) -> None:
    """It reads no table, makes none outside its schema, and a wrong password does not let it in."""
    prepared.database.execute("CREATE TABLE secret (id int PRIMARY KEY)")
    with psycopg.connect(prepared.dsn, autocommit=True) as connection:
        for statement in ("SELECT * FROM public.secret", "CREATE ROLE x", "CREATE SCHEMA x", "CREATE DATABASE x"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
        attributes = connection.execute(
            "SELECT rolcanlogin, rolreplication, rolsuper, rolcreatedb, rolcreaterole, rolbypassrls, rolinherit"
            " FROM pg_roles WHERE rolname = current_user"
        ).fetchone()
    assert attributes == (True, True, False, False, False, False, False)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(make_conninfo(prepared.dsn, password="wrong"))


def test_the_files_can_be_run_again_and_take_away_what_is_too_much(prepared: Prepared) -> None:
    """An existing role is made what it should be; its password and the state's schema stay."""
    role, database = prepared.role, prepared.database
    database.execute(f"ALTER ROLE {role} SUPERUSER CREATEDB CONNECTION LIMIT -1")
    for file in ("role.sql", "state.sql", "tag.sql"):
        psql(database, "-v", f"role={role}", "-f", SQL / file)
    with psycopg.connect(prepared.dsn) as connection:
        row = connection.execute(
            "SELECT rolsuper, rolcreatedb, rolconnlimit FROM pg_roles WHERE rolname = %s", [role]
        ).fetchone()
    assert row == (False, False, 10)


def test_tags_that_are_none_are_refused(database: Database) -> None:
    """What emit_tags refuses in Python, cdc.tag refuses in SQL; the transaction is the application's to mend."""
    psql(database, "-f", SQL / "tag.sql")
    with database.connect() as connection:
        for bad in ("''", "' '", "'a,b'", "'good', NULL", "VARIADIC ARRAY[]::text[]"):
            with pytest.raises(psycopg.errors.InvalidParameterValue):
                connection.execute(f"SELECT cdc.tag({bad})".encode())
        connection.execute("SELECT cdc.tag('good'), cdc.tag('audit', 'user:42')")


TABLES = """
CREATE SCHEMA "Odd ""one";
CREATE TABLE keyed (id int PRIMARY KEY);
CREATE TABLE "Odd ""one"."No Key" (a int);
CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
CREATE TABLE late (id int PRIMARY KEY DEFERRABLE);
CREATE TABLE by_index (a int NOT NULL, b int NOT NULL, c int);
CREATE UNIQUE INDEX by_index_key ON by_index (a, b) INCLUDE (c);
CREATE TABLE lost (a int NOT NULL); CREATE UNIQUE INDEX lost_key ON lost (a);
ALTER TABLE lost REPLICA IDENTITY USING INDEX lost_key; DROP INDEX lost_key;
CREATE TABLE nullable (a int UNIQUE);
CREATE TABLE partial (a int NOT NULL); CREATE UNIQUE INDEX ON partial (a) WHERE a > 0;
CREATE TABLE expression (a int NOT NULL); CREATE UNIQUE INDEX ON expression ((a + 1));
CREATE TABLE whole (a int); ALTER TABLE whole REPLICA IDENTITY FULL;
CREATE UNLOGGED TABLE unlogged (a int);
CREATE TABLE parted (a int) PARTITION BY RANGE (a);
CREATE TABLE part PARTITION OF parted FOR VALUES FROM (0) TO (10);
"""


async def test_replica_identity_advice_mends_every_table(database: Database) -> None:
    """It lists the tables that `cdc check` warns of; its statements run as they are, and then it lists none."""
    database.execute(TABLES)
    query = (SQL / "replica_identity.sql").read_text()
    rows = {row[0]: row[2] for row in database.execute(query)}
    async with await psycopg.AsyncConnection.connect(database.dsn) as connection:
        judged = await tables.read(connection, TablePatterns(["*.*"]))
    assert len(rows) == len([table for table in judged if not table.has_identity])
    assert rows.pop('"Odd ""one"."No Key"') == 'ALTER TABLE "Odd ""one"."No Key" REPLICA IDENTITY FULL;'
    statements = {
        "nothing": "DEFAULT",
        "late": "FULL",
        "by_index": "USING INDEX by_index_key",
        "lost": "FULL",
        "nullable": "FULL",
        "partial": "FULL",
        "expression": "FULL",
        "part": "FULL",
    }
    assert rows == {
        f"public.{name}": f"ALTER TABLE public.{name} REPLICA IDENTITY {how};" for name, how in statements.items()
    }
    database.execute('ALTER TABLE "Odd ""one"."No Key" REPLICA IDENTITY FULL;' + "".join(rows.values()))
    assert database.execute(query) == []


def _identity(table: str, how: str) -> str:
    return f"ALTER TABLE public.{table} REPLICA IDENTITY {how};"


def test_the_example_of_compose_makes_its_tables(database: Database) -> None:
    """Its SQL runs, more than once, and leaves no table without replica identity."""
    for _ in range(2):
        psql(database, "-v", "ON_ERROR_STOP=1", "-f", DEPLOY / "example/sql/20-example.sql")
    assert database.execute((SQL / "replica_identity.sql").read_text()) == []


@pytest.fixture
def world_readable() -> Iterator[Path]:
    """walsignal.conf where the server's account can read it, wherever the repository lies."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        file = Path(folder) / "walsignal.conf"
        file.write_text((DEPLOY / "postgres/walsignal.conf").read_text())
        file.chmod(0o644)
        yield file


def test_the_server_reads_the_settings_and_the_host_lines(own_cluster: OwnCluster, world_readable: Path) -> None:
    """postgresql.conf takes walsignal.conf as the image includes it, and no line of pg_hba.conf is an error."""
    cluster = own_cluster({"include": str(world_readable)}, logical=False)
    lines = (SQL / "pg_hba.conf").read_text().replace("DATABASE", "shop")
    with cluster.connect() as connection:
        shown = {
            name: connection.execute(sql.SQL("SHOW {}").format(sql.Identifier(name))).fetchone()
            for name in ("wal_level", "max_slot_wal_keep_size", "max_replication_slots")
        }
        hba = connection.execute("SHOW hba_file").fetchone()
        assert hba is not None
        with Path(hba[0]).open("a") as file:
            file.write(lines)
        rules = connection.execute("SELECT type, auth_method, error FROM pg_hba_file_rules").fetchall()
    assert shown["wal_level"] == ("logical",)
    assert shown["max_slot_wal_keep_size"] == ("20GB",)
    without_tls = "hostssl record cannot match because SSL is disabled"  # true of this server, and a remark only
    assert ("hostssl", "scram-sha-256", without_tls) in rules
    assert {rule[2] for rule in rules} == {None, without_tls}


def test_the_image_knows_whether_the_server_wants_its_plugins_named(cluster: Cluster) -> None:
    """What the Dockerfile greps for is told by the program itself, without a cluster, exactly where it is a setting."""
    build = (DEPLOY / "postgres/Dockerfile").read_text()
    assert "postgres --describe-config" in build
    assert "grep -q '^output_plugin_libraries'" in build
    described = subprocess.run(
        [cluster.bindir / "postgres", "--describe-config"], check=True, capture_output=True, text=True
    ).stdout
    assert "\nwal_level\t" in f"\n{described}"
    assert ("\noutput_plugin_libraries\t" in f"\n{described}") is cluster.has_output_plugin_list
