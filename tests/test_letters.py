"""What becomes of events that a callback does not handle: retries, dead letters, parking, resuming.

Every test runs the service on a real server with its state in a real file; the operator's part is done on that
file from outside, as the command line does it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cdc import failures
from cdc.codec import unpack
from cdc.config import Config
from cdc.errors import StateError
from cdc.state import CallbackState, DeadLetter, LetterFilter, LetterState, StateStore, open_state
from tests.conftest import Database
from tests.running import Child, child, confirmed, server_lsn, wait_until
from tests.waiting import Running, eventually, make_config, running

CALLBACKS = """
import asyncio, time
from cdc import PermanentError, RetryLater

seen = []      # record ids that were handled
attempts = []  # record id and time of every call
broken = set() # record ids that fail; "*" is all
error = ValueError("secret-value")
gate = asyncio.Event()
gate.set()

async def work(event):
    await gate.wait()
    attempts.append((event.record_id, time.monotonic()))
    if "*" in broken or event.record_id in broken:
        raise error
    seen.append(event.record_id)

async def once(event):
    attempts.append((event.record_id, time.monotonic()))
    if sum(1 for record_id, _ in attempts if record_id == event.record_id) == 1:
        raise error
    seen.append(event.record_id)

def plain(event):
    attempts.append((event.record_id, time.monotonic()))
    if event.record_id in broken:
        raise error
    seen.append(event.record_id)

