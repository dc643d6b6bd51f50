"""Tests of `handlers.rabbitmq` with a real rabbitmq-server."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aiormq import spec
from aiormq.channel import Channel
from aiormq.exceptions import ChannelInvalidStateError
from pydantic import ValidationError

from cdc import DatabaseEvent, Lsn, PermanentError, Position
from handlers import rabbitmq_publish
from handlers.rabbitmq import NotConfirmed, RabbitMQ, RabbitMQOptions
from tests.handlers.brokers import PATIENCE_SECONDS, away, certificate, event, events, impatient, opened, taken
from tests.handlers.servers import RabbitServer
from tests.running import wait_until

MAX_MESSAGE = 100_000


class TlsServer(RabbitServer):
    """With a second port, where connections are encrypted; `authority` has signed its certificate."""

    def __init__(self, folder: Path) -> None:
        self.authority, self._key = certificate(folder)
        self.encrypted = ""  # host:port, chosen by each start: a port that somebody has taken meanwhile fails only one
        super().__init__(folder / "rabbit")

    def command(self) -> list[str]:
        self.encrypted = away()
        self._config = (
            f"max_message_size = {MAX_MESSAGE}\n"
            f"listeners.ssl.default = {self.encrypted}\nssl_options.cacertfile = {self.authority}\n"
            f"ssl_options.certfile = {self.authority}\nssl_options.keyfile = {self._key}\n"
        )
        return super().command()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    """One server for all tests: a start takes seconds. Each test has an exchange of its own."""
    with TlsServer(tmp_path_factory.mktemp("tls")) as running:
        yield running


@pytest.fixture(params=["pieces", "documented calls"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a batch is written: as with this release of the library, and as with one whose inside is another."""
    if request.param == "documented calls":
        monkeypatch.setitem(rabbitmq_publish.INTERNALS, "no_such_attribute", int)
    assert isinstance(request.param, str)
    return request.param


def options(server: RabbitServer, name: str = "orders", **more: Any) -> RabbitMQOptions:
    """Of a handler with an exchange called `name`."""
    given = {
        "servers": [server.address],
        "exchange": name,
        "create_exchange": True,
        "timeout_seconds": PATIENCE_SECONDS,
    }
    return RabbitMQOptions.model_validate(given | more)


@asynccontextmanager
async def channel(server: RabbitServer) -> AsyncIterator[AbstractChannel]:
    """Another client of the server."""
    connection = await aio_pika.connect(host="127.0.0.1", port=server.port)
    async with connection:
        yield await connection.channel()


async def bind(
    server: RabbitServer, name: str = "orders", key: str = "#", arguments: dict[str, Any] | None = None
) -> None:
    """A durable queue for what goes to the exchange of that name, which is made first."""
    async with channel(server) as other:
        await other.declare_exchange(name, "topic", durable=True)
        queue = await other.declare_queue(name, durable=True, arguments=arguments)
        await queue.bind(name, key)


async def stored(server: RabbitServer, name: str = "orders") -> list[AbstractIncomingMessage]:
    """All messages of the queue, taken out, in order."""
    messages = []
    async with channel(server) as other:
        queue = await other.get_queue(name)
        while (message := await queue.get(fail=False)) is not None:
            await message.ack()
            messages.append(message)
    return messages


def listens(address: str) -> bool:
    """Whether somebody takes connections there."""
    host, _, port = address.partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def ids(messages: list[AbstractIncomingMessage]) -> list[int]:
    """Of the events in them."""
    return [json.loads(message.body)["id"] for message in messages]


async def test_event_is_a_persistent_message_with_headers_and_json(server: RabbitServer) -> None:
    """Routing key, properties, headers and body of what a consumer gets."""
    await bind(server, "shape", "public.orders.*")
    one = event(3, {"id": 3, "note": "ü"}, tags=["audit"])
    async with opened(RabbitMQ, options(server, "shape")) as handler:
        await handler.handle_batch([one])
    (message,) = await stored(server, "shape")
    assert message.routing_key == "public.orders.create"
    assert (message.message_id, message.delivery_mode, message.type) == ("0/3E8:4", 2, "create")
    assert (message.content_type, message.app_id) == ("application/json", "walsignal")
    assert message.headers["cdc-position"] == "0/3E8:4"
    assert message.headers["cdc-tags"] == "audit"
    assert "x-deduplication-header" not in message.headers
    assert message.body == one.to_json()


