"""`cache` under the contract: keys with a prefix of its own in the shared Redis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from redis.asyncio import Redis

from cdc import Lsn, Position
from tests.handlers.contract import Subject
from tests.handlers.servers import RedisServer


class CacheSubject(Subject[RedisServer]):
    """Effects are the keys that are there, each with the position beside it."""

    name = "cache"
    wrong_options: ClassVar = {"rules": [{"key": "{record_id}"}], "tombstone_seconds": 0, "durability": "x"}

    def make_server(self) -> RedisServer:
        return self.servers.of(RedisServer)

    def options(self) -> dict[str, Any]:
        rule = {"key": f"{self.token}:{{record_id}}", "action": "json"}
        return {"url": self.server.url, "durability": "fsync", "rules": [rule], "answer_seconds": 10}

    async def effects(self) -> Sequence[str]:
        async with Redis.from_url(self.server.url, decode_responses=True) as client:
            keys: Any = await client.keys(f"{self.token}:*")
            marks: Any = await client.mget([f"cdc:position:{key}" for key in keys])
        return [str(Position(Lsn(int(mark[:20])), int(mark[20:]))) for mark in marks]
