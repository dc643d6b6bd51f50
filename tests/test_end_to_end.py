"""From a commit to a callback, on a real server: what each kind of change looks like as an event."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias, TypedDict
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql
from structlog.testing import capture_logs

from cdc.config import Config, HandlerConfig, SourceConfig, StateConfig
from cdc.errors import DecodeError
from cdc.events import DatabaseEvent, EventType
from cdc.lsn import Lsn
from cdc.patterns import TablePatterns
from cdc.service import Service
from cdc.session import server_filters
from cdc.state import open_state
from cdc.transactions import Selection, TagRule
from tests.conftest import Database, OwnCluster, drop_database
from tests.streaming import streaming

BIG = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 400) i)"  # 12,800 bytes: stored outside of the row


def told(events: Sequence[DatabaseEvent]) -> list[tuple[str, str, str | None]]:
    """Type, table and key of each event."""
    return [(event.event_type.value, event.table_name, event.record_id) for event in events]


def payloads(events: Sequence[DatabaseEvent]) -> list[dict[str, Any]]:
    """The payload of each event."""
    return [dict(event.payload) for event in events]


def tags(events: Sequence[DatabaseEvent]) -> list[tuple[str, ...]]:
    """The tags of each event."""
    return [event.tags for event in events]


# --- replica identity ------------------------------------------------------------------------------------


async def test_changes_under_the_default_identity(database: Database) -> None:
    """`before` holds the key only; an update that changes the key tells the new one, and the old in `before`."""
    async with streaming(database) as stream:
        events = await stream.events_of(
            "CREATE TABLE t (id int PRIMARY KEY, v text)",
            "INSERT INTO t VALUES (1, 'a')",
            "UPDATE t SET v = 'b'",
            "UPDATE t SET id = 2",
            "DELETE FROM t",
        )

    assert told(events) == [("create", "t", "1"), ("update", "t", "1"), ("update", "t", "2"), ("delete", "t", "2")]
    assert payloads(events) == [{"id": 1, "v": "a"}, {"id": 1, "v": "b"}, {"id": 2, "v": "b"}, {"id": 2}]
    assert [event.before for event in events] == [None, {"id": 1}, {"id": 1}, {"id": 2}]
    assert [event.row.previous_record_id() for event in events] == ["1", "1", "1", "2"]


async def test_changes_under_the_full_identity(database: Database) -> None:
    """`before` is the whole old row, its NULLs included."""
    async with streaming(database) as stream:
        events = await stream.events_of(
            "CREATE TABLE t (id int PRIMARY KEY, v text, n numeric)",
            "ALTER TABLE t REPLICA IDENTITY FULL",
            "INSERT INTO t VALUES (1, NULL, 1.10)",
            "UPDATE t SET id = 2, v = 'b', n = 2",
            "DELETE FROM t",
        )

    assert told(events) == [("create", "t", "1"), ("update", "t", "2"), ("delete", "t", "2")]
    assert events[1].before == {"id": 1, "v": None, "n": Decimal("1.10")}
    assert str((events[1].before or {})["n"]) == "1.10"
    assert events[2].payload == events[2].before == {"id": 2, "v": "b", "n": Decimal(2)}


async def test_changes_under_an_index_as_identity(database: Database) -> None:
    """The old row is known by the index's columns, so that a deleted row's primary key is not."""
    async with streaming(database) as stream:
        events = await stream.events_of(
            "CREATE TABLE t (id int PRIMARY KEY, code text NOT NULL UNIQUE, v text)",
            "ALTER TABLE t REPLICA IDENTITY USING INDEX t_code_key",
            "INSERT INTO t VALUES (1, 'x', 'a')",
            "UPDATE t SET v = 'b'",
            "UPDATE t SET code = 'y'",
            "DELETE FROM t",
        )

    assert told(events) == [("create", "t", "1"), ("update", "t", "1"), ("update", "t", "1"), ("delete", "t", None)]
    assert [event.before for event in events] == [None, {"code": "x"}, {"code": "x"}, {"code": "y"}]
    assert events[3].payload == {"code": "y"}


@pytest.mark.parametrize(
    "ddl",
    [
        "CREATE TABLE t (id int, v text)",
        "CREATE TABLE t (id int PRIMARY KEY, v text); ALTER TABLE t REPLICA IDENTITY NOTHING",
    ],
)
async def test_changes_without_an_identity_are_counted_and_told_once(database: Database, ddl: str) -> None:
    """The plugin drops UPDATE and DELETE with a notice; INSERT goes through."""
    with capture_logs() as logs:
        async with streaming(database) as stream:
            events = await stream.events_of(
                f'{ddl}; CREATE TABLE "Ot.her" (id int)',
                "INSERT INTO t VALUES (1, 'a'); INSERT INTO \"Ot.her\" VALUES (1)",
                "UPDATE t SET v = 'b'",
                'UPDATE "Ot.her" SET id = 2',
                "DELETE FROM t",
            )
            missing = dict(stream.missing_identity)

    assert [event.event_type for event in events] == [EventType.CREATE] * 2
    assert missing == {"public.t": 2, "public.Ot.her": 1}
    assert [log["table"] for log in logs if log["event"] == "missing_replica_identity"] == ["public.t", "public.Ot.her"]


async def test_notice_is_heard_whatever_the_database_says(database: Database) -> None:
    """ALTER DATABASE could turn warnings off, and rows would go without a word."""
    database.execute(f"ALTER DATABASE {database.name} SET client_min_messages = error")
    async with streaming(database) as stream:
        await stream.events_of("CREATE TABLE t (id int)", "INSERT INTO t VALUES (1)", "DELETE FROM t")
        missing = dict(stream.missing_identity)

    assert missing == {"public.t": 1}


async def test_table_without_columns(database: Database) -> None:
    """It has rows, and they arrive."""
    async with streaming(database) as stream:
        events = await stream.events_of("CREATE TABLE t ()", "INSERT INTO t DEFAULT VALUES")

    assert told(events) == [("create", "t", None)]
    assert payloads(events) == [{}]


# --- TOAST -----------------------------------------------------------------------------------------------


async def test_unchanged_toast_is_named_and_absent(database: Database) -> None:
    """Not None: NULL is None. What was written anew is there."""
    async with streaming(database) as stream:
        created, touched, nulled, rewritten = await stream.events_of(
            "CREATE TABLE t (id int PRIMARY KEY, n int, a text, b text)",
            f"INSERT INTO t VALUES (1, 0, {BIG}, {BIG})",
            "UPDATE t SET n = 1",
            "UPDATE t SET a = NULL",
            f"UPDATE t SET a = 'x' || {BIG}",
        )
        assert created.unchanged == frozenset()
        assert touched.payload == {"id": 1, "n": 1}
        assert touched.unchanged == {"a", "b"}
        assert nulled.payload == {"id": 1, "n": 1, "a": None}
        assert nulled.unchanged == {"b"}
        assert rewritten.payload["a"] == "x" + str(created.payload["b"])
        assert json.loads(touched.to_json())["unchanged"] == ["a", "b"]


async def test_unchanged_toast_of_a_column_that_became_plain_is_named(database: Database) -> None:
    """Its values stay where they were stored, and are left out as before."""
    async with streaming(database) as stream:
        _, event = await stream.events_of(
            "CREATE TABLE t (id int PRIMARY KEY, n int, a text)",
            f"INSERT INTO t VALUES (1, 0, {BIG})",
            "ALTER TABLE t ALTER a SET STORAGE PLAIN",
            "UPDATE t SET n = 1",
        )

        assert event.payload == {"id": 1, "n": 1}
        assert event.unchanged == {"a"}


async def test_unchanged_toast_is_filled_from_the_full_identity(database: Database) -> None:
    """Also where the old row's numbers need their exact text, and for the tags column."""
    async with streaming(database) as stream:
        _, event = await stream.events_of(
            "CREATE TABLE t (id int PRIMARY KEY, n numeric, a text, __tags__ text[])",
            "ALTER TABLE t REPLICA IDENTITY FULL; ALTER TABLE t ALTER __tags__ SET STORAGE EXTERNAL",
            f"INSERT INTO t VALUES (1, 1.10, {BIG}, ARRAY['x', 'y' || {BIG}])",
            "UPDATE t SET n = 2",
        )
        (big,) = database.execute(f"SELECT {BIG}")[0]

        assert event.payload == {"id": 1, "n": Decimal(2), "a": big, "__tags__": ["x", f"y{big}"]}
        assert event.tags == ("x", f"y{big}")
        assert str((event.before or {})["n"]) == "1.10"
        assert event.unchanged == frozenset()


