"""`SignalManager`: registration, unsubscribing, backpressure, statistics, cleanup, error handler, shutdown."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any

import pytest

from cdc.callbacks import CallbackState
from cdc.error_handler import MAX_TOLD
from cdc.errors import CallbackError, CallbackTimeout, ConfigError, ManagerClosed, TooManyCallbacks
from cdc.events import DatabaseEvent, EventType, Position
from cdc.lsn import Lsn
from cdc.progress import Batch
from cdc.signals import SignalManager
from cdc.values import PostgresValue
from tests.conftest import Make, registered
from tests.waiting import eventually


@pytest.fixture(autouse=True)
def short_graces(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody waits for in these tests takes no seconds."""
    monkeypatch.setattr("cdc.signals.GRACE_SECONDS", 0.2)


@pytest.fixture
def long_graces(monkeypatch: pytest.MonkeyPatch, short_graces: None) -> None:
    """For calls that are meant to end within it, on a machine that stands still for some seconds."""
    monkeypatch.setattr("cdc.signals.GRACE_SECONDS", 30.0)


def event(ordinal: int = 1, event_type: str = "create", **fields: Any) -> DatabaseEvent:
    """An event of transaction 100."""
    return DatabaseEvent.of(event_type, "t", position=Position(Lsn(100), ordinal), **{"record_id": "1"} | fields)


def events(count: int) -> list[DatabaseEvent]:
    """Events 1 to `count` of one transaction."""
    return [event(ordinal) for ordinal in range(1, count + 1)]


