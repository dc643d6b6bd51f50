"""The `rabbitmq` handler: every event a persistent message on an exchange, settled by the broker's confirm.

Owns the connection, the exchange's declaration and the meaning of the broker's refusals. It must not use the
library's robust connection: its channels wait for the broker without an end, where the pool wants to hear of it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from contextlib import suppress
from typing import cast

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import (
    AMQPError,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
    PublishError,
)
from aiormq import spec
from aiormq.channel import Channel
from aiormq.exceptions import ChannelAccessRefused

from cdc import DatabaseEvent, PermanentError
from handlers.messages import Template, message_headers, message_id
from handlers.rabbitmq_options import ROUTING_KEY, RabbitMQOptions
from handlers.rabbitmq_publish import Message, publish

__all__ = ["NotConfirmed", "RabbitMQ", "RabbitMQOptions"]

PERSISTENT = 2  # delivery mode
MAX_HEADER_BYTES = 100_000  # all properties are one frame, by default of 131,072 bytes; a longer one ends all
HEARTBEAT_SECONDS = 10  # a broker that is silent for three of them is gone
CLOSE_SECONDS = 2.0  # a broker that hangs must not hold up the end of the service
AMQP_PORT, AMQPS_PORT = 5672, 5671


# It logs what it raises as well, each attempt to connect, and messages that are returned late with their bodies.
logging.getLogger("aiormq").setLevel(logging.CRITICAL)


class _Connection(aio_pika.Connection):
    """Closed when it cannot be made: the library's would close itself where the garbage collector finds it."""

    async def connect(self, timeout: float | None = None) -> None:
        try:
            await super().connect(timeout)
        except BaseException:
            await self.close()
            raise


class NotConfirmed(Exception):
    """The broker has not taken a message; another attempt may succeed."""