async def test_toasted_key_is_known(database: Database) -> None:
    """A long key that an update left alone comes with the identity."""
    async with streaming(database) as stream:
        created, updated = await stream.events_of(
            "CREATE TABLE t (k text PRIMARY KEY, n int); ALTER TABLE t ALTER k SET STORAGE EXTERNAL",
            "INSERT INTO t SELECT string_agg(md5(i::text), ''), 1 FROM generate_series(1, 75) i",
            "UPDATE t SET n = 2",
        )

    assert created.record_id == updated.record_id == created.payload["k"]
    assert updated.payload == {"k": created.record_id, "n": 2}


# --- keys ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_name", "value"),
    [
        ("text", 'a "quoted" \\ key, ü'),
        ("uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        ("bool", "true"),
        ("numeric", "1.10"),
        ("numeric", "5"),
        ("numeric", "-" + "9" * 400),
        ("bytea", "\\xdeadbeef"),
        ("int8", "-9223372036854775808"),
        ("float8", "1e15"),
        ("float8", "-0"),
        ("timestamptz", "2024-02-29 12:00:00.5+00"),
    ],
)
async def test_record_id_is_the_text_of_the_key(database: Database, type_name: str, value: str) -> None:
    """As PostgreSQL casts it, and the same for create, update and delete."""
    literal = sql.Literal(value).as_string()
    async with streaming(database) as stream:
        events = await stream.events_of(
            f"CREATE TABLE t (k {type_name} PRIMARY KEY, n numeric)",
            f"INSERT INTO t VALUES ({literal}, 1.5)",
            "UPDATE t SET n = 2",
            "DELETE FROM t",
        )
        ((text,),) = database.execute(f"SET TimeZone = 'UTC'; SELECT {literal}::{type_name}::text")

    assert [event.record_id for event in events] == [text] * 3


async def test_composite_key_is_a_json_array_in_the_order_of_the_columns(database: Database) -> None:
    """Of the table, as the plugin tells them, whatever order the key has."""
    async with streaming(database) as stream:
        events = await stream.events_of(
            "CREATE TABLE t (b text, a int, c numeric, PRIMARY KEY (a, b, c))",
            "INSERT INTO t VALUES ('x,\"y\"', 1, 2.50)",
            "DELETE FROM t",
        )

    assert [json.loads(event.record_id or "") for event in events] == [['x,"y"', 1, "2.50"]] * 2


# --- partitions, names, filters --------------------------------------------------------------------------

PARTITIONED = """
    CREATE TABLE parent (id int PRIMARY KEY) PARTITION BY RANGE (id);
    CREATE TABLE low PARTITION OF parent FOR VALUES FROM (0) TO (10);
    CREATE TABLE high PARTITION OF parent FOR VALUES FROM (10) TO (20)
"""


