"""Rates from counters, and the last events, of a real service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cdc import pulse
from cdc.events import DatabaseEvent, Position
from cdc.histogram import SECONDS_BUCKETS
from cdc.lsn import Lsn
from cdc.recent import KEPT, Recent, position_of
from tests.conftest import Database
from tests.waiting import eventually, make_config, running


async def test_status_counts_what_was_delivered_and_how_fast(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Totals are exact, the rates of the window add up to them, and so do those of the callback."""
    monkeypatch.setattr(pulse, "WINDOW_SECONDS", 600.0)  # all of it is in the window, however late we look
    # Autovacuum's transactions would be counted, too.
    database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    found: dict[str, Any] = {}
    async with running(make_config(database.dsn, tmp_path)) as run:

        async def is_measured() -> bool:
            found.update(json.loads((await run.get("/status"))[1]))
            return found["rates"] is not None

        async def adds_up() -> bool:
            """A beat may fall into the midst of the events: the next one has them all."""
            await is_measured()
            rates = found["rates"], found["callbacks"][0]
            window = found["rates"]["window_seconds"]
            is_whole = found["transactions"] == 1  # the commit is read after the last event
            return is_whole and [round(one["events_per_second"] * window) for one in rates] == [101, 101]

        await eventually(is_measured)
        database.execute("INSERT INTO a SELECT generate_series(1, 100); DELETE FROM a WHERE id = 1")
        try:
            await eventually(adds_up, timeout=30)
        except AssertionError:
            pytest.fail(f"{found['rates']}, {found['callbacks']}")
        calls = found["callbacks"][0]

    assert (found["events"], found["transactions"]) == (101, 1)
    assert {(item["table"], item["event_type"], item["events"]) for item in found["activity"]} == {
        ("public.a", "create", 100),
        ("public.a", "delete", 1),
    }
    assert calls["ok"] == 101
    assert calls["recent_mean_seconds"] > 0
    assert calls["recent_p99_seconds"] in (*SECONDS_BUCKETS, 30.0)


async def test_status_tells_the_last_events_without_their_rows(database: Database, tmp_path: Path) -> None:
    """Newest first, with position, commit time and the number of tags; never more than a glance."""
    database.execute("CREATE TABLE a (id int PRIMARY KEY, t text)")
    async with running(make_config(database.dsn, tmp_path)) as run:
        database.execute("INSERT INTO a SELECT i, 'row-value' FROM generate_series(1, 30) i")
        database.execute("SELECT pg_logical_emit_message(true, 'cdc.tags', 'x,y'); DELETE FROM a WHERE id = 1")
        await eventually(lambda: len(run.callbacks.seen) == 31)
        text = (await run.get("/status"))[1]
        last = run.callbacks.seen[-1]
    recent = json.loads(text)["recent_events"]

    assert recent[0] == {
        "table": "public.a",
        "event_type": "delete",
        "position": str(last.position),
        "time": last.timestamp.isoformat(),
        "tags": 2,
    }
    assert [item["event_type"] for item in recent] == ["delete"] + ["create"] * (KEPT - 1)
    assert "row-value" not in text


def test_the_last_events_hold_no_row() -> None:
    """What is kept of an event lets its row go."""
    recent = Recent()
    recent.note([DatabaseEvent.of("create", "a", {"id": 1}, position=Position(Lsn(7), 2), tags=["x"])])
    (seen,) = recent.latest()

    assert (seen[0].table, position_of(seen), seen[3]) == ("public.a", Position(Lsn(7), 2), 1)
    assert not any(isinstance(part, DatabaseEvent) or hasattr(part, "payload") for part in seen)
