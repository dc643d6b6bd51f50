"""The codec: an event that was put into bytes comes out as its callback saw it, to the last digit."""

from __future__ import annotations

import json
import string
from collections import OrderedDict
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import IntEnum
from ipaddress import IPv6Address, ip_interface, ip_network
from types import MappingProxyType
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg.types.multirange import Multirange
from psycopg.types.range import Range

from cdc.codec import pack, unpack
from cdc.columns import ColumnView
from cdc.events import DatabaseEvent, EventType, FixedRow
from cdc.values import PostgresValue
from tests.conftest import Database
from tests.event_corpus import SECRET, made_events, streamed_events

any_text = st.text(st.characters())  # with lone surrogates
offsets = st.integers(-86_399, 86_399).map(lambda seconds: timezone(timedelta(seconds=seconds)))
zones = st.none() | st.just(UTC) | offsets
# PostgreSQL knows no fold.
moments = st.datetimes(timezones=zones).map(lambda moment: moment.replace(fold=0))
numbers = st.integers() | st.integers(-(10**40), 10**40) | st.floats() | st.decimals(allow_nan=True)
scalars = (
    st.none()
    | st.booleans()
    | numbers
    | any_text
    | st.binary()
    | moments
    | st.dates()
    | st.times(timezones=zones).map(lambda moment: moment.replace(fold=0))
    | st.timedeltas()
    | st.uuids()
    | st.ip_addresses()
    | st.ip_addresses(v=4).map(lambda address: ip_interface(f"{address}/24"))
    | st.ip_addresses(v=6).map(lambda address: ip_interface(f"{address}/64"))
    | st.ip_addresses().map(ip_network)
)
bounds = st.sampled_from(["[]", "[)", "(]", "()"])
ranges: st.SearchStrategy[Range[Any]] = st.just(Range(empty=True)) | st.builds(Range, scalars, scalars, bounds)
keys = any_text | st.sampled_from(["$", "$date", "$items", "$part", "$surrogates"])
values = st.recursive(
    scalars | ranges | st.lists(ranges).map(Multirange),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
rows = st.dictionaries(keys, values, max_size=5)
events = made_events(any_text, rows, moments)


# The machine may be busy with servers.
patiently = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def facts(event: DatabaseEvent) -> str:
    """All that can be read of it; repr tells apart what == does not: 1 and True, 0.0 and -0.0, 1.10 and 1.1."""
    return repr((event.to_dict(), event.row.previous_record_id(), event.timestamp, event.position))


def there_and_back(value: Any) -> Any:
    """A value of a payload."""
    return unpack(pack(DatabaseEvent.of("create", "t", {"v": value}))).payload["v"]


@patiently
@given(events)
def test_event_comes_back_as_it_was(event: DatabaseEvent) -> None:
    """Every field, and every value that a column of PostgreSQL may have, with its type."""
    assert facts(unpack(pack(event))) == facts(event)


@patiently
@given(values)
@example(Decimal("sNaN123"))
@example(Decimal("-0E-17"))
@example(Decimal("1E+5"))
@example(10**5_000)
@example(-(10**5_000))
@example("\ud83d\ude00 that are two, not one")
@example({"\ud800": 1, "$date": 2})
@example({"$date": {"$items": [{"$part": 0}]}})
@example([2**64 - 1, 2**64, -(2**63), -(2**63) - 1])
@example(IPv6Address("fe80::1%eth0"))
@example([[None], [], {}, {"": None}])
@example(Range(None, 5, "(]"))
@example(Multirange([Range(empty=True), Range()]))
def test_value_comes_back_with_its_type(value: Any) -> None:
    """Also what looks like one of the codec's own tags, and what JSON itself cannot hold."""
    got = there_and_back(value)
    assert type(got) is type(value)
    if not isinstance(value, int):  # whose repr has a limit
        assert repr(got) == repr(value)
    else:
        assert got == value


def test_nothing_of_before_and_no_before_are_two_things() -> None:
    """The old row may be empty for a view that leaves all of it out."""
    olds: list[dict[str, PostgresValue] | None] = [None, {}]
    for before in olds:
        assert unpack(pack(DatabaseEvent.of("update", "t", {}, before=before))).before == before


def test_previous_key_is_kept_also_where_it_is_unknown() -> None:
    """The key may have changed, or the old one may not be known while the new one is."""

    class Moved(FixedRow):
        previous: str | None = None

        def previous_record_id(self) -> str | None:
            return self.previous

    for previous in ("1", None):
        Moved.previous = previous
        event = DatabaseEvent.of("update", "t").with_row(Moved({}, key="2"))
        got = unpack(pack(event))
        assert (got.record_id, got.row.previous_record_id()) == ("2", previous)


def test_deep_documents_come_back() -> None:
    """A jsonb value may be nested deeper than JSON libraries, and Python's stack, go."""
    for depth in (99, 100, 101, 254, 1_000, 20_000):
        value: Any = 1
        for level in range(depth):
            value = [value, level] if level % 2 else {"a": value, "$b": level}
        got = there_and_back(value)
        for level in reversed(range(depth)):
            assert len(got) == 2
            got, mark = got if level % 2 else (got["a"], got["$b"])
            assert mark == level
        assert got == 1


def test_bytes_are_json_that_people_can_read() -> None:
    """Whoever looks into the state sees the row."""
    event = DatabaseEvent.of(
        "update",
        "t",
        {"id": 1, "n": Decimal("1.10"), "at": datetime(2024, 2, 29, tzinfo=UTC)},
        timestamp=datetime(2024, 2, 29, tzinfo=UTC),
    )
    document = json.loads(pack(event))

    assert document["payload"] == {
        "id": 1,
        "n": {"$decimal": "1.10"},
        "at": {"$datetime": "2024-02-29T00:00:00+00:00"},
    }
    assert (document["format"], document["event_type"], document["timestamp"]) == (
        1,
        "update",
        "2024-02-29T00:00:00+00:00",
    )


def test_events_of_one_table_and_type_share_their_kind() -> None:
    """Routing remembers its answer by the kind's identity."""
    one, other = (unpack(pack(DatabaseEvent.of("create", "t", {"n": n}))) for n in range(2))

    assert one.kind is other.kind


def test_relatives_of_postgresql_values_come_back_as_those() -> None:
    """An event made by hand may hold a tuple, or an enum of numbers."""

    class Size(IntEnum):
        SMALL = 1

    class Name(str):
        __slots__ = ()

    class Moment(datetime):
        pass

    given_values: dict[str, Any] = {
        "a": (1, (2,)), "b": Size.SMALL, "c": Name("x"), "d": bytearray(b"y"), "e": OrderedDict(z=Name("z")),
        "f": Moment(2024, 2, 29, 1, 2, 3, 4, UTC), "g": MappingProxyType({"m": 1}),
    }  # fmt: skip
    expected = {
        "a": [1, [2]], "b": 1, "c": "x", "d": b"y", "e": {"z": "z"},
        "f": datetime(2024, 2, 29, 1, 2, 3, 4, UTC), "g": {"m": 1},
    }  # fmt: skip
    got = unpack(pack(DatabaseEvent.of("create", "t", MappingProxyType(given_values)))).payload

    assert repr(got) == repr(expected)
    assert type(got["c"]) is str


def test_what_is_no_value_is_refused() -> None:
    """Without telling what it is but by its class."""
    with pytest.raises(TypeError, match=r"^object is no PostgreSQL value"):
        pack(DatabaseEvent.of("create", "t", {"v": [object()]}))


def test_what_the_callback_has_changed_is_not_kept() -> None:
    """The event that is tried again is the one that was delivered, not what a failed attempt has made of it."""
    event = ColumnView.of(
        DatabaseEvent.of("create", "t", {"a": 1, "b": SECRET, "c": None}), frozenset(), frozenset({"b", "c"})
    )
    assert isinstance(event.payload, dict)
    event.payload["a"] = object()

    assert unpack(pack(event)).payload == {"a": 1, "b": "***", "c": None}


WHOLE = json.loads(pack(DatabaseEvent.of("create", "t", {"v": SECRET}, record_id="1", before={"v": SECRET})))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"null", b"[]", b"{", b'"x"', b"\xff", b"{}", b'{"format":1}', b'{"format":"1"}', b'{"format":true}',
        *(json.dumps({key: value for key, value in WHOLE.items() if key != name}).encode() for name in WHOLE),
        *(json.dumps(WHOLE | {name: {"$decimal": SECRET}}).encode() for name in WHOLE),
        *(json.dumps(WHOLE | {"payload": {"v": damage}}).encode() for damage in (
            {"$what": SECRET}, {"$date": SECRET}, {"$uuid": SECRET}, {"$bytes": SECRET}, {"$int": SECRET},
            {"$int": 7}, {"$datetime": None}, {"$timedelta": [1]}, {"$timedelta": [10**12, 0, 0]},
            {"$range": [SECRET]}, {"$range": [1, 2, SECRET]}, {"$multirange": [SECRET]}, {"$items": [[{}, SECRET]]},
            {"$items": [SECRET]}, {"$part": 0}, {"$part": "0"}, {"$surrogates": "ff"}, {"$address": SECRET},
            {"$float": SECRET},
        )),
        json.dumps(WHOLE | {"position": SECRET}).encode(),
        json.dumps(WHOLE | {"timestamp": SECRET}).encode(),
        json.dumps(WHOLE | {"payload": [SECRET]}).encode(),
        json.dumps(WHOLE | {"tags": [1]}).encode(),
        json.dumps(WHOLE | {"id": True}).encode(),
    ],
)  # fmt: skip
def test_damage_is_told_without_row_values(data: bytes) -> None:
    """One kind of error, whatever is wrong, and nothing of the row in it."""
    with pytest.raises(ValueError, match="packed") as caught:
        unpack(data)

    assert SECRET not in str(caught.value)
    assert caught.value.__suppress_context__


