"""All lanes together: which event goes to which lane, how much may be queued, and who is told of failures."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

from cdc.callbacks import CallbackState, Registration
from cdc.errors import CallbackTimeout
from cdc.events import DatabaseEvent, Position
from cdc.failures import Failure
from cdc.lsn import Lsn
from cdc.progress import Batch, Share, settled_before
from cdc.registry import Registry
from cdc.workers.coroutine import CoroutineLane
from cdc.workers.held import Held
from cdc.workers.lane import Lane
from cdc.workers.opening import Opening
from cdc.workers.parking import Parking
from cdc.workers.spreading import after_all_queued, distribute
from cdc.workers.thread import ThreadLane

__all__ = ["Bounds", "Parted", "Pool", "PoolListener"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may be queued in the whole pool; bytes are an estimate of the memory it takes."""

    events: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Parted:
    """A callback that has left: how far it had come, and the events that it was not called with, in order."""

    settled: Position
    undelivered: Sequence[DatabaseEvent]


class PoolListener(Protocol):
    """Who is told of what happens in the pool; called on the event loop. What is no coroutine must return quickly."""

    async def may_begin(self) -> None:
        """Return once callbacks may be called."""

    async def keep_failed(self, registration: Registration, failure: Failure) -> bool:
        """Keep the event durably as a dead letter; False when nobody keeps any."""

    async def keep_parked(self, registration: Registration, events: Sequence[DatabaseEvent]) -> int:
        """Keep events of a removed callback durably; how many, from the front."""

    def broke(self, error: BaseException) -> None:
        """A mistake of ours: something will never be settled."""

    def event_failed(self, registration: Registration, event: DatabaseEvent, error: BaseException) -> None:
        """An event failed for good for this callback."""

    def callback_removed(self, registration: Registration, reason: str, position: Position) -> None:
        """The callback gets no more events, from `position` on."""

    def room_again(self) -> None:
        """The queue was full, and is not any more."""


