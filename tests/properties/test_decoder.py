"""The decoder gives back what was put into a message; of a damaged one it makes a value, or a DecodeError."""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cdc.errors import DecodeError
from cdc.events import EventType
from cdc.lsn import Lsn
from cdc.messages import Begin, Commit, Message
from cdc.wal2json import Wal2JsonChange
from tests.decoding import each_way, make_decoder  # noqa: F401 - each_way runs by itself
from tests.properties.messages import (
    NUMERIC,
    TEXTS,
    TIME,
    Cell,
    FixedCatalog,
    array_text,
    boundary,
    change,
    keyable,
    logical_message,
    names,
    nullable,
    rows,
    texts,
)
from tests.properties.profiles import examples

TYPES = {"I": EventType.CREATE, "U": EventType.UPDATE, "D": EventType.DELETE, "T": EventType.TRUNCATE}


def decoded(payload: bytes, *watch: str, toastable: frozenset[str] = frozenset()) -> Wal2JsonChange:
    """The change in `payload`."""
    made = make_decoder(FixedCatalog(toastable), watch=watch).decode(payload)
    assert isinstance(made, Wal2JsonChange)
    return made


def facts(values: Any) -> Any:
    """With types and the digits of decimals, which == does not see."""
    if isinstance(values, dict):
        return {name: facts(value) for name, value in values.items()}
    if isinstance(values, list):
        return [facts(value) for value in values]
    return type(values), str(values)


def row_of(cells: Sequence[Cell]) -> dict[str, Any]:
    """What the payload must be."""
    return {cell.name: cell.value for cell in cells}


def key_of(cells: Sequence[Cell]) -> str | None:
    """What the record id must be."""
    parts = [cell.key for cell in cells]
    if len(parts) == 1:
        return str(parts[0])
    return json.dumps(parts, ensure_ascii=False, separators=(",", ":")) if parts else None


@given(names, names, st.sampled_from("ID"), rows(), rows(keyable), st.data())
def test_inserts_and_deletes_hold_what_was_put_in(
    schema: str, table: str, action: str, rest: list[Cell], key: list[Cell], data: st.DataObject
) -> None:
    """Any names, any values, keys of any width; the same at every reading, whatever is read first."""
    cells = data.draw(st.permutations(key + [one for one in rest if one.name not in row_of(key)]))
    columns, identity = (cells, None) if action == "I" else (None, cells)
    made = decoded(change(action, columns, identity, [one.name for one in key], schema=schema, table=table))

    assert (made.event_type, made.schema, made.table) == (TYPES[action], schema, table)
    for read in data.draw(st.permutations(["key", "row", "key", "row"])):
        if read == "key":
            assert made.record_id() == made.previous_record_id() == key_of(key)
        else:
            assert facts(made.payload()) == facts(row_of(cells))
            assert made.before() is None if action == "I" else facts(made.before()) == facts(row_of(cells))
    assert made.unchanged() == frozenset()


@given(rows(min_size=1), st.data())
def test_updates_hold_old_and_new_and_tell_what_was_not_sent(cells: list[Cell], data: st.DataObject) -> None:
    """With and without an old row; what the server left out is filled from the old row, or told as unchanged."""
    toastable = frozenset(data.draw(st.sets(st.sampled_from(cells).map(lambda one: one.name))))
    sent = [one for one in cells if one.name not in toastable]
    old = data.draw(st.none() | st.just([Cell(one.name, *data.draw(nullable)) for one in cells]))

    made = decoded(change("U", sent, old, []), toastable=toastable)

    assert facts(made.payload()) == facts((row_of(old) if old else {}) | row_of(sent))
    assert facts(made.before()) == facts(row_of(old) if old else None)
    assert made.unchanged() == (frozenset() if old else toastable)
    assert made.record_id() is None


@given(rows(keyable, min_size=1), st.data())
def test_updates_know_both_keys(key: list[Cell], data: st.DataObject) -> None:
    """The old row has the old key; without one the key did not change."""
    old = [Cell(one.name, *data.draw(keyable)) for one in key]
    pk = [one.name for one in key]

    moved, stayed = decoded(change("U", key, old, pk)), decoded(change("U", key, None, pk))

    assert (moved.record_id(), moved.previous_record_id()) == (key_of(key), key_of(old))
    assert stayed.record_id() == stayed.previous_record_id() == key_of(key)


