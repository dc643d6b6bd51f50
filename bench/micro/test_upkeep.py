"""What goes on beside the stream: where everything is settled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from cdc.checkpoints import Checkpointer
from cdc.events import DatabaseEvent, EventType, FixedRow, Kind, Position, Transaction
from cdc.lsn import Lsn
from cdc.patterns import TablePatterns
from cdc.progress import Batch, Ledger
from cdc.pump import Pump
from cdc.signals import SignalManager
from cdc.state import Source, StateStore, StateThread
from cdc.transactions import Assembler, CommitMark, Selection

CALLBACKS = 100
EVENTS = 256
SELECTION = Selection(TablePatterns(["*.*"]))
SOURCE = Source("1", 1, "bench", "bench", "wal2json", "")


class Disk:
    """In the place of state and thread: everything is on the disk at once."""

    def save(self, *_what: object) -> None:
        """Done."""

    async def run(self, function: Callable[..., object], *arguments: object) -> object:
        """Call it here."""
        return function(*arguments)


def event(number: int, kind: Kind, lsn: int) -> DatabaseEvent:
    """An event of a transaction of its own."""
    return DatabaseEvent(number, kind, (), Transaction(Lsn(lsn), 1, "2026-01-01 00:00:00+00"), 1, FixedRow({}))


def test_compute_a_checkpoint_of_100_callbacks(benchmark: Any) -> None:
    """`Checkpointer.save` without the disk, while each callback is in the middle of a batch."""
    kind = Kind(EventType.CREATE, "public", "orders")
    events = [event(number, kind, number) for number in range(1, EVENTS + 1)]
    marks = [CommitMark(number, number) for number in range(1, EVENTS + 1)]

    async def measure() -> Position:
        gate, reached = asyncio.Event(), asyncio.Event()

        async def stops_half_way(one: DatabaseEvent) -> None:
            if one.id == EVENTS // 2:
                reached.set()
                await gate.wait()

        manager = SignalManager()
        for number in range(CALLBACKS):
            manager.add_callback(stops_half_way, name=f"callback-{number}", configured=True)
        assembler, ledger = Assembler(SELECTION), Ledger(CommitMark(0, 0))
        pump = Pump(assembler, ledger, manager)
        batch = Batch(events, marks, EVENTS)
        manager.submit(batch)
        ledger.add(batch)
        pump.frontier = Position(Lsn(EVENTS), 1)
        await reached.wait()
        disk = cast(StateStore, Disk())
        checkpointer = Checkpointer(disk, cast(StateThread, disk), SOURCE, ledger, assembler, manager, pump, 1.0)
        await checkpointer.save()
        # One that saves nothing, for nothing has moved: what is left is the computation.
        benchmark(lambda: _to_its_end(checkpointer.save()))
        assert checkpointer.saved is not None
        settled = checkpointer.saved.callbacks["callback-0"]
        gate.set()
        await manager.shutdown()
        return settled

    assert asyncio.run(measure()) == Position(Lsn(EVENTS // 2), 0)


def _to_its_end(coroutine: Any) -> None:
    """Run a coroutine that waits for nothing, inside a loop that runs already."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits")
