"""How far the service is behind the server at the moment, and which callback holds it up.

Reads positions and clocks, and judges nothing: what is too much is for `cdc.health` to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic

from cdc.callbacks import Registration
from cdc.events import DatabaseEvent
from cdc.lsn import Lsn
from cdc.service import Service

__all__ = ["Holdback", "Lag"]


@dataclass(frozen=True, slots=True)
class Holdback:
    """How far one callback lies behind what was received: in WAL, and since the commit that it has not settled."""

    bytes: int
    seconds: float


NOTHING = Holdback(0, 0.0)


@dataclass(frozen=True, slots=True)
class Lag:
    """One moment; made by :meth:`of`. What is not known is None.

    `received`: all transactions that end up to there were received, whole. `flushed`: all up to there is settled and
    durable. `server`: where the server was when last asked, or already past that by what it has sent. `seconds`: 0 when
    all is received and settled; else the age of the oldest unsettled commit, or for how long the server has been ahead
    of what was received, whichever is more. While disconnected it is at least the time since the last message, also
    when all is settled. `holder`: the callback that the slot waits for.
    """

    received: Lsn | None
    flushed: Lsn | None
    server: Lsn | None
    seconds: float
    holder: Registration | None
    holdbacks: Mapping[Registration, Holdback]

    @classmethod
    def of(cls, service: Service) -> Lag:
        """Look; on the service's event loop."""
        received = _received(service)
        known = [lsn for lsn in (service.monitor.server_lsn, received) if lsn is not None]
        saved = service.checkpointer.saved if service.checkpointer is not None else None
        waiting = {item: service.manager.pool.first_unsettled(item) for item in service.manager.registry}
        holder = _holder(waiting)
        now = datetime.now(UTC)
        holdbacks = {
            item: NOTHING
            if event is None
            else Holdback(_bytes_behind(service, event, is_holder=item is holder), _age(event, now))
            for item, event in waiting.items()
        }
        return cls(
            received=received,
            flushed=saved.flushed_lsn if saved is not None else None,
            server=max(known, default=None),
            seconds=max([_seconds_behind(service, received or 0), *(one.seconds for one in holdbacks.values())]),
            holder=holder,
            holdbacks=holdbacks,
        )

    @property
    def bytes(self) -> int | None:
        """What the server has written and we have not flushed."""
        return None if self.server is None or self.flushed is None else max(self.server - self.flushed, 0)


def _received(service: Service) -> Lsn | None:
    if service.assembler is None or service.pump is None:
        return None
    return Lsn(max(service.assembler.commit_lsn, service.pump.idle_lsn))


def _holder(waiting: Mapping[Registration, DatabaseEvent | None]) -> Registration | None:
    """The one whose first unsettled event is the oldest."""
    first = [(event.position, item.id, item) for item, event in waiting.items() if event is not None]
    return min(first)[2] if first else None


def _age(event: DatabaseEvent, now: datetime) -> float:
    """Since the commit, by our clock against the server's; never below 0."""
    return max((now - event.timestamp).total_seconds(), 0.0)


def _seconds_behind(service: Service, received: int) -> float:
    behind = service.monitor.seconds_behind(received)
    if not service.is_connected:
        # What was committed since we last heard of the server cannot have been received.
        last = service.last_message
        behind = max(behind, monotonic() - (service.started if last is None else last))
    return behind


def _bytes_behind(service: Service, waiting: DatabaseEvent, *, is_holder: bool) -> int:
    """WAL behind the last commit that the callback has settled.

    Known exactly of the one that holds the slot; of the others from the end of the transaction that they
    are in, which is the least that it can be.
    """
    if service.assembler is None or service.ledger is None:
        return 0
    settled = service.ledger.flushable().lsn if is_holder else waiting.transaction.commit_lsn
    return max(service.assembler.frontier.commit_lsn - settled, 0)
