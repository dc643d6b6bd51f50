"""The demonstration's database: a small shop whose tables show what events have to tell.

Owns the schema and the first rows, which are there before the service looks. It must not know the traffic.
"""

from __future__ import annotations

import psycopg
from psycopg import sql

__all__ = ["DATABASE", "ROLE", "create"]

DATABASE = "shop"
ROLE = "cdc"  # what the service needs, and nothing more: it may not even read the tables

SCHEMA = """
CREATE TABLE users (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name     text NOT NULL,
    email    text NOT NULL,
    balance  numeric(12, 2) NOT NULL DEFAULT 0,
    profile  jsonb NOT NULL DEFAULT '{}'
);
CREATE TABLE products (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name           text NOT NULL,
    price          numeric(10, 2) NOT NULL,
    stock          integer NOT NULL,
    __is_active__  boolean NOT NULL DEFAULT true,  -- an update that turns it off is a delete event
    __tags__       text[] NOT NULL DEFAULT '{}'    -- the row's own tags
);
CREATE TABLE orders (
    user_id     bigint NOT NULL REFERENCES users,
    number      integer NOT NULL,
    product_id  bigint NOT NULL REFERENCES products,
    quantity    integer NOT NULL,
    total       numeric(12, 2) NOT NULL,
    state       text NOT NULL DEFAULT 'new',
    placed_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, number)
);
CREATE TABLE articles (
    slug   text PRIMARY KEY,
    title  text NOT NULL,
    views  integer NOT NULL DEFAULT 0,
    body   text NOT NULL
);
CREATE TABLE visits (
    id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    path  text NOT NULL
);

-- The whole old row comes with each change: events tell from what to what.
ALTER TABLE products REPLICA IDENTITY FULL;
-- Stored beside the table (TOAST) and not sent again by an update that leaves it as it is.
ALTER TABLE articles ALTER COLUMN body SET STORAGE EXTERNAL;
"""

FIRST_ROWS = """
INSERT INTO users (name, email, balance, profile) VALUES
    ('Ada', 'ada@example.org', 120.50, '{"city": "London", "languages": ["en", "fr"]}'),
    ('Linus', 'linus@example.org', 80, '{"city": "Portland"}');
INSERT INTO products (name, price, stock, __tags__) VALUES
    ('tea', 4.20, 100, '{drink}'), ('lamp', 39.90, 100, '{home}'), ('chess set', 25.00, 100, '{game,home}');
"""


def create(connection: psycopg.Connection) -> None:
    """Make tables, first rows and the service's role in the database of `connection`."""
    connection.execute(SCHEMA)
    connection.execute(FIRST_ROWS)
    connection.execute(sql.SQL("CREATE ROLE {} LOGIN REPLICATION").format(sql.Identifier(ROLE)))