class Recorder:
    """A callback that notes the ordinals it gets, and can be held."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.began = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def handle(self, one: DatabaseEvent) -> None:
        self.began += 1
        await self.gate.wait()
        self.seen.append(one.position.ordinal)


class Held(Recorder):
    """One that is held from the beginning."""

    def __init__(self) -> None:
        super().__init__()
        self.gate.clear()


# Registration


async def test_callback_without_conditions_gets_all_but_truncate(make: Make) -> None:
    """TRUNCATE reaches only callbacks that ask for it."""
    manager, rows, truncates = make(), Recorder(), Recorder()
    manager.add_callback(rows)
    manager.add_callback(truncates, event_types=[EventType.TRUNCATE])
    for ordinal, event_type in enumerate(EventType):
        await manager.emit(event(ordinal, event_type.value))
    assert await manager.drain(30)
    assert (rows.seen, truncates.seen) == ([0, 1, 2], [3])


async def test_add_callback_takes_conditions_and_names_itself(make: Make) -> None:
    """Tables, types, tags and columns are conditions together; without a name it gets one of its own."""
    manager, seen = make(), []

    def audit(one: DatabaseEvent) -> None:
        seen.append(one.payload)

    handle = manager.add_callback(
        audit,
        tables=["public.t"],
        event_types=["create"],
        tags=["a:*"],
        exclude_columns=["secret"],
        mask_columns=["email"],
    )
    row: dict[str, PostgresValue] = {"id": 1, "secret": "s", "email": "e"}
    for one in (
        event(payload=row, tags=["a:1"]),
        event(payload=row),
        event(payload=row, tags=["a:1"], event_type="delete"),
        DatabaseEvent.of("create", "other", row, tags=["a:1"]),
    ):
        await manager.emit(one)
    assert await manager.drain(30)
    assert seen == [{"id": 1, "email": "***"}]
    assert handle.name == f"audit-{handle.id}"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"callback": None}, CallbackError),
        ({"callback": Recorder}, CallbackError),
        ({"concurrency": 0}, CallbackError),
        ({"timeout_seconds": 0}, CallbackError),
        ({"timeout_seconds": -1}, CallbackError),
        ({"timeout_seconds": float("nan")}, CallbackError),
        ({"event_types": ["insert"]}, CallbackError),
        ({"event_types": []}, CallbackError),
        ({"event_types": "create"}, CallbackError),
        ({"tags": "audit:*"}, CallbackError),
        ({"exclude_columns": "password"}, CallbackError),
        ({"mask_columns": "email"}, CallbackError),
        ({"tables": "public.t"}, CallbackError),
        ({"tables": ["users"]}, ConfigError),
    ],
)
def test_add_callback_refuses_what_would_silently_do_something_else(
    arguments: dict[str, Any], error: type[Exception]
) -> None:
    """A word in place of a list would be taken apart into letters, and hide no column; nothing is registered."""
    manager = SignalManager()
    with pytest.raises(error):
        manager.add_callback(**{"callback": print} | arguments)
    assert manager.callback_count() == 0


async def test_add_callback_refuses_more_than_max_callbacks_until_one_leaves(make: Make) -> None:
    """The bound is of callbacks that get events."""
    manager = make(max_callbacks=2)
    first = manager.add_callback(print)
    manager.add_callback(print)
    with pytest.raises(TooManyCallbacks):
        manager.add_callback(print)
    assert await first.unsubscribe()
    manager.add_callback(print)
    assert manager.callback_count() == 2


# Unsubscribing


async def test_unsubscribe_drops_what_has_not_begun_and_lets_the_call_in_work_end(
    make: Make, long_graces: None
) -> None:
    """The rest of the queue is skipped, counted; a second call has nothing to end."""
    manager, callback = make(), Held()
    handle = manager.add_callback(callback, name="c")
    item = registered(manager, handle)
    manager.submit(Batch(events(3)))
    await manager.emit(event(4))
    await eventually(lambda: callback.began == 1)
    leaving = asyncio.create_task(handle.unsubscribe())
    await eventually(lambda: item.state is CallbackState.UNSUBSCRIBED)
    callback.gate.set()
    assert await leaving
    assert not await handle.unsubscribe()
    assert callback.seen == [1]
    assert item.outcomes == {"ok": 1, "skipped": 3}
    assert await manager.drain(30)
    await manager.emit(event(5))
    assert callback.seen == [1]
    assert manager.add_callback(callback, name="c").id != handle.id


@pytest.mark.parametrize("what", ["cancelled", "swallowed", "thread"])
async def test_unsubscribe_does_not_wait_for_a_call_that_hangs(make: Make, what: str, release: threading.Event) -> None:
    """After the grace the call is cancelled or left to itself, its event is skipped, and nothing is queued."""
    manager, began, gate = make(), threading.Event(), asyncio.Event()

    async def asynchronous(one: DatabaseEvent) -> None:
        began.set()
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                if what == "cancelled":
                    raise

    def plain(one: DatabaseEvent) -> None:
        began.set()
        release.wait()

    handle = manager.add_callback(plain if what == "thread" else asynchronous)
    item = registered(manager, handle)
    manager.submit(Batch(events(3)))
    await eventually(began.is_set)
    assert await handle.unsubscribe()
    assert item.outcomes == {"skipped": 3}
    assert await manager.drain(30)
    gate.set()
    release.set()
    await asyncio.sleep(0)
    assert item.outcomes == {"skipped": 3}


async def test_callback_may_unsubscribe_itself(make: Make, long_graces: None) -> None:
    """The call comes to its end and counts; no other follows, and `close` was called."""
    manager = make()
    seen: list[int | str] = []

    class Once:
        async def handle(self, one: DatabaseEvent) -> None:
            assert await handle.unsubscribe()
            assert not await handle.unsubscribe()
            seen.append(one.position.ordinal)

        async def close(self) -> None:
            seen.append("close")

    handle = manager.add_callback(Once())
    item = registered(manager, handle)
    manager.submit(Batch(events(3)))
    assert await manager.drain(30)
    assert seen == ["close", 1]
    assert item.outcomes == {"ok": 1, "skipped": 2}


async def test_removed_callback_can_be_unsubscribed_to_free_its_name(make: Make) -> None:
    """It has failed too often; its owner may still take it out."""
    manager = make(max_consecutive_failures=1)

    async def fail(one: DatabaseEvent) -> None:
        raise ValueError

    handle = manager.add_callback(fail, name="c")
    await manager.emit(event())
    assert await manager.drain(30)
    assert manager.callback_count() == 0
    assert await handle.unsubscribe()
    manager.add_callback(fail, name="c")


async def test_clear_callbacks_takes_all_out_also_from_inside_one(make: Make, long_graces: None) -> None:
    """All are asked to end together; the one that calls it ends by itself."""
    manager, other, counts = make(), Recorder(), []

    async def clear(one: DatabaseEvent) -> None:
        counts.append(await manager.clear_callbacks())

    manager.add_callback(clear)
    manager.add_callback(other)
    await manager.emit(event())
    assert await manager.drain(30)
    assert (counts, manager.callback_count()) == ([2], 0)
    assert await manager.clear_callbacks() == 0


# The queue


async def test_emit_waits_while_the_queue_is_full_and_each_goes_on(make: Make) -> None:
    """Many emitters at once never exceed the bound, and none is forgotten."""
    manager, callback = make(max_queued_events=3), Held()
    manager.add_callback(callback)
    emitters = [asyncio.create_task(manager.emit(one)) for one in events(10)]
    await eventually(lambda: callback.began == 1)
    assert (manager.pool.queued_events, sum(task.done() for task in emitters)) == (3, 3)
    callback.gate.set()
    await asyncio.gather(*emitters)
    assert await manager.drain(30)
    assert sorted(callback.seen) == list(range(1, 11))


async def test_two_drains_at_once_both_come_to_an_end(make: Make) -> None:
    """Whoever waits for the queue to be worked off is told, however many they are."""
    manager, callback = make(), Held()
    manager.add_callback(callback)
    await manager.emit(event())
    drains = [asyncio.create_task(manager.drain(30)) for _ in range(2)]
    await eventually(lambda: callback.began == 1)
    callback.gate.set()
    assert await asyncio.gather(*drains) == [True, True]


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("fails", [True, False])
async def test_settled_events_leave_memory(make: Make, is_async: bool, fails: bool) -> None:
    """An idle lane or thread holds on to nothing of the batch that it worked off last."""

    class Payload(dict[str, Any]):
        """A dict that can be watched."""

    def plain(one: DatabaseEvent) -> None:
        if fails:
            raise ValueError

    async def asynchronous(one: DatabaseEvent) -> None:
        plain(one)

    manager = make(remove_failing_callbacks=False)
    manager.add_callback(asynchronous if is_async else plain)
    payload = Payload(id=1)
    watched = weakref.ref(payload)
    await manager.emit(event(payload=payload))
    del payload
    assert await manager.drain(30)

    def is_gone() -> bool:
        gc.collect()
        return watched() is None

    await eventually(is_gone)


# Statistics and cleanup


async def test_stats_are_exact(make: Make) -> None:
    """Every event is counted once per callback, as what became of it; in lanes of several threads, too."""
    manager = make(max_consecutive_failures=2)

    def fine(one: DatabaseEvent) -> None: ...

    def fail(one: DatabaseEvent) -> None:
        raise ValueError

    async def hang(one: DatabaseEvent) -> None:
        await asyncio.Event().wait()

    manager.add_callback(fine, name="ok", concurrency=4)
    manager.add_callback(fail, name="fail")
    manager.add_callback(hang, name="hang", timeout_seconds=0.05)
    manager.submit(Batch([event(number, record_id=str(number)) for number in range(1, 501)]))
    queued = manager.get_stats()
    assert (queued.queued_events, queued.callbacks) == (500, 3)
    assert await manager.drain(30)
    stats = manager.get_stats()
    assert (stats.events_emitted, stats.events_processed, stats.events_failed, stats.events_timed_out) == (
        500,
        500,
        2,
        2,
    )
    assert (stats.events_missed, stats.callbacks, stats.callbacks_removed, stats.queued_events) == (996, 1, 2, 0)
    good, failing = stats.performance["ok"], stats.performance["fail"]
    assert (good.ok, good.state, good.mean_seconds > 0) == (500, CallbackState.ACTIVE, True)
    assert (failing.failed, failing.missed, failing.consecutive_failures) == (2, 498, 2)
    assert (failing.state, failing.last_error) == (CallbackState.REMOVED, "ValueError")


async def test_cleanup_removes_inactive_callbacks_of_code_only(make: Make) -> None:
    """A handler of the configuration stays, and so does who had an event lately."""
    manager = make(inactive_callback_threshold_seconds=60)
    manager.add_callback(print, name="old")
    manager.add_callback(print, name="configured", configured=True)
    manager.add_callback(print, name="young")
    for item in manager.registry:
        item.last_active -= 0 if item.name == "young" else 100
    await manager.clean_up()
    assert [item.name for item in manager.registry.active] == ["configured", "young"]
    assert manager.registry.removed_total == {"inactive": 1}


async def test_cleanup_spares_a_callback_with_a_call_in_work(make: Make) -> None:
    """However long ago the call began."""
    manager, busy = make(inactive_callback_threshold_seconds=60), Held()
    handle = manager.add_callback(busy)
    await manager.emit(event())
    await eventually(lambda: busy.began == 1)
    registered(manager, handle).last_active -= 100
    await manager.clean_up()
    assert manager.callback_count() == 1
    busy.gate.set()


async def test_cleanup_can_be_switched_off_for_inactive_callbacks(make: Make) -> None:
    """`auto_remove_inactive_callbacks = false` keeps them."""
    manager = make(auto_remove_inactive_callbacks=False)
    handle = manager.add_callback(print)
    registered(manager, handle).last_active -= 1e6
    await manager.clean_up()
    assert manager.callback_count() == 1


async def test_cleanup_runs_by_itself(make: Make) -> None:
    """After the first event, every `cleanup_interval_seconds`."""
    manager = make(cleanup_interval_seconds=0.02, inactive_callback_threshold_seconds=0.01)
    manager.add_callback(Recorder())
    await manager.emit(event())
    await eventually(lambda: manager.callback_count() == 0)


async def test_cleanup_forgets_who_left_and_keeps_the_totals(make: Make) -> None:
    """No total ever falls, and the registry does not grow with every subscription."""
    manager = make()
    for number in range(1, 4):
        handle = manager.add_callback(Recorder())
        await manager.emit(event(number))
        assert await manager.drain(30)
        await handle.unsubscribe()
        before = manager.get_stats().events_processed
        await manager.clean_up()
        assert manager.get_stats().events_processed == before == number
        assert list(manager.registry) == []
    assert manager.get_stats().callbacks_removed == 3


async def test_cleanup_ends_what_removed_callbacks_leave(make: Make, long_graces: None) -> None:
    """Their thread ends and their `close` is called once; their gap stays on record and goes on growing."""
    manager, calls = make(max_consecutive_failures=1), []

    class Failing:
        def handle(self, one: DatabaseEvent) -> None:
            calls.append(threading.current_thread())
            raise ValueError(one.position)

        def close(self) -> None:
            calls.append(threading.current_thread())

    handle = manager.add_callback(Failing())
    await manager.emit(event())
    assert await manager.drain(30)
    await manager.clean_up()
    await manager.clean_up()
    assert (len(calls), len(set(calls))) == (2, 1)
    await eventually(lambda: not calls[0].is_alive())
    await manager.emit(event(2))
    assert registered(manager, handle).missed["removed"].events == 1


async def test_cleanup_tells_the_rate_of_each_callback(make: Make) -> None:
    """Events per second are those since the cleanup before."""
    manager = make()
    manager.add_callback(Recorder(), name="c")
    await manager.emit(event())
    assert await manager.drain(30)
    await manager.clean_up()
    assert manager.get_stats().performance["c"].events_per_second > 0
    await manager.clean_up()
    assert manager.get_stats().performance["c"].events_per_second == 0


# The error handler


@pytest.mark.parametrize("is_async", [True, False])
async def test_error_handler_hears_of_each_failure_and_of_the_removal_once(
    make: Make, long_graces: None, is_async: bool
) -> None:
    """With the error, the event and the callback's name; a removal comes without an event."""
    manager, told = make(max_consecutive_failures=2), []

    def tell(error: BaseException, one: DatabaseEvent | None, name: str) -> None:
        told.append((type(error), one and one.position.ordinal, name))

    async def tell_async(error: BaseException, one: DatabaseEvent | None, name: str) -> None:
        tell(error, one, name)

    async def hang(one: DatabaseEvent) -> None:
        if one.position.ordinal == 1:
            raise ValueError
        await asyncio.Event().wait()

    manager.set_error_handler(tell_async if is_async else tell)
    manager.add_callback(hang, name="c", timeout_seconds=0.05)
    manager.submit(Batch(events(5)))
    assert await manager.shutdown()
    assert told == [(ValueError, 1, "c"), (CallbackTimeout, 2, "c"), (CallbackError, None, "c")]


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("broken", [ValueError, SystemExit, KeyboardInterrupt, asyncio.CancelledError])
async def test_error_handler_that_raises_harms_nobody(make: Make, is_async: bool, broken: type[BaseException]) -> None:
    """The lane goes on, and so does the event loop."""
    manager, recorder = make(), Recorder()

    def tell(error: BaseException, one: DatabaseEvent | None, name: str) -> None:
        raise broken

    async def tell_async(error: BaseException, one: DatabaseEvent | None, name: str) -> None:
        raise broken

    async def fail_first(one: DatabaseEvent) -> None:
        if one.position.ordinal == 1:
            raise ValueError
        await recorder.handle(one)

    manager.set_error_handler(tell_async if is_async else tell)
    manager.add_callback(fail_first)
    manager.submit(Batch(events(2)))
    assert await manager.shutdown()
    assert recorder.seen == [2]


