"""What `/metrics` says, compared with what really happened."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from cdc.events import DatabaseEvent, EventType, Kind
from cdc.exposition import Family
from cdc.families import FAMILIES
from cdc.metrics import MAX_LABELS, ServiceCollector
from cdc.registry import Tally
from cdc.rendering import Families, render
from cdc.service import Service
from cdc.transactions import Assembler, Selection
from tests.conftest import Database
from tests.scraping import Samples, of, samples, scrape
from tests.waiting import Running, eventually, make_config, running

# Of the design, word by word: what dashboards and alerts of others are made of.
DESIGN = [
    "events_total{table,event_type}",
    "events_filtered_total{reason}",
    "received_bytes_total",
    "transactions_total",
    "connected",
    "reconnects_total{reason}",
    "last_message_timestamp_seconds",
    "lag_seconds",
    "lag_bytes",
    "received_lsn",
    "flushed_lsn",
    "slot_retained_bytes",
    "slot_safe_wal_bytes",
    "slot_wal_status{status}",
    "queued_events",
    "queued_bytes",
    "queue_limit_events",
    "queue_limit_bytes",
    "callbacks",
    "callback_seconds{callback}",
    "callback_events_total{callback,outcome}",
    "callback_retries_total{callback}",
    "callback_consecutive_failures{callback}",
    "callback_up{callback}",
    "callbacks_removed_total{reason}",
    "callback_holdback_bytes{callback}",
    "callback_holdback_seconds{callback}",
    "dead_letters{callback,state}",
    "checkpoint_seconds",
    "checkpoints_total",
    "unchanged_toast_total{table}",
    "missing_replica_identity_total{table}",
    "event_loop_blocked_seconds_total",
]


def signature(family: Family) -> str:
    """As the design writes it."""
    name = family.sample_name.removeprefix("cdc_")
    return f"{name}{{{','.join(family.labels)}}}" if family.labels else name


def slot_is_known(run: Running) -> bool:
    """Whether the monitor has looked at the whole slot: while it is being made it is there, and has no positions."""
    slot = run.service.monitor.slot
    return slot is not None and slot.confirmed_flush_lsn is not None and slot.restart_lsn is not None


async def test_counters_equal_what_was_delivered(database: Database, tmp_path: Path) -> None:
    """Of a known workload every event is counted once, by table and type, and each transaction once."""
    for table in ("a (id int PRIMARY KEY, n int)", "b (id int PRIMARY KEY)"):
        # Autovacuum's transactions would be counted, too.
        database.execute(f"CREATE TABLE {table}")
    async with running(make_config(database.dsn, tmp_path)) as run:
        database.execute("INSERT INTO a SELECT n, 0 FROM generate_series(1, 1000) n")
        database.execute("UPDATE a SET n = 1 WHERE id <= 300")
        database.execute("DELETE FROM a WHERE id > 900; INSERT INTO b VALUES (1), (2)")

        async def is_counted() -> bool:
            found = await scrape(run)
            # The last commit is read after the event before it.
            return found["cdc_callback_events_total", "audit", "ok"] == 1402 and found["cdc_transactions_total",] == 3

        await eventually(is_counted, timeout=30)
        found = await scrape(run)
        seen = Counter((event.event_type.value, event.kind.table) for event in run.callbacks.seen)

    assert {key[1:]: value for key, value in found.items() if key[0] == "cdc_events_total"} == seen
    assert seen.total() == 1402
    assert found["cdc_transactions_total",] == 3
    assert found["cdc_callback_seconds_count", "audit"] == 1402
    assert found["cdc_connected",] == 1
    assert found["cdc_callback_up", "audit"] == 1
    assert found["cdc_received_bytes_total",] > 100_000
    assert found["cdc_checkpoints_total",] == found["cdc_checkpoint_seconds_count",] > 0


def test_every_metric_of_the_design_is_there() -> None:
    """Names and labels are what dashboards are made of."""
    assert set(DESIGN) - {signature(family) for family in FAMILIES} == set()


async def test_every_family_is_shown_with_its_type_and_labels(database: Database, tmp_path: Path) -> None:
    """What the reference lists a scrape shows, and no others; both formats agree with it."""
    database.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (n int)")
    async with running(make_config(database.dsn, tmp_path)) as run:
        database.execute("INSERT INTO a VALUES (1); INSERT INTO b VALUES (1); UPDATE b SET n = 2")
        await eventually(lambda: len(run.callbacks.seen) == 2)
        await eventually(lambda: run.service.missing_identity.total() == 1)
        await eventually(lambda: slot_is_known(run))
        _, text = await run.get("/metrics")
        _, open_text = await run.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")

    shown = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE cdc_")}
    assert shown == {family.sample_name for family in FAMILIES}
    assert "process_resident_memory_bytes" in text
    parsed = {family.name: family for family in parse_openmetrics(open_text)}  # type: ignore[no-untyped-call]
    for family in FAMILIES:
        found = parsed[family.full_name]
        assert (found.type, found.unit, found.documentation) == (family.kind.value, family.unit, family.text)
        assert {frozenset(sample.labels) - {"le"} for sample in found.samples} <= {frozenset(family.labels)}
    # Without a sample is only what does not occur here.
    silent = {family.name for family in FAMILIES if not parsed[family.full_name].samples}
    assert silent == {
        "slot_safe_wal_bytes",
        "slot_seconds_to_invalidation",
        "unchanged_toast",
        "reload_successful",
        "reload_timestamp_seconds",
    }


async def test_lag_is_the_age_of_what_a_callback_holds(database: Database, tmp_path: Path) -> None:
    """While a callback waits, lag and holdback say how long and how much; settled, both are nothing again."""
    database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    async with running(make_config(database.dsn, tmp_path)) as run:
        run.callbacks.gate.clear()
        database.execute("INSERT INTO a VALUES (1)")

        async def is_held() -> bool:
            found = await scrape(run)
            is_whole = found["cdc_transactions_total",] == 1  # its commit was read, too
            return is_whole and found["cdc_callback_holdback_seconds", "audit"] > 0.3

        await eventually(is_held)
        held = await scrape(run)
        run.callbacks.gate.set()

        settled: Samples = {}

        async def is_settled() -> bool:
            settled.update(await scrape(run))
            return settled["cdc_lag_seconds",] == 0 and settled["cdc_flushed_lsn",] >= held["cdc_received_lsn",]

        await eventually(is_settled, timeout=30)

    assert held["cdc_lag_seconds",] >= held["cdc_callback_holdback_seconds", "audit"] > 0.3
    assert held["cdc_lag_bytes",] >= held["cdc_callback_holdback_bytes", "audit"] > 0
    assert held["cdc_received_lsn",] > held["cdc_flushed_lsn",]
    assert settled["cdc_callback_holdback_bytes", "audit"] == 0


async def test_slot_figures_are_those_of_the_server(database: Database, tmp_path: Path) -> None:
    """The slot's status is one of four, and what it retains is known soon after the start."""
    async with running(make_config(database.dsn, tmp_path)) as run:
        await eventually(lambda: slot_is_known(run))
        found = await scrape(run)

    status = {key[1]: value for key, value in found.items() if key[0] == "cdc_slot_wal_status"}
    assert status == {"reserved": 1, "extended": 0, "unreserved": 0, "lost": 0}
    assert found["cdc_slot_retained_bytes",] >= 0
    assert ("cdc_slot_safe_wal_bytes",) not in found  # this server sets no limit


