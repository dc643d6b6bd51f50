"""Waiting for conditions instead of sleeping, and a service on the test's own loop to wait for."""

from __future__ import annotations

import asyncio
import inspect
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from cdc.config import Config
from cdc.http import HttpServer
from cdc.service import Phase, Service

POLL_SECONDS = 0.02

CALLBACKS = """
import asyncio

gate = asyncio.Event()
gate.set()
seen = []

async def receive(event):
    await gate.wait()
    seen.append(event)

def fail(event):
    raise ValueError("secret-value")
"""


async def eventually(condition: Callable[[], Awaitable[object] | object], timeout: float = 30) -> None:
    """Return once `condition` (or what it returns, awaited) is true; AssertionError after `timeout` seconds."""
    deadline = asyncio.timeout(timeout)
    try:
        async with deadline:
            while True:
                result = condition()
                if await result if inspect.isawaitable(result) else result:
                    return
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        assert not deadline.expired(), f"not within {timeout} s: {condition}"
        raise


@dataclass(frozen=True, slots=True)
class Running:
    """A service at work with its endpoints; `callbacks` is the module of its handlers."""

    service: Service
    server: HttpServer
    task: asyncio.Task[None]
    client: aiohttp.ClientSession
    callbacks: Any

    async def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
        """Status and body of an endpoint."""
        async with self.client.request(method, self.url(path), headers=headers) as response:
            return response.status, await response.text()

    def url(self, path: str) -> str:
        """Of an endpoint."""
        return f"http://127.0.0.1:{self.server.port}{path}"


def write_callbacks(folder: Path, text: str = CALLBACKS) -> str:
    """The module of the handlers that the tests use, under a name of its own."""
    name = f"callbacks_{secrets.token_hex(4)}"
    (folder / f"{name}.py").write_text(text)
    return name


def make_config(
    dsn: str,
    folder: Path,
    handlers: Mapping[str, str | Mapping[str, Any]] | None = None,
    callbacks: str = CALLBACKS,
    **sections: Any,
) -> Config:
    """A configuration on a free port: handlers by name, each a name in the module `callbacks`, or its settings."""
    module = write_callbacks(folder, callbacks)
    settings = {
        name: {"callback": value} if isinstance(value, str) else value
        for name, value in (handlers or {"audit": "receive"}).items()
    }
    values: dict[str, Any] = {
        "source": {"dsn": dsn, "slot": f"slot_{secrets.token_hex(6)}"},
        "python_path": [folder],
        "state": {"url": f"sqlite:///{folder}/{module}.db", "checkpoint_interval_seconds": 0.05},
        "signal": {"drain_timeout_seconds": 5},
        "http": {"port": 0},
        "handlers": [
            {"name": name} | dict(values) | {"callback": f"{module}:{values['callback']}"}
            for name, values in settings.items()
        ],
    }
    for section, settings in sections.items():
        values[section] = values[section] | settings
    return Config(**values)


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[Running]:
    """Run the service until the end of the block; it streams when the block begins."""
    service = Service(config)
    async with HttpServer(service) as server, aiohttp.ClientSession() as client:
        task = asyncio.create_task(service.run())
        try:
            await eventually(lambda: service.phase is Phase.STREAMING or task.done())
            if task.done():
                task.result()
            module = sys.modules[config.handlers[0].callback.partition(":")[0]]
            yield Running(service, server, task, client, module)
        finally:
            service.stop()
            await task