async def test_error_handler_that_hangs_is_not_called_without_bound(make: Make) -> None:
    """Past the bound failures are only counted; the removal is told all the same."""
    manager, gate, told = make(max_consecutive_failures=MAX_TOLD + 50), asyncio.Event(), []

    async def tell(error: BaseException, one: DatabaseEvent | None, name: str) -> None:
        told.append(one)
        await gate.wait()

    async def fail(one: DatabaseEvent) -> None:
        raise ValueError

    manager.set_error_handler(tell)
    manager.add_callback(fail)
    manager.submit(Batch(events(MAX_TOLD + 50)))
    assert await manager.drain(30)
    await eventually(lambda: None in told)
    assert len(told) == MAX_TOLD + 1
    gate.set()


# Shutdown


async def test_shutdown_drains_and_then_takes_nothing_more(make: Make) -> None:
    """What was queued is handled; events and callbacks after it are refused."""
    manager, recorder = make(), Recorder()
    manager.add_callback(recorder)
    manager.submit(Batch(events(100)))
    assert await manager.shutdown()
    assert len(recorder.seen) == 100
    with pytest.raises(ManagerClosed):
        await manager.emit(event())
    with pytest.raises(ManagerClosed):
        manager.add_callback(print)


async def test_shutdown_refuses_who_waits_in_emit(make: Make) -> None:
    """An event that was not queued yet is refused, not lost and not left waiting for ever."""
    manager, callback = make(max_queued_events=1), Held()
    manager.add_callback(callback)
    await manager.emit(event(1))
    waiting = asyncio.create_task(manager.emit(event(2)))
    await eventually(lambda: callback.began == 1)
    assert not await manager.shutdown(0.05)
    with pytest.raises(ManagerClosed):
        await waiting
    assert manager.get_stats().events_emitted == 1


