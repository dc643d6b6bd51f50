"""The decoder: wal2json's bytes become messages, exactly, or an error that shows no row value."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.pretty import pretty_repr

from cdc.errors import CdcError, DecodeError, StreamLost
from cdc.events import DatabaseEvent, EventType, Kind, Transaction
from cdc.lsn import Lsn
from cdc.messages import Begin, Commit, Message
from cdc.values import TypeInfo, TypeKind
from cdc.wal2json import SAMPLE_BURSTS, Decoder, Wal2JsonChange
from cdc.wal2json.shapes import Whole
from tests.decoding import FixedCatalog, each_way, make_decoder  # noqa: F401 - each_way runs by itself

BOOL, BYTEA, INT8, INT4, TEXT, FLOAT8, NUMERIC = 16, 17, 20, 23, 25, 701, 1700
DATE, TIMESTAMPTZ, UUID, TEXTS, OWN_DOMAIN = 1082, 1184, 2950, 1009, 20000
FLAG, DAY, LABEL, MOOD, HIGH = 20001, 20002, 20003, 20004, (1 << 32) - 2
OWN_TYPES = {
    FLAG: TypeInfo(FLAG, "flag", TypeKind.DOMAIN, base_oid=BOOL),
    DAY: TypeInfo(DAY, "day", TypeKind.DOMAIN, base_oid=DATE),
    LABEL: TypeInfo(LABEL, "label", TypeKind.DOMAIN, base_oid=TEXT),
    MOOD: TypeInfo(MOOD, "mood", TypeKind.ENUM),
    HIGH: TypeInfo(HIGH, "high", TypeKind.DOMAIN, base_oid=BOOL),
}
SECRET = "s3cr3t"


def unreachable(oid: int) -> TypeInfo | None:
    """What a catalog says of a type it does not know, whose database does not answer."""
    raise CdcError(f"type OID {oid} is not known and the database cannot be asked")


def column(name: str, oid: int, literal: str) -> str:
    """One column as wal2json writes it; `literal` is JSON."""
    return f'{{"name":{json.dumps(name, ensure_ascii=False)},"typeoid":{oid},"value":{literal}}}'


def message(
    action: str,
    columns: list[str] | None = None,
    identity: list[str] | None = None,
    key: list[str] | None = None,
) -> bytes:
    """One change as wal2json writes it."""
    text = f'{{"action":"{action}","xid":7,"timestamp":"2024-02-29 12:00:00+00","lsn":"0/AB",'
    text += '"schema":"public","table":"t"'
    if columns is not None:
        text += f',"columns":[{",".join(columns)}]'
    if identity is not None:
        text += f',"identity":[{",".join(identity)}]'
    if key is not None:
        pk = ",".join(f'{{"name":{json.dumps(name)},"typeoid":23}}' for name in key)
        text += f',"pk":[{pk}]'
    return (text + "}").encode()


def decoder(*watch: str, codec: str | None = None, toastable: frozenset[str] = frozenset()) -> Decoder:
    """A decoder over the fixed catalog."""
    return make_decoder(FixedCatalog(toastable, resolve=OWN_TYPES.get), watch=watch, codec=codec)


def change(payload: bytes, *watch: str, toastable: frozenset[str] = frozenset()) -> Wal2JsonChange:
    """The decoded change."""
    decoded = decoder(*watch, toastable=toastable).decode(payload)
    assert isinstance(decoded, Wal2JsonChange)
    return decoded


def insert(*columns: str, key: list[str] | None = None) -> Wal2JsonChange:
    """A decoded insert of these columns."""
    return change(message("I", list(columns), key=key))


# --- boundaries and messages -----------------------------------------------------------------------------


def test_begin_and_commit_carry_the_end_of_the_commit() -> None:
    """`nextlsn` counts, not `lsn`: acknowledging the latter would bring the transaction again."""
    facts = '"xid":804,"timestamp":"2024-02-29 12:00:00.5+00","lsn":"0/10","nextlsn":"1/20"'

    assert decoder().decode(f'{{"action":"B",{facts}}}'.encode()) == Begin(
        Lsn.parse("1/20"), 804, "2024-02-29 12:00:00.5+00"
    )
    assert decoder().decode(f'{{"action":"C",{facts}}}'.encode()) == Commit(Lsn.parse("1/20"))


def test_message_without_a_transaction() -> None:
    """A non-transactional message has neither xid nor time."""
    payload = b'{"action":"M","xid":null,"timestamp":null,"lsn":"0/1","transactional":false,"prefix":"p","content":"c"}'

    assert decoder().decode(payload) == Message(transactional=False, prefix="p", content="c", lsn=1)


def test_change_knows_where_its_record_begins() -> None:
    """By the head of its message, whatever stands in the row."""
    text = column("t", TEXT, json.dumps('"lsn":"0/1"'))

    assert insert(text).lsn == 0xAB
    assert change(message("I", [text]).replace(b"0/AB", b"1F/AB000000")).lsn == 0x1F_AB00_0000
    assert change(message("I", [text]).replace(b'"lsn":"0/AB",', b"")).lsn == 0


@pytest.mark.parametrize("codec", [None, "gb2312"])
def test_message_of_any_bytes_is_no_error(codec: str | None) -> None:
    """The content is raw bytes, which somebody else may write at any time: it must not stop the stream."""
    payload = b'{"action":"M","lsn":"0/1","transactional":true,"prefix":"p","content":"a\xff\xfeb"}'

    decoded = decoder(codec=codec).decode(payload)

    assert isinstance(decoded, Message)
    assert decoded.content.startswith("a")
    assert "\ufffd" in decoded.content


# --- values ----------------------------------------------------------------------------------------------


@given(st.decimals(allow_nan=False, allow_infinity=False, places=None) | st.integers().map(Decimal))
def test_any_numeric_is_exact(number: Decimal) -> None:
    """Trailing zeros, digits beyond float64 and 64 bits: what is written is what is read."""
    literal = format(number, "f")
    row = insert(column("n", NUMERIC, literal)).payload()

    assert str(row["n"]) == str(Decimal(literal))
    assert type(row["n"]) is Decimal


@pytest.mark.parametrize("literal", ["9" * 400, "-" + "9" * 131072, f"{'9' * 131072}.{'1' * 16383}"])
def test_numeric_beyond_a_float_is_exact(literal: str) -> None:
    """A number that the JSON parser refuses is valid on the server."""
    assert insert(column("n", NUMERIC, literal)).payload()["n"] == Decimal(literal)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_float_is_exact(number: float) -> None:
    """Bit for bit, the sign of zero included."""
    literal = repr(number).removesuffix(".0")  # as PostgreSQL writes them
    value = insert(column("f", FLOAT8, literal)).payload()["f"]

    assert isinstance(value, float)
    assert struct.pack("d", value) == struct.pack("d", number)


def test_negative_zero_keeps_its_sign() -> None:
    """PostgreSQL writes -0, which JSON parsers read as the integer 0."""
    assert str(insert(column("f", FLOAT8, "-0")).payload()["f"]) == "-0.0"


def test_float_in_a_place_of_its_own_is_a_decode_error() -> None:
    """Its literal cannot be found: an error, never a row that is none."""
    damaged = message("I", [column("f", FLOAT8, "-0")]).replace(b'"value":-0', b'"value": -0')

    with pytest.raises(DecodeError):
        change(damaged).payload()


LOOKALIKES = [
    '"typeoid":1700,"value":1.5',
    '{"name":"n","typeoid":1700,"value":2.50}',
    '"name":"__tags__"',
    '"columns":[{"name":"x"',
    'back\\slash \\" quote " \\\\',
    "\b\f\n\r\t\x01\x1f\x7f",
    "\u2028\u2029 😀 \ufeff",
    "",
]


@pytest.mark.parametrize("text", LOOKALIKES)
def test_text_that_looks_like_structure_stays_text(text: str) -> None:
    """The search for number literals touches no string."""
    row = insert(column("t", TEXT, json.dumps(text, ensure_ascii=False)), column("n", NUMERIC, "1.10")).payload()

    assert (row["t"], str(row["n"])) == (text, "1.10")


@given(
    st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(LOOKALIKES), st.text('":,{}[]\\valuetypoid1700')
)
def test_any_text_beside_a_numeric_stays_text(name_like: str, text: str) -> None:
    """Whatever a value or a column's name holds."""
    name = f"c{name_like}"
    row = insert(column(name, TEXT, json.dumps(text)), column("\x00n", NUMERIC, "1.10")).payload()

    assert row == {name: text, "\x00n": Decimal("1.10")}


