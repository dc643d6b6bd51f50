"""Lanes: order, concurrency, timeouts and calls that never end, for coroutines and for threads."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

import pytest

from cdc.callbacks import CallbackState
from cdc.errors import CallbackTimeout
from cdc.events import DatabaseEvent, FixedRow, Position
from cdc.lsn import Lsn
from cdc.progress import Batch
from cdc.signals import CallbackHandle
from cdc.workers.lane import MAX_ABANDONED
from cdc.workers.thread import ThreadLane
from tests.conftest import Make, registered
from tests.waiting import eventually

TIMEOUT = 0.3
"""Of a callback that is meant to time out, and of those beside it that are not: a busy machine lets a thread wait."""
SHORT = 0.05
"""Of one that is alone, and only meant to time out."""


@pytest.fixture(autouse=True)
def short_graces(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody waits for in these tests takes no seconds."""
    monkeypatch.setattr("cdc.workers.coroutine.GRACE_SECONDS", SHORT)
    monkeypatch.setattr("cdc.workers.thread.LOOK_AGAIN_SECONDS", SHORT)
    monkeypatch.setattr("cdc.signals.GRACE_SECONDS", 0.2)


@pytest.fixture
def long_graces(monkeypatch: pytest.MonkeyPatch, short_graces: None) -> None:
    """For calls that are meant to end within it, on a machine that stands still for some seconds."""
    monkeypatch.setattr("cdc.signals.GRACE_SECONDS", 30.0)


def event(ordinal: int = 1, lsn: int = 100, event_type: str = "update", **fields: Any) -> DatabaseEvent:
    """An event of one record; `ordinal` is its number."""
    return DatabaseEvent.of(event_type, "t", position=Position(Lsn(lsn), ordinal), **{"record_id": "1"} | fields)


def events(count: int) -> list[DatabaseEvent]:
    """Events 1 to `count` of one transaction."""
    return [event(ordinal) for ordinal in range(1, count + 1)]


class Told:
    """An error handler that notes the ordinals it is told of; None is a removal."""

    def __init__(self) -> None:
        self.ordinals: list[int | None] = []
        self.errors: list[BaseException] = []
        self.names: set[str] = set()

    def __call__(self, error: BaseException, one: DatabaseEvent | None, name: str) -> None:
        self.ordinals.append(None if one is None else one.position.ordinal)
        self.errors.append(error)
        self.names.add(name)


class Recorder:
    """Callbacks that note the ordinals they get."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    async def asynchronous(self, event: DatabaseEvent) -> None:
        self.seen.append(event.position.ordinal)

    def plain(self, event: DatabaseEvent) -> None:
        self.seen.append(event.position.ordinal)


# Order and concurrency


@pytest.mark.parametrize("kind", ["asynchronous", "plain"])
async def test_lane_keeps_the_order_of_commits(make: Make, kind: str) -> None:
    """With concurrency 1 a callback gets every event once, in order, over many batches."""
    manager, recorder = make(), Recorder()
    manager.add_callback(getattr(recorder, kind))
    for start in range(0, 1000, 100):
        manager.submit(Batch(events(1000)[start : start + 100]))
    assert await manager.drain(30)
    assert recorder.seen == list(range(1, 1001))
    assert manager.get_stats().events_processed == 1000


class KeyWatch:
    """Notes the order per record, and any overlap: a barrier's event must run alone."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.order: dict[str, list[int]] = defaultdict(list)
        self.all: list[int] = []
        self.running: set[str] = set()
        self.most = 0
        self.wrong: list[str] = []
        self.lock = threading.Lock()

    def enter(self, one: DatabaseEvent) -> str:
        with self.lock:
            key = one.record_id or "*"
            alone = key == "*" or one.row.previous_record_id() != key
            if key in self.running or "*" in self.running or (alone and self.running):
                self.wrong.append(f"{key} while {self.running}")
            self.running.add("*" if alone else key)
            self.most = max(self.most, len(self.running))
            self.order[key].append(one.position.ordinal)
            self.all.append(one.position.ordinal)
            return "*" if alone else key

    def leave(self, key: str) -> None:
        with self.lock:
            self.running.discard(key)

    async def asynchronous(self, one: DatabaseEvent) -> None:
        key = self.enter(one)
        for _ in range(self.random.randrange(6)):
            await asyncio.sleep(0)
        self.leave(key)

    def plain(self, one: DatabaseEvent) -> None:
        key = self.enter(one)
        for _ in range(self.random.randrange(3)):
            time.sleep(0)  # lets another thread run
        self.leave(key)


class MovedRow(FixedRow):
    """A row whose key was another before."""

    def previous_record_id(self) -> str | None:
        return "moved"


