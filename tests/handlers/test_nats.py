"""Tests of `handlers.nats` with a real nats-server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.msg import Msg
from nats.js.api import StreamConfig, StreamInfo
from nats.js.client import JetStreamContext
from pydantic import ValidationError

from cdc import PermanentError
from handlers.nats import Nats, NatsOptions
from handlers.nats_acks import NotStored
from tests.handlers.brokers import (
    PATIENCE_SECONDS,
    READ_SECONDS,
    away,
    certificate,
    event,
    events,
    impatient,
    opened,
)
from tests.handlers.servers import NatsServer
from tests.waiting import eventually


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """One server for all tests that do not kill it; each has a stream of its own."""
    with NatsServer(tmp_path_factory.mktemp("nats")) as running:
        yield running


def options(server: NatsServer, name: str = "orders", **more: Any) -> NatsOptions:
    """Of a handler with a stream called `name`, for subjects that start with it."""
    subject = f"{name}.{{table}}.{{event_type}}"
    given = {
        "servers": [server.address],
        "subject": subject,
        "stream": name,
        "create_stream": True,
        "timeout_seconds": PATIENCE_SECONDS,
    }
    return NatsOptions.model_validate(given | more)


@asynccontextmanager
async def jetstream(server: NatsServer, **login: Any) -> AsyncIterator[JetStreamContext]:
    """Another client of the server."""
    client = await nats.connect(server.address, allow_reconnect=False, connect_timeout=READ_SECONDS, **login)
    try:
        yield client.jetstream(timeout=READ_SECONDS)
    finally:
        await client.close()


async def info(server: NatsServer, name: str) -> StreamInfo:
    """The stream, as it is."""
    async with jetstream(server) as stream:
        return await stream.stream_info(name)


async def stored(server: NatsServer, name: str) -> list[Msg]:
    """All messages of the stream, in order."""
    async with jetstream(server) as stream:
        count = (await stream.stream_info(name)).state.messages
        subscription = await stream.subscribe(f"{name}.>", stream=name, ordered_consumer=True)
        return [await subscription.next_msg(timeout=READ_SECONDS) for _ in range(count)]


async def test_event_is_a_message_with_headers_and_json(server: NatsServer) -> None:
    """Subject, id, headers and body of what a consumer gets."""
    one = event(3, {"id": 3, "note": "ü"}, tags=["audit"])
    async with opened(Nats, options(server, "shape")) as handler:
        await handler.handle_batch([one])
    (message,) = await stored(server, "shape")
    assert message.subject == "shape.orders.create"
    assert message.headers is not None
    assert message.headers["Nats-Msg-Id"] == message.headers["cdc-position"] == "0/3E8:4"
    assert message.headers["cdc-tags"] == "audit"
    assert message.data == one.to_json()
    assert json.loads(message.data)["payload"] == {"id": 3, "note": "ü"}


async def test_batch_is_stored_in_order(server: NatsServer) -> None:
    """256 messages, as they were given."""
    async with opened(Nats, options(server, "ordered")) as handler:
        await handler.handle_batch(events(256))
    assert [json.loads(message.data)["id"] for message in await stored(server, "ordered")] == list(range(256))


async def test_event_delivered_twice_is_stored_once(server: NatsServer) -> None:
    """By another handler too, as after a restart."""
    async with opened(Nats, options(server, "twice")) as handler:
        await handler.handle_batch(events(10))
        await handler.handle_batch(events(10))
    async with opened(Nats, options(server, "twice")) as handler:
        await handler.handle_batch(events(12))
    assert (await info(server, "twice")).state.messages == 12


async def test_header_that_breaks_the_line_is_escaped(server: NatsServer) -> None:
    """A record id cannot add a header of its own."""
    async with opened(Nats, options(server, "lines")) as handler:
        await handler.handle_batch([event(0, record_id="a\r\nNats-Rollup: all% ")])
    (message,) = await stored(server, "lines")
    assert message.headers is not None
    assert message.headers["cdc-record-id"] == "a%0D%0ANats-Rollup: all%25%20"
    assert "Nats-Rollup" not in message.headers


async def test_stream_is_made_as_the_options_say(server: NatsServer) -> None:
    """Retention, window, and subjects from the template."""
    given = options(server, "made", max_age_seconds=3600, max_bytes="1MiB", duplicate_window_seconds=30, discard="new")
    async with opened(Nats, given):
        config = (await info(server, "made")).config
    assert config.subjects == ["made.*.*"]
    assert (config.max_age, config.max_bytes, config.duplicate_window) == (3600, 2**20, 30)
    assert (config.discard, config.storage, config.num_replicas) == ("new", "file", 1)


async def test_stream_that_is_there_stays_as_it_is(server: NatsServer) -> None:
    """Whoever made it knows why."""
    async with jetstream(server) as stream:
        await stream.add_stream(StreamConfig(name="there", subjects=["there.>"], max_msgs=5))
    async with opened(Nats, options(server, "there", max_bytes="1MiB")) as handler:
        await handler.handle_batch(events(3))
    config = (await info(server, "there")).config
    assert (config.subjects, config.max_msgs, config.max_bytes) == (["there.>"], 5, -1)


async def test_missing_stream_is_an_error_that_names_the_fix(server: NatsServer) -> None:
    """Not permanent: an operator makes the stream, and the events go through."""
    async with opened(Nats, options(server, "missing", create_stream=False)) as handler:
        with pytest.raises(NotStored, match=r"the stream 'missing' is not there.*create_stream = true"):
            await handler.handle_batch(events(3))
        async with jetstream(server) as stream:
            await stream.add_stream(StreamConfig(name="missing", subjects=["missing.>"]))
        await handler.handle_batch(events(3))
    assert (await info(server, "missing")).state.messages == 3


async def test_another_stream_refuses_the_messages(server: NatsServer) -> None:
    """The subject is taken, but not by the stream that the options name."""
    async with jetstream(server) as stream:
        await stream.add_stream(StreamConfig(name="other", subjects=["foreign.>"]))
    async with opened(Nats, options(server, "foreign", create_stream=False)) as handler:
        with pytest.raises(NotStored, match="another stream takes this subject"):
            await handler.handle_batch(events(3))
    assert (await info(server, "other")).state.messages == 0


async def test_message_beyond_max_payload_is_permanent_and_nothing_is_sent(tmp_path: Path) -> None:
    """Headers count, too: the server would end the connection."""
    with NatsServer(tmp_path, "max_payload: 4096") as small:
        async with opened(Nats, options(small)) as handler:
            for large in (event(1, {"text": "x" * 5000}), event(1, {"text": "x" * 3500}, tags=["t" * 600])):
                with pytest.raises(PermanentError, match="max_payload is 4096"):
                    await handler.handle_batch([event(0), large])
            assert (await info(small, "orders")).state.messages == 0
            await handler.handle_batch([event(0)])


async def test_message_beyond_the_streams_own_limit_is_permanent(server: NatsServer) -> None:
    """By the stream's word; the others of the batch are stored."""
    async with jetstream(server) as stream:
        await stream.add_stream(StreamConfig(name="narrow", subjects=["narrow.>"], max_msg_size=2000))
    async with opened(Nats, options(server, "narrow")) as handler:
        with pytest.raises(PermanentError, match="max_msg_size"):
            await handler.handle_batch([event(0), event(1, {"text": "x" * 3000}), event(2)])
    assert (await info(server, "narrow")).state.messages == 2