def test_row_filled_from_the_identity_is_exact() -> None:
    """Only the identity holds the lossy number here; the new row's own number is an integer."""
    updated = change(
        message(
            "U",
            [column("n", NUMERIC, "2")],
            [column("n", NUMERIC, "1.10"), column("big", TEXT, '"x"'), column("m", NUMERIC, "2.50")],
        )
    )

    assert updated.payload() == {"n": Decimal(2), "big": "x", "m": Decimal("2.50")}
    assert str(updated.payload()["m"]) == "2.50"
    assert str((updated.before() or {})["n"]) == "1.10"


def test_row_in_the_encoding_of_the_server() -> None:
    """The payload is never converted to the client's encoding."""
    latin = message("I", [column("t", TEXT, '"café"'), column("n", NUMERIC, "1.10")]).decode().encode("latin-1")

    decoded = decoder(codec="iso8859-1").decode(latin)

    assert isinstance(decoded, Wal2JsonChange)
    assert decoded.payload() == {"t": "café", "n": Decimal("1.10")}


def test_bytes_that_are_not_of_the_encoding_stop_the_stream() -> None:
    """Guessing would deliver something else than what is in the table."""
    with pytest.raises(DecodeError):
        decoder(codec="cp1252").decode(message("I", []) + b"\x81")
    with pytest.raises(DecodeError):
        decoder().decode(message("I", [column("t", TEXT, '"?"')]).replace(b"?", b"\xff"))


