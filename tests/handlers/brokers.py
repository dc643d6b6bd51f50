"""What the brokers' tests share: events, a certificate, and a Kafka that is librdkafka's mock cluster.

Must not know a handler. The mock keeps everything in the memory of its process: what it was sent is gone with it.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from confluent_kafka import Consumer, Message, TopicPartition

from cdc import DatabaseEvent, Lsn, Position
from cdc.demo.processes import free_port
from tests.handlers.servers import ServerProcess

READ_SECONDS = 30.0
TAKEN_SECONDS = 60.0
PATIENCE_SECONDS = 30.0
"""`timeout_seconds` of handlers whose timeout is not what a test is about."""


class Takes(Protocol):
    """A handler of coroutines, for many events at once."""

    async def handle_batch(self, events: Sequence[DatabaseEvent]) -> None:
        """Take them."""


class Opens(Protocol):
    """A handler of coroutines."""

    async def open(self) -> None:
        """Connect."""

    async def close(self) -> None:
        """Disconnect."""


Options = TypeVar("Options")
H = TypeVar("H", bound=Opens)


@asynccontextmanager
async def opened(kind: Callable[[Options], H], options: Options) -> AsyncIterator[H]:
    """A handler with these options, closed at the end of the block."""
    handler = kind(options)
    try:
        await handler.open()
        yield handler
    finally:
        await handler.close()


async def persistently(call: Callable[[], Awaitable[None]], *passing: type[Exception]) -> None:
    """Call until it returns, as the pool would, while errors of these kinds are raised.

    Where a test is about a short timeout, that of the handler, a busy machine may run into it at other times, too.
    """
    async with asyncio.timeout(TAKEN_SECONDS):
        while True:
            try:
                return await call()
            except passing:
                await asyncio.sleep(0.05)


async def taken(handler: Takes, batch: Sequence[DatabaseEvent], *passing: type[Exception]) -> None:
    """Give it the batch until it takes it: see `persistently`."""
    await persistently(lambda: handler.handle_batch(batch), *passing)


@contextmanager
def impatient(handler: Any, seconds: float) -> Iterator[None]:
    """Its `timeout_seconds` is so short in the block: neither for its connection before, nor for a retry after it."""
    options = handler._options
    handler._options = options.model_copy(update={"timeout_seconds": seconds})
    try:
        yield
    finally:
        handler._options = options


def event(number: int, payload: Mapping[str, Any] | None = None, **fields: Any) -> DatabaseEvent:
    """The event of that number, at a position of its own."""
    given: dict[str, Any] = {"record_id": str(number), "position": Position(Lsn(1000), number + 1)}
    return DatabaseEvent.of("create", "orders", payload or {"id": number}, id=number, **given | fields)


def events(count: int) -> list[DatabaseEvent]:
    """Events from 0."""
    return [event(number) for number in range(count)]


def away() -> str:
    """host:port of nobody."""
    return f"127.0.0.1:{free_port()}"


def certificate(folder: Path) -> tuple[Path, Path]:
    """Of 127.0.0.1, signed by itself, and its key."""
    files = folder / "certificate.pem", folder / "key.pem"
    names = ["-subj", "/CN=walsignal-test", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run(
        [*command, *names, "-days", "2", "-out", files[0], "-keyout", files[1]], check=True, capture_output=True
    )
    return files


# The mock takes ports of its own choice at every start. So that a client finds it again, the process also listens on
# a port that stays, and passes on what comes there.
MOCK = """
import socket, sys, threading
from confluent_kafka import Producer

mock = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "mock", "log_level": 0})
(broker,) = mock.list_topics(timeout=60).brokers.values()

def pass_on(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    finally:
        for one in (source, target):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as server:
    while True:
        client, _ = server.accept()
        behind = socket.create_connection((broker.host, broker.port))
        for pair in ((client, behind), (behind, client)):
            threading.Thread(target=pass_on, args=pair, daemon=True).start()
"""


class KafkaMock(ServerProcess):
    """One broker, idempotent producers included; topics are made when first written to, with four partitions."""

    program = "kafka-mock"

    def command(self) -> list[str]:
        return [sys.executable, "-c", MOCK, str(self.port)]

    def is_ready(self, connection: socket.socket) -> bool:  # noqa: ARG002 - it says nothing by itself
        return True  # the port that stays opens last

    def records(self, topics: list[str]) -> list[Message]:
        """All records of these topics, each partition in order; AssertionError when they cannot be read."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.address,
                "group.id": "test",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 10,  # the mock answers a fetch at the end of its time, half a second by default
                "log_level": 0,
            }
        )
        try:
            return [record for topic in topics for record in _all_of(consumer, topic)]
        finally:
            consumer.close()


def _all_of(consumer: Consumer, topic: str) -> list[Message]:
    found = []
    known = consumer.list_topics(topic, timeout=READ_SECONDS).topics[topic]
    for partition in known.partitions:
        low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=READ_SECONDS)
        consumer.assign([TopicPartition(topic, partition, low)])
        for _ in range(high - low):
            record = consumer.poll(READ_SECONDS)
            assert record is not None, f"{topic} cannot be read"
            assert record.error() is None, record.error()
            found.append(record)
    return found
