"""`redis_stream` under the contract: a stream of its own in the shared Redis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from redis.asyncio import Redis

from tests.handlers.contract import Subject
from tests.handlers.servers import RedisServer


class RedisStreamSubject(Subject[RedisServer]):
    """Effects are the entries of the stream."""

    name = "redis_stream"
    wrong_options: ClassVar = {"url": "http://secret-value", "stream": "a:{", "entry_ids": "x", "max_length": 0}

    def make_server(self) -> RedisServer:
        return self.servers.of(RedisServer)

    def options(self) -> dict[str, Any]:
        return {"url": self.server.url, "stream": f"{self.token}:{{table_name}}", "answer_seconds": 10}

    async def effects(self) -> Sequence[str]:
        async with Redis.from_url(self.server.url, decode_responses=True) as client:
            entries: Any = await client.xrange(f"{self.token}:items")
        return [fields["position"].split()[0] for _, fields in entries]