class Batches:
    calls = 0

    async def handle_batch(self, events):
        Batches.calls += 1
        if Batches.calls == 1:
            raise error
        seen.extend(event.record_id for event in events)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other within milliseconds."""
    monkeypatch.setattr(failures, "BACKOFF_SECONDS", (0.01, 0.05))


@pytest.fixture
def items(database: Database) -> Database:
    """A database with a table `items`."""
    database.execute("CREATE TABLE items (id bigint PRIMARY KEY, note text)")
    return database


def config_of(database: Database, folder: Path, handler: dict[str, Any] | str = "work", **sections: Any) -> Config:
    """One handler, called audit."""
    settings = {"callback": handler} if isinstance(handler, str) else {"callback": "work"} | handler
    return make_config(database.dsn, folder, {"audit": settings}, CALLBACKS, **sections)


@contextmanager
def state_of(config: Config) -> Iterator[StateStore]:
    """The state, from outside."""
    store = open_state(config.state.url)
    try:
        yield store
    finally:
        store.close()


def letters(config: Config, wanted: LetterFilter | None = None) -> list[DeadLetter]:
    """All dead letters, or some."""
    with state_of(config) as store:
        return store.letters(wanted or LetterFilter())


def insert(database: Database, first: int, last: int | None = None) -> None:
    """Rows, each in a transaction of its own."""
    for number in range(first, (last or first) + 1):
        database.execute(f"INSERT INTO items VALUES ({number}, 'n{number}')")


def ids(first: int, last: int) -> list[str]:
    """Record ids."""
    return [str(number) for number in range(first, last + 1)]


def state(run: Running) -> CallbackState:
    """Of the handler."""
    (registration,) = run.service.manager.registry
    return registration.state


async def failed_in_a_row(database: Database, run: Running, first: int = 1) -> None:
    """Three failing events: the handler is called no more."""
    run.callbacks.broken.add("*")
    insert(database, first, first + 2)
    await eventually(lambda: state(run) is CallbackState.REMOVED)


async def removed(database: Database, run: Running, first: int = 1) -> None:
    """The same, and it is on record, where an operator finds it: the events do not wait for that."""
    await failed_in_a_row(database, run, first)
    with state_of(run.service.config) as store:
        await eventually(lambda: store.callbacks()[0].state is CallbackState.REMOVED)


# --- Retries -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("callback", ["once", "Batches"])
async def test_an_event_that_fails_is_tried_again_in_its_place(items: Database, tmp_path: Path, callback: str) -> None:
    """What comes after it waits, nothing is lost or counted as failed."""
    config = config_of(items, tmp_path, callback)
    async with running(config) as run:
        items.execute("INSERT INTO items SELECT i FROM generate_series(1, 3) i")
        await eventually(lambda: len(run.callbacks.seen) == 3)
        assert run.callbacks.seen == ids(1, 3)
        (registration,) = run.service.manager.registry
        await eventually(lambda: registration.outcomes["ok"] == 3)
        assert registration.outcomes["failed"] == 0
    assert letters(config) == []


@pytest.mark.parametrize("callback", ["work", "plain"])
async def test_the_attempts_of_a_handler_are_as_many_as_configured(
    items: Database, tmp_path: Path, callback: str
) -> None:
    """Also those of a plain function; the next event has its own."""
    config = config_of(items, tmp_path, {"callback": callback, "max_attempts": 4})
    async with running(config) as run:
        run.callbacks.broken.add("1")
        insert(items, 1, 2)
        await eventually(lambda: run.callbacks.seen == ["2"])
        assert [record_id for record_id, _ in run.callbacks.attempts] == ["1"] * 4 + ["2"]
        (registration,) = run.service.manager.registry
        assert registration.retries == 3
    (letter,) = letters(config)
    assert letter.attempts == 4


@pytest.mark.parametrize("how", ["class", "attribute"])
async def test_a_permanent_error_is_not_tried_again(items: Database, tmp_path: Path, how: str) -> None:
    """The error says so, by its class or by an attribute of its own."""
    config = config_of(items, tmp_path)
    async with running(config) as run:
        if how == "class":
            run.callbacks.error = run.callbacks.PermanentError("no such account")
        else:
            run.callbacks.error.permanent = True
        run.callbacks.broken.add("1")
        insert(items, 1, 2)
        await eventually(lambda: run.callbacks.seen == ["2"])
        assert [record_id for record_id, _ in run.callbacks.attempts] == ["1", "2"]
    (letter,) = letters(config)
    assert letter.attempts == 1


@pytest.mark.parametrize("callback", ["once", "Batches"])
async def test_an_error_says_when_to_try_again(items: Database, tmp_path: Path, callback: str) -> None:
    """Not earlier than it asks; a batch is tried again as a whole."""
    config = config_of(items, tmp_path, callback)
    async with running(config) as run:
        run.callbacks.error = run.callbacks.RetryLater("busy", seconds=0.4)
        began = time.monotonic()
        items.execute("INSERT INTO items SELECT i FROM generate_series(1, 3) i")
        await eventually(lambda: len(run.callbacks.seen) == 3)
        assert time.monotonic() - began >= 0.4
        if callback == "Batches":
            assert run.callbacks.Batches.calls == 2


async def test_other_records_go_on_while_one_is_tried_again(items: Database, tmp_path: Path) -> None:
    """With concurrency, a record's own order is kept: its next change waits."""
    config = config_of(items, tmp_path, {"concurrency": 4, "max_attempts": 10_000})
    async with running(config) as run:
        run.callbacks.broken.add("1")
        insert(items, 1)
        items.execute("UPDATE items SET note = 'x' WHERE id = 1")
        insert(items, 2, 20)
        lane = hash(("public", "items", "1")) % 4
        others = [number for number in ids(2, 20) if hash(("public", "items", number)) % 4 != lane]
        await eventually(lambda: set(others) <= set(run.callbacks.seen))
        assert "1" not in run.callbacks.seen
        run.callbacks.broken.clear()
        await eventually(lambda: len(run.callbacks.seen) == 21)
        assert run.callbacks.seen.count("1") == 2


# --- Dead letters --------------------------------------------------------------------------------------------


async def test_an_error_without_a_text_is_kept_all_the_same(items: Database, tmp_path: Path) -> None:
    """Its `__str__` raises, or gives what cannot be written in UTF-8: the service goes on, and the letter says so."""

    class Sly(Exception):
        def __str__(self) -> str:
            raise KeyError("secret-value")

    config = config_of(items, tmp_path, {"max_attempts": 1})
    async with running(config) as run:

        async def fail(number: int, error: Exception) -> None:
            run.callbacks.error = error
            run.callbacks.broken.add(str(number))
            insert(items, number)
            await eventually(lambda: len(letters(config)) == number)

        await fail(1, Sly())
        await fail(2, ValueError("half \udcff"))
        insert(items, 3)
        await eventually(lambda: run.callbacks.seen == ["3"])
        texts = [letter.error_text for letter in letters(config)]

    assert texts == ["<Sly, whose text raises KeyError>", "half \\udcff"]


