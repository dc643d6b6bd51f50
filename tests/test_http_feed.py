"""The page's files and its stream of events, as plain HTTP: small, closed to others, and bounded."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from cdc.http import HttpServer, connections, feed
from cdc.service import Service
from tests.conftest import Database
from tests.waiting import eventually, make_config, running


def idle_server(folder: Path, **settings: Any) -> HttpServer:
    """The endpoints of a service that was never started."""
    return HttpServer(Service(make_config("postgresql:///none", folder, http=settings)))


async def next_event(response: aiohttp.ClientResponse) -> tuple[str, dict[str, Any]]:
    """Name and data of the next event of the stream."""
    async with asyncio.timeout(30):
        name = (await response.content.readline()).decode().removeprefix("event: ").strip()
        data = (await response.content.readline()).decode().removeprefix("data: ")
        assert await response.content.readline() == b"\n"
    return name, json.loads(data)


async def test_the_whole_page_is_small_and_trusts_only_itself(tmp_path: Path) -> None:
    """All its files together are below 100 kB, name no other place, and the policy allows nothing but them."""
    size, policy = 0, ""
    async with idle_server(tmp_path) as server, aiohttp.ClientSession() as client:
        for path in ("/", "/page.css", "/page.js", "/icon.svg"):
            async with client.get(f"http://127.0.0.1:{server.port}{path}") as response:
                body = await response.read()
                assert response.status == 200
                policy = response.headers["Content-Security-Policy"]
                assert response.headers["X-Content-Type-Options"] == "nosniff"
                assert response.headers["X-Frame-Options"] == "DENY"
            size += len(body)
            assert b"https://" not in body
            assert b"http://" not in body.replace(b"http://www.w3.org/2000/svg", b"")
            assert b"innerHTML" not in body

    assert size < 100_000
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "*" not in policy


async def test_the_stream_begins_with_everything_and_goes_on_every_second(database: Database, tmp_path: Path) -> None:
    """First what was before, then a picture a second; a line that ends is told so."""
    database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    async with running(make_config(database.dsn, tmp_path)) as run:
        async with run.client.get(run.url("/events")) as response:
            assert response.headers["Content-Type"] == "text/event-stream"
            assert response.headers["Cache-Control"] == "no-store"
            name, hello = await next_event(response)
            assert name == "hello"
            assert hello["controls"] is False
            assert hello["slot"] == run.service.config.source.slot
            assert hello["status"]["phase"] == "streaming"
            database.execute("INSERT INTO a SELECT generate_series(1, 7)")
            events = 0
            while events < 7:
                name, told = await next_event(response)
                events = told["status"]["events"]
                assert name == "status"
                assert len(told["point"]) == 5
        async with run.client.get(run.url("/events")) as response:
            _, hello = await next_event(response)
            assert any(point[1] > 0 for point in hello["history"])
            await run.server.stop()
            while name != "end":
                name, _ = await next_event(response)
            assert await response.content.read() == b""


async def test_a_stream_outlives_the_deadline_of_other_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages stay open for hours; a request must be over within seconds."""
    monkeypatch.setattr(connections, "CONNECTION_SECONDS", 0.5)
    async with (
        idle_server(tmp_path) as server,
        aiohttp.ClientSession() as client,
        client.get(f"http://127.0.0.1:{server.port}/events") as response,
    ):
        names = [(await next_event(response))[0] for _ in range(3)]

    assert names == ["hello", "status", "status"]


async def test_pages_are_bounded_and_leave_room_for_probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One page too many is told to come again later; when one is closed, its place is free."""
    monkeypatch.setattr(feed, "MAX_READERS", 1)
    async with idle_server(tmp_path) as server, aiohttp.ClientSession() as client:
        base = f"http://127.0.0.1:{server.port}"
        async with client.get(f"{base}/events") as first:
            await next_event(first)
            async with client.get(f"{base}/events") as second:
                assert second.status == 503
                assert "Retry-After" in second.headers
            async with client.get(f"{base}/healthz") as probe:
                assert probe.status == 200

        async def has_room() -> bool:
            async with client.get(f"{base}/events") as again:
                return again.status == 200

        await eventually(has_room)


async def test_readers_who_do_not_read_are_let_go_and_hold_up_nobody(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ask for the stream and for metrics, and take not a byte: events arrive, pages are told, both end."""
    monkeypatch.setattr(feed, "WRITE_SECONDS", 0.3)
    monkeypatch.setattr(feed, "BEAT_SECONDS", 0.01)  # so that what is not read fills the buffers soon
    monkeypatch.setattr(connections, "CONNECTION_SECONDS", 1.0)
    database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    async with running(make_config(database.dsn, tmp_path)) as run:
        idle = []
        for path in ("/events", "/metrics"):
            one = socket.socket()
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect(("127.0.0.1", run.server.port))
            one.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            idle.append(one)
        await eventually(lambda: run.server.readers == 1)
        async with run.client.get(run.url("/events")) as response:
            for number in range(20):
                database.execute(f"INSERT INTO a VALUES ({number})")
            events = 0
            while events < 20:
                events = (await next_event(response))[1]["status"]["events"]
            async with asyncio.timeout(60):
                while run.server.readers > 1:  # only the one that reads is left
                    await next_event(response)
            await next_event(response)
        await eventually(lambda: len(run.callbacks.seen) == 20)
        for one in idle:
            one.close()