async def test_names_with_quotes_and_newlines_survive_as_labels(database: Database, tmp_path: Path) -> None:
    """A table may be called anything; it forges no series and breaks no line."""
    name = 'a"b\nc\\d} 1\ncdc_connected 0'
    quoted = name.replace('"', '""')
    database.execute(f'CREATE TABLE "{quoted}" (id int PRIMARY KEY)')
    async with running(make_config(database.dsn, tmp_path)) as run:
        database.execute(f'INSERT INTO "{quoted}" VALUES (1)')
        await eventually(lambda: run.callbacks.seen)
        found = await scrape(run)

    assert found["cdc_events_total", "create", f"public.{name}"] == 1
    assert found["cdc_connected",] == 1


async def test_a_full_queue_is_seen(database: Database, tmp_path: Path) -> None:
    """While reading is held back a scrape is answered, and shows the queue at its bound."""
    database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    config = make_config(database.dsn, tmp_path, signal={"max_queued_events": 100})
    async with running(config) as run:
        run.callbacks.gate.clear()
        database.execute("INSERT INTO a SELECT generate_series(1, 5000)")
        await eventually(lambda: run.service.pump is not None and run.service.pump.is_held_back)
        found = await scrape(run)
        alive, _ = await run.get("/healthz")
        run.callbacks.gate.set()
        await eventually(lambda: len(run.callbacks.seen) == 5000)

    assert found["cdc_queued_events",] >= found["cdc_queue_limit_events",] == 100
    assert found["cdc_queued_bytes",] > 0
    assert found["cdc_connected",] == 1
    assert alive == 200