def mixed_event(ordinal: int, chance: random.Random) -> DatabaseEvent:
    """Mostly changes of few records; now and then a truncate, a row without a key, or a change of a key."""
    what = chance.random()
    if what < 0.03:
        return event(ordinal, event_type="truncate", record_id=None)
    if what < 0.05:
        return event(ordinal, record_id=None)
    one = event(ordinal, record_id=str(chance.randrange(8)))
    return one.with_row(MovedRow({}, key=one.record_id)) if what < 0.08 else one


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["asynchronous", "plain"])
async def test_lanes_keep_the_order_of_each_record(make: Make, kind: str, seed: int) -> None:
    """With concurrency N each record keeps its order and never overlaps; truncate and key change run alone."""
    manager, watch, chance = make(), KeyWatch(seed), random.Random(seed)
    manager.add_callback(getattr(watch, kind), concurrency=4, event_types=["create", "update", "delete", "truncate"])
    stream = [mixed_event(ordinal, chance) for ordinal in range(1, 601)]
    while stream:
        size = chance.randrange(1, 60)
        manager.submit(Batch(stream[:size]))
        stream = stream[size:]
        await asyncio.sleep(0)
    assert await manager.drain(30)
    assert watch.wrong == []
    assert sorted(watch.all) == list(range(1, 601))
    assert all(order == sorted(order) for order in watch.order.values())
    assert watch.most > 1
    assert manager.get_stats().events_processed == 600


async def test_lane_that_waits_at_a_barrier_is_not_given_up(make: Make) -> None:
    """A watchdog set by an earlier call must not take waiting for another lane for a call in work."""
    manager, gate, seen = make(), asyncio.Event(), []
    first, second = (
        next(str(n) for n in range(99) if hash(("public", "t", str(n))) % 2 == number) for number in (0, 1)
    )

    async def callback(one: DatabaseEvent) -> None:
        if one.position.ordinal == 3:
            await gate.wait()
        seen.append(one.position.ordinal)

    item = registered(manager, manager.add_callback(callback, concurrency=2, timeout_seconds=3))
    manager.submit(Batch([event(1, record_id=first), event(2, record_id=second)]))
    assert await manager.drain(30)  # both lanes have worked, and their watchdogs are set
    watchdog = manager.pool.lanes[item][0]._watchdog
    assert watchdog is not None
    now = asyncio.get_running_loop().time
    await eventually(lambda: watchdog.when() - now() < 0.5)
    manager.submit(Batch([event(3, record_id=second), event(4, record_id=None), event(5, record_id=first)]))
    await eventually(lambda: now() > watchdog.when() + 0.05)  # and the call in work still has time: seconds
    gate.set()
    assert await manager.drain(30)
    assert seen == [1, 2, 3, 4, 5]
    assert item.outcomes == {"ok": 5}


async def test_hanging_callback_does_not_stop_another_until_the_bound(make: Make) -> None:
    """The other callback gets everything, until the pool is full and `emit` waits; then all goes on."""
    manager, gate, recorder = make(max_queued_events=5), asyncio.Event(), Recorder()

    async def hang(one: DatabaseEvent) -> None:
        await gate.wait()

    manager.add_callback(hang)
    manager.add_callback(recorder.asynchronous)
    for one in events(5):
        await manager.emit(one)
    await eventually(lambda: recorder.seen == [1, 2, 3, 4, 5])
    waiting = asyncio.create_task(manager.emit(event(6)))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert (manager.pool.queued_events, len(asyncio.all_tasks()) < 10) == (5, True)
    gate.set()
    await waiting
    assert await manager.drain(30)
    assert recorder.seen[-1] == 6


async def test_plain_function_runs_in_its_own_thread(make: Make) -> None:
    """A `def` never runs on the event loop; each lane has one thread, which it keeps."""
    manager = make()
    threads: dict[str, set[int]] = defaultdict(set)

    def note(name: str) -> Callable[[DatabaseEvent], None]:
        return lambda _: threads[name].add(threading.get_ident())

    for name in ("a", "b"):
        manager.add_callback(note(name), name=name)
    for one in events(20):
        await manager.emit(one)
        assert await manager.drain(30)
    idents = threads["a"] | threads["b"]
    assert [len(threads[name]) for name in ("a", "b")] == [1, 1]
    assert len(idents) == 2
    assert threading.get_ident() not in idents


async def test_callback_that_blocks_the_loop_does_not_time_out_others(make: Make) -> None:
    """While the loop stands still no other call can go on; none of them is given up for that."""
    manager, recorder = make(), Recorder()
    started = asyncio.Event()

    async def block(one: DatabaseEvent) -> None:
        await started.wait()
        time.sleep(6 * TIMEOUT)  # noqa: ASYNC251 - this is what is tested

    async def innocent(one: DatabaseEvent) -> None:
        started.set()
        await asyncio.sleep(TIMEOUT / 5)
        recorder.seen.append(one.position.ordinal)

    manager.add_callback(block, timeout_seconds=5)
    manager.add_callback(innocent, timeout_seconds=2 * TIMEOUT)
    await manager.emit(event())
    assert await manager.drain(30)
    assert recorder.seen == [1]
    assert manager.get_stats().events_timed_out == 0


