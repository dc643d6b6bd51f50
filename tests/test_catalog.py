"""The catalog: what a real database tells of its types and TOAST columns, at the start and later."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import psycopg
import pytest

from cdc.catalog import Catalog
from cdc.errors import CdcError, StreamLost, is_retryable
from cdc.values import TypeInfo, TypeKind
from tests.conftest import Database

UNREACHABLE = "host=127.0.0.1 port=1 dbname=none user=none"


def oid_of(database: Database, type_name: str) -> int:
    """The OID of a type, by its SQL name."""
    oid = database.execute(f"SELECT '{type_name}'::regtype::oid")[0][0]
    assert isinstance(oid, int)
    return oid


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows with every synchronous connection that is made from now on."""
    made = []
    connect = psycopg.connect

    def counted(*args: Any, **kwargs: Any) -> psycopg.Connection:
        made.append("one")
        return connect(*args, **kwargs)

    monkeypatch.setattr(psycopg, "connect", counted)
    return made


@pytest.fixture
async def catalog(database: Database) -> Catalog:
    """Loaded from a database with a few types and tables."""
    database.execute("""
        CREATE TYPE mood AS ENUM ('sad', 'ok');
        CREATE TYPE pair AS (x int, label text);
        CREATE TYPE floatrange AS RANGE (subtype = float8, multirange_type_name = floatmultirange);
        CREATE DOMAIN positive AS int CHECK (value > 0);
        CREATE DOMAIN small AS positive;
        CREATE DOMAIN note AS text;
        CREATE SCHEMA "Other Schema";
        CREATE TABLE users (
            id bigint PRIMARY KEY, name text, email varchar(100), fixed char(3), data jsonb, note note,
            price numeric, ids int[], mood mood, at timestamptz, hash bytea, plain text,
            main text, gone text, tall text GENERATED ALWAYS AS (upper(name)) STORED, who uuid
        );
        ALTER TABLE users DROP COLUMN gone, ALTER COLUMN plain SET STORAGE PLAIN,
            ALTER COLUMN main SET STORAGE MAIN;
        CREATE TABLE counters (id int, n int);
        CREATE TABLE "Other Schema"."Ünï ""x"" table" (a text, "b c" text);
        CREATE TABLE parts (id int, v text) PARTITION BY RANGE (id);
        CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
        CREATE TABLE empty ();
    """)
    catalog = Catalog(database.dsn)
    await catalog.load()
    return catalog