async def test_full_stream_that_discards_new_messages_may_be_tried_again(server: NatsServer) -> None:
    """Nothing is lost: the events wait until there is room."""
    async with opened(Nats, options(server, "full", max_bytes=2000, discard="new")) as handler:
        with pytest.raises(NotStored, match=r"maximum bytes exceeded.*make room"):
            await handler.handle_batch(events(20))
        async with jetstream(server) as stream:
            await stream.purge_stream("full")
        await handler.handle_batch([event(30)])


async def test_settled_messages_survive_the_kill_of_the_server(tmp_path: Path) -> None:
    """And the handler goes on by itself when the server is back."""
    with NatsServer(tmp_path) as broker:
        async with opened(Nats, options(broker)) as handler:
            await handler.handle_batch(events(256))
            broker.kill()
            for _ in range(2):
                with pytest.raises(ConnectionError):
                    await handler.handle_batch(events(3))
            broker.start()
            await handler.handle_batch([event(300)])
        assert [json.loads(message.data)["id"] for message in await stored(broker, "orders")] == [*range(256), 300]


async def test_lost_connection_fails_what_waits_at_once(tmp_path: Path) -> None:
    """Long before the timeout: no acknowledgement will come any more."""
    with NatsServer(tmp_path) as broker:
        async with opened(Nats, options(broker, timeout_seconds=60)) as handler:
            broker.freeze()
            waiting = asyncio.create_task(handler.handle_batch(events(3)))
            await asyncio.sleep(0)
            began = time.monotonic()
            broker.kill()
            with pytest.raises(ConnectionError):
                await waiting
            assert time.monotonic() - began < 30


