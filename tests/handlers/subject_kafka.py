"""`kafka` under the contract: librdkafka's mock cluster, which is made anew for each test."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from tests.handlers.brokers import KafkaMock
from tests.handlers.contract import Clause, Subject

TOPIC = "events"


class KeptKafkaMock(KafkaMock):
    """Reads what it holds before it is killed: a broker would have it on its disk."""

    kept: Sequence[str] = ()

    def kill(self) -> None:
        if self.is_running:
            self.thaw()
            self.kept = self.positions()
        super().kill()

    def positions(self) -> list[str]:
        """Of all records, also of those before the last kill."""
        found = list(self.kept)
        for record in self.records([TOPIC]):
            position = dict(record.headers() or [])["cdc-position"]
            assert isinstance(position, bytes)
            found.append(position.decode())
        return found


class KafkaSubject(Subject[KeptKafkaMock]):
    """Effects are the position headers, each once.

    What is delivered again is a second record; consumers know it by that header.
    """

    name = "kafka"
    exempt: ClassVar[Mapping[Clause, str]] = {
        Clause.DURABLE: "the mock cluster keeps records in the memory of its process only",
    }
    wrong_options: ClassVar = {"servers": ["host"], "topic": "a/b", "compression": "rar"}

    def make_server(self) -> KeptKafkaMock:
        mock = KeptKafkaMock(self.folder / "kafka")
        mock.start()
        return mock

    def options(self) -> dict[str, Any]:
        return {"servers": [self.server.address], "topic": TOPIC, "timeout_seconds": 3}

    async def effects(self) -> Sequence[str]:
        return list(dict.fromkeys(await asyncio.to_thread(self.server.positions)))

    async def clean_up(self) -> None:
        await asyncio.to_thread(self.server.kill)