async def test_partitioned_table_tells_of_its_partitions(database: Database) -> None:
    """Events carry the leaf's name; a row that moves is a delete and a create; TRUNCATE tells of all."""
    async with streaming(database) as stream:
        events = await stream.events_of(
            PARTITIONED, "INSERT INTO parent VALUES (1)", "UPDATE parent SET id = 11", "TRUNCATE parent"
        )

    assert told(events[:3]) == [("create", "low", "1"), ("delete", "low", "1"), ("create", "high", "11")]
    assert events[1].position.commit_lsn == events[2].position.commit_lsn
    assert sorted(told(events[3:])) == [
        ("truncate", "high", None),
        ("truncate", "low", None),
        ("truncate", "parent", None),
    ]


async def test_name_of_a_partitioned_table_selects_no_rows(database: Database) -> None:
    """Rows belong to the partitions: name these, or use a pattern."""
    async with streaming(database, tables=["public.parent"]) as stream:
        events = await stream.events_of(
            PARTITIONED, "INSERT INTO parent VALUES (1)", "UPDATE parent SET id = 11", "TRUNCATE parent"
        )

    assert told(events) == [("truncate", "parent", None)]


ODD_NAMES = [
    "Upper Case",
    "dot.dot",
    'quo"te',
    "com,ma",
    "st*r",
    "back\\slash",
    "new\nline",
    "tab\ttab",
    "ünï-😀",
    "ü" * 31 + "x",  # 63 bytes
    "'apostrophe'",
    " ",
    "select",
    "\u2028",
    'name":"x',
]


ODD_TABLES = list(zip(ODD_NAMES[1:] + ODD_NAMES[:1], ODD_NAMES, strict=True))


def quoted(name: str) -> str:
    """An identifier of SQL; the patterns of the configuration quote alike."""
    return '"' + name.replace('"', '""') + '"'


def odd_tables() -> list[str]:
    """Statements that make a table, with a column, of each odd name in the next one's schema."""
    statements = []
    for schema, table in ODD_TABLES:
        names = f"{quoted(schema)}.{quoted(table)}"
        statements.append(
            f"CREATE SCHEMA {quoted(schema)}; CREATE TABLE {names} (id int PRIMARY KEY, {quoted(table)} text)"
        )
        statements.append(f"INSERT INTO {names} VALUES (1, 'x')")
    return statements


async def test_any_name_is_told_as_it_is(database: Database) -> None:
    """Of schema, table and column; in JSON, too."""
    async with streaming(database) as stream:
        events = await stream.events_of(*odd_tables())

    assert [(event.schema, event.table_name) for event in events] == ODD_TABLES
    assert payloads(events) == [{"id": 1, name: "x"} for name in ODD_NAMES]
    assert [json.loads(event.to_json())["payload"] for event in events] == payloads(events)


@pytest.mark.parametrize("name", ODD_NAMES)
async def test_watched_column_of_any_name_is_found(database: Database, name: str) -> None:
    """The plugin's way to escape a name is the decoder's."""
    async with streaming(database, tags_column=name, soft_delete_columns=frozenset({f"{name[:20]}!"})) as stream:
        events = await stream.events_of(
            f"CREATE TABLE t (id int PRIMARY KEY, {quoted(name)} text[], {quoted(f'{name[:20]}!')} bool)",
            "INSERT INTO t VALUES (1, '{a,b}', true)",
            f"UPDATE t SET {quoted(f'{name[:20]}!')} = false",
        )

    assert tags(events) == [("a", "b")] * 2
    assert [event.event_type for event in events] == [EventType.CREATE, EventType.DELETE]


def test_server_filters_agree_with_the_patterns(database: Database) -> None:
    """Whatever is selected: the server sends at least that, and exactly that where no name is matched in part."""
    database.execute("SELECT pg_create_logical_replication_slot(current_database(), 'wal2json')")
    for statement in odd_tables():
        database.execute(statement)
    exact = st.sampled_from(ODD_NAMES).map(quoted)
    partial = st.sampled_from(["*o*", '"t"*', "*e", "n*"])
    part = exact | st.just("*") | partial
    pattern = st.tuples(part, part).map(".".join)

    @settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow], deadline=None)
    @given(st.lists(pattern, min_size=1, max_size=4), st.lists(pattern, max_size=3))
    def check(include: list[str], exclude: list[str]) -> None:
        patterns = TablePatterns(include, exclude)
        options = server_filters(Selection(patterns)) | {"format-version": "2", "actions": "insert"}
        pairs = ", ".join(f"{sql.Literal(word).as_string()}" for item in options.items() for word in item)
        rows = database.execute(
            f"SELECT data FROM pg_logical_slot_peek_changes(current_database(), NULL, NULL, {pairs})"
        )
        sent = {(row["schema"], row["table"]) for (data,) in rows if (row := json.loads(data))["action"] == "I"}
        wanted = {name for name in ODD_TABLES if patterns.matches(*name)}
        assert wanted <= sent
        in_part = any(star in one for one in include + exclude for star in ("*o", '"*', "*e", "n*"))
        if not in_part and "*.*" not in exclude:
            assert wanted == sent

    check()