@pytest.mark.parametrize("is_async", [True, False])
async def test_shutdown_at_its_deadline_leaves_the_rest_unsettled(
    make: Make, is_async: bool, release: threading.Event
) -> None:
    """The settled position is exact: past what was handled, before the call that was cut off."""
    manager, seen, hangs = make(), list[int](), threading.Event()

    def plain(one: DatabaseEvent) -> None:
        if one.position.ordinal == 3:
            hangs.set()
            release.wait()
        seen.append(one.position.ordinal)

    async def asynchronous(one: DatabaseEvent) -> None:
        if one.position.ordinal == 3:
            hangs.set()
            await asyncio.Event().wait()
        seen.append(one.position.ordinal)

    item = registered(manager, manager.add_callback(asynchronous if is_async else plain))
    batch = Batch(events(5))
    manager.submit(batch)
    manager.submit(Batch([event(6)]))
    await eventually(hangs.is_set)  # so that the call before it has come back, and counts
    assert not await manager.shutdown(0.05)
    assert seen == [1, 2]
    release.set()
    await asyncio.sleep(0)
    assert manager.pool.settled(item, Position(Lsn(100), 6)) == Position(Lsn(100), 2)
    assert (batch.pending, item.outcomes) == (1, {"ok": 2})
    assert 4 not in seen