async def test_a_removed_handler_is_seen(database: Database, tmp_path: Path) -> None:
    """Its failures, its removal, and what lies in the dead letters for it are counted; the others go on."""
    database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    config = make_config(database.dsn, tmp_path, {"good": "receive", "bad": "fail"})
    async with running(config) as run:
        database.execute("INSERT INTO a SELECT generate_series(1, 10)")

        async def is_done() -> bool:
            found = await scrape(run)
            return (
                found["cdc_callback_events_total", "bad", "parked"] == 7
                and found["cdc_callback_events_total", "good", "ok"] == 10
            )

        await eventually(is_done, timeout=30)  # six waits before another attempt are in it
        found = await scrape(run)

    assert found["cdc_callback_events_total", "bad", "failed"] == 3
    assert found["cdc_dead_letters", "bad", "failed"] == 3
    assert found["cdc_dead_letters", "bad", "parked"] == 7
    assert found["cdc_callback_retries_total", "bad"] == 6
    assert found["cdc_callback_consecutive_failures", "bad"] == 3
    assert found["cdc_callback_up", "bad"] == 0
    assert found["cdc_callback_up", "good"] == 1
    assert found["cdc_callbacks_removed_total", "failures"] == 1
    assert found["cdc_callbacks",] == 1


async def test_counters_go_on_after_a_reconnect(database: Database, tmp_path: Path) -> None:
    """A lost stream is counted by its reason, and what came before it still counts."""
    database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    async with running(make_config(database.dsn, tmp_path)) as run:
        database.execute("INSERT INTO a SELECT generate_series(1, 500)")
        await eventually(lambda: len(run.callbacks.seen) == 500)
        before = await scrape(run)
        assert run.service.stream is not None
        database.execute(f"SELECT pg_terminate_backend({run.service.stream.backend_pid})")
        await eventually(lambda: run.service.reconnects.total() > 0 and run.service.stream is not None)
        database.execute("INSERT INTO a VALUES (501)")
        await eventually(lambda: len(run.callbacks.seen) == 501)
        after = await scrape(run)

    assert sum(value for key, value in after.items() if key[0] == "cdc_reconnects_total") >= 1
    assert after["cdc_received_bytes_total",] > before["cdc_received_bytes_total",]
    assert after["cdc_events_total", "create", "public.a"] == 501


async def test_changes_without_replica_identity_are_counted(database: Database, tmp_path: Path) -> None:
    """What the server drops for lack of a key is counted under its table."""
    database.execute("CREATE TABLE a (n int); INSERT INTO a VALUES (1), (2)")
    async with running(make_config(database.dsn, tmp_path)) as run:
        database.execute("UPDATE a SET n = n + 1")
        await eventually(lambda: run.service.missing_identity.total() == 2)
        found = await scrape(run)

    assert found["cdc_missing_replica_identity_total", "public.a"] == 2


async def test_openmetrics_is_spoken_when_asked_for(database: Database, tmp_path: Path) -> None:
    """The Accept header chooses; a version that is none gets the plain format."""
    accept = "application/openmetrics-text; version=1.0.0"
    async with running(make_config(database.dsn, tmp_path)) as run:
        _, text = await run.get("/metrics", Accept=accept)
        status, plain = await run.get("/metrics", Accept=accept.replace("1.0.0", "x.y"))

    families = list(parse_openmetrics(text))  # type: ignore[no-untyped-call]
    assert {family.name for family in families} >= {"cdc_events", "cdc_lag_seconds"}
    assert text.endswith("# EOF\n")
    assert status == 200
    assert samples(plain)