class RabbitMQ:
    """Publish each event; settled when the broker has confirmed it.

    All of a batch is sent, then all confirms are awaited. `message_id` is the event's position: RabbitMQ delivers
    what is published again once more, and consumers know it by that.

    Errors: `PermanentError` for a message that is too large or whose routing key cannot be made; everything else
    (`ConnectionError`, `TimeoutError`, `NotConfirmed`) may pass and is worth another attempt.
    """

    def __init__(self, options: RabbitMQOptions) -> None:
        self._options = options
        self._routing_key = Template(options.routing_key, ROUTING_KEY)
        self._connecting = asyncio.Lock()
        self._is_given_up = False  # an attempt, whose answers may still come over this connection
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None

    async def open(self) -> None:
        """Connect, and declare the exchange when told."""
        async with asyncio.timeout(self._options.timeout_seconds):
            await self._connected()

    async def handle_batch(self, events: Sequence[DatabaseEvent]) -> None:
        """Publish the events in order; returns when the broker has confirmed all of them."""
        messages = [self._message(event) for event in events]
        try:
            async with asyncio.timeout(self._options.timeout_seconds):
                errors = await self._publish(await self._connected(), messages)
        except TimeoutError as error:
            raise TimeoutError(f"no confirm of RabbitMQ within {self._options.timeout_seconds:g} s") from error
        if errors:
            raise self._error_of(errors[0]) from None  # the library's text holds the routing key

    async def close(self) -> None:
        """Close the connection; a second call does nothing."""
        self._is_given_up = False
        connection, self._connection = self._connection, None
        channel, self._channel = self._channel, None
        with suppress(AMQPError, OSError, TimeoutError, RuntimeError):
            async with asyncio.timeout(CLOSE_SECONDS):
                if connection is not None:
                    await connection.close()
                if channel is not None:
                    await channel.closed()  # the library's tasks of it, which nobody else holds, come to their end

    def _message(self, event: DatabaseEvent) -> Message:
        key = message_id(event)
        headers = message_headers(event)
        if sum(map(len, headers.values())) * 4 > MAX_HEADER_BYTES:  # at most four bytes a character
            size = sum(len(value.encode()) for value in headers.values())
            if size > MAX_HEADER_BYTES:
                raise PermanentError(f"{size} bytes of record id and tags do not fit into a message's headers")
        if self._options.deduplication_header:
            headers["x-deduplication-header"] = key
        properties = spec.Basic.Properties(
            content_type="application/json",
            content_encoding="utf-8",
            headers=dict(headers),
            delivery_mode=PERSISTENT,
            message_id=key,
            timestamp=event.timestamp,
            message_type=event.kind.event_type.value,
            app_id="walsignal",
        )
        options = self._options
        return Message(
            key, options.exchange, self._routing_key.of(event), options.mandatory, properties, event.to_json()
        )

    async def _publish(self, channel: AbstractChannel, messages: Sequence[Message]) -> list[BaseException]:
        try:
            return await publish(cast("Channel", await channel.get_underlay_channel()), messages)
        except BaseException:
            self._is_given_up = True
            raise

    async def _connected(self) -> AbstractChannel:
        async with self._connecting:  # lanes share one channel
            # Returned messages are known by their id alone: the channel of an attempt that was given up would take
            # its for those of the retry.
            if self._channel is None or self._channel.is_closed or self._is_given_up:
                await self.close()
                try:
                    self._connection = await self._connect()
                    self._channel = await self._connection.channel(on_return_raises=True)
                    await self._find_exchange(self._channel)
                except AMQPError as error:
                    await self.close()
                    raise self._error_of(error) from error
                except BaseException:
                    await self.close()
                    raise
            return self._channel

    async def _connect(self) -> AbstractConnection:
        """To the first broker that answers; ConnectionError with what the last one said."""
        options = self._options
        context = options.tls_context()
        failure = ConnectionError("the options name no server")
        for server in random.sample(options.servers, len(options.servers)):
            host, port = _address(server, AMQPS_PORT if options.tls else AMQP_PORT)
            try:
                return await aio_pika.connect(
                    host=host,
                    port=port,
                    login=options.user,
                    password=options.password.get_secret_value(),
                    virtualhost=options.virtual_host,
                    ssl=options.tls,
                    ssl_context=context,
                    timeout=options.timeout_seconds,
                    heartbeat=HEARTBEAT_SECONDS,
                    connection_class=_Connection,
                )
            except (AMQPError, OSError) as error:
                failure = ConnectionError(f"RabbitMQ at {server} cannot be used: {error}")
        raise failure

    async def _find_exchange(self, channel: AbstractChannel) -> None:
        if self._options.create_exchange:
            await channel.declare_exchange(self._options.exchange, self._options.exchange_type, durable=True)
        else:
            await channel.get_exchange(self._options.exchange)  # asks the broker whether it is there

    def _error_of(self, error: BaseException) -> Exception:
        """What the operator and the pool make of it."""
        if isinstance(error, ChannelPreconditionFailed) and "message size" in str(error):
            return PermanentError("the message is larger than the broker's max_message_size")
        exchange = self._options.exchange
        for kind, made, text in _REFUSALS:
            if isinstance(error, kind):
                return made(text.format(exchange=exchange, routing_key=self._options.routing_key, reason=error))
        return ConnectionError(f"the connection to RabbitMQ was lost ({type(error).__name__})")


# In this order: the first is a kind of the second. None of them is permanent: an operator mends the broker, and the
# events go through.
_REFUSALS: Sequence[tuple[type[Exception], type[Exception], str]] = (
    (
        PublishError,
        NotConfirmed,
        "no queue takes what goes to {exchange!r} under {routing_key!r}: bind one, or set `mandatory = false`",
    ),
    (DeliveryError, NotConfirmed, "the broker has refused a message (nack): a queue is full, or could not write"),
    (
        ChannelNotFoundEntity,
        NotConfirmed,
        "there is no exchange {exchange!r}: make it, or set `create_exchange = true`",
    ),
    (
        ChannelPreconditionFailed,
        NotConfirmed,
        "the exchange {exchange!r} is there with other properties: correct `exchange_type` ({reason})",
    ),
    (ChannelAccessRefused, PermissionError, "the RabbitMQ user may not do this: {reason}"),
)


def _address(server: str, default_port: int) -> tuple[str, int]:
    host, colon, port = server.rpartition(":")
    if not colon or "]" in port:  # no port, and it may be a bare IPv6 address in brackets
        host, port = server, str(default_port)
    return host.strip("[]"), int(port)
