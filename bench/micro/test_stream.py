"""From bytes to events: reading, decoding, assembling, and converting a row when it is read."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from bench.micro.conftest import SELECTION, Recorded
from bench.micro.libpq import Connection
from cdc.events import DatabaseEvent
from cdc.pump import BATCH_BYTES, BATCH_MESSAGES
from cdc.replication import ReplicationStream
from cdc.transactions import Assembler
from cdc.values import to_json
from cdc.wal2json import Wal2JsonChange, plans

HOUR = 3600.0  # between status updates: none falls into a measurement


def test_read_and_strip_the_wire_messages(benchmark: Any, recorded: Recorded) -> None:
    """`ReplicationStream.read` until nothing is left, libpq's own work left out."""
    connection = Connection(recorded.messages)

    async def read() -> None:
        stream = ReplicationStream(cast("Any", connection), 0, HOUR)
        try:
            benchmark(read_all, connection, stream)
        finally:
            await stream.close()

    asyncio.run(read())


def read_all(connection: Connection, stream: ReplicationStream) -> None:
    """Burst after burst."""
    connection.rewind()
    while stream.read(BATCH_MESSAGES, BATCH_BYTES):
        pass


def test_decode_bursts_of_messages(benchmark: Any, recorded: Recorded) -> None:
    """`Decoder.decode_all`."""
    decoder, bursts = recorded.decoder(), recorded.bursts

    def decode() -> None:
        for burst in bursts:
            decoder.decode_all(burst)

    benchmark(decode)


@pytest.mark.parametrize("max_columns", [0, plans.MAX_COLUMNS], ids=["the-general-way", "by-plan"])
def test_decode_and_read_every_row(
    benchmark: Any, recorded: Recorded, monkeypatch: pytest.MonkeyPatch, max_columns: int
) -> None:
    """`Decoder.decode_all` where callbacks read rows, and all eight columns to Python values."""
    monkeypatch.setattr(plans, "MAX_COLUMNS", max_columns)
    decoder, bursts = recorded.decoder(), recorded.bursts

    def read() -> None:
        for burst in bursts:
            for message in decoder.decode_all(burst)[0]:
                if isinstance(message, Wal2JsonChange):
                    message.payload()

    read()  # from now on rows are known to be read
    benchmark(read)


def test_assemble_messages_into_events(benchmark: Any, recorded: Recorded) -> None:
    """`Assembler.feed`, each time by one that has seen nothing yet."""
    messages = recorded.decoded()
    result = benchmark(lambda: Assembler(SELECTION).feed(messages))
    assert len(result.events) == len(recorded.events())


def test_convert_the_payload_of_rows(benchmark: Any, events: list[DatabaseEvent]) -> None:
    """All eight columns to Python values, from the text."""
    benchmark(lambda: [event.row.payload() for event in events])


def test_write_events_as_json(benchmark: Any, events: list[DatabaseEvent]) -> None:
    """What `file_wal` and its like do with an event whose payload was read."""
    benchmark(lambda: [to_json(event.to_dict()) for event in events])
