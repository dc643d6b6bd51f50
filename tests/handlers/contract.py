"""The contract of every built-in handler, and what a handler's own file tells of it: its `Subject`.

A file `tests/handlers/subject_<short name>.py` with a subclass of `Subject` is all that a handler needs to be held
to the contract. Owns the clauses; must not know any handler.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from cdc import DatabaseEvent
from cdc.config import HandlerConfig
from cdc.loading import load_callback
from cdc.testing import EventStream, HandlerHarness
from tests.handlers.servers import Servers

__all__ = ["Clause", "Subject", "subjects"]


class Clause(Enum):
    """What is asked of a handler; see `tests/handlers/test_contract.py`."""

    DURABLE = "what is settled survives kill -9 of the server right after"
    ONCE = "what is delivered twice has effect once"
    DOWN = "with the server down the event is tried again, and then fails as the policy says"
    BACK = "when the server is back the handler goes on by itself"
    SLOW = "a server that does not answer holds up this handler and no other"
    CANCELLED = "a call that is cancelled leaves the handler fit for the next"
    CLOSE = "close twice, and close without open, do no harm; closed, it can be opened again"
    OPTIONS = "a wrong option is told by its key"


S = TypeVar("S")


class Subject(ABC, Generic[S]):
    """A handler under test and its server; made anew for each test, with a `token` for names of its own there.

    `exempt` tells which clauses cannot be asked of the handler, and why. `wrong_options` are values that the options
    must refuse, by their key. `count` events are delivered: more than one batch, unless each takes long.
    `timeout_seconds` bounds one attempt where a server is down. `bench_options` go before `options()` in the bench,
    where those are made to be hard. `slow_because`: why the handler stays below the bench's target, if it does.
    `variant` tells several subjects of a handler apart there.
    """

    name: ClassVar[str]
    exempt: ClassVar[Mapping[Clause, str]] = {}
    wrong_options: ClassVar[Mapping[str, object]]
    count: ClassVar[int] = 300
    timeout_seconds: ClassVar[float] = 10.0
    bench_options: ClassVar[Mapping[str, Any]] = {}
    slow_because: ClassVar[str] = ""
    variant: ClassVar[str] = ""

    def __init__(self, servers: Servers, folder: Path) -> None:
        self.servers = servers
        self.folder = folder
        self.token = secrets.token_hex(4)
        self.server: S = self.make_server()
        self._stream = EventStream()

    @classmethod
    def label(cls) -> str:
        """Its name and variant."""
        return f"{cls.name}-{cls.variant}" if cls.variant else cls.name

    @abstractmethod
    def make_server(self) -> S:
        """The running server that the handler talks to, a `Server`, mostly ``self.servers.of(RedisServer)``.

        None where there is none; the clauses about it are then exempt. One that is not shared ends in `clean_up`.
        """

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """`[handlers.options]` for that server."""

    @abstractmethod
    async def effects(self) -> Sequence[str]:
        """The positions found at the target (``str(event.position)``), each as often as it had effect there.

        Asked for while the server runs, also after the handler was closed.
        """

    async def prepare(self) -> None:
        """What an operator does beforehand at the server (a stream, a queue, a database), not with the handler."""

    async def clean_up(self) -> None:
        """After the test: what `prepare` has made; the server runs."""

    def events(self, count: int) -> list[DatabaseEvent]:
        """More events, of different records, that all have an effect; the stream goes on with each call."""
        return self._stream.inserts(count, "items")

    def bench_events(self, count: int) -> list[DatabaseEvent]:
        """The same for the bench: small rows, alike for all handlers unless one has no use for them."""
        return self._stream.inserts(count, "items")

    # For the suite ------------------------------------------------------------------------------------

    def load(self, **options: Any) -> Any:
        """The handler, made from the configuration; `options` beside those of the subject."""
        handler = HandlerConfig(callback=self.name, name=self.name, options=self.options() | options)
        return load_callback(handler, self.folder)

    def harness(self, **settings: Any) -> HandlerHarness:
        """The service's pool around a new handler."""
        return HandlerHarness(self.load(), name=self.name, **settings)


async def called(function: Any) -> None:
    """Call `open` or `close` as the pool does: a coroutine function here, another in a thread."""
    if inspect.iscoroutinefunction(function):
        await function()
    else:
        await asyncio.to_thread(function)


def subjects() -> list[type[Subject[Any]]]:
    """The subjects of all files ``subject_*.py`` beside this one."""
    found: list[type[Subject[Any]]] = []
    for file in sorted(Path(__file__).parent.glob("subject_*.py")):
        module = importlib.import_module(f"tests.handlers.{file.stem}")
        found += [
            item
            for item in vars(module).values()
            if inspect.isclass(item)
            and issubclass(item, Subject)
            and item.__module__ == module.__name__
            and not inspect.isabstract(item)
        ]
    return found