async def test_batch_is_queued_in_order(server: RabbitServer, way: str) -> None:
    """256 messages, large and small, as they were given."""
    await bind(server, f"ordered-{way}")
    given = [event(number, {"text": "x" * (50_000 if number % 50 == 0 else 10)}) for number in range(256)]
    async with opened(RabbitMQ, options(server, f"ordered-{way}")) as handler:
        await handler.handle_batch(given)
    assert ids(await stored(server, f"ordered-{way}")) == list(range(256))


async def test_event_delivered_twice_has_the_same_message_id(server: RabbitServer) -> None:
    """RabbitMQ keeps both; by the id a consumer, or the deduplication plugin, knows them."""
    await bind(server, "twice")
    async with opened(RabbitMQ, options(server, "twice", deduplication_header=True)) as handler:
        await handler.handle_batch(events(5))
        await handler.handle_batch(events(5))
    messages = await stored(server, "twice")
    assert len(messages) == 10
    assert {message.message_id for message in messages} == {f"0/3E8:{number}" for number in range(1, 6)}
    assert all(message.headers["x-deduplication-header"] == message.message_id for message in messages)


async def test_unroutable_message_is_an_error_that_names_the_fix(server: RabbitServer) -> None:
    """A queue is bound, and the events go through; no part of the routing key is shown."""
    async with opened(RabbitMQ, options(server, "unbound", routing_key="{record_id}")) as handler:
        with pytest.raises(NotConfirmed, match=r"no queue takes.*bind one, or set `mandatory = false`") as caught:
            await handler.handle_batch([event(0, record_id="hunter2")])
        assert "hunter2" not in repr(caught.value) + repr(caught.value.__cause__)
        await bind(server, "unbound")
        await handler.handle_batch([event(0)])
    assert ids(await stored(server, "unbound")) == [0]


async def test_unroutable_messages_fail_the_batch_and_only_they(server: RabbitServer, way: str) -> None:
    """Of one batch some are routed; each confirm is counted to its own message."""
    await bind(server, f"some-{way}", "*.orders.*")
    users = [DatabaseEvent.of("create", "users", position=Position(Lsn(2000), number)) for number in range(1, 4)]
    mixed = [one for pair in zip(events(3), users, strict=True) for one in pair]
    async with opened(RabbitMQ, options(server, f"some-{way}")) as handler:
        with pytest.raises(NotConfirmed, match="no queue takes"):
            await handler.handle_batch(mixed)
        for user in users:
            with pytest.raises(NotConfirmed, match="no queue takes"):
                await handler.handle_batch([user])
        await handler.handle_batch(events(2))
    assert ids(await stored(server, f"some-{way}")) == [0, 1, 2, 0, 1]


