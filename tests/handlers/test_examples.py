"""The examples of docs/handlers, run as they are written: one `cdc run` with all of them, and real servers behind each.

The text is that of the pages. Its variables point to the servers of the tests. What it names beside those, four
addresses of the internet, is another here: `World.addresses`.
"""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aio_pika
import nats
import psycopg
import pytest
import redis
import tantivy

from cdc.demo.cluster import Cluster
from handlers.file_wal import read
from tests.conftest import Database, drop_database
from tests.docs.blocks import named_blocks as blocks
from tests.docs.pages import entries, page_of
from tests.handlers.brokers import KafkaMock
from tests.handlers.endpoint import SECRETS, Endpoint
from tests.handlers.mail_server import MailServer
from tests.handlers.opensearch import OpenSearchDouble
from tests.handlers.servers import NatsServer, RabbitServer, RedisServer, Servers
from tests.running import Child, wait_until

SOURCE = """
CREATE TABLE users (id int PRIMARY KEY, name text, email text, password_hash text);
CREATE TABLE orders (id int PRIMARY KEY, customer int, total numeric(12, 2), status text);
CREATE TABLE products (id int PRIMARY KEY, title text, sku text, price numeric(8, 2), added timestamptz);
ALTER TABLE orders REPLICA IDENTITY FULL;
"""
CHANGES = """
SELECT pg_logical_emit_message(true, 'cdc.tags', 'user:42,notify:email,audit:sales');
INSERT INTO users VALUES (1, 'Ada', 'ada@example.com', 'hash-secret');
UPDATE users SET name = 'Ada L.' WHERE id = 1;
INSERT INTO orders VALUES (7, 1, 1234.50, 'open');
INSERT INTO products VALUES (3, 'Red kettle', 'K-1', 19.90, now());
"""
EVENTS = 4
HEAD = """
[source]
dsn = "{dsn}"
slot = "{slot}"
[http]
port = 0
[log]
format = "json"
"""
RABBIT_EXCHANGE = NATS_STREAM = "walsignal"


@dataclass(frozen=True, slots=True)
class World:
    """Everything that the examples talk to."""

    folder: Path
    database: Database
    audit: Database  # not the source: what is written there would be changes, too
    redis: RedisServer
    nats: NatsServer
    rabbit: RabbitServer
    kafka: KafkaMock
    mail: MailServer
    endpoint: Endpoint
    search: OpenSearchDouble
    child: Child

    @property
    def http(self) -> int:
        """The service's own port: its choice."""
        return int(self.child.log("http_listening")[-1]["port"])

    def environment(self) -> dict[str, str]:
        """The variables of the examples."""
        return {
            "AUDIT_DSN": self.audit.dsn,
            "KAFKA_BROKER": self.kafka.address,
            "MAIL_PASSWORD": "unused",
            "NATS_URL": self.nats.url,
            "NTFY_TOPIC": f"{self.endpoint.address}/topic",
            "RABBITMQ_SERVER": self.rabbit.address,
            "REDIS_URL": f"{self.redis.url}/5",
            "SEARCH_PASSWORD": "unused",
            "SHOP_HOOK_SECRET": SECRETS[0],
        }

    def with_our_addresses(self, text: str) -> str:
        """The example with `World.addresses` for those of the internet; each must stand in it."""
        for written, ours in self.addresses().items():
            text = text.replace(written, ours)
        return text

    def addresses(self) -> dict[str, str]:
        """Servers of the internet → ours, which are internal and without TLS."""
        mail = f"mailto://127.0.0.1:{self.mail.port}?mode=insecure&from"
        hook = f'"{self.endpoint.url("/hook")}"\nallow_http = true\nallow_internal = true'
        return {
            "mailtos://cdc:${MAIL_PASSWORD}@mail.example.com?from": mail,
            "ntfys://": "ntfy://",
            '"https://hooks.example.com/walsignal"': hook,
            "https://search.example:9200": self.search.url,
        }

    def audited(self) -> list[dict[str, Any]]:
        """Rows of the audit log."""
        return [row for (row,) in self.audit.execute("SELECT to_jsonb(a) FROM audit_log a ORDER BY event_id")]


def examples() -> dict[str, str]:
    """Page → all sections of `cdc.toml` on it that register a handler."""
    return {
        entry.name: "\n".join(
            text for _, text in blocks(page_of(entry).read_text(), "toml") if text.startswith("[[handlers]]")
        )
        for entry in entries()
    }


