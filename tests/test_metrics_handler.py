"""The `metrics` handler: what it counts is true, once, and few series, and it is scraped where the service is."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY, Counter
from prometheus_client.core import CounterMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from structlog.testing import capture_logs

from cdc import DatabaseEvent, Lsn, Position
from cdc.config import HandlerConfig
from cdc.errors import ConfigError
from cdc.exposition import Family, Kind, Reading
from cdc.loading import load_callback
from cdc.rendering import Families, render
from handlers.metrics import REMEMBERED, Metrics, MetricsOptions
from tests.conftest import Database
from tests.running import child, wait_until

Figures = dict[tuple[str, ...], float]

OURS = Reading(Family("events", Kind.COUNTER, "Ours."), [((), 7)])
"""A figure of the service's own."""


def event(number: int, table: str = "users", event_type: str = "create", **fields: Any) -> DatabaseEvent:
    """The number-th event."""
    return DatabaseEvent.of(event_type, table, id=number, position=Position(Lsn(1000 + number), 1), **fields)


def order(number: int, total: Any) -> DatabaseEvent:
    """An order."""
    return event(number, "orders", payload={"total": total})


def made(**options: Any) -> Metrics:
    """The handler, not open."""
    return Metrics(MetricsOptions(**options))


def handle(handler: Metrics, *events: DatabaseEvent) -> None:
    """As one batch."""
    asyncio.run(handler.handle_batch(events))


def figures(text: str) -> Figures:
    """(name, label values in the order of the labels' names) → figure."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scraped(handler: Metrics) -> Figures:
    """What Prometheus would see of it: names without the namespace."""
    handler.open()
    try:
        text = render(Families([]), "")[0].decode()
    finally:
        handler.close()
    return {(name.removeprefix("cdc_handler_"), *rest): value for (name, *rest), value in figures(text).items()}


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """The default registry is as it was: it is everybody's."""
    before = {family.name for family in REGISTRY.collect()}
    yield
    assert {family.name for family in REGISTRY.collect()} == before


def test_events_are_counted_by_table_and_type() -> None:
    """A truncate, too, where the handler is given it."""
    handler = made()
    handle(handler, event(1), event(2), event(3, event_type="delete"), event(4, "orders"))
    handle(handler, event(5, "orders", "truncate"), event(6))

    found = scraped(handler)

    assert {key[1:]: value for key, value in found.items() if key[0] == "events_total"} == {
        ("create", "public.users"): 3,
        ("delete", "public.users"): 1,
        ("create", "public.orders"): 1,
        ("truncate", "public.orders"): 1,
    }


def test_tags_are_counted_by_the_globs_that_match() -> None:
    """An event counts once per glob, whatever number of its tags match; other tags make no series."""
    handler = made(tags=["user:*", "audit"])
    handle(handler, event(1, tags=["user:1", "user:2", "audit", "secret"]), event(2, tags=["user:3"]), event(3))

    found = {key[1:]: value for key, value in scraped(handler).items() if key[0] == "tagged_events_total"}

    assert found == {("create", "public.users", "user:*"): 2, ("create", "public.users", "audit"): 1}


def test_tags_themselves_are_shown_when_asked_for() -> None:
    """For tags that are few."""
    handler = made(tags=["notify:*"], tag_label="tag")
    handle(handler, event(1, tags=["notify:sms", "notify:mail", "user:1"]), event(2, tags=["notify:sms"]))

    found = {key[3]: value for key, value in scraped(handler).items() if key[0] == "tagged_events_total"}

    assert found == {"notify:sms": 2, "notify:mail": 1}


