"""`exactly_once`: effects of a handler in PostgreSQL, counted after repetitions, failures and kills."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection, Connection
from psycopg_pool import AsyncConnectionPool

from cdc import CallbackError, DatabaseEvent, dedupe, exactly_once
from cdc.testing import EventStream, HandlerHarness
from tests.conftest import Database
from tests.running import ROOT, child, wait_until

INSERT = "INSERT INTO effects VALUES (%s)"


class Pooled:
    """Batches through a pool: a statement per event, which fails for the ids in `broken`."""

    def __init__(self, dsn: str) -> None:
        self.pool = AsyncConnectionPool(dsn, open=False, min_size=1, max_size=4)
        self.broken: set[str] = set()

    async def open(self) -> None:
        await self.pool.open()

    async def close(self) -> None:
        await self.pool.close()

    def connection(self) -> Any:
        return self.pool.connection()

    @exactly_once("pooled")
    async def handle_batch(self, events: Sequence[DatabaseEvent], connection: AsyncConnection[Any]) -> None:
        for event in events:
            await connection.execute(INSERT, [str(event.position)])
            if event.record_id in self.broken:
                raise ValueError("broken")


class Connecting:
    """One event at a time, through a connection of its own each time."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn

    async def connection(self) -> AsyncConnection[Any]:
        return await AsyncConnection.connect(self.dsn)

    @exactly_once("connecting")
    async def handle(self, event: DatabaseEvent, connection: AsyncConnection[Any]) -> None:
        await connection.execute(INSERT, [str(event.position)])


class Plain:
    """Plain functions, in a thread."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn

    def connection(self) -> Connection[Any]:
        return psycopg.connect(self.dsn, autocommit=True)

    @exactly_once("plain")
    def handle_batch(self, events: Sequence[DatabaseEvent], connection: Connection[Any]) -> None:
        connection.cursor().executemany(INSERT, [[str(event.position)] for event in events])


class PlainSingle(Plain):
    """A plain function for one event."""

    handle_batch = None  # type: ignore[assignment]  # hidden: `handle` is what the pool shall find

    @exactly_once("plain-single")
    def handle(self, event: DatabaseEvent, connection: Connection[Any]) -> None:
        connection.execute(INSERT, [str(event.position)])


@pytest.fixture
def target(database: Database) -> Database:
    """A database with a table that counts effects."""
    database.execute("CREATE TABLE effects (position text)")
    return database


def effects(target: Database) -> Counter[str]:
    """Position → how often it had its effect."""
    return Counter(position for (position,) in target.execute("SELECT position FROM effects"))


def once(events: Sequence[DatabaseEvent]) -> Counter[str]:
    """Each event once."""
    return Counter(str(event.position) for event in events)


@pytest.mark.parametrize("kind", [Pooled, Connecting, Plain, PlainSingle])
async def test_effect_comes_once_however_often_the_event_does(target: Database, kind: Any) -> None:
    """After a call whose end nobody heard of, delivered twice, and to the next process's object again."""
    events = EventStream().inserts(40, per_transaction=7)
    async with HandlerHarness(kind(target.dsn)) as harness:
        harness.fail_after(1)
        await harness.deliver_twice(events)
        harness.assert_settled(events)
    async with HandlerHarness(kind(target.dsn)) as harness:
        await harness.deliver(events)

    assert effects(target) == once(events)


async def test_failed_event_leaves_nothing_and_succeeds_later(target: Database) -> None:
    """What it wrote is rolled back; as a dead letter that is retried after later events it still has its effect."""
    handler = Pooled(target.dsn)
    handler.broken = {"3"}
    events = EventStream().inserts(5)
    async with HandlerHarness(handler) as harness:
        await harness.deliver(events)
        harness.assert_dead([events[2]])
        assert effects(target) == once([*events[:2], *events[3:]])
        handler.broken = set()
        await harness.deliver([events[2]])

    assert effects(target) == once(events)


async def test_concurrent_lanes_and_abandoned_calls_have_each_effect_once(target: Database) -> None:
    """The same events at the same time, by two objects with many lanes each."""
    events = EventStream().inserts(200)
    async with (
        HandlerHarness(Pooled(target.dsn), concurrency=4) as one,
        HandlerHarness(Pooled(target.dsn), concurrency=4) as other,
    ):
        await asyncio.gather(one.deliver(events), other.deliver(events))
        one.assert_settled(events)
        other.assert_settled(events)

    assert effects(target) == once(events)


async def test_handlers_share_the_table_under_their_names(target: Database) -> None:
    """Two handlers each have their effect of the same event."""
    events = EventStream().inserts(3)
    for kind in (Pooled, Plain):
        async with HandlerHarness(kind(target.dsn)) as harness:
            await harness.deliver(events)

    assert set(effects(target).values()) == {2}


async def test_same_positions_of_another_cluster_are_other_events(target: Database) -> None:
    """After a restore the WAL may be where it was before: the commit times differ, and nothing is left out."""
    first = EventStream().inserts(3)
    second = EventStream(start=first[0].timestamp + timedelta(days=1)).inserts(3)
    assert [event.position for event in first] == [event.position for event in second]
    async with HandlerHarness(Pooled(target.dsn)) as harness:
        await harness.deliver(first)
        await harness.deliver(second)

    assert set(effects(target).values()) == {2}


