"""What the stages are fed with: messages that a real PostgreSQL has sent, and events made of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from bench import backlog
from bench.contenders import plugin_options
from bench.server import SETTINGS, Server
from cdc.catalog import Catalog
from cdc.demo.cluster import Cluster
from cdc.events import DatabaseEvent
from cdc.messages import Decoded
from cdc.patterns import TablePatterns
from cdc.pump import BATCH_MESSAGES
from cdc.transactions import Assembler, Selection
from cdc.wal2json import Decoder

CHANGES = 2_000
SELECTION = Selection(TablePatterns(["*.*"]))


@dataclass(frozen=True, slots=True)
class Recorded:
    """A stream as it came: the messages of the backlog of `make bench`, in bursts as the pump reads them."""

    catalog: Catalog
    messages: Sequence[bytes]

    @property
    def bursts(self) -> list[list[memoryview]]:
        """All messages, as views."""
        views = [memoryview(message) for message in self.messages]
        return [views[start : start + BATCH_MESSAGES] for start in range(0, len(views), BATCH_MESSAGES)]

    def decoder(self) -> Decoder:
        """One that looks out for the columns that `cdc run` looks out for."""
        return Decoder(self.catalog, watch=SELECTION.watched_columns)

    def decoded(self) -> list[Decoded]:
        """All of them, decoded in bursts."""
        decoder = self.decoder()
        return [message for burst in self.bursts for message in decoder.decode_all(burst)[0]]

    def events(self) -> list[DatabaseEvent]:
        """Events of all changes."""
        return Assembler(SELECTION).feed(self.decoded()).events


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A server as the bench makes it."""
    with Cluster(settings=SETTINGS) as cluster, Server(cluster) as running:
        yield running


@pytest.fixture(scope="session", params=[1000, 1], ids=["transactions-of-1000", "transactions-of-1"])
def recorded(server: Server, request: pytest.FixtureRequest) -> Recorded:
    """2,000 changes of the 8-column table, as the server sends them to `cdc run`."""
    return record(server, request.param)


@pytest.fixture(scope="session")
def orders(server: Server) -> Recorded:
    """The same, in transactions of 1,000 only."""
    return record(server, 1000)


@pytest.fixture(scope="session")
def events(orders: Recorded) -> list[DatabaseEvent]:
    """Their events; what was read of one stays read."""
    return orders.events()


def record(server: Server, transaction_rows: int) -> Recorded:
    """Write the backlog and see what a slot has of it."""
    options = plugin_options(server)
    words = [word for option in options.items() for word in option]
    with backlog.mixed(server, CHANGES, transaction_rows) as made:
        rows = server.execute(
            "SELECT data FROM pg_logical_slot_peek_binary_changes(%s, NULL, NULL, VARIADIC %s::text[])",
            made.slots[backlog.WAL2JSON],
            words,
        )
    catalog = Catalog(server.dsn, numbers_as_text="numeric-data-types-as-string" in options)
    asyncio.run(catalog.load())
    return Recorded(catalog, [bytes(data) for (data,) in rows if isinstance(data, bytes)])