@given(rows(), texts.filter(bool), st.lists(st.none() | names, max_size=3), texts)
def test_watched_columns_are_seen_and_no_others(
    cells: list[Cell], column: str, tags: list[str | None], text: str
) -> None:
    """The search is in the bytes, the answer is about columns."""
    others = [one for one in cells if one.name != column]
    array = array_text(tags)
    watched = Cell(column, TEXTS, json.dumps(array), tags)
    with_it, without = decoded(change("I", [*others, watched]), column), decoded(change("I", others), column)

    assert with_it.watched
    assert with_it.text_list(column) == tuple(tag for tag in tags if tag)
    assert without.text_list(column) == ()


@given(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 32) - 1), names, texts, st.booleans())
def test_boundaries_and_messages_hold_what_was_put_in(
    lsn: int, xid: int, prefix: str, content: str, transactional: bool
) -> None:
    """Positions of 64 bits, any prefix, any content."""
    decode = make_decoder(FixedCatalog()).decode

    assert decode(boundary("B", lsn, xid)) == Begin(Lsn(lsn), xid, TIME)
    assert decode(boundary("C", lsn, xid)) == Commit(Lsn(lsn))
    assert decode(logical_message(prefix, content, transactional=transactional)) == Message(
        transactional, prefix, content, lsn=1
    )


# --- damage ----------------------------------------------------------------------------------------------


def read_all(payload: bytes) -> None:
    """Decode, and read whatever can be read of it."""
    made = make_decoder(FixedCatalog(), watch=["__tags__", "n"]).decode(payload)
    if isinstance(made, Wal2JsonChange):
        for read in (made.record_id, made.previous_record_id, made.payload, made.before, made.unchanged):
            read()
        made.text_list("__tags__")
        if made.event_type is EventType.UPDATE:
            made.deleted_softly(frozenset({"n"}))


def value_or_decode_error(payload: bytes) -> None:
    """Nothing else may come out, and no value in the error."""
    told = ""
    try:
        read_all(payload)
    except DecodeError as error:
        told = f"{error} {error.excerpt} {error.hint}"
    assert "s3cr3t" not in told


MESSAGES = [
    change("I", [Cell("__tags__", 1009, '"{s3cr3t}"', []), Cell("n", NUMERIC, "1.50", Decimal())], None, ["n"]),
    change("U", [Cell("n", NUMERIC, "1.50", 0)], [Cell("t", 1184, '"s3cr3t"', 0), Cell("n", 17, '"s3cr3t"', 0)], ["t"]),
    change("D", None, [Cell("k", 23, '"s3cr3t"', 0), Cell("j", 3802, '"[\\"s3cr3t\\"]"', 0)], ["k"]),
    change("T"),
    boundary("B", 1 << 40),
    boundary("C", 1 << 40),
    logical_message("cdc.tags", "a,b"),
]
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["s3cr3t", "0/1", "", "n", TIME]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["name", "typeoid", "value"]), inner),
    max_leaves=4,
)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in a JSON document."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(place for step, inner in items for place in places(inner, (*path, step)))]


def replaced(node: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The document with another value at that place."""
    if not path:
        return value
    copy = dict(node) if isinstance(node, dict) else list(node)
    copy[path[0]] = replaced(copy[path[0]], path[1:], value)
    return copy


@examples(300)
@given(st.sampled_from(MESSAGES), junk, st.data())
def test_message_with_a_wrong_value_anywhere_is_a_value_or_a_decode_error(
    payload: bytes, wrong: Any, data: st.DataObject
) -> None:
    """Also when its row is read only later: whoever reads it learns that the message makes no sense."""
    document = json.loads(payload)
    place = data.draw(st.sampled_from(places(document)))

    value_or_decode_error(json.dumps(replaced(document, place, wrong)).encode())


@examples(200)
@given(st.sampled_from(MESSAGES), st.data())
def test_message_with_a_key_too_few_is_a_value_or_a_decode_error(payload: bytes, data: st.DataObject) -> None:
    """At any depth."""
    document = json.loads(payload)
    path = data.draw(st.sampled_from([place for place in places(document) if place]))
    parent = document
    for step in path[:-1]:
        parent = parent[step]
    del parent[path[-1]]

    value_or_decode_error(json.dumps(document).encode())


@examples(200)
@given(st.sampled_from(MESSAGES), st.data())
def test_message_with_damaged_bytes_is_a_value_or_a_decode_error(payload: bytes, data: st.DataObject) -> None:
    """Some of them overwritten, left out or doubled."""
    start, end = sorted(data.draw(st.tuples(st.integers(0, len(payload)), st.integers(0, len(payload)))))
    middle = data.draw(st.binary(max_size=4) | st.just(payload[start:end] * 2))

    value_or_decode_error(payload[:start] + middle + payload[end:])
