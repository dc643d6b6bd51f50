"""Watches the slot from outside, over an ordinary connection: how far the server is, what it keeps for us.

Also looks at the catalog again from time to time. What it cannot learn it leaves as it was; the stream
does not depend on it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from time import monotonic
from typing import Any

import psycopg
import structlog

from cdc.catalog import Catalog
from cdc.errors import CdcError
from cdc.lsn import Lsn
from cdc.replication.connection import source_conninfo
from cdc.slots import SlotInfo, slot_query

__all__ = ["Monitor"]

log = structlog.get_logger("cdc.monitor")

SLOT_SECONDS = 5.0
"""Lag and retained WAL are read by people and alerts; one cheap query each."""
CATALOG_SECONDS = 15.0
"""How stale the list of TOAST columns may be after an ALTER TABLE; two queries of some milliseconds."""

MARKS = 720
"""Positions of the server that are remembered while we are behind: an hour of them. One further behind is an
hour late at least, and that is what it says."""


class Monitor:
    """What the server says of itself and of the slot; None until it was asked."""

    def __init__(self, dsn: str, slot: str) -> None:
        self._dsn = source_conninfo(dsn)
        self._slot = slot
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._catalog_time = monotonic()
        self._wanted = asyncio.Event()
        self.catalog: Catalog | None = None
        self.slot: SlotInfo | None = None
        self.server_lsn: Lsn | None = None
        self.looked_time: float | None = None  # monotonic seconds
        self._marks: deque[tuple[int, float]] = deque(maxlen=MARKS)

    def seconds_behind(self, received: int) -> float:
        """For how long the server has been past `received`, to the precision of `SLOT_SECONDS`; 0 when it is not."""
        while self._marks and self._marks[0][0] <= received:
            self._marks.popleft()
        return monotonic() - self._marks[0][1] if self._marks else 0.0

    async def run(self) -> None:
        """Look again and again, for ever."""
        while True:
            try:
                await self.look()
            except (psycopg.Error, CdcError, OSError) as error:
                log.debug("monitor_failed", error=type(error).__name__)
                await self.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SLOT_SECONDS):
                    await self._wanted.wait()
            self._wanted.clear()

    def look_soon(self) -> None:
        """Look now: the slot has come into being, or a new connection holds it."""
        self._wanted.set()

    async def look(self) -> None:
        """Ask the server once."""
        if self._connection is None:
            self._connection = await psycopg.AsyncConnection.connect(self._dsn, autocommit=True)
        row = await (await self._connection.execute(slot_query(self._slot))).fetchone()
        self.slot = SlotInfo.of(row[0]) if row else None
        self.server_lsn = self.slot.server_lsn if self.slot else None
        self.looked_time = monotonic()
        if self.server_lsn is not None:
            self._marks.append((self.server_lsn, self.looked_time))
        if self.catalog is not None and monotonic() - self._catalog_time >= CATALOG_SECONDS:
            self._catalog_time = monotonic()
            await self.catalog.refresh()

    async def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None