async def test_filters_of_server_and_client_together_are_exact(database: Database) -> None:
    """What only the client can match is left out there, and counted."""
    database.execute("CREATE SCHEMA other")
    async with streaming(
        database, tables=['public."dot.dot"', "public.user_*", 'other."*"'], exclude_tables=["public.user_secret"]
    ) as stream:
        names = ["public.user_a", "public.user_secret", "public.users", 'public."dot.dot"', 'other."*"', "other.x"]
        events = await stream.events_of(
            *(f"CREATE TABLE {name} (id int PRIMARY KEY); INSERT INTO {name} VALUES (1)" for name in names)
        )
        filtered = dict(stream.assembler.filtered)

    assert [event.kind.table for event in events] == ["public.user_a", "public.dot.dot", "other.*"]
    assert filtered == {"table": 1}  # public.users: user_* is public.* for the plugin


class Names(TypedDict, total=False):
    """One of the two settings."""

    tables: list[str]
    exclude_tables: list[str]


@pytest.mark.parametrize("named", ["tables", "exclude_tables"])
async def test_any_name_can_be_selected_and_left_out(database: Database, named: str) -> None:
    """By the plugin's filter, which has an escape of its own, and by ours."""
    patterns = [f"{quoted(schema)}.{quoted(table)}" for schema, table in ODD_TABLES]
    half = patterns[::2]
    selected = Names(tables=half) if named == "tables" else Names(exclude_tables=half)
    async with streaming(database, **selected) as stream:
        events = await stream.events_of(*odd_tables())
        filtered = dict(stream.assembler.filtered)

    wanted = ODD_TABLES[::2] if named == "tables" else ODD_TABLES[1::2]
    assert [(event.schema, event.table_name) for event in events] == wanted
    assert filtered == {}  # the server has left out the rest


# --- schema changes --------------------------------------------------------------------------------------


async def test_schema_changes_between_transactions(database: Database) -> None:
    """Each row has the columns and the table name of its time."""
    async with streaming(database) as stream:
        events = await stream.events_of(
            "CREATE TABLE t (id int PRIMARY KEY, v int)",
            "INSERT INTO t VALUES (1, 1)",
            "ALTER TABLE t ADD COLUMN extra text DEFAULT 'd'",
            "UPDATE t SET v = 2",
            "ALTER TABLE t RENAME COLUMN v TO w",
            "UPDATE t SET w = 3",
            "ALTER TABLE t ALTER COLUMN w TYPE numeric(6, 2)",
            "UPDATE t SET w = 4",
            "ALTER TABLE t DROP COLUMN extra",
            "UPDATE t SET w = 5",
            "ALTER TABLE t RENAME TO u",
            "UPDATE u SET w = 6",
            "CREATE TYPE mood AS ENUM ('sad'); ALTER TABLE u ADD COLUMN m mood[]",
            "UPDATE u SET m = '{sad,NULL}'",
        )

    assert payloads(events) == [
        {"id": 1, "v": 1},
        {"id": 1, "v": 2, "extra": "d"},
        {"id": 1, "w": 3, "extra": "d"},
        {"id": 1, "w": Decimal("4.00"), "extra": "d"},
        {"id": 1, "w": Decimal("5.00")},
        {"id": 1, "w": Decimal("6.00")},
        {"id": 1, "w": Decimal("6.00"), "m": ["sad", None]},
    ]
    assert [event.table_name for event in events] == ["t"] * 5 + ["u"] * 2


async def test_schema_changes_inside_a_transaction(database: Database) -> None:
    """A rewrite of the table is no change of its rows."""
    async with streaming(database) as stream:
        events = await stream.events_of(
            "CREATE TABLE t (id int PRIMARY KEY, v int)",
            """
            INSERT INTO t VALUES (1, 1);
            ALTER TABLE t ADD COLUMN extra text; UPDATE t SET extra = 'x';
            ALTER TABLE t ALTER COLUMN v TYPE text; UPDATE t SET v = 'two';
            ALTER TABLE t DROP COLUMN extra; ALTER TABLE t RENAME TO u; DELETE FROM u;
            CREATE TABLE t (id text PRIMARY KEY); INSERT INTO t VALUES ('new')
            """,
        )

    assert told(events) == [
        ("create", "t", "1"),
        ("update", "t", "1"),
        ("update", "t", "1"),
        ("delete", "u", "1"),
        ("create", "t", "new"),
    ]
    assert payloads(events) == [
        {"id": 1, "v": 1},
        {"id": 1, "v": 1, "extra": "x"},
        {"id": 1, "v": "two", "extra": "x"},
        {"id": 1},
        {"id": "new"},
    ]
    assert [event.position.ordinal for event in events] == [1, 2, 3, 4, 5]


# --- transactions ----------------------------------------------------------------------------------------


async def test_truncate_tells_of_every_table(database: Database) -> None:
    """One event per table, those reached by CASCADE included."""
    async with streaming(database) as stream:
        events = await stream.events_of(
            "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY);"
            "CREATE TABLE c (a int REFERENCES a)",
            "TRUNCATE a, b RESTART IDENTITY CASCADE",
        )

    assert sorted(told(events)) == [("truncate", name, None) for name in "abc"]
    assert payloads(events) == [{}] * 3
    assert {event.before for event in events} == {None}
    assert len({event.position for event in events}) == 3


async def test_truncate_reaches_only_who_asks(database: Database) -> None:
    """By default a callback gets rows."""
    rows = [EventType.CREATE, EventType.UPDATE, EventType.DELETE]
    async with streaming(database, event_types=rows) as stream:
        events = await stream.events_of("CREATE TABLE a (id int PRIMARY KEY)", "TRUNCATE a", "INSERT INTO a VALUES (1)")

    assert told(events) == [("create", "a", "1")]


