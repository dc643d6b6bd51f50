"""Backlogs of other shapes: many tables, and wide rows. Owns the SQL that makes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bench.backlog import Backlog, backlog
from bench.server import Server

__all__ = ["many_tables", "wide_rows"]

TRANSACTION_ROWS = 1000
TRANSACTION_BYTES = 10_000_000  # wide rows make short transactions: the server need not spill them to its disk

TABLES = """
CREATE OR REPLACE PROCEDURE make_tables(number int) LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 0 .. number - 1 LOOP
        EXECUTE format('CREATE TABLE shape_%s (id bigint PRIMARY KEY, customer text, note text, quantity int, '
                       'amount numeric(12,2), paid boolean, attributes jsonb, changed_at timestamptz)', i);
        IF i % 100 = 99 THEN COMMIT; END IF;  -- a transaction may not lock all of them
    END LOOP;
END
$$;
CREATE OR REPLACE PROCEDURE drop_tables(number int) LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 0 .. number - 1 LOOP
        EXECUTE format('DROP TABLE IF EXISTS shape_%s', i);
        IF i % 100 = 99 THEN COMMIT; END IF;
    END LOOP;
END
$$;
"""
FILL = """
-- Row after row goes to another table: the worst that there is for what is kept per table.
CREATE OR REPLACE PROCEDURE fill_tables(number int, transactions int, rows int) LANGUAGE plpgsql AS $$
DECLARE
    filled shape_0;
BEGIN
    FOR t IN 0 .. transactions - 1 LOOP
        FOR i IN t * rows .. (t + 1) * rows - 1 LOOP
            SELECT i, 'customer number ' || i % 5000, 'left at the door, please ring twice (' || i || ')', i % 100,
                   (i % 100000) / 100.0, i % 3 = 0, jsonb_build_object('channel', 'web', 'weight', i % 50), now()
            INTO filled;
            EXECUTE format('INSERT INTO shape_%s SELECT ($1).*', i % number) USING filled;
        END LOOP;
        COMMIT;
    END LOOP;
END
$$;
"""
WIDE = """
DROP TABLE IF EXISTS wide;
CREATE TABLE wide (id bigint PRIMARY KEY, body text);
ALTER TABLE wide ALTER COLUMN body SET STORAGE EXTERNAL;  -- long values lie outside the row, and nothing is compressed
CREATE OR REPLACE PROCEDURE fill_wide(width int, transactions int, rows int) LANGUAGE plpgsql AS $$
BEGIN
    FOR t IN 0 .. transactions - 1 LOOP
        INSERT INTO wide SELECT i, left(repeat(md5(i::text), width / 32 + 1), width)
        FROM generate_series(t * rows, (t + 1) * rows - 1) i;
        COMMIT;
    END LOOP;
END
$$;
"""


@contextmanager
def many_tables(server: Server, changes: int, tables: int) -> Iterator[Backlog]:
    """Inserts of the 8-column row, shared out over `tables` tables in turn, in transactions of 1,000."""
    rows = min(TRANSACTION_ROWS, changes)
    server.execute(TABLES)
    server.execute("CALL make_tables(%s)", tables)
    server.execute(FILL)
    try:
        with backlog(server, changes // rows * rows, rows) as made:
            server.execute("CALL fill_tables(%s, %s, %s)", tables, changes // rows, rows)
            yield made()
    finally:
        server.execute("DROP PROCEDURE IF EXISTS fill_tables")
        server.execute("CALL drop_tables(%s)", tables)


@contextmanager
def wide_rows(server: Server, changes: int, width: int) -> Iterator[Backlog]:
    """Inserts of a key and a text of `width` bytes, in transactions of 1,000 or of 10 MB."""
    rows = min(TRANSACTION_ROWS, max(1, TRANSACTION_BYTES // width), changes)
    server.execute(WIDE)
    try:
        with backlog(server, changes // rows * rows, rows) as made:
            server.execute("CALL fill_wide(%s, %s, %s)", width, changes // rows, rows)
            yield made()
    finally:
        server.execute("DROP TABLE wide")