def test_other_formats_are_told_apart_from_damage() -> None:
    """A newer version has written it: an older one must not guess."""
    with pytest.raises(ValueError, match="another version of cdc"):
        unpack(json.dumps(WHOLE | {"format": 2}).encode())


TAGS = ["$int", "$float", "$surrogates", "$decimal", "$bytes", "$datetime", "$date", "$time", "$timedelta", "$uuid",
        "$address", "$interface", "$network", "$range", "$multirange", "$items", "$part"]  # fmt: skip
documents = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**18) | st.floats() | st.text(string.printable, max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(TAGS), inner, min_size=1, max_size=1)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)


@patiently
@given(st.dictionaries(st.sampled_from([*WHOLE, "parts"]), documents))
def test_any_document_gives_an_event_or_the_documented_error(damage: dict[str, Any]) -> None:
    """Nothing else, whatever stands where a value belongs."""
    try:
        event = unpack(json.dumps(WHOLE | damage).encode())
    except ValueError:
        return
    assert facts(event)


@patiently
@given(events, st.data())
def test_any_bytes_give_an_event_or_the_documented_error(event: DatabaseEvent, data: st.DataObject) -> None:
    """A part that is cut out, or overwritten."""
    packed = pack(event)
    start = data.draw(st.integers(0, len(packed)))
    end = data.draw(st.integers(start, len(packed)))
    try:
        unpack(packed[:start] + data.draw(st.binary()) + packed[end:])
    except ValueError:
        return


