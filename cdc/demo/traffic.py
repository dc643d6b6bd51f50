"""Live traffic in the shop: one client, one transaction after the other, as fast as people can read.

Owns what happens in the shop, and the count of what it has committed: what the service must deliver, no
more and no less. It must not know the service.
"""

from __future__ import annotations

import itertools
import random
import secrets
from collections import Counter
from collections.abc import Callable
from threading import Event, Thread
from typing import Any, LiteralString

import psycopg
from psycopg.types.json import Jsonb

from cdc.events import EventType

__all__ = ["Committed", "Traffic"]

Committed = Counter[tuple[str, EventType]]
"""(table, event type) → number of changes."""

TRANSACTIONS_PER_SECOND = 10  # some twenty lines a second: they can be followed, and still look alive
BODY_BYTES = 6_000  # a row larger than 2 kB has its long values stored apart
NAMES = ("Grace", "Edsger", "Barbara", "Donald", "Frances", "Alan", "Margaret", "Niklaus")
CITIES = ("Zürich", "København", "Łódź", "Kraków", "São Paulo", "東京")
PRODUCTS = ("kettle", "notebook", "umbrella", "radio", "compass", "globe")

CREATE, UPDATE, DELETE, TRUNCATE = EventType


class Shop:
    """The client's side: a connection, and the count of what the open transaction has changed so far."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection
        self.pending: Committed = Counter()

    def change(self, table: str, event_type: EventType, statement: LiteralString, *values: Any) -> None:
        """Run the statement; each row it touches is one event of that type."""
        rows = self._connection.execute(statement, values).rowcount
        self.pending[table, event_type] += 1 if event_type is TRUNCATE else rows

    def tag(self, tags: str) -> None:
        """Tag all later changes of this transaction."""
        self._connection.execute("SELECT pg_logical_emit_message(true, 'cdc.tags', %s)", [tags])

    def any_id(self, query: LiteralString) -> Any:
        """The first column of the first row."""
        row = self._connection.execute(query).fetchone()
        return row[0] if row else None


class Changed(Exception):
    """Somebody changed his mind: the transaction is rolled back."""


def sign_up(shop: Shop) -> None:
    """A new user; the transaction carries tags."""
    name = random.choice(NAMES)
    shop.tag("audit:required,source:web")
    shop.change(
        "users",
        CREATE,
        "INSERT INTO users (name, email, profile) VALUES (%s, %s, %s)",
        name,
        f"{name.lower()}@example.org",
        Jsonb({"city": random.choice(CITIES), "newsletter": random.random() < 0.5}),
    )


def place_order(shop: Shop) -> None:
    """Three tables in one transaction: order, stock and balance."""
    user = shop.any_id("SELECT id FROM users ORDER BY random() LIMIT 1")
    product = shop.any_id("SELECT id FROM products WHERE __is_active__ ORDER BY random() LIMIT 1")
    quantity = random.randint(1, 3)
    shop.tag(f"user:{user}")
    shop.change(
        "orders",
        CREATE,
        "INSERT INTO orders (user_id, number, product_id, quantity, total)"
        " SELECT %s, 1 + coalesce((SELECT max(number) FROM orders WHERE user_id = %s), 0), id, %s, price * %s"
        " FROM products WHERE id = %s",
        *(user, user, quantity, quantity, product),
    )
    shop.change("products", UPDATE, "UPDATE products SET stock = stock - %s WHERE id = %s", quantity, product)
    shop.change("users", UPDATE, "UPDATE users SET balance = balance - 1.10 WHERE id = %s", user)


def ship(shop: Shop) -> None:
    """A record with a composite key is updated."""
    shop.change(
        "orders",
        UPDATE,
        "UPDATE orders SET state = 'shipped' WHERE (user_id, number) ="
        " (SELECT user_id, number FROM orders WHERE state = 'new' ORDER BY placed_at LIMIT 1)",
    )


def forget(shop: Shop) -> None:
    """A row is deleted."""
    shop.tag("audit:required")
    shop.change(
        "orders",
        DELETE,
        "DELETE FROM orders WHERE (user_id, number) ="
        " (SELECT user_id, number FROM orders WHERE state = 'shipped' ORDER BY placed_at LIMIT 1)",
    )


def write(shop: Shop) -> None:
    """A row with a large text, stored apart from its table."""
    number = secrets.token_hex(3)
    shop.change(
        "articles",
        CREATE,
        "INSERT INTO articles (slug, title, body) VALUES (%s, %s, %s)",
        f"draft-{number}",
        f"Thoughts no. {number}",
        secrets.token_urlsafe(BODY_BYTES),
    )


def read(shop: Shop) -> None:
    """An update that leaves the large text as it is: the server does not send it again."""
    shop.change(
        "articles",
        UPDATE,
        "UPDATE articles SET views = views + 1 WHERE slug = (SELECT slug FROM articles ORDER BY random() LIMIT 1)",
    )


def publish(shop: Shop) -> None:
    """An update of the primary key: the event's `before` holds the old one."""
    shop.change(
        "articles",
        UPDATE,
        "UPDATE articles SET slug = replace(slug, 'draft', 'post')"
        " WHERE slug = (SELECT slug FROM articles WHERE slug LIKE 'draft%%' LIMIT 1)",
    )


