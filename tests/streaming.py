"""A real slot's events for the tests: session and pump as the service runs them, and a callback that records."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from cdc.config import SourceConfig
from cdc.events import DatabaseEvent, EventType
from cdc.patterns import TablePatterns
from cdc.progress import Ledger
from cdc.pump import Pump
from cdc.session import Session
from cdc.signals import SignalManager
from cdc.transactions import Assembler, CommitMark, Selection, TagRule
from tests.conftest import Database

SENTINEL = "sentinel_of_the_tests"


@dataclass(slots=True)
class Stream:
    """What a slot gives; `recorded` are all events but those of the sentinel table."""

    database: Database
    assembler: Assembler
    missing_identity: Counter[str]
    pumping: asyncio.Task[None]
    recorded: list[DatabaseEvent] = field(default_factory=list)
    _sentinel: asyncio.Future[None] | None = None

    async def record(self, event: DatabaseEvent) -> None:
        """The callback."""
        if event.table_name != SENTINEL:
            self.recorded.append(event)
        elif self._sentinel is not None and not self._sentinel.done():
            self._sentinel.set_result(None)

    async def events_of(self, *statements: str) -> list[DatabaseEvent]:
        """Run each string as one transaction; all events that come of them."""
        for statement in statements:
            self.database.execute(statement)
        return await self.events()

    async def events(self) -> list[DatabaseEvent]:
        """All new events of what was committed before now."""
        self._sentinel = asyncio.get_running_loop().create_future()
        self.database.execute(f"INSERT INTO {SENTINEL} DEFAULT VALUES")
        await asyncio.wait([self._sentinel, self.pumping], return_when=asyncio.FIRST_COMPLETED)
        if not self._sentinel.done():
            self.pumping.result()  # why the stream has ended
        new, self.recorded = self.recorded, []
        return new


@asynccontextmanager
async def streaming(
    database: Database,
    *,
    tables: Sequence[str] = ("*.*",),
    exclude_tables: Sequence[str] = (),
    rules: Sequence[TagRule] = (),
    event_types: Sequence[EventType] = tuple(EventType),
    **selected: object,
) -> AsyncIterator[Stream]:
    """Create a slot in `database` and stream from it; `selected` goes to the selection."""
    database.execute(f"CREATE TABLE {SENTINEL} (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY)")
    config = SourceConfig(dsn=database.dsn, slot=database.name)
    patterns = TablePatterns([*tables, f"public.{SENTINEL}"], exclude_tables)
    selection = Selection(patterns, tag_rules=rules, **selected)  # type: ignore[arg-type]
    missing: Counter[str] = Counter()
    session = await Session.open(config, selection, None, received=0, accept_gap=False, missing_identity=missing)
    assembler = Assembler(selection, flushed=session.resume.lsn)
    async with SignalManager() as manager:
        pump = Pump(assembler, Ledger(CommitMark(session.resume.lsn, 0)), manager)
        pumping = asyncio.create_task(pump.run(session.stream, session.decoder))
        stream = Stream(database, assembler, missing, pumping)
        manager.add_callback(stream.record, event_types=event_types)
        try:
            yield stream
        finally:
            pump.stop()
            await asyncio.wait([pumping])
            await session.stream.close()
    if not pumping.cancelled():
        pumping.exception()  # the test has seen it in `events`, or is failing already
