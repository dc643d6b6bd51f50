"""W3C Trace Context: from a transaction's tags to the callback, and to the log."""

from __future__ import annotations

import psycopg
import pytest
from structlog.testing import capture_logs

from cdc import emit_tags, traceparent, traces
from cdc.events import DatabaseEvent
from cdc.progress import Batch
from tests.conftest import Database, Make
from tests.streaming import streaming

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{PARENT}-01"


def event(*tags: str) -> DatabaseEvent:
    """An event with these tags."""
    return DatabaseEvent.of("create", "t", tags=tags)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        (GOOD, GOOD),
        (f"00-{TRACE}-{PARENT}-00", f"00-{TRACE}-{PARENT}-00"),
        (f"cc-{TRACE}-{PARENT}-01", GOOD),
        (f"cc-{TRACE}-{PARENT}-01-what-comes-later", GOOD),
        (f"{GOOD}-more", None),
        (f"cc-{TRACE}-{PARENT}-01more", None),
        (f"ff-{TRACE}-{PARENT}-01", None),
        (f"00-{'0' * 32}-{PARENT}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (GOOD.upper(), None),
        (GOOD[:-1], None),
        (f"{GOOD}\n", None),
        (f"00-{TRACE[:-1]}٣-{PARENT}-01", None),
        ("", None),
    ],
)
def test_traceparent_is_taken_as_the_standard_has_it(text: str, parsed: str | None) -> None:
    """Version 00 as it is, a later one as version 00; anything else is none."""
    assert traces.parse_traceparent(text) == parsed
    assert traceparent(event("audit", f"traceparent:{text}")) == parsed


def test_of_several_the_last_that_is_good_counts() -> None:
    """It was said last, by whoever was at work then."""
    other = f"00-{'a' * 32}-{PARENT}-01"
    assert traceparent(event(f"traceparent:{other}", f"traceparent:{GOOD}", "traceparent:no")) == GOOD
    assert traceparent(event("audit", "traceparents:x")) is None
    assert traceparent(event()) is None


def test_a_malformed_one_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once per event; and without what stood there."""
    monkeypatch.setattr(traces, "_told", set())
    with capture_logs() as logged:
        for _ in range(3):
            assert traceparent(event("traceparent:secret")) is None
    assert [entry["event"] for entry in logged] == ["traceparent_malformed"]
    assert "secret" not in str(logged)


async def test_a_traceparent_travels_with_its_transaction(database: Database) -> None:
    """Of the helper, and of the message by hand; the next transaction has none."""
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    async with streaming(database) as stream:
        with psycopg.connect(database.dsn) as connection:
            emit_tags(connection, "audit", traceparent=GOOD)
            connection.execute("INSERT INTO t VALUES (1)")
        (one,) = await stream.events()
        assert (traceparent(one), one.tags[0]) == (GOOD, "audit")
        two, three = await stream.events_of(
            f"SELECT pg_logical_emit_message(true, 'cdc.tags', 'traceparent:{GOOD}'); INSERT INTO t VALUES (2)",
            "INSERT INTO t VALUES (3)",
        )
        assert (traceparent(two), traceparent(three)) == (GOOD, None)


def test_the_helper_refuses_what_is_none() -> None:
    """Before anything is sent."""
    with pytest.raises(ValueError, match="no traceparent"):
        emit_tags(None, traceparent="00-abc")


async def test_lines_of_the_log_about_an_event_carry_its_trace(make: Make) -> None:
    """Each attempt and the failure; without a trace there is no such field."""
    manager = make()

    async def fails(_: DatabaseEvent) -> None:
        raise ValueError("no")

    manager.add_callback(fails, max_attempts=2)
    with capture_logs() as logged:
        manager.submit(Batch([event(f"traceparent:{GOOD}"), event()]))
        assert await manager.drain(30)
    for name in ("callback_retried", "callback_failed"):
        assert [entry.get("trace_id") for entry in logged if entry["event"] == name] == [TRACE, None]
