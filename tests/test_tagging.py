"""`emit_tags`, on the connections that applications have."""

from __future__ import annotations

import json

import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from cdc import emit_tags
from tests.conftest import Database

SLOT = "tagging"


@pytest.fixture
def stream(database: Database) -> Database:
    """A database with a table, whose messages and changes a slot remembers."""
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    database.execute(f"SELECT pg_create_logical_replication_slot('{SLOT}', 'wal2json')")
    return database


def spoken(database: Database) -> list[str]:
    """What the slot tells: the content of messages, and I for an insert."""
    with database.connect() as connection:
        rows = connection.execute(
            f"SELECT data FROM pg_logical_slot_get_changes('{SLOT}', NULL, NULL, 'format-version', '2')"
        ).fetchall()
    messages = [json.loads(data) for (data,) in rows]
    return [message.get("content", message["action"]) for message in messages if message["action"] not in "BC"]


def url(database: Database) -> str:
    """For SQLAlchemy, which reads libpq's settings from the query."""
    given = psycopg.conninfo.conninfo_to_dict(database.dsn)
    return f"postgresql+psycopg://{given['user']}@/{given['dbname']}?host={given['host']}&port={given['port']}"


def test_tags_travel_before_the_changes_of_a_psycopg_transaction(stream: Database) -> None:
    """A psycopg connection tags what its transaction does next."""
    with psycopg.connect(stream.dsn) as connection:
        emit_tags(connection, "audit:required", "user:42")
        connection.execute("INSERT INTO t VALUES (1)")
    assert spoken(stream) == ["audit:required,user:42", "I"]


def test_tags_are_rolled_back_with_their_transaction(stream: Database) -> None:
    """What was tagged and rolled back is never told."""
    with psycopg.connect(stream.dsn) as connection:
        emit_tags(connection, "gone")
        connection.rollback()
    assert spoken(stream) == []


async def test_tags_are_awaited_on_an_asynchronous_connection(stream: Database) -> None:
    """An asynchronous psycopg connection gives an awaitable."""
    async with await psycopg.AsyncConnection.connect(stream.dsn) as connection:
        await emit_tags(connection, "later")
        await connection.execute("INSERT INTO t VALUES (1)")
    assert spoken(stream) == ["later", "I"]


def test_tags_are_emitted_on_a_sqlalchemy_connection(stream: Database) -> None:
    """A SQLAlchemy connection over psycopg tags its transaction, too."""
    engine = create_engine(url(stream))
    with engine.begin() as connection:
        emit_tags(connection, "orm", prefix="cdc.tags")
        connection.execute(text("INSERT INTO t VALUES (1)"))
    engine.dispose()
    assert spoken(stream) == ["orm", "I"]


async def test_tags_are_awaited_on_an_asynchronous_sqlalchemy_connection(stream: Database) -> None:
    """So does an asynchronous one, awaited."""
    engine = create_async_engine(url(stream))
    async with engine.begin() as connection:
        await emit_tags(connection, "orm")
        await connection.execute(text("INSERT INTO t VALUES (1)"))
    await engine.dispose()
    assert spoken(stream) == ["orm", "I"]


@pytest.mark.parametrize("tag", ["", " ", "a,b", "a\0b"])
def test_a_tag_that_cannot_be_told_apart_is_refused(tag: str) -> None:
    """Empty tags, and tags that would be read as two, raise before anything is sent."""
    with pytest.raises(ValueError, match="no tag"):
        emit_tags(None, "good", tag)
