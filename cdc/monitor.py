"""Watches the slot from outside, over an ordinary connection: how far the server is, what it keeps for us.

Also looks at the catalog again from time to time, and knows at once when the server is being stopped. What it
cannot learn it leaves as it was; the stream does not depend on it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from time import monotonic

import psycopg
import structlog

from cdc.catalog import Catalog
from cdc.config import SlotGuardConfig
from cdc.errors import CdcError
from cdc.guard import Guard, Level
from cdc.lookout import Lookout
from cdc.lsn import Lsn
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
    """What the server says of itself and of the slot; None until it was asked.

    `on_server_stopping` is called on the event loop when a fast stop begins; it is over when `server_stopping`
    is None again.
    """

    def __init__(self, dsn: str, slot: str, limits: SlotGuardConfig | None = None) -> None:
        self._slot = slot
        self._lookout = Lookout(dsn)
        self._lookout.on_stopping = self._server_is_stopping
        self._lookout.on_end = self.look_soon
        self._catalog_time = monotonic()
        self._wanted = asyncio.Event()
        self._marks: deque[tuple[int, float]] = deque(maxlen=MARKS)
        self.guard = Guard(limits or SlotGuardConfig())
        self.on_server_stopping: Callable[[], None] | None = None
        self.catalog: Catalog | None = None
        self.slot: SlotInfo | None = None
        self.server_lsn: Lsn | None = None
        self.looked_time: float | None = None  # monotonic seconds

    @property
    def server_stopping(self) -> float | None:
        """Since when the server is being stopped (fast: it waits for nobody but us), monotonic seconds."""
        return self._lookout.stopping

    @property
    def is_invalidated(self) -> bool:
        """Whether the server has given up the slot: changes are lost."""
        return self.slot is not None and self.slot.invalidation != ""

    def seconds_behind(self, received: int) -> float:
        """For how long the server has been past `received`, to the precision of `SLOT_SECONDS`; 0 when it is not."""
        while self._marks and self._marks[0][0] <= received:
            self._marks.popleft()
        return monotonic() - self._marks[0][1] if self._marks else 0.0

    async def run(self) -> None:
        """Look again and again, for ever."""
        while True:
            if await self._was_terminated():
                continue  # is it only our connection, or is the server stopping? the next one tells
            self._lookout.watch()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SLOT_SECONDS):
                    await self._wanted.wait()
            self._wanted.clear()

    async def _was_terminated(self) -> bool:
        """Look; True when the connection for it was open, and the server has ended it on purpose."""
        try:
            await self.look()
        except (psycopg.Error, CdcError, OSError) as error:
            log.debug("monitor_failed", error=type(error).__name__)
            return await self._lookout.failed(error)
        return False

    def look_soon(self) -> None:
        """Look now: the slot has come into being, or a new connection holds it."""
        self._wanted.set()

    async def look(self) -> None:
        """Ask the server once."""
        connection = await self._lookout.connection()
        row = await (await connection.execute(slot_query(self._slot))).fetchone()
        self._note(SlotInfo.of(row[0]) if row else None)
        if self.catalog is not None and monotonic() - self._catalog_time >= CATALOG_SECONDS:
            self._catalog_time = monotonic()
            await self.catalog.refresh()

    def _note(self, slot: SlotInfo | None) -> None:
        self.slot = slot
        self.server_lsn = slot.server_lsn if slot else None
        self.looked_time = monotonic()
        if self.server_lsn is not None:
            self._marks.append((self.server_lsn, self.looked_time))
        for finding in self.guard.note(slot, self.looked_time):
            if finding.level is Level.FINE:
                log.info("slot_guard_over", slot=self._slot, figure=finding.figure)
            else:
                log.warning("slot_guard", slot=self._slot, figure=finding.figure, found=finding.text)

    def _server_is_stopping(self) -> None:
        log.warning("server_stopping", hint="it waits until we have confirmed all that it has sent")
        if self.on_server_stopping is not None:
            self.on_server_stopping()

    async def close(self) -> None:
        """End the connection."""
        await self._lookout.close()
