"""The thread of the state: jobs in order, and a sign of life whatever the event loop does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from time import monotonic

import pytest

from cdc.errors import StateBusy
from cdc.state import StateThread, open_state
from cdc.state.server import LEASE_SECONDS
from tests.conftest import Database
from tests.running import wait_until
from tests.test_state_postgres import state_url
from tests.waiting import eventually


@pytest.fixture
def thread() -> Iterator[StateThread]:
    """One that ends with the test."""
    thread = StateThread()
    yield thread
    thread.close()


async def test_jobs_run_one_after_the_other_in_order(thread: StateThread) -> None:
    """All in one thread that is not the loop's; each gets its own answer or error."""
    gate, ran, threads = threading.Event(), [], set()

    def job(number: int, *, fails: bool = False) -> int:
        gate.wait(30)
        ran.append(number)
        threads.add(threading.current_thread())
        if fails:
            raise ValueError(number)
        return number

    jobs = [asyncio.ensure_future(thread.run(job, number, fails=number == 3)) for number in range(10)]
    await asyncio.sleep(0)  # all are asked for
    gate.set()
    results = await asyncio.gather(*jobs, return_exceptions=True)

    assert ran == list(range(10))
    assert [result if isinstance(result, int) else str(result) for result in results] == [0, 1, 2, "3", *range(4, 10)]
    assert len(threads) == 1
    assert threading.main_thread() not in threads


async def test_cancelled_job_is_not_begun(thread: StateThread) -> None:
    """But one at work is finished: it may be half written."""
    gate, ran = threading.Event(), []

    def job(number: int) -> None:
        ran.append(number)
        gate.wait(30)

    first, second = (asyncio.ensure_future(thread.run(job, number)) for number in range(2))
    await eventually(lambda: ran)
    first.cancel()
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    gate.set()
    await thread.run(ran.append, 9)

    assert ran == [0, 9]


async def test_close_finishes_what_was_asked_for() -> None:
    """Then nothing more is taken; closing twice is harmless."""
    thread = StateThread()
    ran: list[int] = []
    job = asyncio.ensure_future(thread.run(ran.append, 1))
    await asyncio.sleep(0)
    thread.close()
    thread.close()
    await job

    assert ran == [1]
    with pytest.raises(RuntimeError, match="closed"):
        await thread.run(ran.append, 2)


async def test_file_is_alive_without_a_ping(thread: StateThread, tmp_path: Path) -> None:
    """It cannot be lost while its process lives; the same before there is a store at all."""
    before = monotonic()
    assert before <= thread.last_alive <= monotonic()
    with closing(open_state(f"sqlite:///{tmp_path}/state.db", owner=True)) as store:
        thread.store = store
        before = monotonic()
        assert before <= thread.last_alive <= monotonic()
        assert thread.lost == ""


async def test_blocked_event_loop_does_not_cost_the_state(thread: StateThread, database: Database) -> None:
    """A callback that does not give the loop back, for longer than a silent owner keeps the state."""
    url = state_url(database.cluster, database.name)
    thread.store = store = await thread.run(open_state, url, owner=True)
    began = monotonic()

    wait_until(lambda: thread.last_alive > began + LEASE_SECONDS + 1)  # the loop stands still as long as this lasts

    with pytest.raises(StateBusy):
        open_state(url, owner=True)
    assert thread.lost == ""
    await thread.run(store.close)


async def test_lost_state_is_told_until_it_is_back(thread: StateThread, database: Database) -> None:
    """Within a ping; the time of the last answer stands still as long as there is none."""
    url = state_url(database.cluster, database.name)
    thread.store = store = await thread.run(open_state, url, owner=True)
    opened = monotonic()
    await eventually(lambda: thread.last_alive > opened)
    with database.cluster.connect() as admin:
        # Nobody comes back before we have seen it.
        admin.execute(f"ALTER DATABASE {database.name} ALLOW_CONNECTIONS false".encode())
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = %s AND application_name LIKE 'walsignal%%'",
            [database.name],
        )
        await eventually(lambda: thread.lost)
        with_loss = thread.last_alive
        await eventually(lambda: monotonic() > with_loss + 2)
        assert thread.lost
        assert thread.last_alive == with_loss
        admin.execute(f"ALTER DATABASE {database.name} ALLOW_CONNECTIONS true".encode())

    await eventually(lambda: not thread.lost)
    assert thread.last_alive > with_loss
    await thread.run(store.close)


async def test_state_taken_by_another_stays_lost(thread: StateThread, database: Database) -> None:
    """The time of the last answer never moves again."""
    url = state_url(database.cluster, database.name)
    thread.store = store = await thread.run(open_state, url, owner=True)
    database.execute("UPDATE walsignal.service SET term = term + 1")
    await eventually(lambda: "taken over" in thread.lost)
    last = thread.last_alive

    until = monotonic() + 2.5  # two more pings
    await eventually(lambda: monotonic() > until)
    assert thread.last_alive == last
    assert "taken over" in thread.lost
    await thread.run(store.close)
