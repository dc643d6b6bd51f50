"""`cdc.testing`: the tool is held to what it says, or the tests that are built on it prove nothing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Sequence
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest

from cdc import DatabaseEvent, EventType, PermanentError, RetryLater
from cdc.testing import CutShort, EventStream, HandlerHarness, InjectedFault, read_events, write_events
from cdc.wal2json import OPTIONS
from tests.conftest import Database
from tests.running import ROOT


class Recorder:
    """Writes down the batches it gets; fails for the record ids in `broken`."""

    def __init__(self) -> None:
        self.batches: list[list[str | None]] = []
        self.broken: dict[str | None, Exception] = {}
        self.steps = 0
        self.closed = 0

    async def handle_batch(self, events: Sequence[DatabaseEvent]) -> None:
        await asyncio.sleep(0)
        self.steps += 1
        for event in events:
            if (error := self.broken.get(event.record_id)) is not None:
                raise error
        self.batches.append([event.record_id for event in events])

    async def close(self) -> None:
        self.closed += 1


class Plain:
    """A plain function per event."""

    def __init__(self) -> None:
        self.seen: list[str | None] = []

    def handle(self, event: DatabaseEvent) -> None:
        self.seen.append(event.record_id)


def test_stream_makes_events_as_a_database_gives_them() -> None:
    """Rising ids, positions and times; one position for a transaction; the same again from the same calls."""

    def made() -> list[DatabaseEvent]:
        stream = EventStream()
        events = [stream.create("users", {"id": 7}, tags=["user:1"])]
        with stream.transaction():
            events.append(stream.update("shop.orders", {"id": 2, "n": 1}, before={"id": 1}, unchanged=["big"]))
            events.append(stream.delete("users", {"id": 7}))
        events.append(stream.truncate("users"))
        return events + stream.inserts(5, per_transaction=2)

    events = made()

    assert [event.id for event in events] == list(range(1, 10))
    positions = [event.position for event in events]
    assert positions == sorted(set(positions))
    assert [position.ordinal for position in positions] == [1, 1, 2, 1, 1, 2, 1, 2, 1]
    assert events[1].transaction is events[2].transaction
    assert (events[1].schema, events[1].table_name, events[1].record_id) == ("shop", "orders", "2")
    assert events[1].row.previous_record_id() == "1"
    assert events[1].unchanged == {"big"}
    assert (events[0].tags, events[0].timestamp.tzinfo) == (("user:1",), UTC)
    assert events[2].before == events[2].payload == {"id": 7}
    assert events[3].event_type is EventType.TRUNCATE
    assert [event.to_dict() for event in made()] == [event.to_dict() for event in events]


def test_stream_knows_the_key_and_where_it_begins() -> None:
    """Another key column, an id given, no key at all; transactions do not nest."""
    stream = EventStream(lsn=0x5000, first_id=100, key="code")

    assert stream.create("t", {"code": "x"}).record_id == "x"
    assert stream.create("t", {"code": "x"}, record_id="y").record_id == "y"
    assert stream.create("t", {"id": 1}).record_id is None
    assert stream.create("t", {}).id == 103
    assert stream.create("t", {}).position.commit_lsn > 0x5000
    with stream.transaction(), pytest.raises(RuntimeError, match="open already"), stream.transaction():
        pass


async def test_delivered_is_settled_in_order_and_in_batches() -> None:
    """As the service does it: 256 at most, in order; opened before, closed after."""
    recorder = Recorder()
    events = EventStream().inserts(600)
    async with HandlerHarness(recorder) as harness:
        await harness.deliver(events)
        harness.assert_settled(events)
        assert harness.handled == [event.position for event in events]

    assert [len(batch) for batch in recorder.batches] == [256, 256, 88]
    assert [one for batch in recorder.batches for one in batch] == [event.record_id for event in events]
    assert (recorder.closed, harness.retries, harness.missed, harness.timeouts) == (1, 0, 0, 0)


async def test_delivered_twice_comes_twice() -> None:
    """Which is what a handler must stand."""
    plain = Plain()
    events = EventStream().inserts(3)
    async with HandlerHarness(plain) as harness:
        await harness.deliver_twice(events)
        harness.assert_settled(events)

    assert plain.seen == ["1", "2", "3", "1", "2", "3"]


@pytest.mark.parametrize("kind", [Recorder, Plain])
async def test_fault_before_or_after_a_call_makes_the_event_come_again(kind: Any) -> None:
    """Before: the handler has not seen it; after: it has, and gets it twice."""
    handler = kind()
    (event,) = EventStream().inserts(1)
    async with HandlerHarness(handler) as harness:
        harness.fail_before(1)
        harness.fail_after(2, OSError("gone"))
        await harness.deliver([event])
        harness.assert_settled([event])

    assert [type(call.error) for call in harness.calls] == [InjectedFault, OSError, type(None)]
    assert harness.retries == 2
    seen = handler.batches if kind is Recorder else handler.seen
    assert len(seen) == 2


@pytest.mark.parametrize("kind", [Recorder, Plain])
async def test_hanging_call_times_out_and_comes_again(kind: Any) -> None:
    """Before and after the work, in a coroutine and in a thread; threads are let go at the end."""
    handler = kind()
    (event,) = EventStream().inserts(1)
    async with HandlerHarness(handler, timeout_seconds=0.5) as harness:
        harness.hang_before(1)
        harness.hang_after(2)
        await harness.deliver([event])
        harness.assert_settled([event])
        assert harness.retries == 2
    for thread in threading.enumerate():
        if thread.name.startswith("cdc-lane"):
            thread.join(30)
            assert not thread.is_alive()


async def test_call_is_cut_short_at_the_suspension_asked_for() -> None:
    """The handler's coroutine is cancelled in the midst, and the event comes again."""
    recorder = Recorder()
    (event,) = EventStream().inserts(1)
    async with HandlerHarness(recorder) as harness:
        harness.cancel_during(1)
        await harness.deliver([event])
        harness.assert_settled([event])

    assert recorder.steps == 1
    assert isinstance(harness.calls[0].error, CutShort)


