"""A TCP proxy before the server, in a thread: slows, cuts up, stops or resets what goes through it.

Every setting works on what is open, too, and may be changed at any time from the test's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

CHUNK = 1 << 16
CALL_SECONDS = 60  # what is asked of the proxy's thread takes milliseconds; a busy machine takes longer
RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no time: closing sends RST


@dataclass(slots=True, eq=False)
class Link:
    """One connection through the proxy."""

    client: socket.socket
    server: socket.socket
    cut: asyncio.Future[str]  # "reset": both ends; "abandon": the client only, and the server is not told
    task: asyncio.Task[None] | None = None
    black: bool = False  # nothing goes through any more, in either direction, and nobody is told
    moved: asyncio.Event = field(default_factory=asyncio.Event)  # `black` has changed
    passed: int = 0  # bytes to the client


class Proxy:
    """Listens on a free port of 127.0.0.1 for a server on another. All times are in seconds."""

    def __init__(self, port: int, seed: int = 0) -> None:
        self._server_port = port
        self._chance = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._links: set[Link] = set()
        self._abandoned: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._accepting: asyncio.Task[None] | None = None
        self.delay = 0.0  # each way
        self.bytes_per_second = 0  # to the client; 0: without a bound
        self.slices = (0, 0)  # at most so many bytes at once, from a range; (0, 0): as they come
        self.refuses = False  # a new connection is reset at once

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listener.getsockname()[1])

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._links)

    @property
    def passed(self) -> int:
        """Bytes that have reached clients, on connections that are open."""
        return sum(link.passed for link in list(self._links))

    def heal(self) -> None:
        """No fault any more, on new connections and on those that are not black."""
        self.delay, self.bytes_per_second, self.slices, self.refuses = 0.0, 0, (0, 0), False

    def reset(self) -> int:
        """RST to both ends of all that is open; how many that were."""
        return int(self._call(self._cut("reset")))

    def abandon_client(self) -> int:
        """RST to the clients only: the server does not learn of it."""
        return int(self._call(self._cut("abandon")))

    def blacken(self) -> int:
        """Let nothing more through on what is open; how many that are. New connections are not concerned."""
        return int(self._call(self._blacken(black=True)))

    def lighten(self) -> int:
        """What was held goes through after all."""
        return int(self._call(self._blacken(black=False)))

    def __enter__(self) -> Self:
        self._listener.setblocking(False)
        self._thread.start()
        self._call(self._begin())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_SECONDS)

    async def _begin(self) -> None:
        self._accepting = self._loop.create_task(self._accept())

    async def _end(self) -> None:
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait([self._accepting])
        await self._cut("reset")
        self._listener.close()
        for end in self._abandoned:
            end.close()

    async def _accept(self) -> None:
        while True:
            client, _ = await self._loop.sock_accept(self._listener)
            if self.refuses:
                _close(client, reset=True)
                continue
            server = socket.socket()
            for end in (client, server):
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # slices stay slices
            try:
                await self._loop.sock_connect(server, ("127.0.0.1", self._server_port))
            except OSError:  # the server is away: so are we
                server.close()
                _close(client, reset=True)
                continue
            except asyncio.CancelledError:
                server.close()
                client.close()
                raise
            link = Link(client, server, self._loop.create_future())
            self._links.add(link)
            link.task = self._loop.create_task(self._serve(link))

    async def _serve(self, link: Link) -> None:
        """Both directions, until either end closes or the link is cut."""
        pumps = [
            self._loop.create_task(self._pump(link, link.client, link.server)),
            self._loop.create_task(self._pump(link, link.server, link.client)),
        ]
        waited: list[asyncio.Future[Any]] = [*pumps, link.cut]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        await asyncio.wait(pumps)
        self._links.discard(link)
        how = link.cut.result() if link.cut.done() else ""
        _close(link.client, reset=bool(how))
        if how == "abandon":
            self._abandoned.append(link.server)
        else:
            _close(link.server, reset=bool(how))

    async def _pump(self, link: Link, source: socket.socket, target: socket.socket) -> None:
        """One direction, until its source ends."""
        data = b"-"
        with contextlib.suppress(OSError):
            while data:
                data = await self._loop.sock_recv(source, CHUNK)
                await self._pass(link, data, target)

    async def _pass(self, link: Link, data: bytes, target: socket.socket) -> None:
        """Also the end of the stream, b"", is late, or held."""
        if self.delay:
            await asyncio.sleep(self.delay)
        while link.black:
            link.moved.clear()
            await link.moved.wait()
        while data:
            least, most = self.slices
            size = self._chance.randint(least, most) if most else CHUNK
            rate = self.bytes_per_second if target is link.client else 0
            if rate:
                size = min(size, max(rate // 20, 1))
                await asyncio.sleep(min(size, len(data)) / rate)
            piece, data = data[:size], data[size:]
            await self._loop.sock_sendall(target, piece)
            if target is link.client:
                link.passed += len(piece)
            if most:
                await asyncio.sleep(0)  # the next piece is a packet of its own

    async def _cut(self, how: str) -> int:
        tasks = [link.task for link in self._links if link.task is not None]
        for link in self._links:
            if not link.cut.done():
                link.cut.set_result(how)
        if tasks:
            await asyncio.wait(tasks)
        return len(tasks)

    async def _blacken(self, *, black: bool) -> int:
        for link in self._links:
            link.black = black
            link.moved.set()
        return len(self._links)


def _close(end: socket.socket, *, reset: bool) -> None:
    if reset:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    end.close()