def test_series_are_bounded_and_the_rest_is_counted_together() -> None:
    """In each metric; nothing is lost from the sums, and how much is in it is told."""
    handler = made(
        max_series=2,
        tags=["*"],
        tag_label="tag",
        histograms=[{"column": "n", "buckets": [10]}],
    )
    handle(handler, *(event(n, f"t{n}", tags=[f"tag{n}"], payload={"n": n}) for n in range(20)))

    found = scraped(handler)

    assert {key[1:]: value for key, value in found.items() if key[0] == "events_total"} == {
        ("create", "public.t0"): 1,
        ("create", "public.t1"): 1,
        ("create", "_other"): 18,
    }
    assert found["tagged_events_total", "create", "_other", "_other"] == 18
    assert found["n_count", "_other"] == 18
    assert {key[1]: value for key, value in found.items() if key[0] == "overflow_total"} == {
        "events": 18,
        "tagged_events": 18,
        "n": 18,
    }


def test_histogram_of_a_numeric_column() -> None:
    """By table, cumulative, with sum and count; bounds belong to their bucket."""
    handler = made(histograms=[{"column": "total", "buckets": [1, 10, 100], "tables": ["public.ord*"]}])
    values = [Decimal("0.50"), 1, 1.5, Decimal(10), 99, 1e6]
    handle(handler, *(order(number, value) for number, value in enumerate(values)))
    handle(handler, event(90, payload={"total": 5}), event(91, "orders", "delete", payload={"total": 5}))

    found = scraped(handler)

    assert {key[1:]: value for key, value in found.items() if key[0] == "total_bucket"} == {
        ("1.0", "public.orders"): 2,
        ("10.0", "public.orders"): 4,
        ("100.0", "public.orders"): 5,
        ("+Inf", "public.orders"): 6,
    }
    assert found["total_sum", "public.orders"] == pytest.approx(1000112.0)
    assert found["total_count", "public.orders"] == 6


def test_what_is_no_number_is_in_no_bucket_and_counted() -> None:
    """NaN would make the sum NaN for ever."""
    handler = made(histograms=[{"column": "total", "buckets": [1]}])
    nothing = ["x", True, float("nan"), Decimal("Infinity"), Decimal("sNaN"), 10**400, [1]]
    handle(handler, *(order(number, value) for number, value in enumerate([1, None, *nothing])))
    handle(handler, event(50, "orders", payload={"id": 1}))

    found = scraped(handler)

    assert (found["total_count", "public.orders"], found["total_sum", "public.orders"]) == (1, 1)
    assert {key[2]: value for key, value in found.items() if key[0] == "skipped_values_total"} == {
        "null": 1,
        "absent": 1,
        "not_a_number": len(nothing),
    }


def test_delivered_twice_is_counted_once() -> None:
    """A whole batch again, one by one, and one that overlaps; late ones that were never there are counted."""
    handler = made(histograms=[{"column": "total", "buckets": [1]}])
    batch = [order(number, 1) for number in range(100, 200)]
    handle(handler, *batch)
    handle(handler, *batch)
    for one in batch[:10]:
        handle(handler, one)
    handle(handler, *batch[50:], order(200, 1), order(7, 1))

    found = scraped(handler)

    assert found["events_total", "create", "public.orders"] == 102
    assert found["total_count", "public.orders"] == 102
    assert found["redelivered_total",] == 160


def test_memory_of_positions_is_bounded() -> None:
    """What is older than it remembers is counted again rather than not at all."""
    handler = made()
    handle(handler, *map(event, range(REMEMBERED + 10)))
    handle(handler, event(5), event(REMEMBERED + 5))

    found = scraped(handler)

    assert found["events_total", "create", "public.users"] == REMEMBERED + 11
    assert found["redelivered_total",] == 1


def test_events_made_by_hand_all_count() -> None:
    """They have no position to tell them apart by."""
    handler = made()
    handle(handler, *(DatabaseEvent.of("create", "users") for _ in range(3)))

    assert scraped(handler)["events_total", "create", "public.users"] == 3


