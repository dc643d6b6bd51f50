"""Plans: rows of a table that come again and again are read by a parser and a converter made for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.errors import DecodeError
from cdc.messages import Begin
from cdc.wal2json import Decoder, Wal2JsonChange
from cdc.wal2json.plans import BURSTS_WITHOUT, MAX_COLUMNS, MAX_PLANS, MESSAGES_JUDGED, ROWS_BEFORE
from tests.decoding import FixedCatalog

INT4, TEXT, FLOAT8, NUMERIC, OWN_DOMAIN = 23, 25, 701, 1700, 20000
BEGIN = b'{"action":"B","xid":7,"timestamp":"2024-02-29 12:00:00+00","lsn":"0/10","nextlsn":"0/20"}'
COLUMNS: dict[str, tuple[int, Any]] = {"id": (INT4, 1), "text": (TEXT, "a"), "total": (NUMERIC, 1.5)}
ROW = {"id": 1, "text": "a", "total": Decimal("1.5")}


def insert(columns: Mapping[str, tuple[int, Any]] = COLUMNS, *, table: str = "t", action: str = "I") -> bytes:
    """A message; columns are type OID and JSON value by name."""
    rows = [{"name": name, "typeoid": oid, "value": value} for name, (oid, value) in columns.items()]
    fields = {"action": action, "xid": 7, "schema": "public", "table": table}
    fields["identity" if action == "D" else "columns"] = rows
    return json.dumps(fields, separators=(",", ":")).encode()


class Stream:
    """A decoder whose rows are all read; bursts of as many messages as rows are needed before a plan."""

    def __init__(self) -> None:
        self.catalog = FixedCatalog()
        self.decoder = Decoder(self.catalog, reads_rows=True)

    def burst(self, *payloads: bytes) -> list[Wal2JsonChange]:
        """Decode, and read each row."""
        messages, error = self.decoder.decode_all(payloads)
        assert error is None
        changes = [message for message in messages if isinstance(message, Wal2JsonChange)]
        for change in changes:
            change.payload()
        return changes

    def learn(self, *payloads: bytes) -> None:
        """See each payload so often that its table has a plan; the first time its loaders are made."""
        for payload in payloads:
            self.burst(payload)
            self.burst(*[payload] * ROWS_BEFORE)


def learnt() -> Stream:
    """One that has a plan for the columns above."""
    made = Stream()
    made.learn(insert())
    return made


stream = pytest.fixture(learnt)
LEARNT = learnt()


def is_planned(change: Wal2JsonChange) -> bool:
    """Whether the row was read by its plan."""
    return change._head.convert is not None


def test_row_is_read_by_a_plan_once_its_table_is_known() -> None:
    """And gives the same values with their types as before."""
    stream = Stream()
    (before,) = stream.burst(insert())
    stream.learn(insert())
    (after,) = stream.burst(insert())

    assert (is_planned(before), is_planned(after)) == (False, True)
    assert before.payload() == after.payload() == ROW
    assert list(after.payload()) == list(ROW)


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        ({"id": (INT4, 1), "total": (NUMERIC, 1.5)}, {"id": 1, "total": Decimal("1.5")}),
        (COLUMNS | {"more": (INT4, 2)}, ROW | {"more": 2}),
        ({"id": (INT4, 1), "text": (INT4, 7), "total": (NUMERIC, 1.5)}, {"id": 1, "text": 7, "total": Decimal("1.5")}),
        ({"total": (NUMERIC, 2), "text": (TEXT, None), "id": (INT4, 1)}, {"total": 2, "text": None, "id": 1}),
    ],
    ids=["one less", "one more", "of another type", "in another order"],
)
def test_row_with_other_columns_is_read_as_it_is(stream: Stream, columns: dict[str, Any], row: dict[str, Any]) -> None:
    """A value that was not sent, or ALTER TABLE: the plan refuses it, and fits again where it did."""
    changes = stream.burst(insert(), insert(columns), insert())

    assert [change.payload() for change in changes] == [ROW, row, ROW]
    assert [is_planned(change) for change in changes] == [True, False, True]


def test_table_whose_columns_have_changed_gets_another_plan(stream: Stream) -> None:
    """After ALTER TABLE all rows are different."""
    changed = insert(COLUMNS | {"more": (INT4, 2)})
    stream.learn(changed)

    (change,) = stream.burst(changed)
    assert is_planned(change)
    assert change.payload() == ROW | {"more": 2}


def test_each_shape_of_a_table_has_its_plan(stream: Stream) -> None:
    """One row in twenty lacks a large value that did not change: it does not take the plan of the others away."""
    lacking = insert({"id": (INT4, 1), "total": (NUMERIC, 1.5)})
    burst = [*[insert()] * 10, lacking, *[insert()] * 9]
    for _ in range(ROWS_BEFORE):
        stream.burst(*burst)

    changes = stream.burst(*burst)
    assert [is_planned(change) for change in changes] == [*[True] * 10, False, False, *[True] * 8]
    assert [change.payload() for change in changes] == [*[ROW] * 10, {"id": 1, "total": Decimal("1.5")}, *[ROW] * 9]


def test_row_that_never_has_a_plan_does_not_disturb_one(stream: Stream) -> None:
    """One with too many columns."""
    wide = insert({f"c{number}": (INT4, number) for number in range(MAX_COLUMNS + 1)})
    burst = [*[insert()] * 4, wide, *[insert()] * 4]
    for _ in range(2 * ROWS_BEFORE):
        stream.burst(*burst)

    changes = stream.burst(*burst)
    assert [is_planned(change) for change in changes] == [*[True] * 4, False, *[True] * 4]


def test_plan_follows_the_table(stream: Stream) -> None:
    """Where tables come in runs each has its plan; the first row of a run is read the general way."""
    stream.learn(insert(table="other"))
    changes = stream.burst(*[insert()] * 8, *[insert(table="other")] * 8)

    assert [is_planned(change) for change in changes] == [False, *[True] * 7] * 2
    assert [change.table for change in changes] == ["t"] * 8 + ["other"] * 8


def test_plans_rest_where_they_do_not_fit(stream: Stream) -> None:
    """Tables in turn: each try would be in vain. Later it is tried again."""
    stream.learn(insert(table="other"))
    stream.burst(*[insert(), insert(table="other")] * MESSAGES_JUDGED)

    resting = [stream.burst(*[insert(table="other")] * 4) for _ in range(BURSTS_WITHOUT)]
    assert not any(is_planned(change) for changes in resting for change in changes)
    assert all(is_planned(change) for change in stream.burst(*[insert(table="other")] * 4))


def test_boundaries_and_deletes_do_not_disturb_a_plan(stream: Stream) -> None:
    """They have no new row, and fit."""
    messages, error = stream.decoder.decode_all([BEGIN, insert(), insert({"id": (INT4, 1)}, action="D"), insert()])

    assert error is None
    assert isinstance(messages[0], Begin)
    changes = [message for message in messages if isinstance(message, Wal2JsonChange)]
    assert all(is_planned(change) for change in changes)
    assert [change.payload() for change in changes] == [ROW, {"id": 1}, ROW]


@pytest.mark.parametrize("literal", ["0", "-0", "-0.0", "1e300", "0.1"])
def test_float_is_exact_by_plan(literal: str) -> None:
    """JSON's -0 is an integer for the parser: the row is read once more, with the literals of its numbers."""
    stream = Stream()
    stream.learn(insert({"x": (FLOAT8, 1.5)}))
    payload = insert({"x": (FLOAT8, 4711)}).replace(b"4711", literal.encode())

    (change,) = stream.burst(payload)
    assert is_planned(change)
    assert str(change.payload()["x"]) == str(float(literal))