async def test_batch_that_was_given_up_does_not_shift_the_confirms(
    server: RabbitServer, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What is not routed fails afterwards, at whatever point the call before it was cancelled. No row is logged."""
    async with opened(RabbitMQ, options(server, f"shifted-{way}")) as handler:
        for turns in range(6):
            task = asyncio.create_task(handler.handle_batch(events(5)))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(NotConfirmed, match="no queue takes"):
                await handler.handle_batch(events(5))
    assert "record_id" not in caplog.text


async def test_unroutable_message_that_is_not_mandatory_is_settled(server: RabbitServer) -> None:
    """As with any exchange that nobody listens to."""
    async with opened(RabbitMQ, options(server, "nobody", mandatory=False)) as handler:
        await handler.handle_batch(events(3))


async def test_full_queue_that_refuses_is_tried_again(server: RabbitServer, way: str) -> None:
    """The broker's nack is an error; when there is room the events go through."""
    await bind(server, f"full-{way}", arguments={"x-max-length": 3, "x-overflow": "reject-publish"})
    async with opened(RabbitMQ, options(server, f"full-{way}")) as handler:
        await handler.handle_batch(events(3))
        with pytest.raises(NotConfirmed, match="nack"):
            await handler.handle_batch(events(3))
        await stored(server, f"full-{way}")
        await handler.handle_batch(events(3))


async def test_message_beyond_the_brokers_limit_is_permanent(server: RabbitServer, way: str) -> None:
    """The broker ends the channel; the next batch goes through a new one."""
    await bind(server, f"large-{way}")
    async with opened(RabbitMQ, options(server, f"large-{way}")) as handler:
        with pytest.raises(PermanentError, match="max_message_size"):
            await handler.handle_batch([event(0, {"text": "x" * (MAX_MESSAGE + 1)})])
        await handler.handle_batch([event(1)])
    assert ids(await stored(server, f"large-{way}")) == [1]


async def test_headers_that_do_not_fit_into_a_frame_are_permanent(server: RabbitServer) -> None:
    """The broker would end the connection; the largest that are sent go through."""
    await bind(server, "headers")
    async with opened(RabbitMQ, options(server, "headers")) as handler:
        with pytest.raises(PermanentError, match="do not fit into a message's headers"):
            await handler.handle_batch([event(0, record_id="x" * 100_001)])
        await handler.handle_batch([event(1, record_id="x" * 99_000)])
    assert len(await stored(server, "headers")) == 1


async def test_missing_exchange_is_an_error_that_names_the_fix(server: RabbitServer) -> None:
    """Not permanent: an operator makes it, and the events go through."""
    handler = RabbitMQ(options(server, "missing", create_exchange=False))
    try:
        for _ in range(2):
            with pytest.raises(NotConfirmed, match=r"there is no exchange 'missing'.*create_exchange = true"):
                await handler.handle_batch(events(3))
        await bind(server, "missing")
        await handler.handle_batch(events(3))
    finally:
        await handler.close()
    assert ids(await stored(server, "missing")) == [0, 1, 2]


async def test_exchange_of_another_type_is_told(server: RabbitServer) -> None:
    """It is not made anew: somebody uses it."""
    await bind(server, "typed")
    with pytest.raises(NotConfirmed, match="'typed' is there with other properties"):
        await RabbitMQ(options(server, "typed", exchange_type="fanout")).open()


async def test_installed_library_takes_a_batch_in_pieces(server: RabbitServer) -> None:
    """If not: a release has another inside. `rabbitmq` still works, at two thirds of its pace: see rabbitmq_publish."""
    connection = await aio_pika.connect(server.url)
    async with connection:
        below = await (await connection.channel()).get_underlay_channel()
        assert rabbitmq_publish.has_internals(cast("Channel", below))


async def test_server_killed_within_a_batch_fails_it_at_once(
    server: RabbitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never settled, whatever of it had been confirmed; what was settled before is there, and the retry has all."""
    frames_of = rabbitmq_publish._frames

    def frames(message: rabbitmq_publish.Message, size: int) -> Iterator[Any]:
        if message.id == "0/3E8:200":
            server.kill()
        return frames_of(message, size)

    await bind(server, "midst")
    async with opened(RabbitMQ, options(server, "midst", timeout_seconds=60)) as handler:
        await handler.handle_batch(events(100))
        with monkeypatch.context() as patched:
            patched.setattr(rabbitmq_publish, "_frames", frames)
            with pytest.raises(ConnectionError):
                await asyncio.wait_for(handler.handle_batch(events(256)), 40)
        with pytest.raises(ConnectionError):
            await handler.handle_batch(events(256))
        server.start()
        await taken(handler, events(256), TimeoutError, NotConfirmed)  # it may have queues to recover
    found = ids(await stored(server, "midst"))
    assert (found[:100], found[-256:]) == (list(range(100)), list(range(256)))


async def test_channel_that_is_closed_takes_nothing_and_says_so(server: RabbitServer) -> None:
    """What could not be written is an error, also where no confirm is missing."""
    connection = await aio_pika.connect(server.url)
    async with connection:
        below = cast("Channel", await (await connection.channel()).get_underlay_channel())
        await below.close()
        message = rabbitmq_publish.Message("1", "", "nowhere", False, spec.Basic.Properties(message_id="1"), b"{}")
        errors = await rabbitmq_publish.publish(below, [message])
    assert [type(error) for error in errors] == [ChannelInvalidStateError]


async def test_frozen_server_times_out_and_the_retry_comes_after_it(server: RabbitServer) -> None:
    """What was given up is on its way already: it may come twice, and in order."""
    await bind(server, "frozen")
    async with opened(RabbitMQ, options(server, "frozen")) as handler:
        server.freeze()
        try:
            with impatient(handler, 0.5), pytest.raises(TimeoutError, match=r"no confirm of RabbitMQ within 0\.5 s"):
                await handler.handle_batch(events(50))
        finally:
            server.thaw()
        await taken(handler, events(50), TimeoutError, NotConfirmed)
    found = ids(await stored(server, "frozen"))
    assert found[-50:] == list(range(50))
    assert found[:-50] == list(range(len(found) - 50))  # nothing, or how far the first attempt has come


async def test_cancelled_batch_leaves_the_handler_usable(server: RabbitServer, way: str) -> None:
    """At any await; then every event is there."""
    await bind(server, f"cancelled-{way}")
    async with opened(RabbitMQ, options(server, f"cancelled-{way}")) as handler:
        for turns in range(8):
            task = asyncio.create_task(handler.handle_batch(events(256)))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await handler.handle_batch(events(256))
    assert ids(await stored(server, f"cancelled-{way}"))[-256:] == list(range(256))


async def test_lanes_share_one_channel(server: RabbitServer) -> None:
    """Calls at the same time, the first of which connects."""
    await bind(server, "lanes")
    handler = RabbitMQ(options(server, "lanes"))
    try:
        await asyncio.gather(*[handler.handle_batch([event(number)]) for number in range(8)])
    finally:
        await handler.close()
    assert sorted(ids(await stored(server, "lanes"))) == list(range(8))


async def test_close_is_harmless_at_any_time(server: RabbitServer) -> None:
    """Without open, twice, and before it is used again."""
    await bind(server, "closed")
    handler = RabbitMQ(options(server, "closed"))
    await handler.close()
    await handler.open()
    await handler.close()
    await handler.close()
    await handler.handle_batch([event(0)])
    await handler.close()


async def test_server_that_is_away_is_told_by_its_address(server: RabbitServer) -> None:
    """At once; and another server of the list is used instead."""
    nobody = away()
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=f"RabbitMQ at {nobody} cannot be used"):
        await RabbitMQ(options(server, servers=[nobody])).open()
    assert time.monotonic() - began < PATIENCE_SECONDS / 2
    async with opened(RabbitMQ, options(server, "second", servers=[nobody, server.address], mandatory=False)) as other:
        await other.handle_batch([event(0)])


async def test_connection_that_failed_is_closed() -> None:
    """One that is not closes itself where the garbage collector finds it: in a thread without an event loop, too."""
    nobody = away()
    with pytest.raises(ConnectionError) as caught:  # its traceback holds what was made on the way
        await RabbitMQ(RabbitMQOptions(servers=(nobody,), timeout_seconds=PATIENCE_SECONDS)).open()
    (made,) = [one for one in connections() if one.url.authority.endswith(nobody)]
    assert made.is_closed
    assert caught.value.__traceback__ is not None


def connections() -> list[aio_pika.Connection]:
    """All that nothing has freed yet."""
    return [one for one in gc.get_objects() if isinstance(one, aio_pika.Connection)]


async def test_wrong_password_is_told_without_it(server: RabbitServer) -> None:
    """By the broker's word."""
    with pytest.raises(ConnectionError, match="ACCESS_REFUSED") as caught:
        await RabbitMQ(options(server, password="hunter2")).open()
    assert "hunter2" not in repr(caught.value) + repr(caught.value.__cause__)


async def test_encrypted_connection_believes_only_the_authority_of_the_options(server: TlsServer) -> None:
    """The server's own certificate is believed when told so, and refused by the system's authorities."""
    wait_until(lambda: listens(server.encrypted), 60)  # a moment after the plain port
    given: dict[str, Any] = {"servers": [server.encrypted], "tls": True, "mandatory": False}
    async with opened(RabbitMQ, options(server, **given, tls_ca=server.authority)) as handler:
        await handler.handle_batch([event(0)])
    with pytest.raises(ConnectionError, match="certificate"):
        await RabbitMQ(options(server, **given)).open()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"servers": ["amqp://cdc:hunter2@host/"]}, "must be host or host:port"),
        ({"servers": []}, "at least 1"),
        ({"exchange": ""}, "at least 1"),
        ({"exchange_type": "queue"}, "'topic'"),
        ({"routing_key": "a.{nothing}"}, "is unknown"),
        ({"routing_key": "a.#"}, "is not allowed"),
        ({"tls_key": "key.pem"}, "need tls = true"),
        ({"timeout_seconds": 0}, "greater than 0"),
        ({"durable": True}, "Extra inputs"),
    ],
)
def test_wrong_option_is_refused(given: dict[str, Any], problem: str) -> None:
    """At the start, and no value is shown."""
    with pytest.raises(ValidationError, match=problem) as caught:
        RabbitMQOptions.model_validate(given)
    assert "hunter2" not in str(caught.value)
