"""`rabbitmq` under the contract: an exchange and a durable queue of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import aio_pika

from tests.handlers.contract import Subject
from tests.handlers.servers import RabbitServer


class RabbitMQSubject(Subject[RabbitServer]):
    """Effects are the message ids in the queue, each once.

    RabbitMQ itself keeps what is published again as one more message; consumers know it by the id.
    """

    name = "rabbitmq"
    slow_because = "the broker writes each message to its disk before it confirms, on the same two cores"
    wrong_options: ClassVar = {"servers": ["amqp://host/"], "routing_key": "a.*", "exchange_type": "queue"}

    def make_server(self) -> RabbitServer:
        return self.servers.of(RabbitServer)

    def options(self) -> dict[str, Any]:
        return {
            "servers": [self.server.address],
            "exchange": self.token,
            "create_exchange": True,
            "timeout_seconds": 10,
        }

    async def prepare(self) -> None:
        async with await aio_pika.connect(self.server.url) as connection:
            channel = await connection.channel()
            await channel.declare_exchange(self.token, "topic", durable=True)
            queue = await channel.declare_queue(self.token, durable=True)
            await queue.bind(self.token, "#")

    async def effects(self) -> Sequence[str]:
        found: dict[str, None] = {}
        async with await aio_pika.connect(self.server.url) as connection:
            queue = await (await connection.channel()).get_queue(self.token)
            while (message := await queue.get(fail=False)) is not None:  # not acknowledged: it is there again after us
                assert message.message_id is not None
                found[message.message_id] = None
        return list(found)

    async def clean_up(self) -> None:
        async with await aio_pika.connect(self.server.url) as connection:
            channel = await connection.channel()
            await channel.queue_delete(self.token)
            await channel.exchange_delete(self.token)
