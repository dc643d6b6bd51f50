"""From events to callbacks: who wants what, and a lane that walks along its share."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from bench.micro.conftest import Recorded
from cdc.events import DatabaseEvent
from cdc.progress import Batch
from cdc.pump import BATCH_MESSAGES
from cdc.signals import SignalManager


async def no_op(_event: DatabaseEvent) -> None:
    """The callback."""


async def no_op_batch(_events: Sequence[DatabaseEvent]) -> None:
    """The callback that takes batches."""


class TakesBatches:
    """An object with `handle_batch`."""

    handle_batch = staticmethod(no_op_batch)


def batches(events: Sequence[DatabaseEvent]) -> list[Sequence[DatabaseEvent]]:
    """As the pump makes them."""
    return [events[start : start + BATCH_MESSAGES] for start in range(0, len(events), BATCH_MESSAGES)]


@pytest.mark.parametrize(
    "condition",
    [
        {},
        {"tables": ["public.users"]},
        {"event_types": ["create"]},
        {"tags": ["audit:*"]},
        {"exclude_columns": ["note"], "mask_columns": ["customer"]},
    ],
    ids=["everything", "another-table", "creates", "tags", "columns"],
)
def test_select_the_events_of_a_callback(benchmark: Any, events: list[DatabaseEvent], condition: Any) -> None:
    """`Registration.select` of all batches, for ten callbacks with the same condition."""
    manager = SignalManager()
    for _ in range(10):
        manager.add_callback(no_op, **condition)
    parts = [(batch, {event.kind for event in batch}) for batch in batches(events)]
    registrations = list(manager.registry)

    def select() -> None:
        for batch, kinds in parts:
            for registration in registrations:
                registration.select(batch, kinds)

    benchmark(select)


@pytest.mark.parametrize("callbacks", [1, 10, 100])
@pytest.mark.parametrize("callback", [no_op, TakesBatches()], ids=["one-by-one", "batches"])
def test_lanes_walk_along_their_batches(benchmark: Any, orders: Recorded, callbacks: int, callback: object) -> None:
    """Submitted, queued, called and settled: `SignalManager.submit` and `drain`."""
    events = batches(orders.events())

    async def work_off(manager: SignalManager) -> None:
        for batch in events:
            manager.submit(Batch(batch))
        await manager.drain()

    with asyncio.Runner() as runner:
        manager = SignalManager()
        for _ in range(callbacks):
            manager.add_callback(callback)
        benchmark(lambda: runner.run(work_off(manager)))
        stats = manager.get_stats()
        runner.run(manager.shutdown())
    assert stats.events_processed == callbacks * stats.events_emitted > 0
