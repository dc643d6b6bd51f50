"""`audit_log`: what stands in the table of an event, and what the handler does with its own table and with errors."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from cdc import CallbackError, ConfigError, DatabaseEvent, PermanentError
from cdc.config import HandlerConfig
from cdc.loading import load_callback
from cdc.testing import EventStream, HandlerHarness
from handlers import audit_log
from handlers.audit_log import COLUMNS, AuditLog
from tests.conftest import Database, OwnCluster
from tests.running import child, wait_until
from tests.waiting import eventually


def made(database: Database, **options: Any) -> AuditLog:
    """The handler on that database, made from a configuration."""
    settings = {"dsn": database.dsn, "create_table": True} | options
    handler = load_callback(HandlerConfig(callback="audit_log", name="audit", options=settings), Path())
    assert isinstance(handler, AuditLog)
    return handler


async def written(database: Database, *events: DatabaseEvent, **options: Any) -> list[dict[str, Any]]:
    """Deliver events to a new handler; the rows of its table, by column."""
    async with HandlerHarness(made(database, **options)) as harness:
        await harness.deliver(events)
        harness.assert_settled(events)
    return rows_of(database, options.get("table", "public.audit_log"))


def rows_of(database: Database, table: str) -> list[dict[str, Any]]:
    """The rows, in the order of the stream."""
    with database.connect() as connection:
        cursor = connection.cursor(row_factory=psycopg.rows.dict_row)
        return cursor.execute(f"SELECT * FROM {table} ORDER BY event_id".encode()).fetchall()


async def test_row_tells_who_did_what_to_which_record_and_when(database: Database) -> None:
    """All columns of one event."""
    stream = EventStream(first_id=7)
    event = stream.create("shop.orders", {"id": 3, "total": Decimal("1.10")}, tags=["audit", "user:42", "user:43"])

    (row,) = await written(database, event)

    assert row == {
        "position": str(event.position),
        "event_id": 7,
        "schema_name": "shop",
        "table_name": "orders",
        "operation": "create",
        "record_id": "3",
        "user_name": "42",
        "changes": {"id": {"new": 3}, "total": {"new": "1.10"}},
        "tags": ["audit", "user:42", "user:43"],
        "committed_at": event.timestamp,
        "transaction_id": event.transaction_id,
    }


async def test_changes_show_old_and_new_where_they_are_known(database: Database) -> None:
    """Of an update only what changed, of a delete the old values, of a truncate nothing."""
    stream = EventStream()
    rows = await written(
        database,
        stream.update("t", {"id": 1, "a": 2, "b": 3}, before={"id": 1, "a": 1, "b": 3}),
        stream.update("t", {"id": 1, "a": 2, "b": 3}, before={"id": 1}),
        stream.update("t", {"id": 1, "a": 2}),
        stream.delete("t", {"id": 1, "a": None}),
        stream.truncate("t"),
    )

    assert [row["changes"] for row in rows] == [
        {"a": {"old": 1, "new": 2}},
        {"a": {"new": 2}, "b": {"new": 3}},
        {"id": {"new": 1}, "a": {"new": 2}},
        {"id": {"old": 1}, "a": {"old": None}},
        {},
    ]
    assert [row["operation"] for row in rows] == ["update", "update", "update", "delete", "truncate"]
    assert rows[-1]["record_id"] is None
    assert [row["user_name"] for row in rows] == [None] * 5


async def test_any_text_is_written(database: Database) -> None:
    """A NUL, which `json` can hold and `jsonb` cannot, is shown as a symbol; backslashes before it stay."""
    (row,) = await written(
        database, EventStream().create("t", {"id": 1, "j": {"k": "a\x00b"}, "s": "\\u0000 ü\n\\\x00"})
    )

    assert row["changes"] == {"id": {"new": 1}, "j": {"new": {"k": "a␀b"}}, "s": {"new": "\\u0000 ü\n\\␀"}}


async def test_table_may_have_any_name_and_user_tag(database: Database) -> None:
    """Quoted as in SQL; and another prefix for the user."""
    database.execute('CREATE SCHEMA "My Schema"')
    name = '"My Schema"."Au""dit"'
    event = EventStream().create("t", {"id": 1}, tags=["by=ann"])

    (row,) = await written(database, event, table=name, user_tag="by=")

    assert row["user_name"] == "ann"


async def test_missing_table_is_told_with_the_statement_that_makes_it(database: Database) -> None:
    """Unless the handler shall make it; so is one that lacks a column."""
    handler = made(database, create_table=False)
    with pytest.raises(CallbackError, match=r'relation "public\.audit_log" does not exist') as caught:
        async with HandlerHarness(handler):
            pass
    statement = str(caught.value.__cause__).partition("make it: ")[2]
    database.execute(statement)
    async with HandlerHarness(handler):
        pass
    database.execute("ALTER TABLE audit_log DROP COLUMN tags")
    with pytest.raises(CallbackError, match='column "tags" does not exist'):
        async with HandlerHarness(handler):
            pass


async def test_refused_row_fails_for_good_alone_and_without_its_values(database: Database) -> None:
    """A constraint that somebody has added; the others of the batch are written."""
    events = EventStream().inserts(10)
    handler = made(database)
    await handler.open()
    await handler.close()
    database.execute("ALTER TABLE audit_log ADD CHECK (record_id <> '4')")
    async with HandlerHarness(handler) as harness:
        await harness.deliver(events)

    (letter,) = harness.dead_letters
    assert (letter.event, letter.attempts, type(letter.error)) == (events[3], 1, PermanentError)
    assert "SQLSTATE 23514" in str(letter.error)
    assert "item 4" not in str(letter.error)
    assert letter.error.__cause__ is None
    assert len(rows_of(database, "audit_log")) == 9


async def test_missing_rights_may_be_mended(database: Database) -> None:
    """Not for good: the dead letter is retried, or the handler blocks, until somebody grants it."""
    database.execute("CREATE ROLE audit_writer LOGIN")
    try:
        (event,) = EventStream().inserts(1)
        async with HandlerHarness(made(database)):
            database.execute("GRANT SELECT ON audit_log TO audit_writer")
        dsn = psycopg.conninfo.make_conninfo(database.dsn, user="audit_writer")
        async with HandlerHarness(made(database, dsn=dsn, create_table=False), on_failure="block") as harness:
            await harness.send([event])
            await eventually(lambda: harness.retries >= 2)
            database.execute("GRANT INSERT ON audit_log TO audit_writer")
            await harness.settle()
            harness.assert_settled([event])
    finally:
        database.execute("DROP OWNED BY audit_writer; DROP ROLE audit_writer")


async def test_same_positions_of_another_cluster_are_other_events(database: Database) -> None:
    """After a restore the WAL may be where it was before: nothing is taken for known."""
    first = EventStream().inserts(2)
    second = EventStream(start=first[0].timestamp + timedelta(days=1)).inserts(2)

    assert len(await written(database, *first, *second)) == 4


async def test_rows_of_the_log_itself_are_left_out_and_what_others_do_to_it_is_recorded(
    database: Database,
) -> None:
    """Told once; a deletion from the log is something that an audit wants to know."""
    stream = EventStream()
    row = dict.fromkeys(COLUMNS, "x")
    own = [stream.create("audit_log", row) for _ in range(3)]
    others = [stream.delete("audit_log", row), stream.create("other.audit_log", row), stream.truncate("audit_log")]
    with capture_logs() as logged:
        rows = await written(database, *own, *others)

    assert [row["event_id"] for row in rows] == [event.id for event in others]
    assert [(one["event"], one["table"]) for one in logged] == [("own_rows_skipped", "public.audit_log")]


async def test_durable_also_where_the_server_does_not_wait_for_its_disk(own_cluster: OwnCluster) -> None:
    """synchronous_commit is off there: the handler's own commits wait all the same."""
    cluster = own_cluster({"synchronous_commit": "off"})
    handler = made(Database(cluster, "postgres"))
    await handler.open()
    try:
        assert handler._pool is not None
        async with handler._pool.connection() as connection:
            cursor = await connection.execute("SHOW synchronous_commit")
            assert await cursor.fetchone() == ("on",)
    finally:
        await handler.close()


