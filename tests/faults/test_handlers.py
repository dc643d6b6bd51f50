"""Handlers under fault, where only the running service shows it; most of this is in test_workers and test_letters."""

from __future__ import annotations

import re
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from tests.conftest import Database
from tests.faults.conftest import MakeScene
from tests.faults.oracle import Tape
from tests.running import child, wait_until

SAMPLE = re.compile(r"(?P<name>\w+)(\{(?P<labels>.*)\})? (?P<value>[0-9].*)")
LABEL = re.compile(r'(\w+)="([^"]*)"')


def test_an_event_that_failed_after_its_effect_comes_again_with_the_same_key(
    faulty_database: Database, tmp_path: Path
) -> None:
    """Case 39: id and position are the idempotency key, at the next attempt as well as in the next process."""
    faulty_database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    handlers = {"ordered": {"callback": "tests.faults.recorder:FailsAfterwards"}}
    with child(tmp_path, faulty_database.dsn, handlers) as service:
        service.start()
        faulty_database.execute("INSERT INTO t SELECT generate_series(1, 5)")
        tape = Tape(service.path("ordered"))
        events: list[dict[str, Any]] = []

        def written() -> bool:
            events.extend(tape.read())
            return len(events) >= 10

        wait_until(written)
        service.stop()
    assert [event["key"] for event in events] == ["1", "1", "2", "2", "3", "3", "4", "4", "5", "5"]
    assert events[::2] == events[1::2]
    assert len({event["position"] for event in events}) == 5


def test_the_service_says_by_itself_that_nothing_is_owed(make_scene: MakeScene) -> None:
    """Case 60: what came in is what each handler was given, and at rest nobody holds anything back."""
    scene = make_scene(60, http={"enabled": True, "port": 0})
    scene.start()
    port = scene.http_port
    with scene.workload:
        scene.wait_for_events(300)
        scene.database.execute(f"SELECT pg_terminate_backend({scene.wait_for_walsender()})")
        scene.wait_for_events(300)
    scene.settle()
    wait_until(lambda: not scrape(port)["cdc_queued_events"])
    figures = scrape(port)
    taken = figures["cdc_events_total"]
    assert taken == scene.ordered.events == scene.parallel.events
    for handler in scene.oracles:
        assert figures[f"cdc_callback_events_total {handler}"] == taken
        assert figures[f"cdc_callback_events_total {handler} ok"] == taken
        assert figures[f"cdc_callback_holdback_bytes {handler}"] == 0
    scene.stop()


def scrape(port: int) -> Counter[str]:
    """The sums of all series: of a metric, of a metric and handler, of both and an outcome."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    sums: Counter[str] = Counter()
    for line in lines:
        if (match := SAMPLE.fullmatch(line)) is None:
            continue
        labels = dict(LABEL.findall(match["labels"] or ""))
        words = [match["name"], *(labels[key] for key in ("callback", "outcome") if key in labels)]
        for count in range(1, len(words) + 1):
            sums[" ".join(words[:count])] += round(float(match["value"]))
    return sums
