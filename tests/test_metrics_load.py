"""Figures are exact under load: `/metrics`, scraped again and again, against what the callbacks have counted."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cdc.service import Phase
from cdc.session import server_filters
from cdc.wal2json import OPTIONS
from tests.conftest import Database
from tests.scraping import Samples, counters, samples, scrape
from tests.waiting import Running, eventually, make_config, running

ROUNDS = 60
XLOG_DATA_BYTES, KEEPALIVE_BYTES = 25, 18
"""Of a message's head, and of a whole keepalive: https://www.postgresql.org/docs/current/protocol-replication.html"""
CALLBACKS = """
import asyncio, threading, time
from collections import Counter
from collections.abc import Mapping

gate = asyncio.Event()
gate.set()
seen = []
calls = Counter()      # calls that have come to a good end, by handler
seconds = Counter()    # their time, as the callback itself has measured it
failures = Counter()   # attempts that have failed

def done(name, began):
    calls[name] += 1
    seconds[name] += time.monotonic() - began

async def receive(event):
    began = time.monotonic()
    await gate.wait()
    seen.append((event.event_type.value, event.kind.table))
    done("all", began)

def threaded(event):
    began = time.monotonic()
    if event.payload["id"] % 7 == 0:
        time.sleep(0.002)
    done("threaded", began)

class Batches:
    async def handle_batch(self, events):
        began = time.monotonic()
        await asyncio.sleep(0)
        done("batches", began)

def flaky(event):
    began = time.monotonic()
    if event.payload["id"] % 100 == 0:
        failures["flaky"] += 1
        raise ValueError("secret-value")
    done("flaky", began)

async def late(event):
    began = time.monotonic()
    if event.payload["id"] % 150 == 0:
        failures["late"] += 1
        await asyncio.Event().wait()
    done("late", began)

def broken(event):
    failures["broken"] += 1
    raise ValueError("secret-value")
"""
HANDLERS: dict[str, str | Mapping[str, Any]] = {
    "all": {"callback": "receive"},
    "threaded": {"callback": "threaded"},
    "batches": {"callback": "Batches"},
    "flaky": {"callback": "flaky", "max_attempts": 2},
    "late": {"callback": "late", "max_attempts": 1, "timeout_seconds": 0.3, "event_types": ["create"]},
    "broken": {"callback": "broken", "max_attempts": 1},
}


def write_load(database: Database, numbers: range) -> None:
    """Three transactions for each number, over three tables, one of which is not selected."""
    with database.connect() as connection:
        for number in numbers:
            first, last = number * 10 + 1, number * 10 + 10
            connection.execute(f"INSERT INTO a SELECT n, 'x', repeat('y', 10) FROM generate_series({first}, {last}) n")
            connection.execute(
                f"BEGIN; UPDATE a SET t = 'z' WHERE id BETWEEN {first} AND {last}; "
                f"INSERT INTO b VALUES ({first}); INSERT INTO skip_me VALUES ({first}); COMMIT"
            )
            connection.execute(f"DELETE FROM a WHERE id = {first}")


def written_changes() -> Counter[tuple[str, str]]:
    """By type and table, of all rounds."""
    written: Counter[tuple[str, str]] = Counter()
    written["create", "public.a"] = written["update", "public.a"] = ROUNDS * 10
    written["create", "public.b"] = written["delete", "public.a"] = ROUNDS
    return written


def assert_rises(scrapes: list[Samples]) -> None:
    """No counter falls, begins anew or goes away."""
    for earlier, later in pairwise(scrapes):
        fallen = {key: (value, later.get(key)) for key, value in earlier.items() if value > later.get(key, -1)}
        assert fallen == {}