def test_integer_that_the_parser_does_not_take_is_read_without_plan(stream: Stream) -> None:
    """A numeric of many digits has no fraction, and is a number all the same."""
    digits = "9" * 5000
    payload = insert().replace(b"1.5", digits.encode())

    changes = stream.burst(insert(), payload)
    assert [is_planned(change) for change in changes] == [True, False]
    assert [change.payload()["total"] for change in changes] == [Decimal("1.5"), Decimal(digits)]


def test_type_that_nobody_has_read_yet_makes_no_plan() -> None:
    """Its loader may have to ask the database, which the stream does not wait for. Once it was read there is one."""
    payload = insert({"id": (INT4, 1), "own": (OWN_DOMAIN, "x")})
    stream = Stream()
    changes, _ = stream.decoder.decode_all([payload] * (4 * ROWS_BEFORE))
    assert stream.catalog.loaders == {}

    for change in changes:
        assert isinstance(change, Wal2JsonChange)
        assert not is_planned(change)
        change.payload()
    stream.learn(payload)
    assert is_planned(stream.burst(payload)[0])


def test_column_that_was_always_null_has_its_loader_when_it_is_not() -> None:
    """Nobody has read its type before."""
    stream = Stream()
    stream.learn(insert({"id": (INT4, 1), "total": (NUMERIC, None)}))
    assert NUMERIC not in stream.catalog.loaders

    changes = stream.burst(*[insert({"id": (INT4, 1), "total": (NUMERIC, value)}) for value in (None, 1.5)])
    assert all(is_planned(change) for change in changes)
    assert [change.payload()["total"] for change in changes] == [None, Decimal("1.5")]


def test_plan_that_was_not_used_for_longest_goes_first() -> None:
    """Each takes memory, and tables come and go."""
    stream = Stream()
    for number in range(MAX_PLANS):
        stream.learn(insert(table=f"t{number}"))
    stream.burst(insert(table="t0"))
    stream.learn(insert(table="one more"))

    def is_known(table: str) -> bool:
        stream.burst(insert(table=table))  # whichever table came before
        return is_planned(stream.burst(insert(table=table))[0])

    assert [is_known(table) for table in ("t0", "t1", "t2", "one more")] == [True, False, True, True]


@given(st.data())
def test_damaged_message_is_taken_or_refused_as_the_general_way_does(data: st.DataObject) -> None:
    """Whatever is in its bytes: the same values, or the same kind of error."""
    payload = bytearray(insert())
    for _ in range(data.draw(st.integers(1, 3))):
        begin = data.draw(st.integers(0, len(payload)))
        end = data.draw(st.integers(begin, min(begin + 3, len(payload))))
        payload[begin:end] = data.draw(
            st.sampled_from([b"", b"0", b"-", b'"', b"}", b"]", b",", b"null", b"\xff", b"u"])
        )

    assert outcome(LEARNT.decoder, bytes(payload)) == outcome(Decoder(FixedCatalog()), bytes(payload))


def outcome(decoder: Decoder, payload: bytes) -> object:
    """What comes of a message: its row, or that it is none."""
    try:
        change = decoder.decode(payload)
        if not isinstance(change, Wal2JsonChange):
            return change
        return change.event_type, change.table, change.record_id(), [*change.payload().items()], change.before()
    except DecodeError:
        return DecodeError


def test_names_of_any_kind_are_no_source_code() -> None:
    """Columns are named by whoever owns the table."""
    names = ['"', "'", "a\nb", "c0", "k0", "{x}", "import os", "\\", "ünï", "__class__"]
    columns: dict[str, tuple[int, Any]] = {name: (TEXT, name) for name in names}
    stream = Stream()
    stream.learn(insert(columns))

    (change,) = stream.burst(insert(columns))
    assert is_planned(change)
    assert change.payload() == {name: name for name in names}