async def test_counts_of_a_callback_stay_when_it_is_forgotten(tmp_path: Path) -> None:
    """A subscription ends and another of its name begins: the counter never falls."""
    service = Service(make_config("postgresql:///none", tmp_path))
    values = []
    for _ in range(2):
        handle = service.manager.add_callback(lambda _event: None, name="sub")
        await service.manager.emit(DatabaseEvent.of("create", "a"))
        await service.manager.drain()
        values.append(of(service)["cdc_callback_events_total", "sub", "ok"])
        await handle.unsubscribe()
        await service.manager.clean_up()
        values.append(of(service)["cdc_callback_events_total", "sub", "ok"])
    found = of(service)
    await service.manager.shutdown()

    assert values == [1, 1, 2, 2]
    assert found["cdc_callback_seconds_count", "sub"] == 2
    assert ("cdc_callback_up", "sub") not in found


async def test_tables_beyond_the_bound_share_a_label(tmp_path: Path) -> None:
    """A thousand tables have series of their own; the rest are counted together, and nothing is lost."""
    service = Service(make_config("postgresql:///none", tmp_path))
    service.assembler = Assembler(Selection(tables=service._selection.tables))
    service.assembler.counts.update(Kind(EventType.CREATE, "public", f"t{n}") for n in range(1200))
    service.missing_identity.update(f"public.t{n}" for n in range(1200))
    service.unchanged.counts.update(f"public.t{n}" for n in range(1200))
    found = of(service)

    events = {key[2]: value for key, value in found.items() if key[0] == "cdc_events_total"}
    missing = {key[1]: value for key, value in found.items() if key[0] == "cdc_missing_replica_identity_total"}
    unchanged = {key[1]: value for key, value in found.items() if key[0] == "cdc_unchanged_toast_total"}
    assert len(events) == len(missing) == len(unchanged) == MAX_LABELS + 1
    assert events["_other"] == missing["_other"] == unchanged["_other"] == 200
    assert events["public.t999"] == 1


async def test_tables_whose_names_read_alike_share_a_series(tmp_path: Path) -> None:
    """ "a.b"."c" and "a"."b.c" have one label: their counts are added, no series occurs twice."""
    service = Service(make_config("postgresql:///none", tmp_path))
    service.assembler = Assembler(Selection(tables=service._selection.tables))
    service.assembler.counts.update([Kind(EventType.CREATE, "a.b", "c"), Kind(EventType.CREATE, "a", "b.c")])

    assert of(service)["cdc_events_total", "create", "a.b.c"] == 2


async def test_callbacks_beyond_the_bound_share_a_label(tmp_path: Path) -> None:
    """The first thousand names keep theirs for good: none moves to the shared one or from it, so no counter falls."""
    service = Service(make_config("postgresql:///none", tmp_path, signal={"max_callbacks": 3000}))
    collector = ServiceCollector(service)

    def outcomes() -> dict[str, float]:
        found = samples(render(Families(collector.collect()), "")[0].decode())
        return {key[1]: value for key, value in found.items() if key[0] == "cdc_callback_events_total" and value}

    handles = [service.manager.add_callback(lambda _event: None, name=f"c{n}") for n in range(MAX_LABELS + 5)]
    for registration in service.manager.registry:
        registration.outcomes["ok"] = 1
    before = outcomes()
    await handles[0].unsubscribe()
    await handles[-1].unsubscribe()
    await service.manager.clean_up()
    service.manager.add_callback(lambda _event: None, name=f"c{MAX_LABELS + 4}")
    service.manager.add_callback(lambda _event: None, name="late")
    after = outcomes()
    await service.manager.shutdown()

    assert len(before) == MAX_LABELS + 1
    assert before["_other"] == 5
    assert after == before


@pytest.mark.parametrize("name", ["public.users", "_other"])
async def test_a_callback_that_is_gone_is_shown_whatever_it_was_called(tmp_path: Path, name: str) -> None:
    """Also like the shared label, or a table: no series occurs twice."""
    service = Service(make_config("postgresql:///none", tmp_path))
    service.manager.registry.retired[name] = Tally(retries=3)

    assert of(service)["cdc_callback_retries_total", name] == 3