@pytest.mark.parametrize(
    ("tag", "label"),
    [
        ('a"b\\c', 'a"b\\c'),
        ("line\nbreak", r"line\nbreak"),
        ("\ud800", r"\ud800"),
        ("x" * 500, "x" * 127 + "…"),
        ("Zoë", "Zoë"),
    ],
)
def test_labels_are_short_and_harmless(tag: str, label: str) -> None:
    """Whatever stands in a tag, the exposition can be read, and says one line."""
    handler = made(tags=["*"], tag_label="tag")
    handle(handler, event(1, tags=[tag]))

    (found,) = (key[3] for key in scraped(handler) if key[0] == "tagged_events_total")

    assert found == label


def test_closed_it_shows_nothing_and_opened_again_it_goes_on() -> None:
    """A handler that is removed and resumed; closing and opening twice is harmless."""
    handler = made()
    handle(handler, event(1))
    handler.close()
    handler.open()
    handler.open()
    handler.close()
    handler.close()

    assert "cdc_handler" not in render(Families([]), "")[0].decode()
    handle(handler, event(2))
    assert scraped(handler)["events_total", "create", "public.users"] == 2


def test_two_handlers_need_two_namespaces() -> None:
    """Said at `open`, before anything is counted under a name that is taken."""
    first, second, third = made(), made(), made(namespace="shop")
    first.open()
    third.open()
    try:
        with pytest.raises(ConfigError, match="cdc_handler_"):
            second.open()
        second.close()
        assert "cdc_handler_events" in render(Families([]), "")[0].decode()
    finally:
        first.close()
        third.close()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"namespace": "1x"}, r"options\.namespace: "),
        ({"namespace": "cdc"}, r"options\.namespace: is that of the service"),
        ({"max_series": 0}, r"options\.max_series: "),
        ({"tag_label": "both"}, r"options\.tag_label: "),
        ({"histograms": [{"column": "n"}]}, r"options\.histograms\[1\]\.buckets: is missing"),
        ({"histograms": [{"column": "n", "buckets": [2, 1]}]}, r"options\.histograms\[1\]\.buckets: .*rise"),
        ({"histograms": [{"column": "n", "buckets": [1], "tables": ["x"]}]}, r"\.tables: .*schema"),
        ({"histograms": [{"column": "n", "buckets": [1]}] * 2}, "the name n is taken"),
        ({"histograms": [{"column": "events", "buckets": [1]}]}, "the name events is taken"),
        ({"labels": []}, r"options\.labels: .*no such option"),
    ],
)
def test_bad_option_names_the_key(options: dict[str, Any], problem: str, tmp_path: Path) -> None:
    """In the configuration, before anything runs."""
    with pytest.raises(ConfigError) as caught:
        load_callback(HandlerConfig(name="figures", callback="metrics", options=options), tmp_path)

    assert re.search(problem, "\n".join(caught.value.problems))


# --- where they are shown


class Broken(Collector):
    """A user's own, which fails."""

    def __init__(self, families: list[CounterMetricFamily] | None = None) -> None:
        self.families = families

    def describe(self) -> list[CounterMetricFamily]:
        """So that it can be registered."""
        return []

    def collect(self) -> list[CounterMetricFamily]:
        """Fails, or gives what cannot be written."""
        if self.families is None:
            raise RuntimeError("secret-value")
        return self.families


def unwritable() -> CounterMetricFamily:
    """A label that is no text."""
    family = CounterMetricFamily("mine", "Mine.", labels=["a"])
    family.add_metric([object()], 1)  # type: ignore[list-item]
    return family


@pytest.mark.parametrize("families", [None, [unwritable()]], ids=["raises", "unwritable"])
def test_metrics_of_others_that_fail_cost_only_theirs(families: list[CounterMetricFamily] | None) -> None:
    """The service's own figures are what an operator needs then; the log says so, without values."""
    broken = Broken(families)
    REGISTRY.register(broken)
    try:
        with capture_logs() as logged:
            text = render(Families([OURS]), "")[0].decode()
    finally:
        REGISTRY.unregister(broken)

    assert "cdc_events_total 7\n" in text
    assert "process_resident_memory_bytes" in text
    assert [entry["event"] for entry in logged] == ["metrics_of_handlers_failed"]
    assert "secret" not in str(logged)


