"""From the stream to the pool, on a real slot: what is read when, and how the end of a connection is met."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from cdc.config import SourceConfig
from cdc.errors import StreamLost
from cdc.patterns import TablePatterns
from cdc.progress import Ledger
from cdc.pump import Pump
from cdc.session import Session
from cdc.signals import SignalManager
from cdc.transactions import Assembler, CommitMark, Selection
from tests.conftest import Database
from tests.waiting import eventually

ITEMS = "CREATE TABLE items (id int PRIMARY KEY, note text)"
SELECTION = Selection(TablePatterns())


@pytest.fixture
async def session(database: Database) -> AsyncIterator[Session]:
    """An open stream of a slot of its own; a table `items` is there."""
    database.execute(ITEMS)
    opened = await Session.open(
        SourceConfig(dsn=database.dsn, slot=f"slot_{secrets.token_hex(6)}"),
        SELECTION,
        None,
        received=0,
        accept_gap=False,
        missing_identity=Counter(),
    )
    try:
        yield opened
    finally:
        await opened.stream.close()


def make_pump(session: Session, manager: SignalManager) -> Pump:
    """As the service makes it."""
    resume = session.resume
    return Pump(Assembler(SELECTION, flushed=resume.lsn), Ledger(CommitMark(resume.lsn, 0)), manager)


@pytest.mark.parametrize(("messages", "size"), [(1, 1 << 20), (7, 1 << 20), (1000, 1), (1000, 500)])
def test_a_bounded_read_says_whether_there_may_be_more(
    database: Database, session: Session, messages: int, size: int
) -> None:
    """What libpq holds in memory, the selector does not tell of: only a read that found nothing more may wait."""
    rows = 40
    database.execute(f"INSERT INTO items SELECT i, 'x' FROM generate_series(1, {rows}) i")
    payloads: list[bytes] = []
    deadline = time.monotonic() + 30
    while len(payloads) < rows + 2:  # begin and commit
        assert time.monotonic() < deadline
        before = len(payloads)
        payloads += map(bytes, session.stream.read(messages, size))
        if not session.stream.has_more:
            assert len(payloads) == before or len(payloads) - before < messages
            os.sched_yield()
    assert payloads[0].startswith(b'{"action":"B"')
    assert payloads[-1].startswith(b'{"action":"C"')


async def test_a_stopped_pump_reads_no_other_stream(database: Database, session: Session) -> None:
    """A stop while the service connects: the stream that then comes is left unread."""
    async with SignalManager() as manager:
        pump = make_pump(session, manager)
        pump.stop()
        database.execute("INSERT INTO items VALUES (1)")
        async with asyncio.timeout(30):
            await pump.run(session.stream, session.decoder)
        assert manager.get_stats().events_emitted == 0


async def test_a_connection_found_dead_by_the_feedback_costs_no_other_socket(
    database: Database, session: Session
) -> None:
    """libpq closes its socket in whichever thread finds it dead; its number may be another socket's the next moment."""
    stream = session.stream
    async with SignalManager() as manager:
        pumping = asyncio.create_task(make_pump(session, manager).run(stream, session.decoder))
        await asyncio.sleep(0)  # it has its reader
        await asyncio.sleep(0)
        # From here on the loop does not run until the connection is dead and its number taken.
        database.execute(f"SELECT pg_terminate_backend({stream.backend_pid}, 30000)")
        deadline = time.monotonic() + 30
        while not stream._closed.is_set():
            assert time.monotonic() < deadline
            stream.send_status()
        pairs = [socket.socketpair() for _ in range(3)]
        heard: list[int] = []
        loop = asyncio.get_running_loop()
        for one, other in pairs:
            loop.add_reader(one, heard.append, one.fileno())
            other.send(b"x")
        with pytest.raises(StreamLost):
            async with asyncio.timeout(30):
                await pumping
        await eventually(lambda: set(heard) == {one.fileno() for one, _ in pairs})
        for one, other in pairs:
            loop.remove_reader(one)
            one.close()
            other.close()


async def test_the_end_of_the_connection_is_met_at_once(database: Database, session: Session) -> None:
    """Also behind a burst of rows, which is taken first."""
    async with SignalManager() as manager:
        pump = make_pump(session, manager)
        pumping = asyncio.create_task(pump.run(session.stream, session.decoder))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        database.execute("INSERT INTO items SELECT i, 'x' FROM generate_series(1, 100) i")
        deadline = time.monotonic() + 30
        while database.execute(
            f"SELECT sent_lsn >= pg_current_wal_lsn() FROM pg_stat_replication WHERE pid = {session.stream.backend_pid}"
        ) != [(True,)]:
            assert time.monotonic() < deadline
        database.execute(f"SELECT pg_terminate_backend({session.stream.backend_pid}, 30000)")
        with pytest.raises(StreamLost) as caught:
            async with asyncio.timeout(30):
                await pumping
        # The server's own word was read; the feedback, which would find the connection dead later, has no reason.
        assert caught.value.reason == "57P01"
        assert manager.get_stats().events_emitted == 100
