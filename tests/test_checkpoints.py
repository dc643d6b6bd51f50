"""When checkpoints are written, by whom, and that nothing is reported that is not written."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cdc import checkpoints
from cdc import service as service_module
from cdc.errors import StateError
from cdc.service import Service
from cdc.state import Checkpoint, Gap, open_state
from tests.conftest import Database
from tests.running import confirmed, server_lsn
from tests.waiting import Running, eventually, make_config, running

ITEMS = "CREATE TABLE items (id int PRIMARY KEY)"


class Watched:
    """A state store that remembers who called it and when, and fails while it is told to."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.saves: list[tuple[float, Checkpoint]] = []  # when each began
        self.threads: set[str] = set()
        self.fails = False

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._store, name)
        if not callable(function):
            return function

        def call(*args: Any) -> Any:
            self.threads.add(threading.current_thread().name)
            return function(*args)

        return call

    def save(self, checkpoint: Checkpoint, gaps: Sequence[Gap] = ()) -> None:
        """Remember it."""
        self.threads.add(threading.current_thread().name)
        if self.fails:
            raise StateError("the disk is full")
        began = time.monotonic()
        self._store.save(checkpoint, gaps)
        self.saves.append((began, checkpoint))


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    """The stores that services of this test have opened."""
    opened: list[Watched] = []

    def watch(*args: Any, **kwargs: Any) -> Watched:
        opened.append(Watched(open_state(*args, **kwargs)))
        return opened[-1]

    monkeypatch.setattr(service_module, "open_state", watch)
    return opened


@asynccontextmanager
async def at_work(database: Database, folder: Path, interval: float) -> AsyncIterator[Running]:
    """A service with that checkpoint interval on a database with a table `items`."""
    database.execute(ITEMS)
    config = make_config(database.dsn, folder, state={"checkpoint_interval_seconds": interval})
    async with running(config) as run:
        yield run


async def test_checkpoints_are_written_once_an_interval_by_a_thread_of_their_own(
    database: Database, tmp_path: Path, stores: list[Watched]
) -> None:
    """Under load, too, none sooner, and more and more of them; and what is written only rises."""
    interval = 0.3
    async with at_work(database, tmp_path, interval) as run:
        (store,) = stores
        number = 0
        while len(store.saves) < 6:
            number += 1
            await asyncio.to_thread(database.execute, f"INSERT INTO items VALUES ({number})")
        await eventually(lambda: len(run.callbacks.seen) == number)
        times = [when for when, _ in store.saves]
        assert all(later - earlier > interval * 0.9 for earlier, later in pairwise(times))
    flushed = [checkpoint.flushed_lsn for _, checkpoint in store.saves]
    assert flushed == sorted(flushed)
    assert store.saves[-1][1].last_event_id == number
    assert all(name.startswith("cdc-state") for name in store.threads)


async def test_nothing_is_written_when_nothing_has_moved(
    database: Database, tmp_path: Path, stores: list[Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many intervals without a change: not one write."""
    monkeypatch.setattr(checkpoints, "IDLE_SECONDS", 3600)  # others of the server may write
    async with at_work(database, tmp_path, 0.02) as run:
        (store,) = stores
        database.execute("INSERT INTO items VALUES (1)")
        await eventually(lambda: len(run.callbacks.seen) == 1)
        end = run.callbacks.seen[0].position.commit_lsn
        await eventually(lambda: store.saves[-1][1].flushed_lsn >= end)
        saves = len(store.saves)
        began = time.monotonic()
        await eventually(lambda: time.monotonic() > began + 1)
        assert len(store.saves) == saves


async def test_wal_of_another_database_moves_an_idle_slot(
    database: Database, tmp_path: Path, stores: list[Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's keepalives say that nothing of it was ours; written less often than what is ours."""
    monkeypatch.setattr(checkpoints, "IDLE_SECONDS", 0.5)
    database.execute(ITEMS)
    source = {"dsn": f"{database.dsn} options='-c wal_sender_timeout=900ms'"}  # the server speaks up soon
    async with running(make_config(database.dsn, tmp_path, source=source)) as run:
        with database.cluster.connect() as elsewhere:
            elsewhere.execute("SELECT pg_logical_emit_message(false, 'x', repeat('y', 100000))")
        end = server_lsn(database)
        slot = run.service.config.source.slot
        await eventually(lambda: confirmed(database.cluster, slot) >= end)
        (store,) = stores
        assert store.saves[-1][1].flushed_lsn >= end
        # Beside the first: once in half a second, and when the server asks for an answer, twice in its 900 ms.
        seconds = time.monotonic() - store.saves[0][0]
        assert len(store.saves) <= 3 + seconds / 0.5 + seconds / 0.45


async def test_nothing_is_acknowledged_that_was_not_written(
    database: Database, tmp_path: Path, stores: list[Watched]
) -> None:
    """While the disk is full the slot stays; when there is room again it follows."""
    async with at_work(database, tmp_path, 0.05) as run:
        (store,) = stores
        slot = run.service.config.source.slot
        store.fails = True
        before = server_lsn(database)
        database.execute("INSERT INTO items VALUES (1)")
        await eventually(lambda: len(run.callbacks.seen) == 1)
        checkpointer = run.service.checkpointer
        assert checkpointer is not None
        await eventually(lambda: "the disk is full" in checkpointer.error)
        assert confirmed(database.cluster, slot) <= before
        store.fails = False
        end = run.callbacks.seen[0].position.commit_lsn
        await eventually(lambda: confirmed(database.cluster, slot) >= end)
        assert checkpointer.error == ""


async def test_a_state_that_cannot_be_written_at_the_end_is_told(
    database: Database, tmp_path: Path, stores: list[Watched]
) -> None:
    """A stop that could not save is no clean stop: the error passes, and the stream is closed all the same."""
    database.execute(ITEMS)
    config = make_config(database.dsn, tmp_path)
    service = Service(config)
    task = asyncio.create_task(service.run())
    await eventually(lambda: service.stream is not None and service.checkpointer is not None)
    (store,) = stores
    store.fails = True
    database.execute("INSERT INTO items VALUES (1)")
    await eventually(lambda: service.checkpointer is not None and service.checkpointer.error)
    service.stop()
    with pytest.raises(StateError, match="the disk is full"):
        await task

    async def is_free() -> bool:
        with closing(database.connect()) as connection:
            row = connection.execute(
                "SELECT active FROM pg_replication_slots WHERE slot_name = %s", [config.source.slot]
            ).fetchone()
        return row == (False,)

    await eventually(is_free)