@pytest.fixture
def locked(database: Database) -> Iterator[None]:
    """The database takes no more connections, as if it were away."""
    with psycopg.connect(database.cluster.dsn("postgres"), autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{database.name}" ALLOW_CONNECTIONS false'.encode())
        yield
        connection.execute(f'ALTER DATABASE "{database.name}" ALLOW_CONNECTIONS true'.encode())


def test_types_are_known_from_memory(catalog: Catalog, database: Database, connections: list[str]) -> None:
    """Domains, enums, arrays, composites and ranges, each with what its text form depends on."""
    names = ["mood", "mood[]", "pair", "pair[]", "floatrange", "floatmultirange"]
    names += ["positive", "small", "small[]", "box[]"]
    oid = {name: oid_of(database, name) for name in [*names, "int", "box"]}

    connections.clear()

    found = {name: catalog.resolve(oid[name]) for name in names}

    assert connections == []
    assert found == {
        "mood": TypeInfo(oid["mood"], "mood", TypeKind.ENUM),
        "mood[]": TypeInfo(oid["mood[]"], "_mood", TypeKind.ARRAY, element_oid=oid["mood"]),
        "pair": TypeInfo(oid["pair"], "pair", TypeKind.COMPOSITE),
        "pair[]": TypeInfo(oid["pair[]"], "_pair", TypeKind.ARRAY, element_oid=oid["pair"]),
        "floatrange": TypeInfo(oid["floatrange"], "floatrange", TypeKind.RANGE),
        "floatmultirange": TypeInfo(oid["floatmultirange"], "floatmultirange", TypeKind.MULTIRANGE),
        "positive": TypeInfo(oid["positive"], "positive", TypeKind.DOMAIN, base_oid=oid["int"]),
        "small": TypeInfo(oid["small"], "small", TypeKind.DOMAIN, base_oid=oid["positive"]),
        "small[]": TypeInfo(oid["small[]"], "_small", TypeKind.ARRAY, element_oid=oid["small"]),
        "box[]": TypeInfo(oid["box[]"], "_box", TypeKind.ARRAY, element_oid=oid["box"], delimiter=";"),
    }


def test_toastable_columns(catalog: Catalog) -> None:
    """Variable length, however stored, dropped columns left out, domains and generated columns in."""
    assert catalog.toastable("public", "users") == {
        *("name", "email", "fixed", "data", "note", "price", "ids", "hash", "plain", "main", "tall")
    }
    assert catalog.toastable("public", "counters") == frozenset()
    assert catalog.toastable("public", "empty") == frozenset()
    assert catalog.toastable("Other Schema", 'Ünï "x" table') == {"a", "b c"}
    assert catalog.toastable("public", "parts") == catalog.toastable("public", "parts_1") == {"v"}


async def test_tables_are_those_whose_changes_are_logged(database: Database) -> None:
    """With their schemas, and the parents of partitions; no views, nothing that is unlogged or the server's own."""
    database.execute("""
        CREATE TABLE kept (id int); CREATE UNLOGGED TABLE unlogged (id int); CREATE VIEW seen AS SELECT 1;
        CREATE TABLE parted (id int) PARTITION BY LIST (id); CREATE TABLE part PARTITION OF parted DEFAULT;
        CREATE SCHEMA "a.b"; CREATE TABLE "a.b"."C" (id int);
    """)
    catalog = Catalog(database.dsn)
    await catalog.load()
    found = {table for table in catalog.tables if table[0] != "information_schema"}
    assert found == {("public", "kept"), ("public", "parted"), ("public", "part"), ("a.b", "C")}


def test_toastable_is_what_the_server_leaves_out(catalog: Catalog, database: Database) -> None:
    """Against the server itself: an update of another column sends no value that lies outside of the row."""
    database.execute("""
        CREATE TABLE big (id int PRIMARY KEY, n int, t text, x text, p text, short text);
        ALTER TABLE big ALTER COLUMN x SET STORAGE EXTERNAL, ALTER COLUMN p SET STORAGE PLAIN;
        INSERT INTO big SELECT 1, 0, string_agg(md5(i::text), ''), repeat('x', 10000), 'p', 's'
            FROM generate_series(1, 1000) i
    """)
    database.execute(f"SELECT pg_create_logical_replication_slot('{database.name}', 'wal2json')")
    database.execute("UPDATE big SET n = 1")
    rows = database.execute(f"""
        SELECT array_agg(c ->> 'name') FROM pg_logical_slot_get_changes(
            '{database.name}', NULL, NULL, 'format-version', '2'
        ), json_array_elements(data::json -> 'columns') c
        WHERE data::json ->> 'action' = 'U'
    """)

    missing = {"id", "n", "t", "x", "p", "short"} - set(rows[0][0])
    assert missing == {"t", "x"}
    assert missing <= catalog.toastable("public", "big")


def test_type_created_later_is_fetched_once(catalog: Catalog, database: Database, connections: list[str]) -> None:
    """An array of a domain of an enum that came after the load costs one connection, and then none."""
    database.execute("CREATE TYPE late AS ENUM ('a b'); CREATE DOMAIN later AS late")
    oid = oid_of(database, "later[]")
    connections.clear()

    assert catalog.loaders[oid]('{"a b",NULL}') == ["a b", None]
    assert catalog.loaders[oid]("{}") == []
    assert len(connections) == 1


def test_row_type_of_a_table_is_fetched_when_asked_for(catalog: Catalog, database: Database) -> None:
    """Row types are not kept in memory; a column of one is text, of their array a list."""
    assert catalog.loaders[oid_of(database, "counters")]("(1,2)") == "(1,2)"
    assert catalog.loaders[oid_of(database, "counters[]")]('{"(1,2)"}') == ["(1,2)"]


def test_type_that_does_not_exist_is_none(catalog: Catalog) -> None:
    """A type dropped before anybody asked: the stream may still carry it, its values are text."""
    assert catalog.resolve(4_000_000_000) is None
    assert catalog.loaders[4_000_000_000]("x") == "x"


def test_table_created_later_is_fetched_once(catalog: Catalog, database: Database, connections: list[str]) -> None:
    """So is one that does not exist any more: it has no columns to speak of."""
    database.execute("CREATE TABLE late (id int, body text)")
    connections.clear()

    assert catalog.toastable("public", "late") == catalog.toastable("public", "late") == {"body"}
    assert catalog.toastable("public", "never") == catalog.toastable("public", "never") == frozenset()
    assert len(connections) == 2


async def test_refresh_sees_changed_columns(catalog: Catalog, database: Database) -> None:
    """Columns dropped, added and renamed."""
    database.execute("""
        ALTER TABLE users DROP COLUMN data;
        ALTER TABLE users ADD COLUMN added text;
        ALTER TABLE users RENAME COLUMN email TO mail
    """)

    await catalog.refresh()

    assert catalog.toastable("public", "users") == {
        *("name", "mail", "fixed", "note", "price", "ids", "hash", "plain", "main", "tall", "added")
    }


async def test_refresh_keeps_what_the_stream_may_still_carry(catalog: Catalog, database: Database) -> None:
    """Types and tables that were dropped keep their loaders and columns."""
    oid = oid_of(database, "small[]")
    database.execute("DROP TABLE users; DROP DOMAIN small")

    await catalog.refresh()

    assert catalog.loaders[oid]("{1}") == [1]
    assert "name" in catalog.toastable("public", "users")


def test_unknown_type_while_the_database_is_away(catalog: Catalog, database: Database, locked: None) -> None:
    """Neither guessed nor remembered: an error that says what to do, and the memory still answers."""
    with pytest.raises(CdcError, match=r"type OID 4000000000 is not known and the data.* asked") as caught:
        catalog.loaders[4_000_000_000]
    assert caught.value.hint
    with pytest.raises(CdcError, match=r"table public\.late is not known"):
        catalog.toastable("public", "late")
    assert "name" in catalog.toastable("public", "users")


async def test_load_while_the_database_is_away_can_be_retried() -> None:
    """The service connects again, as for the stream."""
    with pytest.raises(StreamLost, match="catalog") as caught:
        await Catalog(UNREACHABLE).load()
    assert is_retryable(caught.value)
    assert caught.value.reason == "catalog_unreachable"


async def test_failed_refresh_leaves_the_memory(catalog: Catalog, locked: None) -> None:
    """What was known stays known."""
    with pytest.raises(StreamLost):
        await catalog.refresh()
    assert "name" in catalog.toastable("public", "users")


async def test_session_settings_of_the_database_do_not_matter(database: Database) -> None:
    """ALTER DATABASE ... SET reaches neither the names nor the time limit; options of the DSN are kept."""
    database.execute("CREATE SCHEMA evil; CREATE TABLE evil.pg_class (); CREATE TYPE evil.mood AS ENUM ('a')")
    moods = oid_of(database, "evil.mood[]")  # before: a millisecond may be too short for our own question
    database.execute(f"""
        ALTER DATABASE "{database.name}" SET search_path = evil, pg_catalog;
        ALTER DATABASE "{database.name}" SET statement_timeout = '1ms';
        ALTER DATABASE "{database.name}" SET client_encoding = 'LATIN1'
    """)
    catalog = Catalog(f"{database.dsn} options='-c work_mem=1MB'")

    await catalog.load()

    assert catalog.toastable("evil", "pg_class") == frozenset()
    assert catalog.loaders[moods]("{a}") == ["a"]


async def test_load_does_not_hold_the_loop(catalog: Catalog, database: Database) -> None:
    """While the server makes the load wait, other tasks run, and the load can be cancelled."""
    with database.connect() as connection, connection.transaction():
        connection.execute("LOCK TABLE pg_catalog.pg_type IN ACCESS EXCLUSIVE MODE")
        load = asyncio.ensure_future(catalog.load())
        while not await is_waiting_for_lock(database):
            pass
        load.cancel()
        with pytest.raises(asyncio.CancelledError):
            await load


async def is_waiting_for_lock(database: Database) -> bool:
    """Whether a session of the catalog waits for a lock."""
    async with await psycopg.AsyncConnection.connect(database.cluster.dsn("postgres")) as connection:
        cursor = await connection.execute(
            "SELECT FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'", [database.name]
        )
        return await cursor.fetchone() is not None


def test_many_threads_meet_at_what_is_unknown(catalog: Catalog, database: Database, connections: list[str]) -> None:
    """One connection per unknown thing, whoever asks, and the same answer for all."""
    database.execute("CREATE TYPE late AS ENUM ('a'); CREATE TABLE late_table (v text)")
    oid = oid_of(database, "late[]")
    connections.clear()
    start = Barrier(8)

    def ask() -> tuple[object, object]:
        start.wait(60)
        return catalog.loaders[oid]("{a}"), catalog.toastable("public", "late_table")

    with ThreadPoolExecutor(8) as pool:
        answers = [future.result(60) for future in [pool.submit(ask) for _ in range(8)]]

    assert answers == [(["a"], frozenset({"v"}))] * 8
    assert len(connections) == 2