async def test_hanging_call_times_out_although_the_loop_is_always_late(make: Make) -> None:
    """A loop that is blocked again and again gives a call more time once, not for ever."""
    manager, recorder = make(), Recorder()

    async def hang(one: DatabaseEvent) -> None:
        await asyncio.Event().wait()

    handle = manager.add_callback(hang, timeout_seconds=SHORT)
    await manager.emit(event())
    for _ in range(8):
        await asyncio.sleep(0)
        time.sleep(4 * SHORT)  # noqa: ASYNC251 - this is what is tested
        recorder.seen.append(registered(manager, handle).outcomes["timeout"])
    assert await manager.drain(30)
    assert (recorder.seen[0], recorder.seen[-1]) == (0, 1)


# What callbacks may raise


def recurse(one: DatabaseEvent) -> None:
    """Raises a real RecursionError."""
    recurse(one)


def raising(error: BaseException) -> Callable[[DatabaseEvent], NoReturn]:
    """A function that raises `error`."""

    def callback(one: DatabaseEvent) -> NoReturn:
        raise error

    return callback


ERRORS = [MemoryError(), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), StopIteration(), GeneratorExit()]


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize(
    "fail", [recurse, *map(raising, ERRORS)], ids=["RecursionError", *(type(error).__name__ for error in ERRORS)]
)
async def test_manager_lives_on_whatever_a_callback_raises(
    make: Make, fail: Callable[[DatabaseEvent], None], is_async: bool
) -> None:
    """Each event fails and is counted, the callback is removed at the maximum, and the others get everything."""
    manager, recorder = make(), Recorder()

    async def asynchronous(one: DatabaseEvent) -> None:
        fail(one)

    handle = manager.add_callback(asynchronous if is_async else fail)
    manager.add_callback(recorder.asynchronous)
    for one in events(5):
        await manager.emit(one)
    assert await manager.drain(30)
    assert recorder.seen == [1, 2, 3, 4, 5]
    item = registered(manager, handle)
    assert item.state is CallbackState.REMOVED
    assert item.outcomes == {"failed": 3, "missed": 2}


async def test_plain_function_that_returns_an_awaitable_fails(make: Make) -> None:
    """A `def` around a coroutine function has done nothing; that is no success."""
    manager, recorder = make(), Recorder()

    def plain(one: DatabaseEvent) -> Any:
        return recorder.asynchronous(one)

    handle = manager.add_callback(plain)
    await manager.emit(event())
    assert await manager.drain(30)
    assert registered(manager, handle).outcomes == {"failed": 1}


@pytest.mark.parametrize("is_async", [True, False])
async def test_consecutive_failures_are_exact_at_the_boundary(make: Make, is_async: bool) -> None:
    """Two failures and a success, for ever, remove nobody; three in a row do, once."""
    manager = make(max_consecutive_failures=3)

    def plain(one: DatabaseEvent) -> None:
        if one.position.ordinal % 3 or one.position.ordinal > 30:
            raise ValueError

    async def asynchronous(one: DatabaseEvent) -> None:
        plain(one)

    handle = manager.add_callback(asynchronous if is_async else plain)
    item = registered(manager, handle)
    manager.submit(Batch(events(30)))
    assert await manager.drain(30)
    assert (item.state, item.outcomes, item.consecutive_failures) == (CallbackState.ACTIVE, {"failed": 20, "ok": 10}, 0)
    manager.submit(Batch(events(40)[30:]))
    assert await manager.drain(30)
    assert (item.state, item.outcomes["failed"], item.outcomes["missed"]) == (CallbackState.REMOVED, 23, 7)
    assert (item.missed["removed"].first.ordinal, item.missed["removed"].last.ordinal) == (34, 40)