async def test_shutdown_takes_one_grace_for_all_that_hang(make: Make) -> None:
    """Many callbacks whose `close` hangs are not waited for one after the other."""

    class Hanging(Recorder):
        async def close(self) -> None:
            await asyncio.Event().wait()

    manager = make(max_callbacks=500)
    for _ in range(500):
        manager.add_callback(Hanging())
    async with asyncio.timeout(50):  # one after the other they would take twice as long
        assert await manager.shutdown()


async def test_shutdown_happens_at_the_end_of_the_block() -> None:
    """`async with` drains and closes."""
    recorder = Recorder()
    async with SignalManager() as manager:
        manager.add_callback(recorder)
        await manager.emit(event())
    assert recorder.seen == [1]


# Positions


async def test_settled_is_the_frontier_when_nothing_is_open(make: Make) -> None:
    """A callback that wanted nothing of a batch is as far as the stream."""
    manager = make()
    item = registered(manager, manager.add_callback(print, tables=["public.other"]))
    manager.submit(Batch(events(3)))
    assert manager.pool.settled(item, Position(Lsn(100), 3)) == Position(Lsn(100), 3)


async def test_settled_stays_where_an_earlier_run_had_come_to(make: Make) -> None:
    """Until the stream passes it; then it is the lane's; and what was settled is not given again."""
    manager, recorder = make(), Held()
    item = registered(manager, manager.add_callback(recorder, settled=Position(Lsn(100), 2), concurrency=2))
    manager.submit(Batch(events(1)))
    assert manager.pool.settled(item, Position(Lsn(100), 1)) == Position(Lsn(100), 2)
    manager.submit(Batch(events(4)[1:]))
    assert manager.pool.settled(item, Position(Lsn(100), 4)) == Position(Lsn(100), 2)
    recorder.gate.set()
    assert await manager.drain(30)
    assert recorder.seen == [3, 4]
    assert manager.pool.settled(item, Position(Lsn(100), 4)) == Position(Lsn(100), 4)
    assert item.outcomes == {"ok": 2, "skipped": 2}