async def test_streamed_rows_of_every_type_come_back(database: Database) -> None:
    """What the service's own loaders make of every type that we know, in inserts, updates and deletes."""
    async with streamed_events(database) as streamed:
        for event in streamed:
            packed = pack(event)
            assert facts(unpack(packed)) == facts(event)
            view = ColumnView.of(event, frozenset({"id"}), frozenset({"secret"}))
            packed = pack(view)
            assert SECRET.encode() not in packed
            assert facts(unpack(packed)) == facts(view)
            moved = [event for event in streamed if event.event_type is EventType.UPDATE]
            assert {unpack(pack(event)).row.previous_record_id() for event in moved} == {"0"}


def test_selected_rows_come_back_also_in_another_time_zone(database: Database) -> None:
    """psycopg gives moments in the zone of its session; the offset stays, and so does the moment."""
    with database.connect() as connection:
        connection.execute("SET timezone = 'America/Caracas'")
        found = connection.execute(
            "SELECT '2024-02-29 12:00:00.123456+00'::timestamptz, '{1,NULL}'::int[], 'NaN'::float8, '1.10'::numeric,"
            " tstzrange('2024-02-29', NULL), '10.0.0.1/24'::inet, gen_random_uuid(), '-1 day -1 us'::interval"
        ).fetchone()
    assert found is not None
    got = there_and_back(list(found))

    assert got[0].utcoffset() == found[0].utcoffset()
    assert repr(got[2:4] + got[5:]) == repr(list(found[2:4] + found[5:]))
    assert (got[:2], got[4], type(got[6])) == (list(found[:2]), found[4], UUID)