class Pool:
    """The lanes of all callbacks. Lives on one event loop."""

    def __init__(self, registry: Registry, bounds: Bounds, listener: PoolListener) -> None:
        self._registry = registry
        self._bounds = bounds
        self._listener = listener
        self._lanes: dict[Registration, list[Lane]] = {}
        self._opening: dict[Registration, Opening] = {}
        self._parking: dict[Registration, Parking] = {}
        self._held: dict[Registration, Held] = {}
        self.exchanging = asyncio.Lock()  # who makes lanes anew has it: one at a time
        self._full = False
        self._idle = asyncio.Event()
        self.queued_events = 0
        self.queued_bytes = 0

    @property
    def has_room(self) -> bool:
        """Whether the reader may go on. One batch may exceed the bounds; the next then waits."""
        return self.queued_events < self._bounds.events and self.queued_bytes < self._bounds.bytes

    @property
    def lanes(self) -> Mapping[Registration, Sequence[Lane]]:
        """The lanes of each callback."""
        return self._lanes

    def add(self, registration: Registration) -> None:
        """Make the lanes of a callback; they start with their first event. Of a removed one, they wait for `revive`."""
        opening = self._opening[registration] = Opening(registration.invocation)
        lane_type = CoroutineLane if registration.invocation.is_async else ThreadLane
        self._lanes[registration] = [
            lane_type(registration, f"{registration.name}-{number}", self, opening)
            for number in range(registration.concurrency)
        ]
        if _parks(registration):
            self._park(registration)

    async def open(self, registration: Registration) -> BaseException | None:
        """Call its `open` now, so that what is wrong is seen before the first event; None when it is open."""
        return await self._opening[registration].ensure(self._lanes[registration][0])

    def submit(self, batch: Batch) -> None:
        """Queue a batch for every callback that wants something of it. Never waits: ask `has_room` before."""
        if not batch.events:
            return  # commits alone: nobody waits for them
        kinds = {event.kind for event in batch.events}
        for registration, lanes in self._lanes.items():
            if registration.state is CallbackState.UNSUBSCRIBED or not registration.is_routed:
                continue
            if self._held and registration in self._held and registration.state is CallbackState.ACTIVE:
                self._held[registration].keep(batch)
                continue
            events = registration.select(batch.events, kinds)
            if not events:
                continue
            if registration.state is CallbackState.ACTIVE:
                distribute(batch, events, lanes)
            elif registration in self._parking:
                self._parking[registration].put(batch.share(events))
            else:
                registration.drop(events)
        if batch.pending:
            self.queued_events += batch.count
            self.queued_bytes += batch.bytes
            batch.on_settled = self._settled
            self._full = self._full or not self.has_room

    def remove(self, registration: Registration, state: CallbackState, reason: str) -> None:
        """No more calls of this callback; what it has not begun is parked, or missed (or skipped, if it left)."""
        if not self._registry.remove(registration, state, reason):
            return
        position = self.settled(registration, Position(Lsn(0), 0))
        if _parks(registration):
            self._park(registration)
        elif state is CallbackState.UNSUBSCRIBED and (parking := self._parking.pop(registration, None)) is not None:
            parking.close()
            self._hand_back(registration, parking.take())
        self._listener.callback_removed(registration, reason, position)
        self._hand_back(registration, [share for lane in self._lanes[registration] for share in lane.stop()])

    async def revive(self, registration: Registration, grace: float) -> None:
        """Make a removed callback ready for `put`: opened anew, with what comes from the stream being parked."""
        await self.close([registration], grace)
        left = [share for lane in self._lanes[registration] for share in lane.give_back()]
        self.add(registration)
        self._park(registration)
        self._hand_back(registration, left)
        registration.state = CallbackState.RESUMING
        registration.consecutive_failures = 0

    def waits_for_room(self, registration: Registration) -> bool:
        """Whether there is no room to park more of its events, and they wait, unsettled, until there is."""
        parking = self._parking.get(registration)
        return parking is not None and parking.waits_for_room

    async def hold(self, registration: Registration, seconds: float, grace: float) -> None:
        """Bring a callback to rest and close it: until `release` it is not called, and what comes for it is kept.

        Calls in work may end, for `seconds`; what is still in work then is cancelled, and will be called again.
        """
        held = self._held[registration] = Held(registration)
        lanes, deadline = self._lanes[registration], monotonic() + seconds
        while ending := [task for lane in lanes if (task := lane.rest()) is not None]:  # a call given up has an heir
            await asyncio.wait(ending, timeout=max(deadline - monotonic(), 0))
            if monotonic() >= deadline:
                break
        await self.close([registration], grace)
        held.put_back([share for lane in lanes for share in lane.take()])

    async def release(self, registration: Registration) -> None:
        """After `hold`, and after `add` and `open` if it is made anew: it goes on where it was, by the terms it has."""
        is_removed = registration.state is CallbackState.REMOVED
        if is_removed and not registration.parks and (parking := self._parking.get(registration)) is not None:
            await parking.pause()
            del self._parking[registration]
            self._hand_back(registration, parking.take())
        for share, events in self._held.pop(registration).take():
            if not registration.is_called and not share.batch.live:
                self._hand_back(registration, [share])
                continue
            if events and not registration.is_called:
                self._hand_back(registration, [share.batch.share(events)])
            elif events:
                distribute(share.batch, events, self._lanes[registration])
            share.batch.settle(share)

    async def part(self, registration: Registration, seconds: float, grace: float) -> Parted:
        """Let a callback that has left work off what is queued, for `seconds`; then close it and forget it."""
        lanes = self._lanes[registration]
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await after_all_queued(lanes).wait()
                if (parking := self._parking.get(registration)) is not None:
                    await parking.written()
        await self.close([registration], grace)
        settled = self.settled(registration, registration.leaves_at or Position(Lsn(0), 0))
        shares = [share for lane in lanes for share in lane.take()]
        if (parking := self._parking.pop(registration, None)) is not None:
            parking.close()
            shares += parking.take()
        left = sorted(
            (event for share in shares if share.batch.live for event in share.waiting()),
            key=lambda event: event.position,
        )
        for share in shares:
            if not share.batch.live:  # it lies in the dead letters still
                share.batch.undelivered += share.take_rest()
            share.batch.settle(share)
        self.drop(registration)
        return Parted(settled, left)

    def drop(self, registration: Registration) -> None:
        """Forget a callback that is closed; nothing is queued for it."""
        self._lanes.pop(registration, None)
        self._opening.pop(registration, None)
        self._registry.retire(registration)

    def put(self, registration: Registration, batch: Batch) -> None:
        """Queue a batch for this callback alone, whatever its conditions."""
        self._put(registration, batch, batch.events)

    def _put(self, registration: Registration, batch: Batch, events: Sequence[DatabaseEvent]) -> None:
        if (held := self._held.get(registration)) is not None:
            held.put(batch, events)
        else:
            distribute(batch, events, self._lanes[registration])

    async def pause_parking(self, registration: Registration) -> None:
        """Keep what comes from the stream in memory, unsettled; returns when all before is parked."""
        if (parking := self._parking.get(registration)) is not None:  # otherwise it has left
            await parking.pause()

    def park_again(self, registration: Registration) -> None:
        """After `pause_parking`: park it after all."""
        self._parking[registration].go_on()

    def go_live(self, registration: Registration) -> None:
        """After `pause_parking`: what has come meanwhile and what comes next goes to the callback, behind `put`."""
        registration.state = CallbackState.ACTIVE
        for share in self._parking.pop(registration).take():
            self._put(registration, share.batch, share.waiting())
            share.batch.settle(share)

    def first_unsettled(self, registration: Registration) -> DatabaseEvent | None:
        """The first event of the stream that this callback has not settled."""
        first = [lane.first_unsettled() for lane in self._lanes.get(registration, ())]
        if (parking := self._parking.get(registration)) is not None:
            first.append(parking.first_unsettled())
        if (held := self._held.get(registration)) is not None:
            first.append(held.first_unsettled())
        return min(filter(None, first), key=lambda event: event.position, default=None)

    def settled(self, registration: Registration, frontier: Position) -> Position:
        """Everything up to here is settled for this callback; `frontier` is what was submitted last."""
        if registration.leaves_at is not None:
            frontier = min(frontier, registration.leaves_at)
        if registration.settled is not None and registration.settled > frontier:
            return registration.settled  # still before where it had come to in an earlier run
        first = self.first_unsettled(registration)
        return frontier if first is None else settled_before(first)

    async def drained(self) -> None:
        """Until nothing is queued or in work."""
        while self.queued_events:
            self._idle.clear()
            await self._idle.wait()

    async def close(self, registrations: Iterable[Registration], grace: float) -> None:
        """Stop their lanes at once, give calls in work `grace` seconds to end, then call each `close`."""
        chosen = [item for item in registrations if item in self._lanes]
        lanes = [lane for item in chosen for lane in self._lanes[item]]
        closing = [self._close_callback(item, self._lanes[item][0], self._opening[item], grace) for item in chosen]
        if ending := [future for lane in lanes for future in lane.close()]:
            _, left = await asyncio.wait(ending, timeout=grace)
            for future in left:
                future.cancel()
        await asyncio.gather(*closing)
        for lane in lanes:
            lane.release()

    def close_parking(self) -> None:
        """Park nothing more; what is not kept stays unsettled."""
        for parking in self._parking.values():
            parking.close()

    async def leave(self, registrations: Sequence[Registration], grace: float) -> None:
        """After `remove`, of callbacks that have ended their subscription: calls in work may end; then `close`.

        Each of these takes `grace` seconds at most; what is still in work then is skipped.
        """
        lanes = [lane for item in registrations for lane in self._lanes.get(item, ())]
        if busy := [task for lane in lanes if (task := lane.busy_task) is not None]:
            await asyncio.wait(busy, timeout=grace)
        await self.close(registrations, grace)
        for registration in registrations:
            for lane in self._lanes.pop(registration, ()):
                registration.drop(lane.discard())
            self._opening.pop(registration, None)

    async def _close_callback(self, registration: Registration, lane: Lane, opening: Opening, grace: float) -> None:
        if (error := await opening.close(lane, grace)) is not None:
            registration.last_error = f"close: {type(error).__name__}"

    def _park(self, registration: Registration) -> None:
        if registration in self._parking:
            self._parking[registration].go_on()
        else:
            self._parking[registration] = Parking(registration, self._listener.keep_parked, self._listener.broke)

    def _hand_back(self, registration: Registration, shares: Sequence[Share]) -> None:
        """Park what a stopped callback has not had, or count it as missed or skipped."""
        parking = self._parking.get(registration)
        for share in sorted(shares, key=_first_position):
            if not share.batch.live:  # it lies in the dead letters still
                share.batch.undelivered += share.take_rest()
            elif parking is not None:
                parking.put(share)
                continue
            else:
                registration.drop(share.take_rest())
            share.batch.settle(share)

    async def may_begin(self) -> None:
        """Of a lane: see `LaneListener`."""
        await self._listener.may_begin()

    def broke(self, error: BaseException) -> None:
        """Of a lane: see `LaneListener`."""
        self._listener.broke(error)

    def handed_back(self, registration: Registration, share: Share) -> None:
        """Of a lane: see `LaneListener`."""
        self._hand_back(registration, [share])

    async def failed(self, registration: Registration, share: Share, failure: Failure) -> None:
        """Of a lane: see `LaneListener`."""
        kept = await self._listener.keep_failed(registration, failure)
        outcome = "timeout" if isinstance(failure.error, CallbackTimeout) else "failed"
        registration.failed(failure.event, failure.error, outcome, kept=kept, lenient=share.batch.lenient)
        if not share.batch.live:
            share.batch.undelivered.append(failure.event)
        self._listener.event_failed(registration, failure.event, failure.error)
        if not share.batch.lenient and self._registry.has_failed_too_often(registration):
            self.remove(registration, CallbackState.REMOVED, "failures")

    def _settled(self, batch: Batch) -> None:
        self.queued_events -= batch.count
        self.queued_bytes -= batch.bytes
        if self._full and self.has_room:
            self._full = False
            self._listener.room_again()
        if self.queued_events == 0:
            self._idle.set()


def _parks(registration: Registration) -> bool:
    """Whether what comes for it is kept while it is not called."""
    if registration.state is CallbackState.REMOVED:
        return registration.parks
    return registration.state is CallbackState.PAUSED


def _first_position(share: Share) -> Position:
    return share.first_unsettled().position
