"""`nats` under the contract: a stream of its own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar

import nats
from nats.js.errors import NotFoundError

from tests.handlers.contract import Subject
from tests.handlers.servers import NatsServer

SECONDS = 30  # of our own client; its defaults are too short for a busy machine


class NatsSubject(Subject[NatsServer]):
    """Effects are the messages of the stream."""

    name = "nats"
    wrong_options: ClassVar = {"servers": ["http://host"], "subject": "a b", "stream": "a.b", "replicas": 0}

    def make_server(self) -> NatsServer:
        return self.servers.of(NatsServer)

    def options(self) -> dict[str, Any]:
        return {
            "servers": [self.server.url],
            "subject": f"{self.token}.{{table}}",
            "stream": self.token,
            "create_stream": True,
            "timeout_seconds": 10,
        }

    async def clean_up(self) -> None:
        client = await nats.connect(self.server.url, allow_reconnect=False, connect_timeout=SECONDS)
        try:
            with suppress(NotFoundError):
                await client.jetstream(timeout=SECONDS).delete_stream(self.token)
        finally:
            await client.close()

    async def effects(self) -> Sequence[str]:
        client = await nats.connect(self.server.url, allow_reconnect=False, connect_timeout=SECONDS)
        try:
            stream = client.jetstream(timeout=SECONDS)
            count = (await stream.stream_info(self.token)).state.messages
            consumer = await stream.subscribe(f"{self.token}.>", stream=self.token, ordered_consumer=True)
            messages = [await consumer.next_msg(timeout=SECONDS) for _ in range(count)]
        finally:
            await client.close()
        return [(message.headers or {})["cdc-position"] for message in messages]