# --- keys ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("oid", "literal", "text"),
    [
        (INT4, "42", "42"),
        (INT8, "-9223372036854775808", "-9223372036854775808"),
        (INT8, '"7"', "7"),  # as newer plugins send it
        (TEXT, '"a \\"b\\" é"', 'a "b" é'),
        (UUID, '"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"', "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        (BOOL, "true", "true"),
        (BOOL, "false", "false"),
        (NUMERIC, "1.10", "1.10"),
        (NUMERIC, "5", "5"),
        (NUMERIC, "12345678901234567890123", "12345678901234567890123"),
        (FLOAT8, "1e+15", "1e+15"),
        (FLOAT8, "-0", "-0"),
        (FLOAT8, "0", "0"),
        (FLOAT8, "1e-05", "1e-05"),
        (BYTEA, '"deadbeef"', "\\xdeadbeef"),
        (TIMESTAMPTZ, '"2024-02-29 12:00:00+00"', "2024-02-29 12:00:00+00"),
    ],
)
def test_record_id_is_the_key_as_postgresql_prints_it(oid: int, literal: str, text: str) -> None:
    """One text per key, whatever else is in the row, so that it can be looked up and hashed."""
    alone = insert(column("k", oid, literal), key=["k"])
    with_number = insert(column("k", oid, literal), column("n", NUMERIC, "0.50"), key=["k"])
    with_number.payload()

    assert alone.record_id() == text
    assert with_number.record_id() == text


def test_composite_key_is_a_json_array_in_key_order() -> None:
    """Integers stay integers; all else is text."""
    row = insert(
        column("d", NUMERIC, "1.50"),
        column("a", INT4, "1"),
        column("b", TEXT, '"x,\\"y\\""'),
        column("c", BOOL, "true"),
        column("e", NUMERIC, "3"),
        key=["a", "b", "c", "d", "e"],
    )

    assert json.loads(row.record_id() or "") == [1, 'x,"y"', "true", "1.50", "3"]


def test_record_id_without_a_key() -> None:
    """No key, or an identity that does not hold it: None, never a guess."""
    row = [column("k", INT4, "1")]

    assert insert(*row, key=[]).record_id() is None
    assert insert(*row).record_id() is None
    assert change(message("D", None, [column("other", INT4, "1")], ["k"])).record_id() is None
    assert change(message("T")).record_id() is None
    assert insert(column("k", NUMERIC, "null"), key=["k"]).record_id() is None  # NaN or an infinity
    assert insert(column("k", INT4, "1"), column("f", FLOAT8, "null"), key=["k", "f"]).record_id() is None
    assert change(message("U", [column("k", NUMERIC, "1")], [column("k", NUMERIC, "null")], ["k"])).record_id() == "1"


def test_previous_record_id_is_the_old_key() -> None:
    """Of an update that changed the key; without an identity it is the key itself."""
    new, old = [column("k", INT4, "2")], [column("k", INT4, "1")]

    assert change(message("U", new, old, ["k"])).previous_record_id() == "1"
    assert change(message("U", new, old, ["k"])).record_id() == "2"
    assert change(message("U", new, None, ["k"])).previous_record_id() == "2"