async def test_copied_rows_have_positions_of_their_own(database: Database) -> None:
    """They share one LSN in the log, and one commit."""
    async with streaming(database) as stream:
        database.execute("CREATE TABLE t (id int PRIMARY KEY)")
        with database.connect() as connection, connection.cursor().copy("COPY t FROM STDIN") as copy:
            for number in range(600):
                copy.write_row([number])
        events = await stream.events()

    assert [event.payload["id"] for event in events] == list(range(600))
    assert [event.position.ordinal for event in events] == list(range(1, 601))
    assert len({event.position.commit_lsn for event in events}) == 1
    assert [event.id for event in events] == list(range(events[0].id, events[0].id + 600))
    assert len({id(event.kind) for event in events}) == 1


async def test_what_is_rolled_back_never_happened(database: Database) -> None:
    """A savepoint's part, or all; ordinals have no hole."""
    async with streaming(database) as stream:
        events = await stream.events_of(
            "CREATE TABLE t (id int PRIMARY KEY)",
            "BEGIN; INSERT INTO t VALUES (1); SAVEPOINT s; INSERT INTO t VALUES (2); ROLLBACK TO s;"
            "INSERT INTO t VALUES (3); SAVEPOINT r; INSERT INTO t VALUES (4); RELEASE r; COMMIT",
            "BEGIN; INSERT INTO t VALUES (5); ROLLBACK",
        )

    assert [(event.record_id, event.position.ordinal) for event in events] == [("1", 1), ("3", 2), ("4", 3)]


async def test_prepared_transaction_comes_once_when_it_is_committed(own_cluster: OwnCluster) -> None:
    """And never when it is rolled back."""
    cluster = own_cluster({"max_prepared_transactions": "5"})
    database = Database(cluster, "postgres")
    async with streaming(database) as stream:
        prepared = await stream.events_of(
            "CREATE TABLE t (id int PRIMARY KEY)",
            "BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'kept'",
            "BEGIN; INSERT INTO t VALUES (2); PREPARE TRANSACTION 'lost'",
        )
        database.execute("COMMIT PREPARED 'kept'")
        database.execute("ROLLBACK PREPARED 'lost'")
        committed = await stream.events()

    assert prepared == []
    assert told(committed) == [("create", "t", "1")]


async def test_table_made_of_a_query_tells_its_rows(database: Database) -> None:
    """CREATE TABLE AS and materialized views are inserts."""
    async with streaming(database) as stream:
        events = await stream.events_of(
            "CREATE TABLE t AS SELECT generate_series(1, 2) AS n",
            "CREATE MATERIALIZED VIEW v AS SELECT 7 AS n",
        )

    assert told(events) == [("create", "t", None)] * 2 + [("create", "v", None)]
    assert [event.payload["n"] for event in events] == [1, 2, 7]


async def test_ids_and_positions_rise_without_holes(database: Database) -> None:
    """Over interleaved transactions, in the order of their commits."""
    async with streaming(database) as stream:
        database.execute("CREATE TABLE t (id int PRIMARY KEY)")
        with database.connect() as first, database.connect() as second:
            first.execute("BEGIN; INSERT INTO t VALUES (1)")
            second.execute("BEGIN; INSERT INTO t VALUES (2); INSERT INTO t VALUES (3); COMMIT")
            first.execute("INSERT INTO t VALUES (4); COMMIT")
        events = await stream.events()

    assert [event.payload["id"] for event in events] == [2, 3, 1, 4]
    assert [event.position.ordinal for event in events] == [1, 2, 1, 2]
    assert [event.id for event in events] == [1, 2, 3, 4]
    assert sorted(event.position for event in events) == [event.position for event in events]
    assert len({event.transaction_id for event in events}) == 2
    assert events[0].timestamp <= events[2].timestamp
    assert events[2].timestamp.utcoffset() is not None


# --- tags and soft delete --------------------------------------------------------------------------------


async def test_tags_of_messages(database: Database) -> None:
    """Transactional ones join, for later changes of their transaction; others are counted, or none of ours."""
    async with streaming(database) as stream:
        events = await stream.events_of(
            "CREATE TABLE t (id int PRIMARY KEY)",
            """
            INSERT INTO t VALUES (1);
            SELECT pg_logical_emit_message(true, 'cdc.tags', 'audit:required, user:42');
            INSERT INTO t VALUES (2);
            SELECT pg_logical_emit_message(true, 'cdc.tags', 'user:42,ünï 😀');
            SELECT pg_logical_emit_message(true, 'other', 'not:mine');
            SELECT pg_logical_emit_message(false, 'cdc.tags', 'not:transactional');
            INSERT INTO t VALUES (3)
            """,
            "INSERT INTO t VALUES (4)",
        )
        filtered = dict(stream.assembler.filtered)

    assert tags(events) == [(), ("audit:required", "user:42"), ("audit:required", "user:42", "ünï 😀"), ()]
    assert filtered == {"tag_message_outside_transaction": 1}


async def test_tags_of_a_savepoint_reach_what_follows_it(database: Database) -> None:
    """PostgreSQL sends the message of a subtransaction behind the change whose record begins where its own ends."""
    message = "SELECT pg_logical_emit_message(true, 'cdc.tags', 'a');"
    rows = "INSERT INTO t SELECT FROM generate_series(1, 3);"
    async with streaming(database) as stream:
        events = await stream.events_of(
            "CREATE TABLE t ()",
            f"BEGIN; {rows} SAVEPOINT s; {message} RELEASE s; {rows} COMMIT",
            f"BEGIN; {rows} SAVEPOINT s; {rows} RELEASE s; {message} SAVEPOINT s; {rows} RELEASE s; COMMIT",
            f"BEGIN; {rows} SAVEPOINT s; {message} ROLLBACK TO s; {rows} COMMIT",
        )

    assert tags(events) == [()] * 3 + [("a",)] * 3 + [()] * 6 + [("a",)] * 3 + [()] * 6