async def test_settled_of_a_callback_that_left_is_the_frontier(make: Make) -> None:
    """Nobody waits for it any more."""
    manager = make()
    handle = manager.add_callback(print, configured=True)
    item = registered(manager, handle)
    await handle.unsubscribe()
    assert manager.pool.settled(item, Position(Lsn(100), 4)) == Position(Lsn(100), 4)


async def test_settled_counts_a_call_in_a_thread_that_ends_within_the_grace(make: Make, long_graces: None) -> None:
    """After the drain deadline no other call begins, and what has had its effect does not come again."""
    manager, seen, entered, go_on = make(), list[int](), asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow(one: DatabaseEvent) -> None:
        loop.call_soon_threadsafe(entered.set)
        go_on.wait(60)
        seen.append(one.position.ordinal)

    async def hanging(one: DatabaseEvent) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            go_on.set()  # cancelled: the deadline has passed

    item = registered(manager, manager.add_callback(slow))
    manager.add_callback(hanging)
    manager.submit(Batch(events(3)))
    await entered.wait()
    assert not await manager.shutdown(0.05)
    assert seen == [1]
    assert item.outcomes == {"ok": 1}
    assert manager.pool.settled(item, Position(Lsn(100), 3)) == Position(Lsn(100), 1)


# open


async def test_open_tells_what_is_wrong_before_the_first_event(make: Make) -> None:
    """`SignalManager.open` raises, with the callback's name and its error."""

    class Broken:
        async def open(self) -> None:
            raise ConnectionError("no route")

        async def handle(self, one: DatabaseEvent) -> None: ...

    manager = make()
    manager.add_callback(Broken(), name="broken")
    with pytest.raises(CallbackError, match="'broken' cannot be opened: ConnectionError: no route"):
        await manager.open()


@pytest.mark.parametrize("kind", ["coroutine", "thread"])
async def test_timeouts_in_a_row_remove_a_callback_as_failures_do(
    make: Make, release: threading.Event, kind: str
) -> None:
    """At the third by default: it is called no more."""
    manager = make()

    async def hang(one: DatabaseEvent) -> None:
        await asyncio.Event().wait()

    def block(one: DatabaseEvent) -> None:
        release.wait()

    handle = manager.add_callback(hang if kind == "coroutine" else block, timeout_seconds=0.05)
    manager.submit(Batch([event(number) for number in range(1, 6)]))
    item = registered(manager, handle)
    await eventually(lambda: item.state is CallbackState.REMOVED)
    assert (item.outcomes["timeout"], item.outcomes["missed"]) == (3, 2)