async def test_figures_are_exact_under_load_and_reconnects(database: Database, tmp_path: Path) -> None:
    """With failing, late, threaded, batch and removed callbacks, and a stream lost twice in the middle of it."""
    for table in ("a (id int PRIMARY KEY, t text, u text)", "b (id int PRIMARY KEY)", "skip_me (id int PRIMARY KEY)"):
        database.execute(f"CREATE TABLE {table}")
    config = make_config(database.dsn, tmp_path, HANDLERS, CALLBACKS, source={"exclude_tables": ["public.skip*"]})
    scrapes: list[Samples] = []
    written = written_changes()
    total = written.total()
    async with running(config) as run:
        for part in range(3):
            numbers = range(part * ROUNDS // 3, (part + 1) * ROUNDS // 3)
            loading = asyncio.create_task(asyncio.to_thread(write_load, database, numbers))
            scrapes.append(await checked_scrape(run))
            if part < 2:
                scrapes.append(await lose_stream(run, database))
            while not loading.done():
                scrapes.append(await checked_scrape(run))
            await loading

        async def is_over() -> bool:
            scrapes.append(await checked_scrape(run))
            ended: Counter[str] = Counter()
            for (name, *labels), value in scrapes[-1].items():
                if name == "cdc_callback_events_total":
                    ended[labels[0]] += int(value)
            # The last commit is read after the event before it; what a thread has counted, the loop settles later.
            is_read = scrapes[-1]["cdc_transactions_total",] == 3 * ROUNDS
            is_settled = run.service.manager.pool.queued_events == 0
            return is_read and is_settled and ended == dict.fromkeys(HANDLERS, total) | {"late": ROUNDS * 11}

        try:
            await eventually(is_over, timeout=60)
        except AssertionError:
            pytest.fail(f"not over: {scrapes[-1]}")
        found = await scrape(run)
        oracle = run.callbacks

    assert_rises(scrapes)
    assert Counter(oracle.seen) == written
    assert {
        (event_type, table): found["cdc_events_total", event_type, table] for event_type, table in written
    } == written
    assert sum(value for key, value in found.items() if key[0] == "cdc_events_total") == total
    assert found["cdc_transactions_total",] == 3 * ROUNDS
    assert found["cdc_events_filtered_total", "table"] >= ROUNDS
    assert sum(value for key, value in found.items() if key[0] == "cdc_reconnects_total") >= 2
    outcomes = {key[1:]: value for key, value in found.items() if key[0] == "cdc_callback_events_total" and value}
    flawed = 2 * ROUNDS * 10 // 100  # each hundredth row, created and updated
    late = ROUNDS * 10 // 150
    assert outcomes == {
        ("all", "ok"): total,
        ("threaded", "ok"): total,
        ("batches", "ok"): total,
        ("flaky", "ok"): total - flawed,
        ("flaky", "failed"): flawed,
        ("late", "ok"): ROUNDS * 11 - late,
        ("late", "timeout"): late,
        ("broken", "failed"): 3,
        ("broken", "parked"): total - 3,
    }
    for name in HANDLERS:
        assert found["cdc_callback_seconds_count", name] == oracle.calls[name]
        assert found["cdc_callback_seconds_bucket", name, "+Inf"] == oracle.calls[name]
        assert found["cdc_callback_seconds_sum", name] >= oracle.seconds[name]
    assert found["cdc_callback_retries_total", "flaky"] == flawed
    assert oracle.failures == {"flaky": 2 * flawed, "late": late, "broken": 3}
    assert found["cdc_callbacks_removed_total", "failures"] == 1
    assert {key[1:]: value for key, value in found.items() if key[0] == "cdc_dead_letters" and value} == {
        ("flaky", "failed"): flawed,
        ("late", "failed"): late,
        ("broken", "failed"): 3,
        ("broken", "parked"): total - 3,
    }
    assert found["cdc_queued_events",] == found["cdc_queued_bytes",] == 0


async def checked_scrape(run: Running) -> Samples:
    """The counters of one moment, which agree with each other: nothing is handled that was not handed out."""
    before = len(run.callbacks.seen)
    _, text = await run.get("/metrics")
    found = samples(text)
    handed_out = sum(value for key, value in found.items() if key[0] == "cdc_events_total")
    assert handed_out >= max(found["cdc_callback_events_total", "all", "ok"], before)
    assert "secret" not in text
    return counters(text)


async def lose_stream(run: Running, database: Database) -> Samples:
    """The server ends the walsender; the counters as they were then. Back when the service streams again."""
    lost = run.service.reconnects.total()
    assert run.service.stream is not None
    database.execute(f"SELECT pg_terminate_backend({run.service.stream.backend_pid})")
    await eventually(lambda: run.service.reconnects.total() > lost)
    found = await checked_scrape(run)
    await eventually(lambda: run.service.phase is Phase.STREAMING)
    return found


async def test_received_bytes_are_those_of_the_messages(database: Database, tmp_path: Path) -> None:
    """To the byte, but for keepalives, against the server's own copy of the same stream in a second slot."""
    database.execute("CREATE TABLE a (id int PRIMARY KEY, t text)")
    config = make_config(database.dsn, tmp_path)
    async with running(config) as run:
        database.execute(f"SELECT pg_create_logical_replication_slot('{database.name}', 'wal2json')")
        before = await scrape(run)
        database.execute("INSERT INTO a SELECT n, 'tëxt' FROM generate_series(1, 500) n")
        database.execute("DELETE FROM a")
        await eventually(lambda: len(run.callbacks.seen) == 1000)
        await eventually(lambda: run.service.assembler is not None and not run.service.assembler.is_open)
        found = await scrape(run)
    options = [word for pair in (OPTIONS | server_filters(run.service._selection)).items() for word in pair]
    words = ", ".join(f"'{word}'" for word in options)
    sent = database.execute(
        "SELECT sum(length(data)), count(*) FROM pg_logical_slot_peek_binary_changes"
        f"('{database.name}', NULL, NULL, {words})"
    )
    size, messages = sent[0]
    received = found["cdc_received_bytes_total",] - before["cdc_received_bytes_total",]
    keepalives = received - size - XLOG_DATA_BYTES * messages

    assert keepalives >= 0
    assert keepalives % KEEPALIVE_BYTES == 0
    assert keepalives < size / 10


async def test_events_flow_while_metrics_are_scraped_without_a_pause(database: Database, tmp_path: Path) -> None:
    """Of many callbacks and tables: every scrape is answered whole, and events arrive between the scrapes."""
    database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    database.execute("".join(f"CREATE TABLE t{number} (id int PRIMARY KEY);" for number in range(200)))
    names = {f"handler_{number}": "receive" for number in range(50)}
    config = make_config(database.dsn, tmp_path, names)
    async with running(config) as run:
        database.execute("".join(f"INSERT INTO t{number} VALUES (1);" for number in range(200)))
        ended = asyncio.Event()
        arrived: list[int] = []

        async def scrape_for_ever() -> None:
            while not ended.is_set():
                found = await scrape(run)
                assert found["cdc_connected",] == 1
                arrived.append(len(run.callbacks.seen))

        scraping = [asyncio.create_task(scrape_for_ever()) for _ in range(2)]
        number = 0
        while number < 20 or len(set(arrived)) < 5:  # until scrapes and events have taken turns
            await asyncio.to_thread(database.execute, f"INSERT INTO a VALUES ({number})")
            number += 1
            seen = 50 * (200 + number)
            await eventually(lambda expected=seen: len(run.callbacks.seen) >= expected, timeout=30)  # type: ignore[misc]
            assert not any(task.done() for task in scraping)
        ended.set()
        await asyncio.gather(*scraping)
