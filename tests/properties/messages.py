"""Messages as wal2json writes them, with what must be read from each; strategies for the properties and the fuzzer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from hypothesis import strategies as st

from cdc.values import PostgresValue, TypeInfo, TypeKind
from tests import decoding

BOOL, BYTEA, INT8, INT2, INT4, TEXT, JSON = 16, 17, 20, 21, 23, 25, 114
FLOAT8, DATE, TIMESTAMP, TIMESTAMPTZ, NUMERIC, UUID_OID, JSONB = 701, 1082, 1114, 1184, 1700, 2950, 3802
INTS, TEXTS = 1007, 1009
OWN_ENUM, OWN_DOMAIN, OWN_ARRAY, HSTORE = 20_000, 20_001, 20_002, 20_003
OWN_TYPES = {
    OWN_ENUM: TypeInfo(OWN_ENUM, "mood", TypeKind.ENUM),
    OWN_DOMAIN: TypeInfo(OWN_DOMAIN, "amount", TypeKind.DOMAIN, base_oid=NUMERIC),
    OWN_ARRAY: TypeInfo(OWN_ARRAY, "_mood", TypeKind.ARRAY, element_oid=OWN_ENUM),
    HSTORE: TypeInfo(HSTORE, "hstore", TypeKind.BASE),
}
TIME = "2024-02-29 12:00:00.5+00"


class FixedCatalog(decoding.FixedCatalog):
    """A catalog without a database: PostgreSQL's own types, and a few of each kind of one's own."""

    def __init__(self, toastable: frozenset[str] = frozenset()) -> None:
        super().__init__(toastable, resolve=OWN_TYPES.get)


@dataclass(frozen=True, slots=True)
class Cell:
    """A column of one row: the JSON that stands for it, its Python value, and its text as a part of a key."""

    name: str
    oid: int
    literal: str
    value: PostgresValue
    key: str | int = ""

    def __str__(self) -> str:
        return f'{{"name":{quoted(self.name)},"typeoid":{self.oid},"value":{self.literal}}}'


def quoted(text: str) -> str:
    """A JSON string as PostgreSQL escapes it: no more than JSON demands."""
    return json.dumps(text, ensure_ascii=False)


def change(
    action: str,
    columns: Sequence[Cell] | None = None,
    identity: Sequence[Cell] | None = None,
    key: Sequence[str] | None = None,
    *,
    schema: str = "public",
    table: str = "t",
    lsn: str = "0/AB",
) -> bytes:
    """A message of a change."""
    parts = [f'"action":"{action}","xid":7,"timestamp":"{TIME}","lsn":"{lsn}"']
    parts.append(f'"schema":{quoted(schema)},"table":{quoted(table)}')
    for name, cells in (("columns", columns), ("identity", identity)):
        if cells is not None:
            parts.append(f'"{name}":[{",".join(map(str, cells))}]')
    if key is not None:
        pk = [f'{{"name":{quoted(name)},"typeoid":23}}' for name in key]
        parts.append(f'"pk":[{",".join(pk)}]')
    return ("{" + ",".join(parts) + "}").encode()


def boundary(action: str, commit_lsn: int, xid: int = 7) -> bytes:
    """A message of a begin or a commit."""
    end = f"{commit_lsn >> 32:X}/{commit_lsn & 0xFFFFFFFF:X}"
    return f'{{"action":"{action}","xid":{xid},"timestamp":"{TIME}","lsn":"0/1","nextlsn":"{end}"}}'.encode()


def logical_message(prefix: str, content: str, *, transactional: bool = True) -> bytes:
    """What `pg_logical_emit_message` makes."""
    facts = f'"xid":{7 if transactional else "null"},"timestamp":{quoted(TIME) if transactional else "null"}'
    facts += f',"lsn":"0/1","transactional":{str(transactional).lower()}'
    return f'{{"action":"M",{facts},"prefix":{quoted(prefix)},"content":{quoted(content)}}}'.encode()


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30) | st.sampled_from(
    ['"typeoid":1700,"value":1.5', '"name":"__tags__"', "\\", '\\"', '"columns":[', "{}", "\u2028", "\x7f\x01\n"]
)
names = texts.filter(bool)
"""PostgreSQL's identifiers: any text but the empty one."""


def array_text(items: Sequence[str | None]) -> str:
    """PostgreSQL's text of an array: every item quoted."""
    texts = ["NULL" if one is None else '"' + one.replace("\\", "\\\\").replace('"', '\\"') + '"' for one in items]
    return "{" + ",".join(texts) + "}"


def _cell(oid: int, literal: str, value: Any, key: str | int | None = None) -> tuple[int, str, Any, str | int]:
    return oid, literal, value, literal if key is None else key


def _number(text: str) -> str:
    return text.removesuffix(".0")  # as PostgreSQL prints a whole float


moments = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30))  # noqa: DTZ001 - the zone is the column's
decimals = st.decimals(allow_nan=False, allow_infinity=False).map(lambda number: format(number, "f"))
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)

keyable = st.one_of(
    st.integers(-(1 << 31), (1 << 31) - 1).map(lambda n: _cell(INT4, str(n), n, n)),
    st.integers(-(1 << 63), (1 << 63) - 1).map(lambda n: _cell(INT8, str(n), n, n)),
    texts.map(lambda text: _cell(TEXT, quoted(text), text, text)),
    st.uuids().map(lambda one: _cell(UUID_OID, f'"{one}"', UUID(str(one)), str(one))),
    decimals.map(lambda text: _cell(NUMERIC, text, Decimal(text), text)),
    st.binary(max_size=20).map(lambda data: _cell(BYTEA, f'"{data.hex()}"', data, f"\\x{data.hex()}")),
    st.booleans().map(lambda flag: _cell(BOOL, str(flag).lower(), flag)),
)
nullable = st.one_of(
    keyable,
    st.floats(allow_nan=False, allow_infinity=False).map(lambda f: _cell(FLOAT8, _number(repr(f)), f)),
    moments.map(lambda t: _cell(TIMESTAMP, f'"{t.isoformat(" ")}"', t)),
    moments.map(lambda t: _cell(TIMESTAMPTZ, f'"{t.isoformat(" ")}+00"', t.replace(tzinfo=UTC))),
    st.dates().map(lambda day: _cell(DATE, f'"{day.isoformat()}"', day)),
    documents.map(lambda one: _cell(JSONB, quoted(json.dumps(one)), one)),
    st.lists(st.none() | texts, max_size=4).map(lambda items: _cell(TEXTS, quoted(array_text(items)), items)),
    decimals.map(lambda text: _cell(OWN_DOMAIN, f'"{text}"', Decimal(text))),
    texts.map(lambda text: _cell(OWN_ENUM, quoted(text), text)),
    st.sampled_from([INT4, TEXT, NUMERIC, BYTEA, JSONB, TEXTS, OWN_ENUM]).map(lambda oid: _cell(oid, "null", None)),
)


@st.composite
def rows(draw: st.DrawFn, values: Any = nullable, min_size: int = 0) -> list[Cell]:
    """A row of some columns with different names."""
    chosen = draw(st.lists(names, unique=True, min_size=min_size, max_size=6))
    return [Cell(name, *draw(values)) for name in chosen]
