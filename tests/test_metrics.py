"""What `/metrics` says, compared with what really happened."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from cdc.events import DatabaseEvent, EventType, Kind
from cdc.metrics import Families, ServiceCollector, render
from cdc.service import Service
from cdc.transactions import Assembler, Selection
from tests.conftest import Database
from tests.waiting import Running, eventually, make_config, running

Samples = dict[tuple[str, ...], float]

NAMES = {
    "events_total events_filtered_total received_bytes_total transactions_total connected reconnects_total",
    "last_message_timestamp_seconds lag_seconds lag_bytes received_lsn flushed_lsn slot_retained_bytes",
    "slot_safe_wal_bytes slot_wal_status slot_seconds_to_invalidation slot_invalidated",
    "dead_letters queued_events queued_bytes queue_limit_events queue_limit_bytes callback_retries_total",
    "callbacks callback_seconds callback_events_total callback_consecutive_failures callback_up",
    "callbacks_removed_total callback_holdback_bytes callback_holdback_seconds checkpoint_seconds",
    "checkpoints_total missing_replica_identity_total event_loop_blocked_seconds_total build_info",
}


def samples(text: str) -> Samples:
    """(name, label values in order of their names) → value; a series that occurs twice fails."""
    found: Samples = {}
    for family in parse_text(text):
        for sample in family.samples:
            key = (sample.name, *(value for _, value in sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


async def scrape(run: Running) -> Samples:
    """The metrics of a running service."""
    status, text = await run.get("/metrics")
    assert status == 200
    return samples(text)


def of(service: Service) -> Samples:
    """The metrics of a service that does not run."""
    body, _ = render(Families(ServiceCollector(service).collect()), "")
    return samples(body.decode())


async def test_counters_equal_what_was_delivered(database: Database, tmp_path: Path) -> None:
    """Of a known workload every event is counted once, by table and type, and each transaction once."""
    database.execute("CREATE TABLE a (id int PRIMARY KEY, n int); CREATE TABLE b (id int PRIMARY KEY)")
    async with running(make_config(database.dsn, tmp_path)) as run:
        database.execute("INSERT INTO a SELECT n, 0 FROM generate_series(1, 1000) n")
        database.execute("UPDATE a SET n = 1 WHERE id <= 300")
        database.execute("DELETE FROM a WHERE id > 900; INSERT INTO b VALUES (1), (2)")

        async def is_counted() -> bool:
            return (await scrape(run))["cdc_callback_events_total", "audit", "ok"] == 1402

        await eventually(is_counted)
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


async def test_every_name_of_the_design_is_there(database: Database, tmp_path: Path) -> None:
    """Names are what dashboards are made of: those of the design, as far as the parts exist, and no others."""
    async with running(make_config(database.dsn, tmp_path)) as run:
        _, text = await run.get("/metrics")

    named = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE cdc_")}
    assert named == {f"cdc_{name}" for line in NAMES for name in line.split()}
    assert "process_resident_memory_bytes" in text


async def test_lag_is_the_age_of_what_a_callback_holds(database: Database, tmp_path: Path) -> None:
    """While a callback waits, lag and holdback say how long and how much; settled, both are nothing again."""
    database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    async with running(make_config(database.dsn, tmp_path)) as run:
        run.callbacks.gate.clear()
        database.execute("INSERT INTO a VALUES (1)")

        async def is_held() -> bool:
            found = await scrape(run)
            return found["cdc_callback_holdback_seconds", "audit"] > 0.3

        await eventually(is_held)
        held = await scrape(run)
        run.callbacks.gate.set()

        async def is_settled() -> bool:
            found = await scrape(run)
            return found["cdc_lag_seconds",] == 0 and found["cdc_flushed_lsn",] > held["cdc_flushed_lsn",]

        await eventually(is_settled)
        settled = await scrape(run)

    assert held["cdc_lag_seconds",] >= held["cdc_callback_holdback_seconds", "audit"] > 0.3
    assert held["cdc_lag_bytes",] >= held["cdc_callback_holdback_bytes", "audit"] > 0
    assert held["cdc_received_lsn",] > held["cdc_flushed_lsn",]
    assert settled["cdc_callback_holdback_bytes", "audit"] == 0
    assert settled["cdc_flushed_lsn",] >= held["cdc_received_lsn",]


async def test_slot_figures_are_those_of_the_server(database: Database, tmp_path: Path) -> None:
    """The slot's status is one of four, and what it retains is known soon after the start."""
    async with running(make_config(database.dsn, tmp_path)) as run:
        await eventually(lambda: run.service.monitor.slot is not None)
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

        await eventually(is_done)
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
    found = of(service)

    events = {key[2]: value for key, value in found.items() if key[0] == "cdc_events_total"}
    missing = {key[1]: value for key, value in found.items() if key[0] == "cdc_missing_replica_identity_total"}
    assert len(events) == len(missing) == 1001
    assert events["_other"] == missing["_other"] == 200
    assert events["public.t999"] == 1


async def test_tables_whose_names_read_alike_share_a_series(tmp_path: Path) -> None:
    """ "a.b"."c" and "a"."b.c" have one label: their counts are added, no series occurs twice."""
    service = Service(make_config("postgresql:///none", tmp_path))
    service.assembler = Assembler(Selection(tables=service._selection.tables))
    service.assembler.counts.update([Kind(EventType.CREATE, "a.b", "c"), Kind(EventType.CREATE, "a", "b.c")])

    assert of(service)["cdc_events_total", "create", "a.b.c"] == 2