def test_toasted_key_comes_from_the_identity() -> None:
    """A long key that did not change is left out of the new row like any other TOAST value."""
    updated = change(message("U", [column("n", INT4, "2")], [column("k", TEXT, '"long"')], ["k"]))

    assert updated.record_id() == updated.previous_record_id() == "long"
    assert updated.payload() == {"k": "long", "n": 2}


# --- unchanged, soft delete, tags ------------------------------------------------------------------------


def test_unchanged_names_what_was_not_sent() -> None:
    """NULL was sent; a column that the identity holds is known."""
    toastable = frozenset({"a", "b", "c"})
    new = [column("a", TEXT, "null"), column("id", INT4, "1")]

    assert change(message("U", new), toastable=toastable).unchanged() == {"b", "c"}
    assert change(message("U", new, [column("b", TEXT, '"x"')]), toastable=toastable).unchanged() == {"c"}
    assert change(message("I", new), toastable=toastable).unchanged() == frozenset()
    assert change(message("D", None, new), toastable=toastable).unchanged() == frozenset()


@pytest.mark.parametrize(
    ("oid", "old", "new", "deleted"),
    [
        (BOOL, None, "false", True),
        (BOOL, None, "true", False),
        (BOOL, None, "null", False),
        (BOOL, "true", "false", True),
        (BOOL, "null", "false", True),
        (BOOL, "false", "false", False),
        (BOOL, "false", "true", False),
        (TIMESTAMPTZ, None, '"2024-02-29 12:00:00+00"', True),
        (TIMESTAMPTZ, None, "null", False),
        (TIMESTAMPTZ, None, '"infinity"', True),
        (TIMESTAMPTZ, "null", '"2024-02-29 12:00:00+00"', True),
        (TIMESTAMPTZ, '"2024-02-28 12:00:00+00"', '"2024-02-29 12:00:00+00"', False),
        (FLAG, None, '"f"', True),
        (FLAG, None, '"t"', False),
        (FLAG, '"f"', '"f"', False),
        (DAY, None, '"2024-02-29"', True),
        (DAY, None, '"-infinity"', True),
        (HIGH - (1 << 32), None, '"f"', True),  # an OID beyond 31 bits, as the plugin prints it
        (LABEL, None, '"f"', False),
        (LABEL, None, '"2024-02-29"', False),
        (MOOD, None, '"f"', False),
        (MOOD, None, '"2024-02-29"', False),
        (OWN_DOMAIN, None, '"f"', False),  # nobody knows (any more) of what type
        (INT4, None, "0", False),
        (INT4, None, '"1"', False),  # as newer plugins send it
        (TEXT, None, '"f"', False),
        (TEXT, None, '"2024-02-29"', False),
    ],
)
def test_soft_delete_is_a_turn_to_false_or_to_a_time(oid: int, old: str | None, new: str, deleted: bool) -> None:
    """Of a boolean, a date or timestamp, or a domain over one; what is known to be deleted already is not again."""
    identity = None if old is None else [column("gone", oid, old)]
    updated = change(message("U", [column("id", INT4, "1"), column("gone", oid, new)], identity), "gone")

    assert updated.watched
    assert updated.deleted_softly(frozenset({"gone"})) is deleted


@pytest.mark.parametrize(
    ("oid", "literal", "tags"),
    [
        (TEXTS, '"{a,\\"b c\\",NULL,\\"NULL\\",\\"q\\\\\\"uote\\",\\"\\"}"', ("a", "b c", "NULL", 'q"uote')),
        (TEXTS, '"{{a,b},{c,NULL}}"', ("a", "b", "c")),
        (TEXTS, '"{}"', ()),
        (TEXTS, "null", ()),
        (TEXT, '"one"', ("one",)),
        (TEXT, '""', ()),
        (NUMERIC, "1.5", ("1.5",)),
        (INT4, "3", ("3",)),
    ],
)
def test_text_list(oid: int, literal: str, tags: tuple[str, ...]) -> None:
    """A text[] column as Python strings; of other types, whatever text there is, and never an error."""
    row = change(message("I", [column("__tags__", oid, literal)]), "__tags__")

    assert row.text_list("__tags__") == tags


def test_text_list_of_an_update_that_did_not_touch_it() -> None:
    """A large array is left out of the new row; under FULL the identity has it."""
    tags = column("__tags__", TEXTS, '"{a}"')

    assert change(message("U", [column("id", INT4, "1")], [tags]), "__tags__").text_list("__tags__") == ("a",)
    assert change(message("U", [column("__tags__", TEXTS, "null")], [tags]), "__tags__").text_list("__tags__") == ()


