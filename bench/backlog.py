"""What the contenders read: a table of 8 columns, and changes of it in a slot.

Owns the SQL that makes them. It must not know who reads them, or how.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from bench.server import Server

__all__ = ["MIX", "PGOUTPUT", "PUBLICATION", "TAG_PREFIX", "WAL2JSON", "Backlog", "backlog", "mixed", "one_transaction"]

MIX = "60 % insert, 30 % update, 10 % delete"
WAL2JSON, PGOUTPUT = "wal2json", "pgoutput"
PUBLICATION = "bench"
TAG_PREFIX = "bench.tags"
"""Of the message with a tag that each transaction has. Only who asks for this prefix is sent it: the plugin leaves
it out for all others."""

BEFORE = f"""
DROP PUBLICATION IF EXISTS {PUBLICATION};
CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES;
DROP TABLE IF EXISTS after_the_end;
CREATE TABLE after_the_end (id bigint PRIMARY KEY);
"""
TABLE = f"""
DROP TABLE IF EXISTS orders;
CREATE TABLE orders (
    id bigint PRIMARY KEY,
    customer text,
    note text,
    quantity int,
    amount numeric(12,2),
    paid boolean,
    attributes jsonb,
    changed_at timestamptz
);
CREATE OR REPLACE PROCEDURE tag() LANGUAGE sql AS $$
    SELECT pg_logical_emit_message(true, '{TAG_PREFIX}', 'bench:order,backlog')
$$;
CREATE OR REPLACE PROCEDURE insert_orders(first bigint, number bigint) LANGUAGE sql AS $$
    INSERT INTO orders
    SELECT i, 'customer number ' || i % 5000, 'left at the door, please ring twice (' || i || ')', i % 100,
           (i % 100000) / 100.0, i % 3 = 0, jsonb_build_object('channel', 'web', 'weight', i % 50, 'gift', i % 7 = 0),
           timestamptz '2026-01-01 00:00:00+00' + i * interval '1 second 1 microsecond'
    FROM generate_series(first, first + number - 1) i
$$;
-- The oldest rows are deleted, those that follow them are updated, and new ones are inserted.
CREATE OR REPLACE PROCEDURE change_orders(transactions bigint, inserts int, updates int, deletes int)
LANGUAGE plpgsql AS $$
DECLARE
    oldest bigint := 1;
    newest bigint := 0;
BEGIN
    FOR i IN 1 .. transactions LOOP
        CALL tag();
        CALL insert_orders(newest + 1, inserts);
        newest := newest + inserts;
        UPDATE orders SET quantity = quantity + 1, paid = true, changed_at = changed_at + interval '1 hour'
        WHERE id >= oldest + deletes AND id < oldest + deletes + updates;
        DELETE FROM orders WHERE id >= oldest AND id < oldest + deletes;
        oldest := oldest + deletes;
        COMMIT;
    END LOOP;
END
$$;
-- Ten transactions of one row each have the same mix as one of ten.
CREATE OR REPLACE PROCEDURE change_single_orders(rounds bigint) LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 0 .. rounds - 1 LOOP
        FOR j IN 1 .. 6 LOOP
            CALL tag();
            CALL insert_orders(6 * i + j, 1);
            COMMIT;
        END LOOP;
        FOR j IN 1 .. 3 LOOP
            CALL tag();
            UPDATE orders SET quantity = quantity + 1, paid = true, changed_at = changed_at + interval '1 hour'
            WHERE id = i + 1 + j;
            COMMIT;
        END LOOP;
        CALL tag();
        DELETE FROM orders WHERE id = i + 1;
        COMMIT;
    END LOOP;
END
$$;
"""


@dataclass(frozen=True, slots=True)
class Backlog:
    """Changes that wait in a slot of each plugin; `end_lsn` lies behind the last, before a transaction that follows."""

    slots: Mapping[str, str]
    changes: int
    transaction_rows: int
    end_lsn: str


@contextmanager
def mixed(server: Server, changes: int, transaction_rows: int) -> Iterator[Backlog]:
    """About `changes` changes: transactions of 1 row, or of a multiple of 10, are filled up."""
    tenths = max(1, transaction_rows // 10)
    transactions = -(-changes // (tenths * 10))
    server.execute(TABLE)
    rows = 1 if transaction_rows == 1 else tenths * 10
    with backlog(server, transactions * tenths * 10, rows) as made:
        if transaction_rows == 1:
            server.execute("CALL change_single_orders(%s)", transactions)
        else:
            server.execute("CALL change_orders(%s, %s, %s, %s)", transactions, tenths * 6, tenths * 3, tenths)
        yield made()


@contextmanager
def one_transaction(server: Server, rows: int) -> Iterator[Backlog]:
    """`rows` inserts in a single transaction."""
    server.execute(TABLE)
    with backlog(server, rows, rows) as made:
        server.execute("CALL insert_orders(1, %s)", rows)
        yield made()


@contextmanager
def backlog(server: Server, changes: int, transaction_rows: int) -> Iterator[Callable[[], Backlog]]:
    """Slots for what the block writes: `changes` changes. It calls the result when it has."""
    server.execute(BEFORE)
    with server.slot("backlog") as ours, server.slot("backlog_pgoutput", PGOUTPUT) as theirs:
        yield lambda: Backlog({WAL2JSON: ours, PGOUTPUT: theirs}, changes, transaction_rows, _end(server))


def _end(server: Server) -> str:
    end = server.value("SELECT pg_current_wal_insert_lsn()")
    # pg_recvlogical stops at the first message beyond its --endpos, so one must come.
    server.execute("INSERT INTO after_the_end VALUES (1)")
    return end