async def test_prefix_that_the_plugin_cannot_be_told_is_matched_here(database: Database) -> None:
    """A comma would end its list."""
    async with streaming(database, tag_prefix="my, tags") as stream:
        events = await stream.events_of(
            "CREATE TABLE t (id int)",
            "SELECT pg_logical_emit_message(true, 'my, tags', 'a'), pg_logical_emit_message(true, 'cdc.tags', 'b');"
            "INSERT INTO t VALUES (1)",
        )

    assert tags(events) == [("a",)]


@pytest.mark.parametrize("prefix", ["cdc.tags", "odd prefix"])
async def test_message_of_any_content_does_no_harm(database: Database, prefix: str) -> None:
    """NUL ends it, invalid UTF-8 is replaced, and size does not matter."""
    async with streaming(database, tag_prefix=prefix) as stream:
        events = await stream.events_of(
            "CREATE TABLE t (id int)",
            *(
                f"SELECT pg_logical_emit_message({kind}, '{name}', {content}); INSERT INTO t VALUES (1)"
                for kind in ("true", "false")
                for name in (prefix, "another")
                for content in ("'\\x612c6200ff'::bytea", "'\\x61ff2cfe'::bytea", "'a' || repeat(',', 10000000)", "''")
            ),
        )

    assert tags(events) == [("a", "b"), ("a\ufffd", "\ufffd"), ("a",), ()] + [()] * 12


async def test_tags_of_column_and_rules(database: Database) -> None:
    """text[] with quotes and NULL; of a deleted row under FULL; after those of message and rule, each once."""
    rule = TagRule(TablePatterns(["public.t"]), frozenset({EventType.CREATE, EventType.DELETE}), ("rule", "a"))
    async with streaming(database, rules=[rule]) as stream:
        events = await stream.events_of(
            "CREATE TABLE t (id int PRIMARY KEY, __tags__ text[]); ALTER TABLE t REPLICA IDENTITY FULL;"
            "CREATE TABLE u (id int PRIMARY KEY, __tags__ text[])",
            "SELECT pg_logical_emit_message(true, 'cdc.tags', 'message');"
            """INSERT INTO t VALUES (1, ARRAY['a', 'b,"c"', NULL, '', '{x\\y}', 'message'])""",
            "UPDATE t SET __tags__ = NULL",
            "UPDATE t SET __tags__ = '{z}'",
            "DELETE FROM t",
            "INSERT INTO u VALUES (1, '{a}')",
            "DELETE FROM u",
        )

    assert tags(events) == [
        ("message", "rule", "a", 'b,"c"', "{x\\y}"),
        (),
        ("z",),
        ("rule", "a", "z"),
        ("a",),
        (),
    ]


async def test_soft_delete(database: Database) -> None:
    """A turn to false or to a time; where the old value is known, staying there is an update."""
    columns = frozenset({"__is_active__", "deleted_at"})
    async with streaming(database, soft_delete_columns=columns) as stream:
        events = await stream.events_of(
            "CREATE DOMAIN flag AS bool;"
            "CREATE TABLE t (id int PRIMARY KEY, __is_active__ bool, v int);"
            "CREATE TABLE f (id int PRIMARY KEY, __is_active__ flag, v int); ALTER TABLE f REPLICA IDENTITY FULL;"
            "CREATE TABLE d (id int PRIMARY KEY, deleted_at timestamptz)",
            "INSERT INTO t VALUES (1, false, 0)",
            "UPDATE t SET __is_active__ = true",
            "UPDATE t SET __is_active__ = false",
            "INSERT INTO f VALUES (1, true, 0)",
            "UPDATE f SET v = 1",
            "UPDATE f SET __is_active__ = false",
            "UPDATE f SET v = 2",
            "UPDATE f SET __is_active__ = true",
            "INSERT INTO d VALUES (1, NULL)",
            "UPDATE d SET deleted_at = 'infinity'",
            "UPDATE d SET deleted_at = NULL",
        )

    assert told(events) == [
        (event_type, table, "1")
        for event_type, table in [
            ("create", "t"),
            ("update", "t"),
            ("delete", "t"),
            ("create", "f"),
            ("update", "f"),
            ("delete", "f"),
            ("update", "f"),
            ("update", "f"),
            ("create", "d"),
            ("delete", "d"),
            ("update", "d"),
        ]
    ]
    assert events[2].payload == {"id": 1, "__is_active__": False, "v": 0}


async def test_no_soft_delete_is_what_only_looks_like_one(database: Database) -> None:
    """A label of an enum, a text under a domain or of an extension: what counts is the type."""
    kinds = ("mood", "label", "citext")
    async with streaming(database) as stream:
        database.execute("CREATE EXTENSION citext; CREATE TYPE mood AS ENUM ('t', 'f'); CREATE DOMAIN label AS text")
        events = await stream.events_of(
            *(f"CREATE TABLE {kind}s (id int PRIMARY KEY, __is_active__ {kind})" for kind in kinds),
            *(f"INSERT INTO {kind}s VALUES (1, 't')" for kind in kinds),
            *(f"UPDATE {kind}s SET __is_active__ = 'f'" for kind in kinds),
        )

    assert [event.event_type for event in events] == [EventType.CREATE] * 3 + [EventType.UPDATE] * 3


# --- values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number", ["1.10", "-0.00", "9" * 131072, "1e400", "-1e400", "1e-400", "-1.500", "18446744073709551616"]
)
async def test_numeric_is_exact(database: Database, number: str) -> None:
    """Although wal2json 2.5 sends a bare number: trailing zeros, and what no float can hold."""
    async with streaming(database) as stream:
        event, _ = await stream.events_of(
            "CREATE TABLE t (n numeric, i int)",
            f"INSERT INTO t VALUES ({number}::numeric, 1)",
            "INSERT INTO t VALUES (0, 2)",
        )
        ((selected, text),) = database.execute("SELECT n, n::text FROM t WHERE i = 1")

    assert str(event.payload["n"]) == str(selected)
    assert json.loads(event.to_json())["payload"]["n"] == text