def test_names_of_the_service_cannot_be_taken() -> None:
    """A scrape with a name twice is refused by Prometheus as a whole; the process's own figures come once."""
    mine = Counter("cdc_events", "Mine.", registry=None)
    REGISTRY.register(mine)
    try:
        text = render(Families([OURS]), "")[0].decode()
    finally:
        REGISTRY.unregister(mine)

    assert "cdc_events_total 7\n" in text
    assert text.count("# TYPE cdc_events_total ") == 1
    assert text.count("# TYPE process_cpu_seconds_total ") == 1


def test_openmetrics_is_written_as_well() -> None:
    """For scrapers that ask for it."""
    handler = made(histograms=[{"column": "total", "buckets": [1]}])
    handle(handler, order(1, Decimal("0.5")))
    handler.open()
    try:
        text, content_type = render(Families([]), "application/openmetrics-text; version=1.0.0")
    finally:
        handler.close()

    assert content_type.startswith("application/openmetrics-text")
    assert b'cdc_handler_total_bucket{le="1.0",table="public.orders"} 1.0' in text
    assert text.endswith(b"# EOF\n")


def test_service_shows_the_figures_of_a_real_stream(database: Database, tmp_path: Path) -> None:
    """`cdc run` with the handler twice: scraped over HTTP beside the service's own, and of a handler of one's own."""
    database.execute("CREATE TABLE orders (id int PRIMARY KEY, total numeric); CREATE TABLE users (id int PRIMARY KEY)")
    (tmp_path / "own.py").write_text(
        "from prometheus_client import Counter\n"
        "SEEN = Counter('my_events', 'Mine.')\n"
        "async def count(event):\n    SEEN.inc()\n"
    )
    rule = '[{column = "total", buckets = [1, 10], tables = ["public.orders"]}]'
    (tmp_path / "rest.toml").write_text(
        f'[[handlers]]\nname = "figures"\ncallback = "metrics"\n'
        f'[handlers.options]\ntags = ["audit:*"]\nhistograms = {rule}\n'
        f'[[handlers]]\nname = "deletes"\ncallback = "metrics"\nevent_types = ["delete"]\n'
        f'[handlers.options]\nnamespace = "deleted"\n'
        f'[[handlers]]\nname = "own"\ncallback = "own:count"\n'
    )
    with child(tmp_path, database.dsn, http={"enabled": True, "port": 0}) as service:
        with (tmp_path / "cdc.toml").open("a") as file:
            file.write((tmp_path / "rest.toml").read_text())
        service.start()
        port = service.log("http_listening")[-1]["port"]
        database.execute(
            "SELECT pg_logical_emit_message(true, 'cdc.tags', 'audit:x,user:1');"
            "INSERT INTO orders SELECT i, i FROM generate_series(1, 20) i; INSERT INTO users VALUES (1)"
        )
        database.execute("DELETE FROM orders WHERE id <= 5")

        def scrape() -> Figures:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
                return figures(answer.read().decode())

        def is_counted() -> bool:
            with suppress(KeyError):
                found = scrape()  # each handler has a queue of its own
                counted = sum(value for (name, *_), value in found.items() if name == "cdc_handler_events_total")
                deleted = found["deleted_events_total", "delete", "public.orders"]
                return (counted, deleted, found["my_events_total",]) == (26, 5, 26)
            return False

        wait_until(is_counted, what=service.tail())
        found = scrape()
        service.stop()

    assert found["cdc_handler_events_total", "create", "public.orders"] == 20
    assert found["cdc_handler_events_total", "delete", "public.orders"] == 5
    assert found["cdc_handler_tagged_events_total", "create", "public.orders", "audit:*"] == 20
    assert found["cdc_handler_total_bucket", "10.0", "public.orders"] == 10
    assert found["cdc_handler_total_sum", "public.orders"] == 210
    assert found["cdc_events_total", "delete", "public.orders"] == 5