@pytest.fixture(scope="module")
def world(cluster: Cluster, servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The service with all examples, running, when four changes were committed."""
    folder = tmp_path_factory.mktemp("examples")
    database, audit = Database(cluster, "examples"), Database(cluster, "examples_audit")
    for one in (database, audit):
        cluster.create_database(one.name)
    database.execute(SOURCE)
    with KafkaMock(folder / "kafka") as kafka:
        made = World(
            folder=folder,
            database=database,
            audit=audit,
            redis=servers.of(RedisServer),
            nats=servers.of(NatsServer),
            rabbit=servers.of(RabbitServer),
            kafka=kafka,
            mail=servers.of(MailServer),
            endpoint=servers.of(Endpoint),
            search=servers.of(OpenSearchDouble),
            child=Child(folder, database.dsn),
        )
        for shared in (made.mail, made.endpoint):
            shared.forget()
        asyncio.run(bind(made.rabbit))
        with client(made) as cache:
            cache.set("orders-of:1", "computed before")
        text = HEAD.format(dsn=database.dsn, slot=made.child.slot)
        (folder / "cdc.toml").write_text(text + made.with_our_addresses("\n".join(examples().values())))
        made.child.environment.update(made.environment())
        try:
            made.child.start()
            database.execute(CHANGES)
            yield made
        finally:
            made.child.kill()
            for one in (database, audit):
                drop_database(cluster, one.name)
            asyncio.run(leave(made))


async def bind(rabbit: RabbitServer) -> None:
    """The queue that the page tells to make beforehand."""
    async with await aio_pika.connect(rabbit.url) as connection:
        channel = await connection.channel()
        await channel.declare_exchange(RABBIT_EXCHANGE, "topic", durable=True)
        await (await channel.declare_queue("examples", durable=True)).bind(RABBIT_EXCHANGE, "public.#")


async def leave(world: World) -> None:
    """What the shared servers shall not keep."""
    async with await aio_pika.connect(world.rabbit.url) as connection:
        channel = await connection.channel()
        await channel.queue_delete("examples")
        await channel.exchange_delete(RABBIT_EXCHANGE)
    link = await nats.connect(world.nats.url, allow_reconnect=False, connect_timeout=30)
    await link.jetstream(timeout=30).delete_stream(NATS_STREAM)
    await link.close()
    with client(world) as cache:
        cache.flushdb()


def client(world: World) -> redis.Redis:
    """Of the database that the examples use."""
    return redis.Redis.from_url(world.environment()["REDIS_URL"], decode_responses=True)


# What is seen at each target --------------------------------------------------------------------------------------


def audit_log(world: World) -> bool:
    """A row per change, by whom, and nothing of the column that was left out."""
    rows = world.audited()
    assert "hash-secret" not in json.dumps(rows)
    return [(row["table_name"], row["operation"], row["user_name"]) for row in rows] == [
        ("users", "create", "42"),
        ("users", "update", "42"),
        ("orders", "create", "42"),
        ("products", "create", "42"),
    ]


def cache(world: World) -> bool:
    """The row as it is now, and what was computed before is gone."""
    with client(world) as found:
        user = found.get("user:1")
        assert user is None or isinstance(user, str)
        return json.loads(user or "{}") == {"id": 1, "name": "Ada L."} and not found.exists("orders-of:1")


def console(world: World) -> bool:
    """A line per change, without the column that is masked."""
    text = world.child.output_path.read_text()
    assert "ada@example.com" not in text
    return all(table in text for table in ("users", "orders", "products"))


def file_wal(world: World) -> bool:
    """A line per change."""
    return len(list(read(world.folder / "events"))) == EVENTS


def kafka(world: World) -> bool:
    """A record per change in the table's topic."""
    records = world.kafka.records([f"walsignal.public.{table}" for table in ("users", "orders", "products")])
    return sorted((record.key() or b"").decode() for record in records) == [
        "public.orders/7",
        "public.products/3",
        "public.users/1",
        "public.users/1",
    ]


def metrics(world: World) -> bool:
    """At the service's own endpoint: a count by tag, and the order in its bucket."""
    with urllib.request.urlopen(f"http://127.0.0.1:{world.http}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return (
        'cdc_handler_total_bucket{le="+Inf",table="public.orders"} 1.0' in text
        and 'cdc_handler_tagged_events_total{event_type="update",table="public.users",tag="audit:*"} 1.0' in text
    )


def nats_(world: World) -> bool:
    """A message per change, under the subject of its kind."""
    return asyncio.run(subjects(world)) == {
        "walsignal.public.users.create": 1,
        "walsignal.public.users.update": 1,
        "walsignal.public.orders.create": 1,
        "walsignal.public.products.create": 1,
    }


async def subjects(world: World) -> dict[str, int]:
    """Subject → messages of the stream."""
    link = await nats.connect(world.nats.url, allow_reconnect=False, connect_timeout=30)
    try:
        state = (await link.jetstream(timeout=30).stream_info(NATS_STREAM, subjects_filter=">")).state
        return dict(state.subjects or {})
    finally:
        await link.close()


def notify(world: World) -> bool:
    """A mail and a push message of the large order; mails of what is tagged."""
    pushed = [json.loads(request.body) for request in world.endpoint.requests() if request.path != "/hook"]
    title = "Order 7: 1,234.50"
    return [message["title"] for message in pushed if message["topic"] == "topic"] == [title] and (
        len(world.mail.subjects()) == 1 + EVENTS and title in world.mail.subjects()
    )


def rabbitmq(world: World) -> bool:
    """A message per change in the queue that was bound."""
    return asyncio.run(queued(world)) == EVENTS


async def queued(world: World) -> int:
    """Messages in the queue."""
    async with await aio_pika.connect(world.rabbit.url) as connection:
        queue = await (await connection.channel()).declare_queue("examples", durable=True, passive=True)
        return queue.declaration_result.message_count or 0


def redis_stream(world: World) -> bool:
    """Entries of the stream of each table."""
    with client(world) as found:
        return [found.xlen(f"cdc:public.{table}") for table in ("users", "orders", "products")] == [2, 1, 1]


def search_index(world: World) -> bool:
    """The product is found by a word of its title, and is in the remote engine's index."""
    index = tantivy.Index.open(str(world.folder / "product-index"))
    hits = index.searcher().search(index.parse_query("kettle", ["title"])).hits
    with urllib.request.urlopen(f"{world.search.url}/products/_all", timeout=30) as answer:
        remote = json.load(answer)
    return (len(hits), len(remote)) == (1, 1)


def webhook(world: World) -> bool:
    """A signed request with the order."""
    requests = [request for request in world.endpoint.requests() if request.path == "/hook"]
    assert all(request.verified[0] for request in requests)
    return [event["record_id"] for request in requests for event in request.events] == ["7"]


CHECKS: dict[str, Callable[[World], bool]] = {
    "audit_log": audit_log,
    "cache": cache,
    "console": console,
    "file_wal": file_wal,
    "kafka": kafka,
    "metrics": metrics,
    "nats": nats_,
    "notify": notify,
    "rabbitmq": rabbitmq,
    "redis_stream": redis_stream,
    "search_index": search_index,
    "webhook": webhook,
}


def test_every_page_has_an_example_that_is_run() -> None:
    """A new handler's page needs a check here."""
    assert CHECKS.keys() == examples().keys()
    assert all("[[handlers]]" in text for text in examples().values())


def test_only_addresses_are_not_as_written(world: World) -> None:
    """Each that is replaced stands on a page; nothing else differs."""
    written = "\n".join(examples().values())

    assert all(address in written for address in world.addresses())


@pytest.mark.parametrize("page", CHECKS)
def test_example_has_its_effect(world: World, page: str) -> None:
    """At the target itself, by the target's own word."""

    def seen() -> bool:
        assert world.child.is_running, world.child.tail()
        try:
            return CHECKS[page](world)
        except (AttributeError, LookupError, OSError, ValueError, psycopg.Error, nats.errors.Error):
            return False  # not yet there

    wait_until(seen, 60, f"the effect of {page}:\n{world.child.tail()}")


def test_examples_leave_no_dead_letter_and_no_secret_in_the_log(world: World) -> None:
    """After all of it the service has failed nothing, and stops cleanly."""
    with urllib.request.urlopen(f"http://127.0.0.1:{world.http}/status", timeout=30) as answer:
        status = json.load(answer)
    world.child.stop(60)

    assert [callback["failed"] for callback in status["callbacks"]] == [0] * 13  # search_index has two
    assert not status["dead_letters"]
    text = world.child.log_path.read_text() + json.dumps(status)
    assert not world.child.log("callback_failed")
    assert not [secret for secret in ("hash-secret", SECRETS[0], "ada@example.com") if secret in text]