async def test_plain_function_cannot_be_cut_short() -> None:
    """A thread cannot be cancelled, and nobody shall believe that it was tested."""
    async with HandlerHarness(Plain()) as harness:
        with pytest.raises(TypeError, match="thread"):
            harness.cancel_during(1)


async def test_event_that_fails_for_good_is_told_as_a_dead_letter() -> None:
    """With its attempts and error; a permanent error after one; the assertions tell them apart."""
    recorder = Recorder()
    recorder.broken = {"2": OSError("away"), "3": PermanentError("never")}
    events = EventStream().inserts(4)
    async with HandlerHarness(recorder, max_attempts=2) as harness:
        await harness.deliver(events)
        harness.assert_settled([events[0], events[3]])
        harness.assert_dead(events[1:3])
        assert [(letter.event.record_id, letter.attempts) for letter in harness.dead_letters] == [("2", 2), ("3", 1)]
        with pytest.raises(AssertionError, match="dead letter after 2 attempts"):
            harness.assert_settled(events)
        with pytest.raises(AssertionError, match="is no dead letter"):
            harness.assert_dead(events)


async def test_unsettled_events_fail_the_assertion() -> None:
    """While they are queued, and when nobody was ever given them."""
    events = EventStream().inserts(2)
    async with HandlerHarness(Recorder(), timeout_seconds=5) as harness:
        harness.hang_before(1)
        await harness.send(events[:1])
        with pytest.raises(AssertionError, match="await settle"):
            harness.assert_settled(events[:1])
        with pytest.raises(AssertionError, match=r"not settled within 0\.05 s"):
            await harness.settle(0.05)
    async with HandlerHarness(Recorder()) as harness:
        with pytest.raises(AssertionError, match="without being handled"):
            harness.assert_settled(events)


async def test_waits_are_short_whatever_the_error_asks_for() -> None:
    """An hour by RetryLater passes at once; outside of the harness it is an hour."""
    recorder = Recorder()
    recorder.broken = {"1": RetryLater("busy", seconds=3600)}
    (event,) = EventStream().inserts(1)
    async with HandlerHarness(recorder, max_attempts=3) as harness:
        await harness.deliver([event], timeout=60)
        harness.assert_dead([event])


