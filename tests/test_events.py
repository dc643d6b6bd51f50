"""Events: what a callback holds, its JSON, and that nothing is converted before somebody reads it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdc.events import DatabaseEvent, EventType, FixedRow, Kind, Position, Transaction
from cdc.lsn import Lsn

patiently = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
positions = st.builds(Position, st.integers(0, 2**64 - 1).map(Lsn), st.integers(0, 2**63))


class CountingRow:
    """A row that counts how often it is converted."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def payload(self) -> dict[str, int]:
        self.calls.append("payload")
        return {"id": 1}

    def before(self) -> None:
        self.calls.append("before")

    def unchanged(self) -> frozenset[str]:
        return frozenset({"b", "a"})

    def record_id(self) -> str:
        return "1"

    def previous_record_id(self) -> str:
        return "1"


def event_of(row: CountingRow) -> DatabaseEvent:
    """An event as the assembler makes it."""
    kind = Kind(EventType.UPDATE, "public", "t")
    return DatabaseEvent(3, kind, ("a",), Transaction(16, 7, "2024-02-29 12:00:00.25+05:30"), 2, row)


@patiently
@given(positions)
def test_position_is_read_back(position: Position) -> None:
    """The idempotency key is the position."""
    assert Position.parse(str(position)) == position


@patiently
@given(positions, positions)
def test_positions_compare_in_delivery_order(one: Position, other: Position) -> None:
    """First the commit, then the place in it."""
    assert (one < other) == ((int(one.commit_lsn), one.ordinal) < (int(other.commit_lsn), other.ordinal))


@pytest.mark.parametrize("text", ["", "0/1", "0/1:", ":1", "0/1:-1", "0/1:x", "0/1: 1", "0/1:1:2", "0/G:1", "0/1:²"])
def test_what_is_no_position_is_refused(text: str) -> None:
    """A state file that holds such a thing must not be trusted."""
    with pytest.raises(ValueError, match="not a"):
        Position.parse(text)


def test_values_are_converted_once_and_only_when_read() -> None:
    """Routing by table, type, key and tags costs no conversion."""
    row = CountingRow()
    event = event_of(row)
    assert (event.event_type, event.schema, event.table_name, event.record_id) == (
        EventType.UPDATE,
        "public",
        "t",
        "1",
    )
    assert repr(event) == "<DatabaseEvent 3 update public.t at 0/10:2>"
    assert row.calls == []

    assert event.payload is event.payload
    assert event.before is None
    assert event.before is None
    assert row.calls == ["payload", "before"]


def test_timestamp_is_utc() -> None:
    """The plugin writes the offset of its session."""
    event = event_of(CountingRow())

    assert event.timestamp == datetime(2024, 2, 29, 6, 30, 0, 250_000, UTC)
    assert event.timestamp.tzinfo is UTC
    assert event.timestamp is event.timestamp


def test_json_has_every_field() -> None:
    """In this order; what is exact in Python is exact there."""
    event = DatabaseEvent.of(
        "update",
        "users",
        {"id": 1, "n": Decimal("1.10"), "big": 10**30, "nan": float("nan")},
        id=5,
        schema="s",
        record_id="1",
        tags=["a", "b"],
        before={"id": 1},
        unchanged=["y", "x"],
        timestamp=datetime(2024, 2, 29, tzinfo=UTC),
        position=Position(Lsn(16), 2),
        transaction_id=7,
    )

    assert list(json.loads(event.to_json()).items()) == [
        ("id", 5),
        ("event_type", "update"),
        ("schema", "s"),
        ("table_name", "users"),
        ("record_id", "1"),
        ("tags", ["a", "b"]),
        ("payload", {"id": 1, "n": "1.10", "big": 10**30, "nan": "NaN"}),
        ("before", {"id": 1}),
        ("unchanged", ["x", "y"]),
        ("timestamp", "2024-02-29T00:00:00+00:00"),
        ("position", "0/10:2"),
        ("transaction_id", 7),
    ]


def test_event_by_hand_needs_type_and_table() -> None:
    """The rest has defaults: no key, no row, now."""
    event = DatabaseEvent.of(EventType.TRUNCATE, "t")

    assert (event.schema, event.record_id, event.payload, event.before, event.tags) == ("public", None, {}, None, ())
    assert event.unchanged == frozenset()
    assert datetime.now(UTC) - event.timestamp < timedelta(minutes=1)
    assert event.row.previous_record_id() is None
    with pytest.raises(ValueError, match="upsert"):
        DatabaseEvent.of("upsert", "t")


def test_event_with_another_row_is_the_same_event() -> None:
    """A callback's own view has the id, position and transaction of the original, which stays as it was."""
    event = DatabaseEvent.of("create", "t", {"a": 1}, id=9, tags=["x"], position=Position(Lsn(16), 2))
    other = event.with_row(FixedRow({"a": "***"}))

    assert (other.id, other.position, other.tags, other.timestamp) == (9, event.position, ("x",), event.timestamp)
    assert other.kind is event.kind
    assert other.payload == {"a": "***"}
    assert event.payload == {"a": 1}


def test_kinds_are_compared_by_identity() -> None:
    """They are dictionary keys on the hot path."""
    assert Kind(EventType.CREATE, "s", "t") != Kind(EventType.CREATE, "s", "t")
    assert [str(event_type) for event_type in EventType] == ["create", "update", "delete", "truncate"]
