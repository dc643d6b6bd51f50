"""Work for a lane: a share of a batch, what it waits for, and who waits for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from cdc.progress import Share

__all__ = ["Gate", "Work"]


class Gate:
    """Opens when `pending` works are finished; keeps keys in order where lanes must wait for each other."""

    def __init__(self, pending: int) -> None:
        self._pending = pending
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if pending == 0:
            self._opened.set_result(None)

    def finish_one(self) -> None:
        """One of the works waited for is finished."""
        self._pending -= 1
        if self._pending == 0 and not self._opened.done():
            self._opened.set_result(None)

    async def wait(self) -> None:
        """Until all are finished."""
        await asyncio.shield(self._opened)


@dataclass(slots=True, eq=False)
class Work:
    """A share in a lane's queue: begins when `after` is open, and tells `gates` when it is finished.

    Without a share it only makes what is queued behind it wait.
    """

    share: Share | None
    after: Gate | None = None
    gates: list[Gate] = field(default_factory=list)
    finished: bool = False

    def finish(self) -> None:
        """Settle the share, once, and let its events go."""
        if not self.finished:
            self.finished = True
            share, self.share = self.share, None
            if share is not None:
                share.batch.settle(share)
            for gate in self.gates:
                gate.finish_one()
