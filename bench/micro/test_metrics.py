"""What the metrics cost: a scrape over HTTP, the part of it that holds the event loop, and the watch for TOAST."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from bench.micro.conftest import SELECTION, Recorded
from cdc.config import Config
from cdc.events import DatabaseEvent, EventType, Kind
from cdc.http import HttpServer
from cdc.metrics import ServiceCollector
from cdc.rendering import Families
from cdc.service import Service
from cdc.transactions import Assembler
from cdc.unchanged import Unchanged

CALLBACKS, TABLES = 100, 1_000


async def handle(_event: DatabaseEvent) -> None:
    """Never called."""


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The service's."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def service(loop: asyncio.AbstractEventLoop) -> Iterator[Service]:
    """All tables have had all types of events, lack an identity and have large values; all callbacks have a history."""

    async def make() -> Service:
        source = {"dsn": "host=/nowhere", "slot": "bench"}
        service = Service(Config.model_validate({"source": source, "http": {"port": 0}}))
        service.assembler = Assembler(SELECTION)
        for number in range(TABLES):
            for event_type in (EventType.CREATE, EventType.UPDATE, EventType.DELETE):
                service.assembler.counts[Kind(event_type, "public", f"table_{number}")] += number
            service.unchanged.counts[f"public.table_{number}"] = number
            service.missing_identity[f"public.table_{number}"] = number
        for number in range(CALLBACKS):
            service.manager.add_callback(handle, name=f"callback-{number}", configured=True)
        for registration in service.manager.registry:
            registration.outcomes["ok"] = 1_000_000
            registration.seconds.observe(0.01)
        return service

    service = loop.run_until_complete(make())
    yield service
    loop.run_until_complete(service.manager.shutdown())


def test_scrape_100_callbacks_and_1000_tables_by_http(
    benchmark: Any, service: Service, loop: asyncio.AbstractEventLoop
) -> None:
    """From the request to the last byte of the answer; client and server share the loop."""

    async def scrape(url: str) -> str:
        async with aiohttp.ClientSession() as client, client.get(url) as response:
            return await response.text()

    server = HttpServer(service)
    loop.run_until_complete(server.start())
    try:
        url = f"http://127.0.0.1:{server.port}/metrics"
        text = benchmark(lambda: loop.run_until_complete(scrape(url)))
    finally:
        loop.run_until_complete(server.stop())
    assert text.count("cdc_events_total{") == 3 * TABLES
    assert text.count("cdc_callback_seconds_bucket{") == 13 * CALLBACKS


def test_collect_100_callbacks_and_1000_tables(
    benchmark: Any, service: Service, loop: asyncio.AbstractEventLoop
) -> None:
    """For so long a scrape holds the event loop in one piece; the text is written in a thread, in short pieces."""
    collector = ServiceCollector(service)

    async def collect() -> None:
        benchmark(lambda: Families(collector.collect()))

    loop.run_until_complete(collect())


@pytest.mark.parametrize("watched", [False, True], ids=["alone", "watched"])
def test_decode_bursts_watched_for_unchanged_values(benchmark: Any, orders: Recorded, *, watched: bool) -> None:
    """The same messages by the decoder alone and through `Unchanged`: 30 % are updates of a row with four columns
    that may be TOASTed."""
    decoder, bursts = orders.decoder(), orders.bursts
    if watched:
        decoder = Unchanged().of(decoder, orders.catalog)  # type: ignore[assignment]

    def decode() -> None:
        for burst in bursts:
            decoder.decode_all(burst)

    benchmark(decode)
