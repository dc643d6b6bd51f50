"""A callback whose lanes are made anew while events come: each once, in order, by the terms of the moment."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cdc.callbacks import CallbackState, Registration
from cdc.config import OnFailure
from cdc.events import DatabaseEvent, Position
from cdc.lsn import Lsn
from cdc.progress import Batch
from cdc.signals import SignalManager
from cdc.terms import Terms
from cdc.transactions import CommitMark
from tests.conftest import Make, registered
from tests.waiting import eventually

EVENTS = 3_000
SECONDS, GRACE = 60.0, 1.0


@pytest.fixture(autouse=True)
def short_graces(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody waits for in these tests takes no seconds."""
    monkeypatch.setattr("cdc.signals.GRACE_SECONDS", 0.2)
    monkeypatch.setattr("cdc.failures.BACKOFF_SECONDS", (0.001, 0.002))


def event(ordinal: int, record_id: str = "1", table: str = "t") -> DatabaseEvent:
    """An event of transaction 100."""
    return DatabaseEvent.of(
        "update", table, {"secret": ordinal}, record_id=record_id, position=Position(Lsn(100), ordinal)
    )


class Seen:
    """What all instances of a callback were called with, over their lives."""

    def __init__(self) -> None:
        self.ordinals: list[int] = []
        self.by_record: dict[str | None, list[int]] = defaultdict(list)
        self.open = self.most_open = 0
        self.lock = threading.Lock()

    def add(self, one: DatabaseEvent) -> None:
        with self.lock:
            self.ordinals.append(one.position.ordinal)
            self.by_record[one.record_id].append(one.position.ordinal)


class Instance:
    """One of them; fails now and then before it has an effect."""

    def __init__(self, seen: Seen, seed: int) -> None:
        self.seen = seen
        self.chance = random.Random(seed)

    async def open(self) -> None:
        self.seen.open += 1
        self.seen.most_open = max(self.seen.most_open, self.seen.open)

    async def close(self) -> None:
        self.seen.open -= 1

    def fails(self) -> bool:
        return self.chance.random() < 0.01


class Coroutines(Instance):
    """A coroutine per event."""

    async def handle(self, one: DatabaseEvent) -> None:
        if self.chance.random() < 0.1:
            await asyncio.sleep(0)
        if self.fails():
            raise OSError("once")
        self.seen.add(one)


class Threads(Instance):
    """A plain function."""

    def handle(self, one: DatabaseEvent) -> None:
        if self.chance.random() < 0.01:
            time.sleep(0)
        if self.fails():
            raise OSError("once")
        self.seen.add(one)


class Batches(Instance):
    """Many at once."""

    async def handle_batch(self, events: Sequence[DatabaseEvent]) -> None:
        await asyncio.sleep(0)
        if self.fails():
            raise OSError("once")
        for one in events:
            self.seen.add(one)


def terms_of(callback: object, **conditions: Any) -> Terms:
    """What a manager registers for these keywords."""
    other = SignalManager()
    return registered(other, other.add_callback(callback, **conditions)).terms


async def exchange(manager: SignalManager, registration: Registration, callback: object, **terms: Any) -> None:
    """As a reload does it."""
    pool = manager.pool
    await pool.hold(registration, SECONDS, GRACE)
    registration.adopt(terms_of(callback, **{"max_attempts": 5} | terms))
    pool.add(registration)
    await manager.open_one(registration)
    await pool.release(registration)


@pytest.mark.parametrize("kind", [Coroutines, Threads, Batches])
@pytest.mark.parametrize("lanes", [(1, 1, 1), (4, 1, 3)], ids=["one lane", "several lanes"])
async def test_exchanged_callback_gets_each_event_once_in_order(
    make: Make, kind: Callable[[Seen, int], object], lanes: Sequence[int]
) -> None:
    """Under load, with failures, from one instance to the next, also with more or fewer lanes."""
    manager, seen, chance = make(max_queued_events=EVENTS), Seen(), random.Random(7)
    handle = manager.add_callback(kind(seen, 0), concurrency=lanes[0], max_attempts=5)
    registration = registered(manager, handle)
    await manager.open()

    async def feed() -> None:
        ordinal = 0
        while ordinal < EVENTS:
            size = min(chance.randrange(1, 30), EVENTS - ordinal)
            manager.submit(Batch([event(ordinal + n, str(chance.randrange(8))) for n in range(1, size + 1)]))
            ordinal += size
            await asyncio.sleep(0)

    feeding = asyncio.create_task(feed())
    for number in range(1, 12):
        await exchange(manager, registration, kind(seen, number), concurrency=lanes[number % 3])
        assert seen.open == 1
    await feeding
    assert await manager.drain(60)
    assert sorted(seen.ordinals) == list(range(1, EVENTS + 1))
    if set(lanes) == {1}:
        assert seen.ordinals == sorted(seen.ordinals)
    for ordinals in seen.by_record.values():
        assert ordinals == sorted(ordinals)
    assert seen.most_open == 1, "the old instance was closed before the new one was opened"
    assert registration.outcomes["ok"] == EVENTS
    await manager.shutdown()
    assert seen.open == 0


