"""Events as JSON that loses nothing: what was dumped is loaded as its callback saw it, to the last digit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from ipaddress import IPv6Address, ip_interface, ip_network
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg.types.multirange import Multirange
from psycopg.types.range import Range

from cdc import DatabaseEvent, dump_event, load_event
from cdc.events import FixedRow
from tests.conftest import Database
from tests.event_corpus import made_events, streamed_events
from tests.test_codec import facts, keys, moments, scalars

names = st.text()
# Of one type each: others have no text in PostgreSQL, and so none in JSON.
bounds = st.sampled_from(["[]", "[)", "(]", "()"])
naive = st.datetimes().map(lambda moment: moment.replace(fold=0))
ranges: st.SearchStrategy[Range[Any]] = st.one_of(
    [
        st.builds(Range, st.none() | limits, st.none() | limits, bounds)
        for limits in (st.integers(), st.decimals(allow_nan=False, allow_infinity=False), st.dates(), naive)
    ]
)
values = st.recursive(
    scalars | ranges | st.just(Range(empty=True)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
rows = st.dictionaries(st.text(st.characters()), values, max_size=5)
events = made_events(names, rows, moments.map(lambda moment: moment.replace(tzinfo=UTC)))
patiently = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def there_and_back(value: Any) -> Any:
    """A value of a payload."""
    return load_event(dump_event(DatabaseEvent.of("create", "t", {"v": value}))).payload["v"]


def types_of(**payload: Any) -> Any:
    """What the line says about these values."""
    return json.loads(dump_event(DatabaseEvent.of("create", "t", payload)))["types"]


@patiently
@given(events)
def test_event_comes_back_as_it_was(event: DatabaseEvent) -> None:
    """Every field, and every value that a column of PostgreSQL may have, with its type."""
    assert facts(load_event(dump_event(event))) == facts(event)


@patiently
@given(events)
def test_line_is_that_of_to_json_with_types_behind(event: DatabaseEvent) -> None:
    """Whoever reads the one reads the other."""
    document = json.loads(dump_event(event))
    del document["types"]

    assert repr(document) == repr(json.loads(event.to_json()))
    assert b"\n" not in dump_event(event)


@patiently
@given(values)
@example(Decimal("sNaN123"))
@example(Decimal("-0E-17"))
@example(Decimal("1E+5"))
@example(10**4_000)
@example("\ud83d\ude00 that are two, not one")
@example({"\ud800": 1, "$date": 2})
@example({"a": [1, {"b": float("inf")}]})
@example([2**64 - 1, 2**64, -(2**63), -(2**63) - 1])
@example([1.5, Decimal("1.5"), None])
@example([1, float("nan")])
@example([[], [Decimal(1)], None])
@example([Decimal("1E+5"), Decimal("1.10")])
@example([UUID(int=1), IPv6Address("::1")])
@example(IPv6Address("fe80::1%eth0"))
@example(Range(None, 5, "(]"))
@example(Multirange([Range(empty=True), Range()]))
@example(timedelta.min)
@example(timedelta.max)
@example(timedelta(microseconds=-1))
def test_value_comes_back_with_its_type(value: Any) -> None:
    """Also mixtures that no column holds, and what JSON itself cannot hold."""
    got = there_and_back(value)
    assert type(got) is type(value)
    assert repr(got) == repr(value)


def test_most_values_need_a_word_or_none() -> None:
    """What JSON has is not mentioned; of an array, one word is true of all elements."""
    assert (
        types_of(id=1, ok=True, name="Ännchen", none=None, x=1.5, tags=["a", None], doc={"a": [1, {"b": None}]}) == {}
    )
    at = datetime(2026, 1, 2, tzinfo=UTC)
    net = [ip_network("10.0.0.0/8"), ip_interface("10.0.0.1/8")]
    assert types_of(total=Decimal("1.10"), at=at, matrix=[[Decimal(1)], [None]], x=[1.5, float("nan")], net=net[0]) == {
        "payload": {"total": "decimal", "at": "datetime", "matrix": "decimal", "x": "float", "net": "network"}
    }
    assert types_of(span=Range(1, 5)) == {"payload": {"span": [{"$range": [1, 5, "[)"]}]}}


def test_types_of_the_old_row_are_its_own() -> None:
    """A date that Python does not have is text in one of both."""
    event = DatabaseEvent.of("update", "t", {"at": "infinity"}, before={"at": datetime(2026, 1, 2, tzinfo=UTC)})

    got = load_event(dump_event(event))

    assert (got.payload, got.before) == (event.payload, event.before)


def test_previous_key_comes_back_where_it_differs() -> None:
    """Handlers that run concurrently keep the order of a record by it."""

    class Moved(FixedRow):
        def previous_record_id(self) -> str | None:
            return "1"

    moved = DatabaseEvent.of("update", "t").with_row(Moved({}, key="2"))
    stayed = DatabaseEvent.of("update", "t", record_id="2")

    assert load_event(dump_event(moved)).row.previous_record_id() == "1"
    assert load_event(dump_event(stayed)).row.previous_record_id() == "2"
    assert b"previous" not in dump_event(stayed)


def test_line_without_types_gives_the_values_of_json() -> None:
    """As `to_json` and older logs have it."""
    event = DatabaseEvent.of("create", "t", {"n": Decimal("1.10"), "big": 2**70}, id=7)

    got = load_event(event.to_json())

    assert (got.id, got.payload, got.timestamp) == (7, {"n": "1.10", "big": 2**70}, event.timestamp)


def test_deep_document_comes_back_as_deep_as_json_goes() -> None:
    """254 levels are what orjson writes; some hundreds are read."""
    for depth in (10, 254, 300):
        value: Any = float("inf")
        for _ in range(depth):
            value = [value]
        got = there_and_back(value)
        for _ in range(depth):
            (got,) = got
        assert got == float("inf")


def damaged() -> Iterator[bytes]:
    """Lines that are none."""
    moment = datetime(2024, 5, 17, tzinfo=UTC)  # part of the tests' names, which are the same in each run
    line = dump_event(DatabaseEvent.of("create", "t", {"v": Decimal(4711)}, id=1, timestamp=moment))
    yield from (b"", b"4711", b"[4711]", b'{"v":4711}', b"{", b"\xff")
    yield line.replace(b'"decimal"', b'"4711"')
    yield line.replace(b'"v":"4711"', b'"w":"4711"')
    yield line.replace(b'"4711"', b'"forty-seven 4711"')
    yield line.replace(b'"id":1', b'"id":"4711"')
    yield line.replace(b'"create"', b'"4711"')
    yield line.replace(b'"tags":[]', b'"tags":"4711"')


@pytest.mark.parametrize("data", list(damaged()), ids=repr)
def test_damaged_line_is_one_error_without_values(data: bytes) -> None:
    """ValueError, whatever is wrong."""
    with pytest.raises(ValueError, match="no event as JSON") as caught:
        load_event(data)

    assert "4711" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_streamed_rows_of_every_type_come_back(database: Database) -> None:
    """What the service's own loaders make of every type that we know, in inserts, updates and deletes."""
    async with streamed_events(database) as streamed:
        for event in streamed:
            assert facts(load_event(dump_event(event))) == facts(event)
