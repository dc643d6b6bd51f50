"""What the role of the service can do with LOGIN and REPLICATION alone: the reason to guard its password."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from tests.conftest import Database
from tests.running import child


@pytest.fixture
def role(database: Database) -> Iterator[str]:
    """A role with nothing but that, and a table that it may not read, with a policy that shows no row."""
    name = f"reader_{secrets.token_hex(4)}"
    database.execute(
        f"CREATE ROLE {name} LOGIN REPLICATION; CREATE TABLE secret (id int PRIMARY KEY, value text);"
        "ALTER TABLE secret ENABLE ROW LEVEL SECURITY; ALTER TABLE secret FORCE ROW LEVEL SECURITY;"
        "REVOKE ALL ON secret FROM PUBLIC"
    )
    yield name
    database.execute(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


def test_role_reads_what_it_may_not_select(database: Database, role: str, tmp_path: Path) -> None:
    """No grant, and no row by policy; through the slot it gets every row all the same."""
    dsn = database.cluster.dsn(database.name, user=role)
    with (
        psycopg.connect(dsn, autocommit=True) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("SELECT * FROM secret")

    with child(tmp_path, dsn) as service:
        service.start()
        database.execute("INSERT INTO secret VALUES (1, 'for nobody')")
        (line,) = service.wait_for_lines(1)
        service.stop()

    assert "for nobody" in line.payload


def test_role_can_drop_the_slots_of_others_and_copy_the_cluster(database: Database, role: str) -> None:
    """There is no owner of a slot, and a base backup needs no more than REPLICATION."""
    dsn = database.cluster.dsn(database.name, user=role)
    database.execute("SELECT pg_create_logical_replication_slot(current_database(), 'wal2json')")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SELECT pg_drop_replication_slot(current_database())")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT * FROM pg_authid")
    with closing(psycopg.connect(dsn, replication="database", autocommit=True)) as connection:
        now = "(CHECKPOINT 'fast')" if database.cluster.server_version >= 150000 else "FAST"
        connection.pgconn.send_query(f"BASE_BACKUP {now}".encode())
        begun = connection.pgconn.get_result()  # where the backup starts; its files, password hashes too, would follow

    assert begun is not None
    assert begun.status == psycopg.pq.ExecStatus.TUPLES_OK


def test_role_without_replication_reads_nothing(database: Database, role: str, tmp_path: Path) -> None:
    """It is that one attribute that opens all of it."""
    database.execute(f"ALTER ROLE {role} NOREPLICATION")
    with child(tmp_path, database.cluster.dsn(database.name, user=role)) as service:
        code, said = service.run()

    assert code == 1
    assert "REPLICATION" in said