async def test_what_is_done_is_forgotten_after_a_time_a_bit_with_each_look(
    target: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more at a time than twice what was done since; what is younger stays."""
    monkeypatch.setattr(dedupe, "PRUNE_EVERY", 1)
    stream = EventStream()
    old, new = stream.inserts(100), stream.inserts(1)
    async with HandlerHarness(Pooled(target.dsn)) as harness:
        await harness.deliver(old)
        target.execute("UPDATE walsignal_done SET done_at = now() - interval '31 days'")
        await harness.deliver(new)
    ((left,),) = target.execute("SELECT count(*) FROM walsignal_done")
    async with HandlerHarness(Pooled(target.dsn)) as harness:
        await harness.deliver(stream.inserts(100))
    ((later,),) = target.execute("SELECT count(*) FROM walsignal_done WHERE done_at < now() - interval '1 day'")

    assert left == 100 - 2 + 1  # one event since the last look: two may go
    assert later == 0


async def test_event_without_a_position_is_refused(target: Database) -> None:
    """One made by hand cannot be known again."""
    with pytest.raises(CallbackError, match="without a position"):
        await Connecting(target.dsn).handle(DatabaseEvent.of("create", "items"))


def test_only_the_two_methods_of_a_handler_can_be_decorated() -> None:
    """A slip is told when the class is made."""
    with pytest.raises(TypeError, match="not handel"):

        @exactly_once("x")
        def handel(self: object, event: DatabaseEvent, connection: Connection[Any]) -> None: ...

    with pytest.raises(ValueError, match="needs a name"):
        exactly_once("")


KILLED = """
import asyncio, os, signal, sys
from cdc.testing import EventStream, HandlerHarness
from tests.test_dedupe import Pooled

point, dsn = sys.argv[1:]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Dying(set):
    def __contains__(self, record_id):
        return record_id == "5" and die()


class Killed(Pooled):
    async def handle_batch(self, events):
        if point == "before":
            die()
        await super().handle_batch(events)
        die()


async def main():
    handler = Killed(dsn)
    if point == "during":
        handler.broken = Dying()
    async with HandlerHarness(handler) as harness:
        await harness.deliver(EventStream().inserts(10))


asyncio.run(main())
"""


@pytest.mark.parametrize(("point", "effect"), [("before", 0), ("during", 0), ("after", 10)])
def test_kill_leaves_all_or_nothing_and_the_next_process_completes_it(
    target: Database, point: str, effect: int
) -> None:
    """kill -9 before the work, in the midst of its statements, and between its commit and the settlement."""
    process = subprocess.run([sys.executable, "-c", KILLED, point, target.dsn], cwd=ROOT, check=False)
    assert process.returncode == -9
    assert sum(effects(target).values()) == effect

    events = EventStream().inserts(10)
    asyncio.run(deliver(Pooled(target.dsn), events))

    assert effects(target) == once(events)


async def deliver(handler: object, events: Sequence[DatabaseEvent]) -> None:
    """To a new process's handler."""
    async with HandlerHarness(handler) as harness:
        await harness.deliver(events)


HANDLER = """
import psycopg
from cdc import exactly_once

class Copy:
    def __init__(self, dsn: str, path: str) -> None:
        self.dsn = dsn

    async def connection(self):
        return await psycopg.AsyncConnection.connect(self.dsn)

    @exactly_once("copy")
    async def handle_batch(self, events, connection):
        for event in events:
            await connection.execute("INSERT INTO effects VALUES (%s)", [event.record_id])


class Counted(Copy):
    def __init__(self, dsn: str, path: str) -> None:
        super().__init__(dsn, path)
        self.file = open(path, "a", buffering=1)

    async def handle_batch(self, events):
        self.file.write("".join(f"{event.record_id}\\n" for event in events))
        await super().handle_batch(events)
"""


def test_service_that_is_killed_again_and_again_has_each_effect_once(
    cluster: Any, database: Database, tmp_path: Path
) -> None:
    """The real `cdc run`, with a checkpoint far behind its work, from one database into the same one."""
    database.execute("CREATE TABLE items (id bigint PRIMARY KEY); CREATE TABLE effects (position text)")
    (tmp_path / "copies.py").write_text(HANDLER)
    handlers = {"copy": {"callback": "copies:Counted", "tables": ["public.items"], "options": {"dsn": database.dsn}}}
    rows = 0
    with child(tmp_path, database.dsn, handlers) as service:
        service.write(state={"checkpoint_interval_seconds": 60})
        for _ in range(4):
            service.start()
            seen = sum(effects(database).values())
            for _ in range(20):
                database.execute(f"INSERT INTO items SELECT generate_series({rows + 1}, {rows + 50})")
                rows += 50
            wait_until(lambda seen=seen: sum(effects(database).values()) > seen)  # type: ignore[misc]
            service.kill()
        service.start()
        wait_until(lambda: len(effects(database)) == rows)
        service.stop()

    assert effects(database) == Counter(str(number) for number in range(1, rows + 1))
    assert len((tmp_path / "copy.lines").read_text().splitlines()) > rows, "nothing was delivered twice: no test"
