"""Events to put into bytes and take out again: made by hypothesis, and streamed from a table of every type.

Must not know any form of bytes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from hypothesis import strategies as st
from psycopg import sql

from cdc.events import DatabaseEvent, EventType, Position
from cdc.lsn import Lsn
from tests.conftest import Database
from tests.streaming import streaming
from tests.test_values import CORPUS, DOMAIN_ARRAYS, SCHEMA

SECRET = "the-secret-value"


def made_events(
    names: st.SearchStrategy[str], rows: st.SearchStrategy[dict[str, Any]], moments: st.SearchStrategy[datetime]
) -> st.SearchStrategy[DatabaseEvent]:
    """Events of any kind, with these names, rows and commit times."""
    return st.builds(
        DatabaseEvent.of,
        st.sampled_from(EventType),
        names,
        rows,
        id=st.integers(0),
        schema=names,
        record_id=st.none() | names,
        tags=st.lists(names),
        before=st.none() | rows,
        unchanged=st.frozensets(names),
        timestamp=moments,
        position=st.builds(Position, st.integers(0, 2**64 - 1).map(Lsn), st.integers(0, 2**63)),
        transaction_id=st.integers(0, 2**32 - 1),
    )


@asynccontextmanager
async def streamed_events(database: Database) -> AsyncIterator[list[DatabaseEvent]]:
    """Inserts, updates, deletes and truncates of a value of every type that we know; `SECRET` in a column of each."""
    corpus = CORPUS | {name: literals for name, (_, literals) in DOMAIN_ARRAYS.items()}
    database.execute(SCHEMA)
    with database.connect() as connection:
        for number, type_name in enumerate(corpus):
            table = f"CREATE TABLE t{number} (id int PRIMARY KEY, v {type_name}, secret text)"
            connection.execute(table.encode())
            connection.execute(f"ALTER TABLE t{number} REPLICA IDENTITY FULL".encode())
        async with streaming(database) as stream:
            for number, literals in enumerate(corpus.values()):
                with connection.transaction():
                    for row, literal in enumerate([*literals, None]):
                        insert = sql.SQL("INSERT INTO {} VALUES ({}, {}, {})")
                        name = sql.Identifier(f"t{number}")
                        connection.execute(insert.format(name, row, sql.Literal(literal), SECRET))
                    connection.execute(f"UPDATE t{number} SET id = -1 WHERE id = 0".encode())
                    connection.execute(f"DELETE FROM t{number} WHERE id = -1".encode())
                    connection.execute(f"TRUNCATE t{number}".encode())
            events = await stream.events()
            assert len(events) == sum(len(literals) + 4 for literals in corpus.values())
            yield events