def test_text_list_waits_for_a_database_that_does_not_answer() -> None:
    """A type that is not known yet ends this connection, not the service."""
    row = make_decoder(FixedCatalog(resolve=unreachable), watch=["__tags__"]).decode(
        message("I", [column("__tags__", OWN_DOMAIN, '"{a}"')])
    )

    assert isinstance(row, Wal2JsonChange)
    with pytest.raises(StreamLost):
        row.text_list("__tags__")


@pytest.mark.parametrize("name", ["__tags__", "ünï", 'quo"te', "back\\slash", "tab\t\x1f", "a.b c", "\u2028"])
def test_watched_column_is_found_by_any_name(name: str) -> None:
    """The search is in the bytes, where the name stands escaped."""
    columns = [column("id", INT4, "1"), column(name, TEXT, '"x"')]

    assert change(message("I", columns), name).watched
    assert change(message("I", columns), "other", name).watched
    assert not change(message("I", columns[:1]), name).watched
    assert not change(message("I", columns)).watched


def test_value_that_looks_like_a_watched_column_is_none() -> None:
    """A text value is no column, whatever it says."""
    row = change(message("I", [column("t", TEXT, json.dumps('"name":"__tags__","value":"{a}"'))]), "__tags__")

    assert row.text_list("__tags__") == ()
    assert not row.watched


# --- what makes no sense ---------------------------------------------------------------------------------

GOOD = message(
    "U",
    [column("a", TEXT, f'"{SECRET}"'), column("__tags__", TEXTS, f'"{{{SECRET}}}"'), column("n", NUMERIC, "1.5")],
    [column("a", TEXT, f'"{SECRET} {SECRET}"'), column("b", TEXT, f'"\\"name\\":\\"{SECRET}\\""')],
    ["a"],
)


def assert_tells_no_value(error: DecodeError) -> None:
    """Nothing of what a log would print holds a row value."""
    assert SECRET not in f"{error} {error.excerpt} {error.hint}"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"1",
        b"{}",
        b'{"action":null}',
        b'{"action":["I"]}',
        b'{"action":"X"}',
        b'{"action":"I"}',
        b'{"action":"I","schema":"s","table":"t"}',
        b'{"action":"I","schema":"s","table":"t","columns":null}',
        b'{"action":"I","schema":"s","table":1,"columns":[]}',
        b'{"action":"I","schema":null,"table":"t","columns":[]}',
        b'{"action":"I","table":"t","columns":[]}',
        b'{"action":"U","schema":"s","table":"t","columns":[],"identity":{}}',
        b'{"action":"U","schema":"s","table":"t","columns":[],"pk":null}',
        b'{"action":"D","schema":"s","table":"t","identity":"x"}',
        b'{"action":"I","schema":"s","table":"t","columns":[{"name":"__tags__","value":"x"}]}',
        b'{"action":"I","schema":"s","table":"t","columns":[{"name":"__tags__","typeoid":25}]}',
        b'{"action":"I","schema":"s","table":"t","columns":[{"name":"__tags__","typeoid":[],"value":1}]}',
        b'{"action":"I","schema":"s","table":"t","columns":[1,{"name":"__tags__"}]}',
        b'{"action":"I","schema":"s","table":"t","columns":[{"name":"a","typeoid":1700,"value":NaN}]}',
        b'{"action":"B","xid":1,"timestamp":"x"}',
        b'{"action":"B","nextlsn":"0/1"}',
        b'{"action":"B","nextlsn":"zero","xid":1,"timestamp":"x"}',
        b'{"action":"B","nextlsn":"0/1","xid":"1","timestamp":"x"}',
        b'{"action":"B","nextlsn":"0/1","xid":1,"timestamp":null}',
        b'{"action":"C","nextlsn":7}',
        b'{"action":"C"}',
        b'{"action":"M","transactional":1,"prefix":"p","content":"c"}',
        b'{"action":"M","transactional":true,"prefix":"p"}',
        b'{"action":"M","transactional":true,"prefix":null,"content":"c"}',
        b'{"action":"I","xid":1,"lsn":"123456789AB/0","schema":"s"',
    ],
)
def test_malformed_message_is_a_decode_error(payload: bytes) -> None:
    """Wrong JSON, wrong type, a key too few: the stream must stop, not the decoder guess."""
    with pytest.raises(DecodeError):
        decoder("__tags__").decode(payload)