async def test_float_is_exact(database: Database) -> None:
    """The sign of zero, too."""
    async with streaming(database) as stream:
        (event,) = await stream.events_of(
            "CREATE TABLE t (a float8, b float8, c float4, n numeric)",
            "INSERT INTO t VALUES ('-0', 5e-324, 1.1, 1.10)",
        )

    value = event.payload["a"]
    assert isinstance(value, float)
    assert struct.pack("d", value) == struct.pack("d", -0.0)
    assert (event.payload["b"], event.payload["c"]) == (5e-324, 1.1)


TEXTS = [
    '"typeoid":1700,"value":1.5',
    '{"name":"n","typeoid":1700,"value":2.5}',
    '"name":"__tags__"',
    'back\\slash \\" quote " \\\\',
    "\b\f\n\r\t\x01\x1f\x7f",
    "\u2028\u2029 😀 \ufeff",
    "",
]


async def test_texts_that_look_like_structure_stay_texts(database: Database) -> None:
    """Beside numbers that need a second look; as text, as jsonb, and as the name of a column."""
    async with streaming(database) as stream:
        database.execute("CREATE TABLE t (id int PRIMARY KEY, n numeric, t text, j jsonb)")
        with database.connect() as connection:
            for number, text in enumerate(TEXTS):
                document = json.dumps({text: [text, 1.50, 10**30]})
                connection.execute("INSERT INTO t VALUES (%s, 1.10, %s, %s)", [number, text, document])
            selected = connection.execute("SELECT * FROM t ORDER BY id").fetchall()
        events = await stream.events()

    assert [tuple(event.payload.values()) for event in events] == selected
    assert {str(event.payload["n"]) for event in events} == {"1.10"}
    assert tags(events) == [()] * len(TEXTS)
    assert [json.loads(event.to_json())["payload"]["t"] for event in events] == TEXTS


async def test_event_as_json_is_read_back(database: Database) -> None:
    """Every public field, under its name."""
    async with streaming(database) as stream:
        (event,) = await stream.events_of(
            "CREATE TABLE t (id uuid PRIMARY KEY, n numeric, b bytea, at timestamptz, a int[], __tags__ text[])",
            "INSERT INTO t VALUES ('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 1.10, '\\x00ff', '2024-02-29 12:00+00',"
            " '{1,NULL}', '{x}')",
        )

    assert event.payload["id"] == UUID("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")
    assert json.loads(event.to_json()) == {
        "id": 1,
        "event_type": "create",
        "schema": "public",
        "table_name": "t",
        "record_id": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        "tags": ["x"],
        "payload": {
            "id": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "n": "1.10",
            "b": "\\x00ff",
            "at": "2024-02-29T12:00:00+00:00",
            "a": [1, None],
            "__tags__": ["x"],
        },
        "before": None,
        "unchanged": [],
        "timestamp": event.timestamp.isoformat(),
        "position": str(event.position),
        "transaction_id": event.transaction_id,
    }


async def test_database_in_latin1(database: Database) -> None:
    """Text, names and numbers of a database whose encoding is not UTF-8; a message of any bytes."""
    name = f"{database.name}_latin1"
    database.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'")
    latin = Database(database.cluster, name)
    try:
        async with streaming(latin, tags_column="é") as stream:
            with latin.connect(client_encoding="UTF8") as connection:
                connection.execute("CREATE TABLE tä (id int PRIMARY KEY, é text, n numeric)")
                connection.execute("INSERT INTO tä VALUES (1, 'café', 1.10)")
                connection.execute("SELECT pg_logical_emit_message(true, 'cdc.tags', '\\x81ff'::bytea); DELETE FROM tä")
            events = await stream.events()
        assert told(events) == [("create", "tä", "1"), ("delete", "tä", "1")]
        assert events[0].payload == {"id": 1, "é": "café", "n": Decimal("1.10")}
        assert events[0].tags == ("café",)
    finally:
        drop_database(database.cluster, name)


async def test_settings_of_the_database_do_not_reach_the_values(database: Database) -> None:
    """bytea, dates and intervals look the same to the decoder, whatever ALTER DATABASE says."""
    for setting in (
        "bytea_output = escape",
        "datestyle = 'German'",
        "intervalstyle = sql_standard",
        "timezone = 'Asia/Kolkata'",
        "extra_float_digits = -5",
        "search_path = nowhere",
    ):
        database.execute(f"ALTER DATABASE {database.name} SET {setting}")
    with database.connect(options="-c search_path=public -c timezone=UTC -c datestyle=ISO") as connection:
        connection.execute("CREATE TABLE public.t (b bytea, d timestamptz, i interval, f float8)")
        connection.execute(f"ALTER DATABASE {database.name} SET search_path = public".encode())
    async with streaming(database) as stream:
        (event,) = await stream.events_of(
            "INSERT INTO public.t VALUES ('\\xdeadbeef', '2024-02-29 12:00+00', '1 day -01:00', 0.1::float8 + 0.2)"
        )
        with database.connect(
            options="-c datestyle=ISO -c intervalstyle=postgres -c extra_float_digits=1"
        ) as connection:
            (selected,) = connection.execute("SELECT * FROM public.t").fetchall()

    assert tuple(event.payload.values()) == selected