async def test_what_has_failed_is_kept_as_its_handler_saw_it(items: Database, tmp_path: Path) -> None:
    """Error, attempts, times, position, and the event with its masked column masked."""
    config = config_of(items, tmp_path, {"columns": {"mask": ["note"]}, "max_attempts": 2})
    async with running(config) as run:
        run.callbacks.broken.add("1")
        insert(items, 1, 2)
        await eventually(lambda: run.callbacks.seen == ["2"])
        (letter,) = letters(config)
        assert (letter.callback, letter.table, letter.event_type) == ("audit", "public.items", "create")
        assert (letter.error, letter.error_text, letter.attempts) == ("ValueError", "secret-value", 2)
        assert letter.state is LetterState.FAILED
        assert letter.first_time <= letter.last_time
        event = unpack(letter.event)
        assert event.payload == {"id": 1, "note": "***"}
        assert (event.position, event.record_id) == (letter.position, "1")
        assert b"n1" not in letter.event
        status, body = await run.get("/metrics")
        assert status == 200
        assert 'cdc_dead_letters{callback="audit",state="failed"} 1\n' in body


async def test_no_event_counts_as_settled_before_its_dead_letter_is_durable(
    items: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the letter cannot be written, the slot is held, and the service is not ready."""
    config = config_of(items, tmp_path, {"max_attempts": 1})
    async with running(config) as run:
        run.callbacks.broken.add("1")
        with state_of(config) as other:
            other._db.execute("BEGIN IMMEDIATE")  # type: ignore[attr-defined]
            other._db.execute("CREATE TRIGGER full BEFORE INSERT ON letter BEGIN SELECT RAISE(FAIL, 'full'); END")  # type: ignore[attr-defined]
            other._db.execute("COMMIT")  # type: ignore[attr-defined]
            insert(items, 1)
            end = server_lsn(items)
            await eventually(lambda: run.service.letters.error)  # type: ignore[union-attr]
            status, body = await run.get("/readyz")
            assert status == 503
            assert "dead letter" in body
            assert confirmed(items.cluster, config.source.slot) < end
            other._db.execute("DROP TRIGGER full")  # type: ignore[attr-defined]
        await eventually(lambda: confirmed(items.cluster, config.source.slot) >= end)
        assert len(letters(config)) == 1


async def test_at_the_bound_further_failures_hold_the_slot_and_overwrite_nothing(
    items: Database, tmp_path: Path
) -> None:
    """/readyz says why; once there is room again, it goes on."""
    config = config_of(
        items, tmp_path, {"max_attempts": 1}, signal={"max_parked_events": 2, "remove_failing_callbacks": False}
    )
    async with running(config) as run:
        run.callbacks.broken.add("*")
        insert(items, 1, 3)
        await eventually(lambda: run.service.letters.held)  # type: ignore[union-attr]
        end = server_lsn(items)
        status, body = await run.get("/readyz")
        assert (status, "dead letters are full" in body) == (503, True)
        assert [unpack(letter.event).record_id for letter in letters(config)] == ["1", "2"]
        assert confirmed(items.cluster, config.source.slot) < end
        with state_of(config) as store:
            assert store.discard_letters(LetterFilter(ids=[letters(config)[0].id])) == 1
        await eventually(lambda: confirmed(items.cluster, config.source.slot) >= end)
        assert [unpack(letter.event).record_id for letter in letters(config)] == ["2", "3"]
        with state_of(config) as store:
            (gap,) = store.gaps()
            assert (gap.callback, gap.reason, gap.events) == ("audit", "discarded", 1)


async def test_an_operator_has_dead_letters_tried_again(items: Database, tmp_path: Path) -> None:
    """Soon; what fails again stays, with its attempts summed up, and removes nobody."""
    config = config_of(items, tmp_path, {"max_attempts": 2}, signal={"max_consecutive_failures": 10})
    async with running(config) as run:
        run.callbacks.broken.add("*")
        insert(items, 1, 5)
        await eventually(lambda: len(letters(config)) == 5)
        run.callbacks.broken.clear()
        run.callbacks.broken.add("3")
        with state_of(config) as store:
            assert store.request_retry(LetterFilter()) == 5
        await eventually(lambda: run.callbacks.seen == ["1", "2", "4", "5"])
        await eventually(lambda: [letter.retry for letter in letters(config)] == [False])
        (letter,) = letters(config)
        assert (unpack(letter.event).record_id, letter.attempts) == ("3", 4)
        insert(items, 6)
        await eventually(lambda: run.callbacks.seen[-1] == "6")
        assert state(run) is CallbackState.ACTIVE


async def test_retried_dead_letters_bring_no_handler_nearer_to_its_removal(items: Database, tmp_path: Path) -> None:
    """However many of them fail again: the next event of the stream that fails is the first of a row."""
    config = config_of(items, tmp_path, {"max_attempts": 1})
    async with running(config) as run:
        await removed(items, run)
        with state_of(config) as store:
            store.mark_resuming("audit")
            await eventually(lambda: store.callbacks()[0].state is CallbackState.ACTIVE)
            assert store.request_retry(LetterFilter()) == 3
        await eventually(lambda: [letter.attempts for letter in letters(config)] == [2, 2, 2])
        insert(items, 4)
        await eventually(lambda: len(letters(config)) == 4)
        run.callbacks.broken.clear()
        insert(items, 5)
        await eventually(lambda: run.callbacks.seen == ["5"] or state(run) is CallbackState.REMOVED)
        assert state(run) is CallbackState.ACTIVE


# --- Removal, parking, resuming ------------------------------------------------------------------------------


async def test_a_resumed_handler_gets_what_was_parked_then_the_live_stream(items: Database, tmp_path: Path) -> None:
    """In order, without a gap, without overtaking, while more and more is committed."""
    config = config_of(items, tmp_path, {"max_attempts": 1})
    async with running(config) as run:
        await removed(items, run)
        items.execute("INSERT INTO items SELECT i FROM generate_series(4, 3000) i")
        await eventually(lambda: len(letters(config, LetterFilter(state=LetterState.PARKED))) == 1000)
        run.callbacks.broken.clear()
        insert(items, 3001, 3050)
        with state_of(config) as store:
            store.mark_resuming("audit")
        insert(items, 3051, 3200)
        await eventually(lambda: len(run.callbacks.seen) >= 3197, 30)
        assert run.callbacks.seen == ids(4, 3200)
        await eventually(lambda: state(run) is CallbackState.ACTIVE)
        await eventually(lambda: not letters(config, LetterFilter(state=LetterState.PARKED)))
        with state_of(config) as store:
            await eventually(lambda: [record.state for record in store.callbacks()] == [CallbackState.ACTIVE])
        assert [unpack(letter.event).record_id for letter in letters(config)] == ["1", "2", "3"]


async def test_a_parked_event_does_not_hold_the_slot(items: Database, tmp_path: Path) -> None:
    """It is settled once it is durably parked."""
    config = config_of(items, tmp_path, {"max_attempts": 1})
    async with running(config) as run:
        await removed(items, run)
        insert(items, 4, 10)
        end = server_lsn(items)
        await eventually(lambda: confirmed(items.cluster, config.source.slot) >= end)
        parked = letters(config, LetterFilter(state=LetterState.PARKED))
        assert [unpack(letter.event).record_id for letter in parked] == ids(4, 10)
        status, body = await run.get("/readyz")
        assert (status, "removed" in body) == (503, True)


async def test_a_parked_event_that_cannot_be_read_holds_up_no_other(items: Database, tmp_path: Path) -> None:
    """It has failed, and is counted as such; the others are delivered."""
    config = config_of(items, tmp_path, {"max_attempts": 1})
    async with running(config) as run:
        await removed(items, run)
        insert(items, 4, 6)
        await eventually(lambda: len(letters(config)) == 6)
        parked = letters(config, LetterFilter(state=LetterState.PARKED))
        run.callbacks.broken.clear()
        with state_of(config) as store:
            store.add_letters([replace(parked[1], event=b"torn")])
        dead = run.service.letters
        assert dead is not None
        found = await dead.readable(letters(config, LetterFilter(state=LetterState.PARKED)))
        assert [event.record_id for _, event in found] == ["4", "6"]
        assert {state: total.count for (_, state), total in dead.totals().items()} == {
            LetterState.FAILED: 4,
            LetterState.PARKED: 2,
        }
        with state_of(config) as store:
            store.mark_resuming("audit")
        await eventually(lambda: run.callbacks.seen == ["4", "6"])


async def test_a_handler_that_fails_again_while_it_is_resumed_is_removed_again(items: Database, tmp_path: Path) -> None:
    """What it has not had stays parked, for the next time."""
    config = config_of(items, tmp_path, {"max_attempts": 1})
    async with running(config) as run:
        await removed(items, run)
        insert(items, 4, 20)
        await eventually(lambda: len(letters(config)) == 20)
        with state_of(config) as store:
            store.mark_resuming("audit")
        await eventually(lambda: len(letters(config, LetterFilter(state=LetterState.FAILED))) == 6)
        await eventually(lambda: state(run) is CallbackState.REMOVED)
        run.callbacks.broken.clear()
        with state_of(config) as store:
            await eventually(lambda: store.callbacks()[0].state is CallbackState.REMOVED)
            store.mark_resuming("audit")
        insert(items, 21)
        await eventually(lambda: run.callbacks.seen == ids(7, 21))


async def test_with_drop_the_missed_range_is_on_record(items: Database, tmp_path: Path) -> None:
    """Positions, count and times; resumed, the handler goes on with the live stream."""
    config = config_of(items, tmp_path, {"max_attempts": 1, "after_removal": "drop"})
    async with running(config) as run:
        await removed(items, run)
        insert(items, 4, 9)
        end = server_lsn(items)
        await eventually(lambda: confirmed(items.cluster, config.source.slot) >= end)
        with state_of(config) as store:
            (gap,) = store.gaps()
            assert (gap.callback, gap.reason, gap.events) == ("audit", "removed", 6)
            assert gap.first < gap.last
            assert gap.first_time <= gap.last_time
            store.mark_resuming("audit")
        run.callbacks.broken.clear()
        await eventually(lambda: state(run) is CallbackState.ACTIVE)
        insert(items, 10)
        await eventually(lambda: run.callbacks.seen == ["10"])


async def test_past_the_parking_bound_the_missed_range_is_on_record(items: Database, tmp_path: Path) -> None:
    """What was parked stays; what does not fit is counted."""
    config = config_of(items, tmp_path, {"max_attempts": 1}, signal={"max_parked_events": 5})
    async with running(config) as run:
        await removed(items, run)  # three dead letters
        insert(items, 4, 9)
        end = server_lsn(items)
        await eventually(lambda: confirmed(items.cluster, config.source.slot) >= end)
        parked = letters(config, LetterFilter(state=LetterState.PARKED))
        assert [unpack(letter.event).record_id for letter in parked] == ["4", "5"]
        with state_of(config) as store:
            (gap,) = store.gaps()
            assert (gap.callback, gap.reason, gap.events) == ("audit", "removed", 4)
        (registration,) = run.service.manager.registry
        assert (registration.outcomes["parked"], registration.outcomes["missed"]) == (2, 4)


async def test_the_bounds_hold_in_bytes_too(items: Database, tmp_path: Path) -> None:
    """Of parked events the rest is missed, on record; a failed one waits for room."""
    config = config_of(items, tmp_path, {"max_attempts": 1}, signal={"max_parked_bytes": 3000})
    async with running(config) as run:
        await removed(items, run)  # three dead letters of some hundred bytes
        items.execute("INSERT INTO items SELECT i, repeat('x', 1000) FROM generate_series(4, 6) i")
        end = server_lsn(items)
        await eventually(lambda: confirmed(items.cluster, config.source.slot) >= end)
        assert 3 <= len(letters(config)) < 6
        assert sum(letter.size for letter in letters(config)) <= 3000
        with state_of(config) as store:
            (gap,) = store.gaps()
            assert gap.events == 6 - len(letters(config))


async def test_what_comes_while_the_last_parked_events_are_read_goes_behind_them(
    items: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits in memory, unsettled, and is neither lost nor first."""
    config = config_of(items, tmp_path, {"max_attempts": 1})
    async with running(config) as run:
        await removed(items, run)
        insert(items, 4, 5)
        await eventually(lambda: len(letters(config)) == 5)
        run.callbacks.broken.clear()
        pool = run.service.manager.pool
        pause = pool.pause_parking
        (registration,) = run.service.manager.registry

        async def paused(paused_registration: Any) -> None:
            await pause(paused_registration)
            await asyncio.to_thread(insert, items, 6, 9)
            await eventually(lambda: len(pool._parking[registration]._shares) > 0)

        monkeypatch.setattr(pool, "pause_parking", paused)
        with state_of(config) as store:
            store.mark_resuming("audit")
        await eventually(lambda: run.callbacks.seen == ids(4, 9))


async def test_an_operator_removes_a_handler_while_it_runs(items: Database, tmp_path: Path) -> None:
    """Within a second it is called no more, and its events are parked."""
    config = config_of(items, tmp_path)
    async with running(config) as run:
        insert(items, 1)
        await eventually(lambda: run.callbacks.seen == ["1"])
        with state_of(config) as store:
            (record,) = store.callbacks()
            store.mark_removed("audit", record.settled, "operator")
        await eventually(lambda: state(run) is CallbackState.REMOVED)
        insert(items, 2)
        await eventually(lambda: len(letters(config)) == 1)
        assert run.callbacks.seen == ["1"]


async def test_a_blocking_handler_tries_for_ever_and_holds_the_slot(items: Database, tmp_path: Path) -> None:
    """Nothing is dead-lettered, nobody is removed; once it succeeds, all goes on."""
    config = config_of(items, tmp_path, {"on_failure": "block", "max_attempts": 1})
    async with running(config) as run:
        run.callbacks.broken.add("1")
        insert(items, 1, 2)
        end = server_lsn(items)
        await eventually(lambda: len(run.callbacks.attempts) > 10)
        assert confirmed(items.cluster, config.source.slot) < end
        assert state(run) is CallbackState.ACTIVE
        run.callbacks.broken.clear()
        await eventually(lambda: confirmed(items.cluster, config.source.slot) >= end)
        assert run.callbacks.seen == ["1", "2"]
    assert letters(config) == []


async def test_a_mistake_of_ours_ends_the_service_instead_of_standing_still(
    items: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a broken lane has can never be settled: the next start delivers it."""
    config = config_of(items, tmp_path, {"max_attempts": 1})

    def mistake(*_: object) -> None:
        raise RuntimeError("a mistake")

    async def work() -> None:
        async with running(config) as run:
            monkeypatch.setattr(run.service.manager, "event_failed", mistake)
            run.callbacks.broken.add("1")
            insert(items, 1)
            await eventually(run.task.done)

    with pytest.raises(RuntimeError, match="a mistake"):
        await work()


async def test_a_removal_is_on_record_when_the_service_stops_at_once(
    items: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the state could not take it at first: the next start must not call the handler."""
    monkeypatch.setattr("cdc.letters.TRY_AGAIN_SECONDS", 0.1)
    config = config_of(items, tmp_path, {"max_attempts": 1})
    attempts: list[object] = []
    async with running(config) as run:
        store = run.service.letters._store  # type: ignore[union-attr]
        mark_removed = store.mark_removed

        def busy_at_first(*args: Any) -> None:
            attempts.append(args)
            if len(attempts) == 1:
                raise StateError("locked by another program")
            mark_removed(*args)

        monkeypatch.setattr(store, "mark_removed", busy_at_first)
        await failed_in_a_row(items, run)
        await eventually(lambda: attempts)
    with state_of(config) as state_after:
        assert [record.state for record in state_after.callbacks()] == [CallbackState.REMOVED]


# --- Over restarts -------------------------------------------------------------------------------------------


def handlers_of(**settings: Any) -> dict[str, dict[str, Any]]:
    """A handler that writes lines, and fails while a file is there."""
    return {"audit": {"callback": "failing:Failing", "max_attempts": 1} | settings}


FAILING = '''
import os
from records import Record


class Failing(Record):
    """Fails while a file beside its lines is there."""

    def __init__(self, path):
        super().__init__(path)
        self.broken = path + ".broken"

    async def handle(self, event):
        if os.path.exists(self.broken):
            raise ValueError("broken")
        await super().handle(event)
'''


def failing(folder: Path, dsn: str, handlers: dict[str, dict[str, Any]] | None = None) -> Any:
    """A child whose handler can be made to fail."""
    (folder / "failing.py").write_text(FAILING)
    return child(folder, dsn, handlers or handlers_of())


def of_state(service: Child, function: str, *args: Any) -> Any:
    """One call of its state, from outside."""
    store = open_state(f"sqlite:///{service.state_path}")
    try:
        return getattr(store, function)(*args)
    finally:
        store.close()


def test_a_resumed_handler_gets_all_in_order_also_when_the_service_is_killed(items: Database, tmp_path: Path) -> None:
    """kill -9 while it is parked, and again and again while it is resumed, under load."""
    with failing(tmp_path, items.dsn) as service:
        broken = Path(f"{service.path('audit')}.broken")
        broken.touch()
        service.start()
        insert(items, 1, 3)
        service.wait_for_log("callback_removed")
        end = server_lsn(items)
        wait_until(lambda: confirmed(items.cluster, service.slot) >= end)  # else they come again, after the kill
        items.execute("INSERT INTO items SELECT i FROM generate_series(4, 4000) i")
        wait_until(lambda: sum(total.count for total in of_state(service, "letter_totals")) > 1000)
        service.kill()
        broken.unlink()
        service.start()
        of_state(service, "mark_resuming", "audit")
        for number in range(1, 4):
            service.wait_for_lines(number * 700)
            service.kill()
            items.execute(f"INSERT INTO items SELECT i FROM generate_series({number * 5000}, {number * 5000 + 500}) i")
            service.start()
        insert(items, 20_000)
        wait_until(lambda: "20000" in service.record_ids())
        wait_until(lambda: {record.state for record in of_state(service, "callbacks")} == {CallbackState.ACTIVE})
        lines = service.lines()
        expected = [*range(4, 4001), *(i for n in (1, 2, 3) for i in range(n * 5000, n * 5000 + 501)), 20_000]
        assert list(dict.fromkeys(int(line.record_id) for line in lines)) == expected
        assert len({(line.id, line.position, line.record_id) for line in lines}) == len(expected)
        service.stop()


def test_a_removed_handler_stays_removed_and_its_events_are_parked_over_a_restart(
    items: Database, tmp_path: Path
) -> None:
    """Until an operator resumes it, here while the service is stopped."""
    with failing(tmp_path, items.dsn) as service:
        broken = Path(f"{service.path('audit')}.broken")
        broken.touch()
        service.start()
        insert(items, 1, 3)
        service.wait_for_log("callback_removed")
        service.stop()
        broken.unlink()
        insert(items, 4)
        service.start()
        insert(items, 5)
        wait_until(lambda: sum(total.count for total in of_state(service, "letter_totals")) == 5)
        assert service.lines() == []
        service.stop()
        of_state(service, "mark_resuming", "audit")
        service.start()
        insert(items, 6)
        assert [line.record_id for line in service.wait_for_lines(3)] == ["4", "5", "6"]
        service.stop()


def test_handlers_come_and_go(items: Database, tmp_path: Path) -> None:
    """A new one begins at the live position and says so; one that returns has its absence on record."""
    recorder = {"callback": "records:Record"}
    with child(tmp_path, items.dsn, {"one": recorder}) as service:
        service.start()
        insert(items, 1)
        service.wait_for_lines(1, "one")
        service.stop()
        service._handlers = {"two": recorder}
        service.write()
        service.start()
        assert service.log("handler_new")[-1]["callback"] == "two"
        insert(items, 2)
        assert [line.record_id for line in service.wait_for_lines(1, "two")] == ["2"]
        end = server_lsn(items)
        wait_until(lambda: confirmed(items.cluster, service.slot) >= end)
        service.stop()
        service._handlers = {"one": recorder, "two": recorder}
        service.write()
        service.start()
        insert(items, 3)
        assert [line.record_id for line in service.wait_for_lines(2, "one")] == ["1", "3"]
        (gap,) = of_state(service, "gaps")
        assert (gap.callback, gap.reason) == ("one", "not_configured")
        service.stop()
