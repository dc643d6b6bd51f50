"""What waits to be parked: the events of one removed callback, on their way to where they are kept.

They stay unsettled until they are kept, or counted as missed. Order does not matter to those that keep them,
but to the range that is missed when there is no more room: so one write after the other, from the front.
While the callback is paused or being resumed nothing is missed: what finds no room stays here, and holds the slot.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from cdc.callbacks import CallbackState, Registration
from cdc.events import DatabaseEvent
from cdc.progress import Share

__all__ = ["Keep", "Parking"]

Keep = Callable[[Registration, Sequence[DatabaseEvent]], Awaitable[int]]
"""Keeps events durably, and returns how many of them, from the front: for the rest there is no room."""

MAX_EVENTS = 2_000
"""Per write: one fsync for some megabytes at most."""
ROOM_SECONDS = 0.2
"""Between two looks for room, while a callback is paused or resumed: nothing of the stream may be missed then."""


GIVES_UP_NOTHING = frozenset({CallbackState.PAUSED, CallbackState.RESUMING})


class Parking:
    """See the module. Lives on one event loop."""

    def __init__(self, registration: Registration, keep: Keep, broke: Callable[[BaseException], None]) -> None:
        self._registration = registration
        self._keep = keep
        self._broke = broke  # told of a mistake of ours that has ended it
        self._shares: deque[Share] = deque()
        self._task: asyncio.Task[None] | None = None
        self._paused = False
        self.waits_for_room = False

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being written, and nothing will be."""
        return self._task is None

    def first_unsettled(self) -> DatabaseEvent | None:
        """The first event that is not kept yet."""
        first = [share.first_unsettled() for share in self._shares]
        return min(first, key=lambda event: event.position, default=None)

    def put(self, share: Share) -> None:
        """Queue one more share."""
        self._shares.append(share)
        self._go_on()

    async def pause(self) -> None:
        """Begin no other write; returns when the one in work has ended."""
        self._paused = True
        if self._task is not None:
            await asyncio.wait([self._task])

    async def written(self) -> None:
        """Until all is kept, or counted as missed."""
        while self._task is not None:
            await asyncio.wait([self._task])

    def go_on(self) -> None:
        """Write again, after `pause`."""
        self._paused = False
        self._go_on()

    def take(self) -> list[Share]:
        """While paused: what is not written, in order. It is the caller's now."""
        shares = list(self._shares)
        self._shares.clear()
        return shares

    def close(self) -> None:
        """Stop at once; what is not kept stays unsettled."""
        self._paused = True
        if self._task is not None:
            self._task.cancel()

    def _go_on(self) -> None:
        if self._task is None and self._shares and not self._paused:
            name = f"cdc-parking-{self._registration.name}"
            self._task = asyncio.get_running_loop().create_task(self._work_off(), name=name)

    async def _work_off(self) -> None:
        try:
            while self._shares and not self._paused:
                await self._write(self._front())
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody else would hear of it
            self._broke(error)
        finally:
            self._task = None
            self.waits_for_room = False

    def _front(self) -> list[Share]:
        front: list[Share] = []
        events = 0
        for share in self._shares:
            front.append(share)
            events += len(share.events)
            if events >= MAX_EVENTS:
                break
        return front

    async def _write(self, shares: Sequence[Share]) -> None:
        events = [event for share in shares for event in share.waiting()]
        kept = await self._keep(self._registration, events)
        self._registration.outcomes["parked"] += kept
        self.waits_for_room = kept < len(events) and self._registration.state in GIVES_UP_NOTHING
        if self.waits_for_room:
            self._settle(shares, kept)
            await asyncio.sleep(ROOM_SECONDS)  # what was parked is on its way out, or an operator makes room
        else:
            self._registration.drop(events[kept:])
            self._settle(shares, len(events))

    def _settle(self, shares: Sequence[Share], events: int) -> None:
        """So many events of these, the front of the queue, are done with."""
        for share in shares:
            waiting = share.waiting()
            if len(waiting) > events:
                self._shares[0] = share.batch.share(waiting[events:])
                share.batch.settle(share)
                return
            events -= len(waiting)
            self._shares.popleft()
            share.batch.settle(share)