class Turns:
    """Calls for two records, in lanes of their own, that say when each may end: all of them fast, for the lanes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in ("coroutine", "thread"):
            monkeypatch.setattr(f"cdc.workers.{module}.FAST", 60.0)
        candidates = [event(record_id=str(number)) for number in range(100)]
        lanes = {hash((one.kind.schema, one.kind.table_name, one.record_id)) % 2: one.record_id for one in candidates}
        self.records = [lanes[0], lanes[1]]
        self.begun: dict[tuple[int, int], threading.Event] = defaultdict(threading.Event)  # by record and number
        self.waits_for: dict[tuple[int, int], tuple[int, int]] = {}
        self.fails: set[tuple[int, int]] = set()

    def batch(self, calls: list[tuple[int, int]]) -> Batch:
        """An event for each."""
        return Batch([event(number + 1, record_id=self.records[record]) for record, number in calls])

    def plain(self, one: DatabaseEvent) -> None:
        call = self.records.index(one.record_id), one.position.ordinal - 1
        self.begun[call].set()
        if call in self.waits_for:
            self.begun[self.waits_for[call]].wait()
        if call in self.fails:
            raise ValueError

    async def asynchronous(self, one: DatabaseEvent) -> None:
        call = self.records.index(one.record_id), one.position.ordinal - 1
        self.begun[call].set()
        if call in self.waits_for:
            await eventually(self.begun[self.waits_for[call]].is_set)
        if call in self.fails:
            raise ValueError

    def end(self) -> None:
        """No call waits any more."""
        for call in self.waits_for.values():
            self.begun[call].set()


@pytest.mark.parametrize("kind", ["asynchronous", "plain"])
async def test_success_of_one_record_counts_between_failures_of_another(
    make: Make, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """At once, in the middle of what its lane was given: failures that others come between are not in a row."""
    manager, turns = make(max_consecutive_failures=2), Turns(monkeypatch)
    good, bad = [(0, number) for number in range(5)], [(1, number) for number in range(4)]
    turns.fails = set(bad)
    turns.waits_for = dict(zip(good, bad, strict=False)) | dict(zip(bad, good[1:], strict=True))
    item = registered(manager, manager.add_callback(getattr(turns, kind), concurrency=2))
    manager.submit(turns.batch([*good, *bad]))
    await eventually(lambda: item.state is CallbackState.REMOVED or item.outcomes["failed"] == 4)
    turns.end()
    assert await manager.drain(30)
    assert (item.state, item.outcomes) == (CallbackState.ACTIVE, {"ok": 5, "failed": 4})


@pytest.mark.parametrize("kind", ["asynchronous", "plain"])
async def test_success_before_failures_of_another_record_does_not_count_after_them(
    make: Make, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Also when what its lane was given ends only then: three failures in a row remove the callback."""
    manager, turns = make(max_consecutive_failures=3), Turns(monkeypatch)
    turns.fails = {(0, 1), (1, 0), (1, 1)}
    turns.waits_for = {(1, 0): (0, 1), (0, 1): (1, 2)}  # good, bad, bad, bad; the last of the other record is in work
    item = registered(manager, manager.add_callback(getattr(turns, kind), concurrency=2))
    manager.submit(turns.batch([(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]))
    turns.waits_for[1, 2] = (2, 0)
    await eventually(lambda: item.outcomes["failed"] == 3)
    turns.end()
    assert await manager.drain(30)
    assert item.state is CallbackState.REMOVED
    assert manager.registry.removed_total == {"failures": 1}


async def test_removal_lets_the_call_of_another_lane_end(make: Make) -> None:
    """It is counted for what it is, under its own position; what stood behind it is missed, exactly."""
    manager, gate, told = make(max_consecutive_failures=1), asyncio.Event(), Told()
    manager.set_error_handler(told)

    async def callback(one: DatabaseEvent) -> None:
        if one.record_id == "slow":
            await gate.wait()
        raise ValueError

    handle = manager.add_callback(callback, concurrency=2, name="c")
    item = registered(manager, handle)
    lanes = manager.pool.lanes[item]
    bad = next(str(n) for n in range(99) if hash(("public", "t", str(n))) % 2 != hash(("public", "t", "slow")) % 2)
    slow = [event(ordinal, record_id="slow") for ordinal in (1, 3, 5)]
    manager.submit(Batch(slow))
    await eventually(lambda: any(lane.started for lane in lanes))
    manager.submit(Batch([event(6, record_id=bad), event(7, record_id=bad)]))
    await eventually(lambda: item.state is CallbackState.REMOVED)
    assert told.ordinals == [6, None]
    assert (item.missed["removed"].first.ordinal, item.missed["removed"].last.ordinal) == (3, 7)
    assert manager.pool.settled(item, Position(Lsn(100), 7)) == Position(Lsn(100), 0)
    assert not await manager.drain(0)
    gate.set()
    assert await manager.drain(30)
    assert told.ordinals == [6, None, 1]
    assert item.outcomes == {"failed": 2, "missed": 3}
    assert manager.registry.removed_total == {"failures": 1}


# Timeouts


async def test_timeout_cancels_a_coroutine_and_its_finally_runs(make: Make) -> None:
    """The call is cancelled, cleans up, counts as a timeout, and the next event is handled."""
    manager, cleaned, seen, told = make(), [], [], Told()
    manager.set_error_handler(told)

    async def callback(one: DatabaseEvent) -> None:
        try:
            if one.position.ordinal == 2:
                await asyncio.Event().wait()
            seen.append(one.position.ordinal)
        finally:
            cleaned.append(one.position.ordinal)

    handle = manager.add_callback(callback, timeout_seconds=TIMEOUT)
    manager.submit(Batch(events(3)))
    assert await manager.drain(30)
    assert (seen, cleaned) == ([1, 3], [1, 2, 3])
    assert registered(manager, handle).outcomes == {"ok": 2, "timeout": 1}
    assert [type(error) for error in told.errors] == [CallbackTimeout]


async def test_timeouts_follow_each_other_without_the_grace(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The grace of one cancelled call is not added to the timeout of the next."""
    monkeypatch.setattr("cdc.workers.coroutine.GRACE_SECONDS", 60)
    manager = make(remove_failing_callbacks=False)

    async def hang(one: DatabaseEvent) -> None:
        await asyncio.Event().wait()

    manager.add_callback(hang, timeout_seconds=SHORT)
    manager.submit(Batch(events(3)))
    assert await manager.drain(30)
    assert manager.get_stats().events_timed_out == 3


class Swallower:
    """A coroutine callback that ignores its cancellation until it is let go."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.hanging = 0
        self.seen: list[int] = []

    async def hang(self) -> None:
        self.hanging += 1
        while not self.gate.is_set():
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                continue
        self.hanging -= 1

    async def handle(self, one: DatabaseEvent) -> None:
        if one.position.ordinal == 3:
            await self.hang()
        else:
            self.seen.append(one.position.ordinal)


async def test_coroutine_that_swallows_its_cancellation_is_abandoned(make: Make) -> None:
    """The lane goes on with the next event; the call that later returns is not counted as a success."""
    manager, callback = make(), Swallower()
    handle = manager.add_callback(callback, timeout_seconds=TIMEOUT)
    item = registered(manager, handle)
    manager.submit(Batch(events(5)))
    assert await manager.drain(30)
    assert callback.seen == [1, 2, 4, 5]
    assert callback.hanging == 1
    assert item.outcomes == {"ok": 4, "timeout": 1}
    failures = item.consecutive_failures = 1
    callback.gate.set()
    await eventually(lambda: callback.hanging == 0)
    await asyncio.sleep(0)
    assert (item.outcomes, item.consecutive_failures) == ({"ok": 4, "timeout": 1}, failures)
    await manager.emit(event(6))
    assert await manager.drain(30)
    assert callback.seen == [1, 2, 4, 5, 6]


@pytest.mark.parametrize("is_async", [True, False])
async def test_calls_before_one_that_never_ends_are_counted(
    make: Make, is_async: bool, release: threading.Event
) -> None:
    """What was handled before the hanging call counts at once, not when that call comes back."""
    manager, callback = make(), Swallower()

    def plain(one: DatabaseEvent) -> None:
        if one.position.ordinal == 100:
            release.wait()

    async def asynchronous(one: DatabaseEvent) -> None:
        if one.position.ordinal == 100:
            await callback.hang()

    handle = manager.add_callback(asynchronous if is_async else plain, timeout_seconds=TIMEOUT)
    manager.submit(Batch(events(100)))
    assert await manager.drain(30)
    item = registered(manager, handle)
    assert item.outcomes == {"ok": 99, "timeout": 1}
    assert item.seconds.count == 99
    callback.gate.set()


async def test_abandoned_coroutines_are_bounded(make: Make) -> None:
    """At the bound the lane waits instead of leaking more, and goes on when one of them has ended."""
    manager, callback = make(remove_failing_callbacks=False), Swallower()

    async def hang(one: DatabaseEvent) -> None:
        await callback.hang()

    manager.add_callback(hang, timeout_seconds=SHORT)
    manager.submit(Batch(events(MAX_ABANDONED + 4)))
    await eventually(lambda: callback.hanging == MAX_ABANDONED + 1)
    assert not await manager.drain(8 * SHORT)
    assert callback.hanging == MAX_ABANDONED + 1
    callback.gate.set()
    assert await manager.drain(30)


def lane_threads(handle: CallbackHandle) -> int:
    """How many threads the lanes of a callback have."""
    return sum(thread.name.startswith(f"cdc-lane-{handle.name}-") for thread in threading.enumerate())


async def test_thread_that_hangs_is_abandoned(make: Make, release: threading.Event) -> None:
    """A new thread goes on with the next event; a call that later returns is not counted, nor goes it on."""
    manager, seen = make(), []

    def callback(one: DatabaseEvent) -> None:
        if one.position.ordinal == 3:
            release.wait()
        seen.append(one.position.ordinal)

    handle = manager.add_callback(callback, name="hang-in-thread", timeout_seconds=TIMEOUT)
    item = registered(manager, handle)
    manager.submit(Batch(events(5)))
    assert await manager.drain(30)
    assert seen == [1, 2, 4, 5]
    assert item.outcomes == {"ok": 4, "timeout": 1}
    item.consecutive_failures = 1
    assert lane_threads(handle) == 2
    release.set()
    await eventually(lambda: lane_threads(handle) == 1)
    assert (seen[4:], item.outcomes, item.consecutive_failures) == ([3], {"ok": 4, "timeout": 1}, 1)


async def test_call_in_a_thread_has_its_time_from_its_own_beginning(make: Make, release: threading.Event) -> None:
    """A busy machine may let the thread wait for longer than that: nothing is given up that was not begun."""
    manager, recorder = make(), Recorder()
    item = registered(manager, manager.add_callback(recorder.plain, timeout_seconds=TIMEOUT))
    lane = manager.pool.lanes[item][0]
    assert isinstance(lane, ThreadLane)
    lane._own_thread().submit(release.wait)
    manager.submit(Batch(events(3)))
    asked = asyncio.get_running_loop().time()
    await eventually(lambda: asyncio.get_running_loop().time() > asked + 3 * TIMEOUT)
    assert (recorder.seen, item.outcomes) == ([], {})
    release.set()
    assert await manager.drain(30)
    assert recorder.seen == [1, 2, 3]
    assert item.outcomes == {"ok": 3}


class Dawdling:
    """A share's events for a thread that a busy machine lets wait before the last of them."""

    def __init__(self, events: Iterable[DatabaseEvent]) -> None:
        self.left = deque(events)

    def __iter__(self) -> Iterator[DatabaseEvent]:
        return self

    def __length_hint__(self) -> int:
        return len(self.left)

    def __next__(self) -> DatabaseEvent:
        if len(self.left) == 1 and threading.current_thread() is not threading.main_thread():
            time.sleep(3 * TIMEOUT)
        if not self.left:
            raise StopIteration
        return self.left.popleft()


async def test_call_that_has_ended_is_not_given_up_while_its_thread_waits(make: Make) -> None:
    """Between two events nothing of the callback's is late: what was handled has not failed as well."""
    manager, recorder = make(), Recorder()
    item = registered(manager, manager.add_callback(recorder.plain, timeout_seconds=TIMEOUT))
    manager.submit(Batch(events(2)))
    share = manager.pool.lanes[item][0]._queue[0].share
    assert share is not None
    share.iterator = Dawdling(share.iterator)
    assert await manager.drain(30)
    assert recorder.seen == [1, 2]
    assert item.outcomes == {"ok": 2}


async def test_abandoned_threads_are_bounded(make: Make, release: threading.Event) -> None:
    """At the bound the lane waits instead of making more threads, and goes on when one has ended."""
    manager = make(remove_failing_callbacks=False)

    def hang(one: DatabaseEvent) -> None:
        release.wait()

    handle = manager.add_callback(hang, name="hang-in-threads", timeout_seconds=SHORT)
    manager.submit(Batch(events(MAX_ABANDONED + 4)))
    await eventually(lambda: lane_threads(handle) == MAX_ABANDONED + 1)
    assert not await manager.drain(8 * SHORT)
    assert lane_threads(handle) == MAX_ABANDONED + 1
    release.set()
    assert await manager.drain(30)
    await manager.shutdown()
    await eventually(lambda: lane_threads(handle) == 0)


async def test_thread_is_told_from_one_that_has_just_ended(make: Make) -> None:
    """Calls about as long as their timeout are each counted once, as what they are."""
    manager, chance, ended = make(remove_failing_callbacks=False), random.Random(1), []

    def callback(one: DatabaseEvent) -> None:
        time.sleep(0.01 * chance.choice((0.9, 1.0, 1.1)))
        ended.append(one.position.ordinal)

    handle = manager.add_callback(callback, timeout_seconds=0.01)
    manager.submit(Batch(events(100)))
    assert await manager.drain(30)
    outcomes = registered(manager, handle).outcomes
    assert outcomes["ok"] + outcomes["timeout"] == 100
    assert outcomes["failed"] == 0


# Batches


class BatchRecorder:
    """Notes the batches it gets, and does something about one ordinal."""

    def __init__(self, about: int = 0, what: Callable[[], Any] | None = None) -> None:
        self.batches: list[list[int]] = []
        self.about = about
        self.what = what

    def take(self, batch: list[DatabaseEvent]) -> Any:
        ordinals = [one.position.ordinal for one in batch]
        self.batches.append(ordinals)
        return self.what() if self.what is not None and self.about in ordinals else None


class PlainBatch(BatchRecorder):
    """In a thread."""

    def handle_batch(self, batch: list[DatabaseEvent]) -> None:
        self.take(batch)


class AsyncBatch(BatchRecorder):
    """On the event loop; `what` may give something to wait for."""

    async def handle_batch(self, batch: list[DatabaseEvent]) -> None:
        if (wait := self.take(batch)) is not None and asyncio.iscoroutine(wait):
            await wait


def explode() -> NoReturn:
    """The poison of a batch."""
    raise ValueError


@pytest.mark.parametrize("kind", [PlainBatch, AsyncBatch])
async def test_batch_is_given_whole(make: Make, kind: type[Any]) -> None:
    """One call gets what was submitted together."""
    manager, callback = make(), kind()
    manager.add_callback(callback)
    manager.submit(Batch(events(5)))
    assert await manager.drain(30)
    assert callback.batches == [[1, 2, 3, 4, 5]]
    assert manager.get_stats().events_processed == 5


@pytest.mark.parametrize("kind", [PlainBatch, AsyncBatch])
async def test_failing_batch_is_given_singly_so_that_only_the_poison_fails(make: Make, kind: type[Any]) -> None:
    """Nobody knows which event of a batch is to blame; one by one, the others succeed."""
    manager, callback, told = make(max_consecutive_failures=1), kind(3, explode), Told()
    manager.set_error_handler(told)
    handle = manager.add_callback(callback)
    manager.submit(Batch(events(5)))
    assert await manager.drain(30)
    assert callback.batches == [[1, 2, 3, 4, 5], [1], [2], [3]]
    assert told.ordinals == [3, None]
    assert registered(manager, handle).outcomes == {"ok": 2, "failed": 1, "missed": 2}


@pytest.mark.parametrize("kind", [PlainBatch, AsyncBatch])
async def test_batch_of_one_that_fails_is_not_tried_again(make: Make, kind: type[Any]) -> None:
    """There is no doubt which event is to blame."""
    manager, callback = make(), kind(1, explode)
    handle = manager.add_callback(callback)
    await manager.emit(event(1))
    assert await manager.drain(30)
    assert callback.batches == [[1]]
    assert registered(manager, handle).outcomes == {"failed": 1}


@pytest.mark.parametrize("kind", [PlainBatch, AsyncBatch])
async def test_batch_that_times_out_is_given_singly(make: Make, kind: type[Any], release: threading.Event) -> None:
    """In a thread, too; and what returns late is not counted."""
    manager = make()
    callback = kind(2, asyncio.Event().wait if kind is AsyncBatch else release.wait)
    handle = manager.add_callback(callback, timeout_seconds=TIMEOUT)
    item = registered(manager, handle)
    manager.submit(Batch(events(3)))
    assert await manager.drain(30)
    release.set()
    assert callback.batches == [[1, 2, 3], [1], [2], [3]]
    assert item.outcomes == {"ok": 2, "timeout": 1}
    await manager.shutdown()
    assert item.outcomes == {"ok": 2, "timeout": 1}


async def test_batch_that_swallows_its_cancellation_is_abandoned_and_given_singly(make: Make) -> None:
    """The lane goes on beside the hanging call."""
    manager, swallower = make(), Swallower()
    callback = AsyncBatch(2, swallower.hang)
    handle = manager.add_callback(callback, timeout_seconds=TIMEOUT)
    item = registered(manager, handle)
    manager.submit(Batch(events(3)))
    assert await manager.drain(30)
    assert callback.batches == [[1, 2, 3], [1], [2], [3]]
    assert (swallower.hanging, item.outcomes) == (2, {"ok": 2, "timeout": 1})
    swallower.gate.set()
    await eventually(lambda: swallower.hanging == 0)
    assert item.outcomes == {"ok": 2, "timeout": 1}


@pytest.mark.parametrize("kind", [PlainBatch, AsyncBatch])
async def test_batch_handler_never_gets_an_empty_list(make: Make, kind: type[Any]) -> None:
    """Not from a batch without events for it, nor after its removal while it waits at a barrier."""
    manager, callback = make(max_consecutive_failures=1), kind(1, explode)
    handle = manager.add_callback(callback, concurrency=3, tables=["public.t"], event_types=["update", "truncate"])
    manager.submit(Batch([DatabaseEvent.of("update", "other"), DatabaseEvent.of("create", "t")]))
    manager.submit(Batch([]))
    manager.submit(Batch([event(1, event_type="truncate", record_id=None), *events(9)[1:]]))
    assert await manager.drain(30)
    item = registered(manager, handle)
    assert callback.batches == [[1]]
    assert item.outcomes == {"failed": 1, "missed": 8}


@pytest.mark.parametrize("ends_well", [True, False])
async def test_batch_in_work_ends_when_another_lane_has_its_callback_removed(make: Make, ends_well: bool) -> None:
    """It is one call: all its events succeed, or all of them are missed and none is tried again."""
    manager, gate, batches = make(max_consecutive_failures=1), asyncio.Event(), []
    other = next(str(n) for n in range(99) if hash(("public", "t", str(n))) % 2 != hash(("public", "t", "slow")) % 2)

    class Callback:
        async def handle_batch(self, batch: list[DatabaseEvent]) -> None:
            batches.append(len(batch))
            if batch[0].record_id == "slow":
                await gate.wait()
            if batch[0].record_id == other or not ends_well:
                raise ValueError

    item = registered(manager, manager.add_callback(Callback(), concurrency=2))
    manager.submit(Batch([event(ordinal, record_id="slow") for ordinal in (1, 2, 3)]))
    await eventually(lambda: batches == [3])
    await manager.emit(event(4, record_id=other))
    await eventually(lambda: item.state is CallbackState.REMOVED)
    assert not await manager.drain(0)
    gate.set()
    assert await manager.drain(30)
    assert batches == [3, 1]
    assert item.outcomes == {"failed": 1} | ({"ok": 3} if ends_well else {"missed": 3})


# open and close


class Resource:
    """Notes when and where it is opened, called and closed."""

    def __init__(self, failures: int = 0) -> None:
        self.calls: list[str] = []
        self.threads: set[int] = set()
        self.failures = failures

    def note(self, what: str) -> None:
        self.calls.append(what)
        self.threads.add(threading.get_ident())

    def opening(self) -> None:
        self.note("open")
        if self.calls.count("open") <= self.failures:
            raise ConnectionError


class PlainResource(Resource):
    """In a thread."""

    def open(self) -> None:
        self.opening()

    def handle(self, one: DatabaseEvent) -> None:
        self.note(str(one.position.ordinal))

    def close(self) -> None:
        self.note("close")


class AsyncResource(Resource):
    """On the event loop."""

    async def open(self) -> None:
        self.opening()

    async def handle(self, one: DatabaseEvent) -> None:
        self.note(str(one.position.ordinal))

    async def close(self) -> None:
        self.note("close")


@pytest.mark.parametrize("kind", [PlainResource, AsyncResource])
async def test_open_is_called_once_before_the_first_event_and_close_once(
    make: Make, long_graces: None, kind: type[Any]
) -> None:
    """All in the lane's one thread; a second shutdown closes nothing again, and no thread is left."""
    manager, resource = make(), kind()
    handle = manager.add_callback(resource, name="resource")
    for one in events(2):
        await manager.emit(one)
    assert await manager.shutdown()
    assert await manager.shutdown()
    assert resource.calls == ["open", "1", "2", "close"]
    assert len(resource.threads) == 1
    assert (threading.get_ident() in resource.threads) == (kind is AsyncResource)
    await eventually(lambda: lane_threads(handle) == 0)


@pytest.mark.parametrize("kind", [PlainResource, AsyncResource])
async def test_open_that_fails_fails_the_event_and_is_tried_again(make: Make, kind: type[Any]) -> None:
    """Each event that cannot be handed out has failed, once; the next tries to open again."""
    manager, resource = make(), kind(failures=2)
    handle = manager.add_callback(resource)
    manager.submit(Batch(events(4)))
    assert await manager.drain(30)
    assert resource.calls == ["open", "open", "open", "3", "4"]
    assert registered(manager, handle).outcomes == {"failed": 2, "ok": 2}


@pytest.mark.parametrize("kind", [PlainResource, AsyncResource])
@pytest.mark.parametrize("remove", [True, False])
async def test_open_that_always_fails_comes_to_an_end(make: Make, kind: type[Any], remove: bool) -> None:
    """The last event of a batch is not tried for ever; what was never opened is not closed."""
    manager, resource = make(remove_failing_callbacks=remove), kind(failures=99)
    handle = manager.add_callback(resource)
    manager.submit(Batch(events(5)))
    assert await manager.drain(30)
    expected = {"failed": 3, "missed": 2} if remove else {"failed": 5}
    assert registered(manager, handle).outcomes == expected
    await manager.shutdown()
    assert "close" not in resource.calls


async def test_open_that_raises_cancelled_error_does_not_end_the_lane(make: Make) -> None:
    """It is the callback's own affair, and a failure like others."""

    class Cancelling(AsyncResource):
        async def open(self) -> None:
            raise asyncio.CancelledError

    manager = make(remove_failing_callbacks=False)
    handle = manager.add_callback(Cancelling())
    manager.submit(Batch(events(2)))
    assert await manager.drain(30)
    assert registered(manager, handle).outcomes == {"failed": 2}


async def test_open_that_hangs_in_its_thread_is_not_called_again_beside(make: Make, release: threading.Event) -> None:
    """Each event times out; when the first call has ended, only what is still asked for is called."""
    calls = []

    class Hanging(PlainResource):
        def open(self) -> None:
            calls.append(release.wait())

    manager = make(remove_failing_callbacks=False)
    handle = manager.add_callback(Hanging(), name="hang-in-open", timeout_seconds=TIMEOUT)
    manager.submit(Batch(events(3)))
    assert await manager.drain(30)
    assert registered(manager, handle).outcomes == {"timeout": 3}
    assert lane_threads(handle) == 1
    release.set()
    await eventually(lambda: len(calls) == 1)
    await manager.emit(event(4))
    assert await manager.drain(30)
    assert len(calls) == 2
    assert registered(manager, handle).outcomes == {"timeout": 3, "ok": 1}


async def test_open_is_called_once_for_all_lanes(make: Make) -> None:
    """Lanes that begin at the same time wait for the one that opens."""
    manager, resource = make(), AsyncResource()
    manager.add_callback(resource, concurrency=4)
    manager.submit(Batch([event(number, record_id=str(number)) for number in range(1, 30)]))
    assert await manager.drain(30)
    assert (resource.calls[0], resource.calls.count("open")) == ("open", 1)


@pytest.mark.parametrize("error", [ValueError(), SystemExit(), asyncio.CancelledError()])
async def test_close_that_raises_does_not_keep_others_from_closing(
    make: Make, long_graces: None, error: BaseException
) -> None:
    """Shutdown comes to its end."""

    class Broken(AsyncResource):
        async def close(self) -> None:
            raise error

    manager, resource = make(), AsyncResource()
    broken = manager.add_callback(Broken())
    item = registered(manager, broken)
    manager.add_callback(resource)
    await manager.emit(event())
    assert await manager.shutdown()
    assert resource.calls[-1] == "close"
    assert item.last_error == f"close: {type(error).__name__}"