async def test_password_is_in_no_error(database: Database) -> None:
    """Neither of a wrong option nor of a server that is not there."""
    with pytest.raises(ConfigError) as caught:
        made(database, dsn="postgresql://u:hunter2@[broken/x")
    assert "hunter2" not in " ".join(caught.value.problems)
    handler = made(database, dsn="postgresql://u:hunter2@127.0.0.1:1/x", connect_seconds=0.2)
    with pytest.raises(CallbackError) as failed:
        async with HandlerHarness(handler):
            pass
    assert "hunter2" not in repr(failed.value) + repr(failed.value.__cause__)


async def test_server_that_lets_nobody_in_is_told_in_its_own_words(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong password, instead of the time that was waited."""
    monkeypatch.setattr(audit_log, "REASON_SECONDS", 60)  # a busy machine may take longer for a refusal than people do
    dsn = database.cluster.dsn(database.name, tcp=True, password="hunter2")
    with pytest.raises(CallbackError, match="password authentication failed") as failed:
        async with HandlerHarness(made(database, dsn=dsn, connect_seconds=0.5)):
            pass
    assert "hunter2" not in repr(failed.value) + repr(failed.value.__cause__)


def test_service_records_changes_of_the_database_in_the_database_itself(database: Database, tmp_path: Path) -> None:
    """The real `cdc run`, killed once: each change once, with its user, and no loop."""
    database.execute("CREATE TABLE items (id bigint PRIMARY KEY); ALTER TABLE items REPLICA IDENTITY FULL")
    rows = 0
    with child(tmp_path, database.dsn, {"audit": {"callback": "audit_log"}}) as service:
        text = (tmp_path / "cdc.toml").read_text()
        path = f'path = "{service.path("audit")}"'
        (tmp_path / "cdc.toml").write_text(text.replace(path, f'dsn = "{database.dsn}"\ncreate_table = true'))
        for _ in range(2):
            service.start()
            for _ in range(20):
                statement = f"INSERT INTO items SELECT generate_series({rows + 1}, {rows + 10})"
                database.execute(f"SELECT pg_logical_emit_message(true, 'cdc.tags', 'user:7'); {statement}")
                rows += 10
            wait_until(lambda so_far=rows: len(audited(database)) > so_far - 100)  # type: ignore[misc]
            service.kill()
        service.start()
        wait_until(lambda: len(audited(database)) >= rows)
        service.stop()

    assert audited(database) == [(str(number), "items", "7") for number in range(1, rows + 1)]


def audited(database: Database) -> list[tuple[Any, ...]]:
    """What the log has, in the order of the stream; nothing before its table is made."""
    if database.execute("SELECT to_regclass('audit_log')") == [(None,)]:
        return []
    return database.execute("SELECT record_id, table_name, user_name FROM audit_log ORDER BY event_id")