def reprice(shop: Shop) -> None:
    """The table's replica identity is FULL: the event tells from what to what."""
    shop.change(
        "products",
        UPDATE,
        "UPDATE products SET price = price + 0.10 WHERE id = (SELECT max(id) FROM products WHERE __is_active__)",
    )


def restock(shop: Shop) -> None:
    """A row that carries its own tags."""
    shop.change(
        "products",
        CREATE,
        "INSERT INTO products (name, price, stock, __tags__) VALUES (%s, %s, 100, %s)",
        *(random.choice(PRODUCTS), random.randint(3, 90), ["new", "home"]),
    )


def retire(shop: Shop) -> None:
    """A soft delete: an update for PostgreSQL, a delete event for callbacks."""
    shop.change(
        "products",
        DELETE,
        "UPDATE products SET __is_active__ = false"
        " WHERE id = (SELECT max(id) FROM products WHERE __is_active__ AND id > 3)",
    )


def visit(shop: Shop) -> None:
    """Two rows of one statement."""
    shop.change("visits", CREATE, "INSERT INTO visits (path) VALUES ('/'), ('/products')")


def sweep(shop: Shop) -> None:
    """A table is emptied: one event for all of it, and only for callbacks that ask."""
    shop.change("visits", TRUNCATE, "TRUNCATE visits")


def change_mind(shop: Shop) -> None:
    """A transaction that is rolled back has no events."""
    place_order(shop)
    raise Changed


DAY: tuple[Callable[[Shop], None], ...] = (
    *(sign_up, place_order, visit, write, read, ship, restock, reprice, publish, change_mind),
    *(place_order, forget, read, retire, visit, place_order, ship, sweep),
)
"""Every kind of change within two seconds, then the same again."""


class Traffic:
    """A day in the shop, again and again, in a thread of its own, from `start` to `stop`."""

    def __init__(self, dsn: str) -> None:
        self.committed: Committed = Counter()
        self.transactions = 0
        self.rolled_back = 0
        self.end_lsn = "0/0"  # after `stop`: all that was committed lies before
        self.error: psycopg.Error | None = None
        self._dsn = dsn
        self._stopping = Event()
        self._thread = Thread(target=self._run, name="demo-traffic", daemon=True)

    def start(self) -> None:
        """Open the shop."""
        self._thread.start()

    def stop(self) -> None:
        """Close it, after the transaction that is under way. Raises what has stopped it before, if so."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            with psycopg.connect(self._dsn, autocommit=True, application_name="shop") as connection:
                for scene in itertools.cycle(DAY):
                    self._play(scene, connection)
                    if self._stopping.wait(1 / TRANSACTIONS_PER_SECOND):
                        break
                row = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
                self.end_lsn = row[0] if row else self.end_lsn
        except psycopg.Error as error:
            self.error = error

    def _play(self, scene: Callable[[Shop], None], connection: psycopg.Connection) -> None:
        shop = Shop(connection)
        try:
            with connection.transaction():
                scene(shop)
        except Changed:
            self.rolled_back += 1
            return
        self.transactions += 1
        self.committed += shop.pending