async def test_frozen_server_times_out_and_the_retry_keeps_the_order(tmp_path: Path) -> None:
    """What was given up is on its way already; the retry comes after it, and once."""
    with NatsServer(tmp_path) as broker:
        async with opened(Nats, options(broker)) as handler:
            broker.freeze()
            with (
                impatient(handler, 0.5),
                pytest.raises(TimeoutError, match=r"no acknowledgement of the stream 'orders' within 0.5 s"),
            ):
                await handler.handle_batch(events(50))
            broker.thaw()
            await handler.handle_batch(events(60))
        assert [json.loads(message.data)["id"] for message in await stored(broker, "orders")] == list(range(60))


async def test_cancelled_batch_leaves_the_handler_usable(server: NatsServer) -> None:
    """At any await; then everything is there once."""
    async with opened(Nats, options(server, "cancelled")) as handler:
        for turns in range(8):
            server.freeze()
            task = asyncio.create_task(handler.handle_batch(events(256)))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            server.thaw()
        await handler.handle_batch(events(256))
    assert (await info(server, "cancelled")).state.messages == 256


async def test_batch_that_does_not_fit_into_the_socket_times_out_too(server: NatsServer) -> None:
    """A server that reads nothing: the timeout ends the sending itself, and the retry stores everything once."""
    large = [event(number, {"id": number, "text": "x" * 100_000}) for number in range(100)]
    async with opened(Nats, options(server, "socket")) as handler:
        server.freeze()
        try:
            with impatient(handler, 2), pytest.raises(TimeoutError):
                await handler.handle_batch(large)
        finally:
            server.thaw()
        await handler.handle_batch(large)
    assert [json.loads(message.data)["id"] for message in await stored(server, "socket")] == list(range(100))


async def test_lanes_share_one_connection(server: NatsServer) -> None:
    """Calls at the same time, the first of which connects."""
    handler = Nats(options(server, "lanes"))
    try:
        await asyncio.gather(*[handler.handle_batch([event(number)]) for number in range(8)])
    finally:
        await handler.close()
    assert (await info(server, "lanes")).state.messages == 8


async def test_close_is_harmless_at_any_time(server: NatsServer) -> None:
    """Without open, twice, and before it is used again."""
    handler = Nats(options(server, "closed"))
    await handler.close()
    await handler.open()
    await handler.close()
    await handler.close()
    await handler.handle_batch([event(0)])
    await handler.close()


async def test_server_that_is_away_is_told_by_its_address(server: NatsServer) -> None:
    """At once; and another server of the list is used instead."""
    nobody = away()
    with pytest.raises(ConnectionError, match=f"NATS at {nobody} cannot be used"):
        await Nats(options(server, servers=[nobody])).open()
    async with opened(Nats, options(server, "second", servers=[nobody, server.address])) as other:
        await other.handle_batch([event(0)])