async def test_handler_that_fails_in_a_row_is_removed_and_its_events_parked() -> None:
    """When the harness is asked for it."""
    recorder = Recorder()
    events = EventStream().inserts(5)
    recorder.broken = {event.record_id: OSError("away") for event in events}
    async with HandlerHarness(recorder, max_attempts=1, max_consecutive_failures=2) as harness:
        await harness.deliver(events)

    assert [letter.event.record_id for letter in harness.dead_letters] == ["1", "2"]
    assert [event.record_id for event in harness.parked] == ["3", "4", "5"]


def test_written_events_are_read_back_exactly(tmp_path: Path) -> None:
    """Values, keys, tags and positions."""
    stream = EventStream()
    events = [
        stream.create("users", {"id": 1, "raw": b"\x00", "when": stream.inserts(1)[0].timestamp}, tags=["a"]),
        stream.update("users", {"id": 2}, before={"id": 1}, unchanged=["big"]),
    ]
    file = tmp_path / "events.jsonl"

    assert write_events(file, events) == 2
    assert [event.to_dict() for event in read_events(file)] == [event.to_dict() for event in events]
    assert read_events(file)[1].row.previous_record_id() == "1"


def test_log_of_file_wal_is_read(tmp_path: Path) -> None:
    """Its lines carry a checksum beside the event; values are as JSON has them."""
    events = EventStream().inserts(3)
    file = tmp_path / "log.jsonl"
    file.write_bytes(b"".join(b'{"crc32":"00000000",' + event.to_json()[1:] + b"\n" for event in events))

    assert [event.to_dict() for event in read_events(file)] == [event.to_dict() for event in events]


def test_messages_of_the_plugin_are_read_through_the_real_decoder(database: Database, tmp_path: Path) -> None:
    """Captured from a real server with the options that the decoder relies on; tags in the stream are joined."""
    options = [word for option in OPTIONS.items() for word in option]
    database.execute("CREATE TABLE users (id bigint PRIMARY KEY, total numeric)")
    database.execute("SELECT pg_create_logical_replication_slot('recorded', 'wal2json')")
    database.execute("SELECT pg_logical_emit_message(true, 'cdc.tags', 'user:42'); INSERT INTO users VALUES (1, 1.10)")
    database.execute("UPDATE users SET id = 2")
    quoted = ", ".join(f"'{word}'" for word in options)
    rows = database.execute(f"SELECT data FROM pg_logical_slot_get_changes('recorded', NULL, NULL, {quoted})")
    file = tmp_path / "captured.jsonl"
    file.write_text("".join(f"{line}\n" for (line,) in rows))

    created, updated = read_events(file)

    assert (created.tags, str(created.payload["total"])) == (("user:42",), "1.10")
    assert (updated.record_id, updated.row.previous_record_id(), updated.id) == ("2", "1", 2)
    assert created.position < updated.position


@pytest.mark.parametrize(
    "line", ["no json", "{}", '{"format": 9}', "[1]", '{"event_type": "create"}', '{"action":"X"}']
)
def test_line_that_is_no_event_is_told_by_its_number_without_its_text(tmp_path: Path, line: str) -> None:
    """A row value may stand in it."""
    file = tmp_path / "events.jsonl"
    file.write_text(line + "\n")

    with pytest.raises(ValueError, match=r"events.jsonl, line 1, is no") as caught:
        read_events(file)

    assert line not in str(caught.value)


def test_harness_works_without_pytest() -> None:
    """In a plain script."""
    script = (
        "import asyncio, sys\n"
        "from cdc.testing import EventStream, HandlerHarness\n"
        "seen = []\n"
        "async def main():\n"
        "    async with HandlerHarness(seen.append) as harness:\n"
        "        events = EventStream().inserts(3)\n"
        "        await harness.deliver(events)\n"
        "        harness.assert_settled(events)\n"
        "asyncio.run(main())\n"
        "print(len(seen), 'pytest' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)

    assert done.stdout == "3 False\n"