async def test_environment_does_not_reach_the_values(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """libpq sends PGDATESTYLE and PGTZ by themselves, and the server takes them above the options of a connection."""
    monkeypatch.setenv("PGDATESTYLE", "German")
    monkeypatch.setenv("PGTZ", "Asia/Kolkata")
    monkeypatch.setenv("PGOPTIONS", "-c bytea_output=escape -c intervalstyle=iso_8601")
    async with streaming(database) as stream:
        (event,) = await stream.events_of(
            "CREATE TYPE pair AS (a timestamptz, b date);"
            "CREATE TABLE t (id timestamptz PRIMARY KEY, d date, ds date[], p pair, b bytea, i interval)",
            "INSERT INTO t VALUES ('2024-02-03 12:00+00', '2024-02-03', '{2024-02-03}',"
            " ('2024-02-03 12:00+00', '2024-02-03'), '\\xdeadbeef', '1 day')",
        )

    day = date(2024, 2, 3)
    assert event.record_id == "2024-02-03 12:00:00+00"
    assert event.payload == {
        "id": datetime(2024, 2, 3, 12, tzinfo=UTC),
        "d": day,
        "ds": [day],
        "p": '("2024-02-03 12:00:00+00",2024-02-03)',
        "b": b"\xde\xad\xbe\xef",
        "i": timedelta(days=1),
    }


# --- the whole service -----------------------------------------------------------------------------------

Queue: TypeAlias = "asyncio.Queue[DatabaseEvent]"
QUEUES: list[Queue] = []  # the configuration names its handler: it is found by import, and finds the test here


@pytest.fixture
async def delivered() -> AsyncIterator[Queue]:
    """What the handler of the configuration gets."""
    QUEUES.append(asyncio.Queue())
    yield QUEUES[-1]
    QUEUES.pop()


async def deliver(event: DatabaseEvent) -> None:
    """The handler of the service's configuration."""
    QUEUES[-1].put_nowait(event)


def configuration(database: Database, folder: Path) -> Config:
    """One slot, one state file, one handler; the slot is there from now on."""
    database.execute("SELECT pg_create_logical_replication_slot(current_database(), 'wal2json')")
    return Config(
        source=SourceConfig(dsn=database.dsn, slot=database.name),
        state=StateConfig(url=f"sqlite:///{folder / 'state.db'}"),
        handlers=(HandlerConfig(callback="tests.test_end_to_end:deliver", name="deliver"),),
    )


@asynccontextmanager
async def running(service: Service) -> AsyncIterator[asyncio.Task[None]]:
    """The service as a task, from its start to a clean stop."""
    task = asyncio.create_task(service.run())
    try:
        async with asyncio.timeout(60):
            yield task
    finally:
        service.stop()
        await asyncio.wait([task])
    await task


async def test_service_goes_on_where_it_stopped(database: Database, tmp_path: Path, delivered: Queue) -> None:
    """Ids and positions go on over a clean stop, and nothing comes twice."""
    config = configuration(database, tmp_path)
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    got: list[DatabaseEvent] = []
    for numbers in ((1, 2), (3, 4, 5)):
        async with running(Service(config)):
            for number in numbers:
                database.execute(f"INSERT INTO t VALUES ({number})")
            got += [await delivered.get() for _ in numbers]

    assert delivered.empty()
    assert [event.payload["id"] for event in got] == [1, 2, 3, 4, 5]
    assert [event.id for event in got] == [1, 2, 3, 4, 5]
    assert len({event.position for event in got}) == 5


async def test_connection_lost_inside_a_transaction(database: Database, tmp_path: Path, delivered: Queue) -> None:
    """The server sends the transaction again from its beginning; no event comes twice, and none is missing."""
    rows = 40_000
    service = Service(configuration(database, tmp_path))
    database.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    async with running(service):
        database.execute(f"INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, {rows}) i")
        got = [await delivered.get()]
        database.execute(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = current_database()"
        )
        got += [await delivered.get() for _ in range(rows - 1)]

    assert delivered.empty()
    assert service.reconnects.total() >= 1
    assert [event.payload["id"] for event in got] == list(range(1, rows + 1))
    assert [event.id for event in got] == list(range(1, rows + 1))
    assert [event.position.ordinal for event in got] == list(range(1, rows + 1))


async def test_message_that_cannot_be_decoded_stops_the_service(
    database: Database, tmp_path: Path, delivered: Queue
) -> None:
    """What came before it is delivered once; nothing past it is acknowledged or on record as settled, and the error
    shows no value: a byte of WIN1252 that means nothing.
    """
    name = f"{database.name}_win"
    database.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'WIN1252' LC_COLLATE 'C' LC_CTYPE 'C'")
    windows = Database(database.cluster, name)
    try:
        config = configuration(windows, tmp_path)
        windows.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
        ((before,),) = windows.execute("SELECT pg_current_wal_lsn()::text")
        with windows.connect() as connection:
            connection.execute(b"INSERT INTO t VALUES (1, 'good'); INSERT INTO t VALUES (2, 'secret\x81')")
        for _ in range(2):
            with pytest.raises(DecodeError) as caught:
                await asyncio.wait_for(Service(config).run(), 60)
            error = caught.value
            assert "secret" not in f"{error} {error.excerpt}"
            assert error.lsn > Lsn.parse(before)
            rows = windows.execute(
                "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = current_database()"
            )
            assert Lsn.parse(rows[0][0]) <= error.lsn
            with closing(open_state(config.state.url)) as store:
                assert [record.settled.ordinal for record in store.callbacks()] == [1]

        assert delivered.get_nowait().payload == {"id": 1, "v": "good"}
        assert delivered.empty()
    finally:
        drop_database(database.cluster, name)