async def test_wrong_password_is_told_without_it(tmp_path: Path) -> None:
    """And the right one is let in, by name and by token."""
    with NatsServer(tmp_path, 'authorization { user: cdc, password: "right" }') as broker:
        with pytest.raises(ConnectionError, match=r"[Aa]uthorization") as caught:
            await Nats(options(broker, user="cdc", password="wrong-secret")).open()
        assert "wrong-secret" not in repr(caught.value)
        async with opened(Nats, options(broker, user="cdc", password="right")) as handler:
            await handler.handle_batch([event(0)])
    with NatsServer(tmp_path, 'authorization { token: "right" }') as broker:
        async with opened(Nats, options(broker, token="right")) as handler:
            await handler.handle_batch([event(0)])


async def test_user_who_may_not_publish_is_told_at_once(tmp_path: Path) -> None:
    """The server acknowledges nothing then; nobody waits for the timeout."""
    permissions = 'permissions: { publish: { allow: ["$JS.API.>"] } }'
    with NatsServer(tmp_path, f"authorization {{ users: [ {{ user: cdc, password: x, {permissions} }} ] }}") as broker:
        async with opened(Nats, options(broker, user="cdc", password="x", timeout_seconds=60)) as handler:
            with pytest.raises(PermissionError, match="may not publish to the stream 'orders'"):
                await handler.handle_batch(events(3))


async def test_server_without_jetstream_is_an_error_that_names_the_fix(tmp_path: Path) -> None:
    """When the stream shall be made, and when it shall not."""
    with NatsServer(tmp_path, "jetstream: disabled") as broker:
        with pytest.raises(ConnectionError, match="start it with JetStream"):
            await Nats(options(broker)).open()
        async with opened(Nats, options(broker, create_stream=False)) as handler:
            with pytest.raises(NotStored, match="runs with JetStream"):
                await handler.handle_batch(events(3))


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"servers": ["nats://cdc:hunter2@host"]}, "credentials do not belong into the address"),
        ({"servers": []}, "at least 1"),
        ({"servers": ["http://host"]}, "must be host"),
        ({"subject": "{schema}.x"}, "must start with a fixed word"),
        ({"subject": "$JS.{table}"}, "must start with a fixed word"),
        ({"subject": "a.{nothing}"}, "is unknown"),
        ({"stream": "a.b"}, "without blanks, dots"),
        ({"create_stream": True}, "set `stream`"),
        ({"user": "cdc"}, "`user` and `password`"),
        ({"user": "cdc", "password": "hunter2", "token": "t"}, "`user` and `password`, or `token`"),
        ({"tls_ca": "ca.pem"}, "need tls = true"),
        ({"tls": True, "tls_key": "key.pem"}, "need each other"),
        ({"timeout_seconds": 0}, "greater than 0"),
        ({"duplicate_window": 3}, "Extra inputs"),
    ],
)
def test_wrong_option_is_refused(given: dict[str, Any], problem: str) -> None:
    """At the start, and no value is shown."""
    with pytest.raises(ValidationError, match=problem) as caught:
        NatsOptions.model_validate(given)
    assert "hunter2" not in str(caught.value)


async def test_encrypted_connection_believes_only_the_authority_of_the_options(tmp_path: Path) -> None:
    """The server's own certificate is believed when told so, and refused by the system's authorities."""
    file, key = certificate(tmp_path)
    with NatsServer(tmp_path, f'tls {{ cert_file: "{file}", key_file: "{key}" }}') as broker:
        async with opened(Nats, options(broker, tls=True, tls_ca=file)) as handler:
            await handler.handle_batch([event(0)])
        with pytest.raises(ConnectionError, match="certificate"):
            await Nats(options(broker, tls=True)).open()


async def test_server_without_tls_never_hears_the_password() -> None:
    """With `tls = true` a server that does not offer it is refused before the login."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.9.10","headers":true,"max_payload":1048576}\r\n')
        heard.append(await reader.read())
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as fake:
        port = fake.sockets[0].getsockname()[1]
        given = NatsOptions.model_validate(
            {"servers": [f"127.0.0.1:{port}"], "tls": True, "user": "cdc", "password": "hunter2"}
        )
        with pytest.raises(ConnectionError, match="does not offer TLS"):
            await Nats(given).open()
        await eventually(lambda: heard)  # all that was said, to the end of the connection
    assert b"hunter2" not in b"".join(heard)