class Held:
    """A callback that waits for its gate; it notes what came, and what it saw of it."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.began: list[int] = []
        self.seen: list[tuple[int, str, Any]] = []

    async def handle(self, one: DatabaseEvent) -> None:
        self.began.append(one.position.ordinal)
        await self.gate.wait()
        self.seen.append((one.position.ordinal, one.table_name, one.payload.get("secret")))


async def test_call_in_work_ends_in_the_old_instance(make: Make) -> None:
    """It is neither cancelled nor repeated; what is behind it, and what comes meanwhile, goes to the new one."""
    manager, old, new = make(), Held(), Held()
    registration = registered(manager, manager.add_callback(old))
    manager.submit(Batch([event(1), event(2)]))
    await eventually(lambda: old.began == [1])
    new.gate.set()
    exchanging = asyncio.create_task(exchange(manager, registration, new))
    await asyncio.sleep(0)
    manager.submit(Batch([event(3)]))
    assert not exchanging.done()
    assert manager.pool.settled(registration, Position(Lsn(100), 3)) == Position(Lsn(100), 0)
    old.gate.set()
    await exchanging
    assert await manager.drain(60)
    assert [one[0] for one in old.seen] == [1]
    assert [one[0] for one in new.seen] == [2, 3]
    assert manager.pool.settled(registration, Position(Lsn(100), 3)) == Position(Lsn(100), 3)


@pytest.mark.parametrize("kind", ["asynchronous", "plain"])
async def test_call_that_does_not_end_comes_again(make: Make, release: threading.Event, kind: str) -> None:
    """Past the time that it is given, its event is one of those that the new instance gets."""
    manager, seen = make(), Seen()

    async def hangs(one: DatabaseEvent) -> None:
        seen.add(one)
        await asyncio.Event().wait()

    def waits(one: DatabaseEvent) -> None:
        seen.add(one)
        release.wait(60)

    async def works(one: DatabaseEvent) -> None:
        seen.add(one)

    registration = registered(manager, manager.add_callback(hangs if kind == "asynchronous" else waits))
    manager.submit(Batch([event(1), event(2)]))
    await eventually(lambda: seen.ordinals == [1])
    await manager.pool.hold(registration, 0.05, 0.2)
    registration.adopt(terms_of(works))
    manager.pool.add(registration)
    await manager.pool.release(registration)
    assert await manager.drain(60)
    assert seen.ordinals == [1, 1, 2]


async def test_what_several_lanes_had_goes_to_one_in_order(make: Make) -> None:
    """With one lane commit order holds again, for all that has waited."""
    manager, old, new = make(), Held(), Held()
    registration = registered(manager, manager.add_callback(old, concurrency=3))
    manager.submit(Batch([event(ordinal, str(ordinal)) for ordinal in range(1, 61)]))
    await eventually(lambda: len(old.began) == 3)
    new.gate.set()
    exchanging = asyncio.create_task(exchange(manager, registration, new, concurrency=1))
    await asyncio.sleep(0)
    old.gate.set()
    await exchanging
    assert await manager.drain(60)
    assert sorted(one[0] for one in old.seen) == sorted(old.began)
    assert [one[0] for one in new.seen] == sorted(set(range(1, 61)) - set(old.began))


async def test_failed_batch_is_not_tried_event_by_event_by_the_old_instance(make: Make) -> None:
    """The call in work was the last."""
    manager, seen, gate, calls = make(), Seen(), asyncio.Event(), 0

    class Fails:
        async def handle_batch(self, _: Sequence[DatabaseEvent]) -> None:
            nonlocal calls
            calls += 1
            await gate.wait()
            raise OSError("away")

    registration = registered(manager, manager.add_callback(Fails(), max_attempts=5))
    manager.submit(Batch([event(1), event(2), event(3)]))
    await eventually(lambda: calls == 1)
    exchanging = asyncio.create_task(exchange(manager, registration, Coroutines(seen, 1)))
    await asyncio.sleep(0)
    gate.set()
    await exchanging
    assert await manager.drain(60)
    assert calls == 1
    assert seen.ordinals == [1, 2, 3]


async def test_callback_that_is_tried_for_ever_is_freed(make: Make) -> None:
    """The reason to exchange it may be that it fails: it does not wait for its next attempt."""
    manager, seen = make(), Seen()

    async def fails(_: DatabaseEvent) -> None:
        raise OSError("away")

    async def works(one: DatabaseEvent) -> None:
        seen.add(one)

    registration = registered(manager, manager.add_callback(fails, on_failure=OnFailure.BLOCK))
    manager.submit(Batch([event(1), event(2)]))
    await eventually(lambda: registration.retries > 2)
    await exchange(manager, registration, works)
    assert await manager.drain(60)
    assert seen.ordinals == [1, 2]


async def test_new_terms_hold_for_what_has_waited(make: Make) -> None:
    """A table that it does not want any more is skipped and counted; a column that is masked now is never shown."""
    manager, old, new = make(), Held(), Held()
    registration = registered(manager, manager.add_callback(old, exclude_columns=["other"]))
    manager.submit(Batch([event(1), event(2), event(3, table="u"), event(4)]))
    await eventually(lambda: old.began == [1])
    new.gate.set()
    exchanging = asyncio.create_task(exchange(manager, registration, new, tables=["public.t"], mask_columns=["secret"]))
    await asyncio.sleep(0)
    old.gate.set()
    manager.submit(Batch([event(5, table="u"), event(6)]))
    await exchanging
    assert await manager.drain(60)
    assert old.seen == [(1, "t", 1)]
    assert new.seen == [(2, "t", "***"), (4, "t", "***"), (6, "t", "***")]
    assert registration.outcomes["skipped"] == 1


async def test_old_terms_come_back_with_all_events(make: Make) -> None:
    """An exchange that fails leaves no trace: what came meanwhile is chosen by the old terms."""
    manager, old = make(), Held()
    registration = registered(manager, manager.add_callback(old, tables=["public.t"]))
    before = registration.terms
    await manager.pool.hold(registration, SECONDS, GRACE)
    manager.submit(Batch([event(1), event(2, table="u")]))
    assert manager.pool.settled(registration, Position(Lsn(100), 2)) == Position(Lsn(100), 0), "what is kept holds it"
    registration.adopt(terms_of(Held(), tables=["public.u"]))
    manager.pool.add(registration)
    old.gate.set()
    registration.adopt(before)
    manager.pool.add(registration)
    await manager.pool.release(registration)
    assert await manager.drain(60)
    assert [one[0] for one in old.seen] == [1]


async def test_commits_that_come_alone_are_not_kept(make: Make) -> None:
    """A burst may hold the end of a transaction and no event: then a checkpoint is asked for, as ever."""
    manager = make()
    registration = registered(manager, manager.add_callback(Held()))
    await manager.pool.hold(registration, SECONDS, GRACE)
    batch = Batch([], [CommitMark(200, 7)])
    manager.submit(batch)
    assert batch.pending == 0
    assert manager.pool.settled(registration, Position(Lsn(200), 1)) == Position(Lsn(200), 1)
    await manager.pool.release(registration)


async def test_callback_removed_while_it_rests_is_removed(make: Make) -> None:
    """Its last call was one failure too many: what was kept for it is missed, with its range, and nothing waits."""
    manager = make(max_consecutive_failures=1)
    gate = asyncio.Event()

    async def fails(_: DatabaseEvent) -> None:
        await gate.wait()
        raise OSError("no")

    registration = registered(manager, manager.add_callback(fails))
    manager.submit(Batch([event(1), event(2)]))
    await eventually(lambda: registration.last_active)
    holding = asyncio.create_task(manager.pool.hold(registration, SECONDS, GRACE))
    await asyncio.sleep(0)
    manager.submit(Batch([event(3)]))
    gate.set()
    await holding
    assert registration.state is CallbackState.REMOVED
    manager.submit(Batch([event(4)]))
    await manager.pool.release(registration)
    assert await manager.drain(60)
    assert registration.outcomes["missed"] == 3


async def test_callback_that_leaves_works_off_its_queue(make: Make) -> None:
    """Nothing new comes to it, and how far it has come is the end of what it had."""
    manager, leaving = make(), Held()
    registration = registered(manager, manager.add_callback(leaving))
    manager.submit(Batch([event(1), event(2)]))
    await eventually(lambda: leaving.began == [1])
    registration.is_routed, registration.leaves_at = False, Position(Lsn(100), 2)
    parting = asyncio.create_task(manager.pool.part(registration, SECONDS, GRACE))
    await asyncio.sleep(0)
    manager.submit(Batch([event(3)]))
    assert manager.pool.settled(registration, Position(Lsn(100), 3)) == Position(Lsn(100), 0)
    leaving.gate.set()
    parted = await parting
    assert (parted.settled, parted.undelivered) == (Position(Lsn(100), 2), [])
    assert [one[0] for one in leaving.seen] == [1, 2]
    assert list(manager.registry) == []
    assert manager.get_stats().events_processed == 2, "its counts stay"


async def test_callback_that_leaves_too_slowly_leaves_events_behind(make: Make) -> None:
    """They are told, in order; its position is before the first of them; nothing waits for it any more."""
    manager, leaving = make(), Held()
    registration = registered(manager, manager.add_callback(leaving))
    manager.submit(Batch([event(1), event(2)]))
    await eventually(lambda: leaving.began == [1])
    registration.is_routed, registration.leaves_at = False, Position(Lsn(100), 2)
    parted = await manager.pool.part(registration, 0.05, GRACE)
    assert parted.settled == Position(Lsn(100), 0)
    assert [one.position.ordinal for one in parted.undelivered] == [1, 2]
    assert await manager.drain(60)