def test_decode_error_shows_where_and_what() -> None:
    """LSN, table and column names are enough to find the row; its values stay where they are."""
    with pytest.raises(DecodeError, match="0/AB") as caught:
        decoder().decode(GOOD[:-3])

    assert caught.value.lsn == Lsn.parse("0/AB")
    assert '"table":"t"' in caught.value.excerpt
    assert '"a","__tags__","n","a","b"' in caught.value.excerpt
    assert_tells_no_value(caught.value)


def test_decode_error_shows_nothing_behind_an_unknown_key() -> None:
    """A plugin that calls the row something else must not bring it into the log."""
    with pytest.raises(DecodeError) as caught:
        decoder().decode(GOOD.replace(b'"columns"', b'"row"').replace(b'"identity"', b'"old"'))

    assert_tells_no_value(caught.value)


@given(st.binary())
def test_any_bytes_are_a_message_or_a_decode_error(payload: bytes) -> None:
    """Nothing else comes out of the decoder."""
    with suppress(DecodeError):
        decoder("__tags__").decode(payload)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([*"IUDTBCM", "0/1", "name", SECRET]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "typeoid", "value"]), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = ["action", "xid", "timestamp", "lsn", "nextlsn", "schema", "table", "columns", "identity", "pk", "prefix"]


@given(st.dictionaries(st.sampled_from(KEYS), json_values))
def test_any_json_is_a_message_or_a_decode_error(fields: dict[str, Any]) -> None:
    """Right keys with wrong values, too."""
    with suppress(DecodeError):
        decoder("__tags__").decode(json.dumps(fields).encode())


@given(st.integers(0, len(GOOD)))
def test_truncated_message_tells_no_value(length: int) -> None:
    """Wherever it was cut."""
    if length < len(GOOD):
        with pytest.raises(DecodeError) as caught:
            decoder("__tags__").decode(GOOD[:length])
        assert_tells_no_value(caught.value)


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_damaged_message_tells_no_value(position: int, byte: int) -> None:
    """Whichever byte was damaged: a message or a DecodeError, and what it is about is not in it."""
    payload = GOOD[:position] + bytes([byte]) + GOOD[position + 1 :]
    try:
        decoded = decoder("__tags__").decode(payload)
    except DecodeError as error:
        assert_tells_no_value(error)
    else:
        if isinstance(decoded, Wal2JsonChange) and decoded.watched:
            decoded.text_list("__tags__")
            decoded.deleted_softly(frozenset({"a"}))


def test_actions_are_event_types() -> None:
    """I, U, D, T."""
    found = [
        change(message("I", [])).event_type,
        change(message("U", [])).event_type,
        change(message("D", None, [])).event_type,
        change(message("T")).event_type,
    ]

    assert found == [EventType.CREATE, EventType.UPDATE, EventType.DELETE, EventType.TRUNCATE]


def test_values_of_other_types_are_converted() -> None:
    """By the catalog's loaders; what they do is theirs."""
    row = insert(column("t", TIMESTAMPTZ, '"2024-02-29 12:00:00+00"'), column("b", BYTEA, '"00ff"')).payload()

    assert row == {"t": datetime(2024, 2, 29, 12, tzinfo=UTC), "b": b"\x00\xff"}


def test_neither_change_nor_event_shows_a_value() -> None:
    """They end up in logs and tracebacks: as `repr`, and as `rich` shows them."""
    row = change(GOOD)
    kind = Kind(row.event_type, row.schema, row.table)
    event = DatabaseEvent(1, kind, (), Transaction(1, 1, datetime.now(UTC)), 1, row)
    _ = event.payload

    for shown in (row, event, [row, event]):
        assert SECRET not in repr(shown)
        assert SECRET not in pretty_repr(shown)


def test_rows_are_parsed_with_their_heads_as_long_as_they_are_read() -> None:
    """It is a guess from what happened to earlier rows, and follows when callbacks come and go."""
    stream = Decoder(FixedCatalog())
    row = message("I", [column("a", INT4, "1")])

    def burst(*, is_read: bool) -> bool:
        made = stream.decode_all([row])[0][-1]
        assert isinstance(made, Wal2JsonChange)
        if is_read:
            assert made.payload() == {"a": 1}
        return isinstance(made._head, Whole)

    assert [burst(is_read=True) for _ in range(3)] == [False, True, True]
    assert burst(is_read=False)
    later = [burst(is_read=False) for _ in range(2 * SAMPLE_BURSTS + 4)]
    assert later == sorted(later, reverse=True)
    assert not later[-1]
