"""Values: whatever wal2json sends of a column, the payload holds what psycopg returns for it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from ipaddress import ip_address, ip_interface, ip_network
from threading import Barrier
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID

import orjson
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.types import TypeInfo as PsycopgTypeInfo
from psycopg.types.hstore import register_hstore
from psycopg.types.multirange import Multirange
from psycopg.types.range import Range

from cdc.catalog import Catalog
from cdc.demo.cluster import Cluster
from cdc.values import Loaders, TypeInfo, TypeKind, as_is, to_json
from tests.conftest import Database, drop_database

# As the replication connection is pinned.
SESSION = (
    "-c datestyle=ISO,YMD -c intervalstyle=postgres -c timezone=UTC -c extra_float_digits=1"
    " -c bytea_output=hex -c lc_monetary=C"
)
OPTIONS = "'format-version','2','include-types','off','include-type-oids','on'"

SCHEMA = """
    CREATE TYPE mood AS ENUM ('sad', 'so, so', 'NULL', 'qu"oted');
    CREATE TYPE pair AS (x int, label text);
    CREATE TYPE floatrange AS RANGE (subtype = float8, multirange_type_name = floatmultirange);
    CREATE DOMAIN positive AS int CHECK (value > 0);
    CREATE DOMAIN small AS positive CHECK (value < 100);
    CREATE DOMAIN flag AS bool;
    CREATE DOMAIN blob AS bytea;
    CREATE DOMAIN amount AS numeric;
    CREATE DOMAIN ratio AS float8;
    CREATE DOMAIN day AS date;
    CREATE DOMAIN document AS jsonb;
    CREATE DOMAIN feeling AS mood;
    CREATE DOMAIN ints AS int[];
    CREATE DOMAIN moods AS mood[];
    CREATE DOMAIN point_pair AS pair;
    CREATE DOMAIN label AS varchar(20);
    CREATE SCHEMA "Strange ""one"" here";
    CREATE TYPE "Strange ""one"" here"."Kind; of" AS ENUM ('a', 'b');
"""

# fmt: off
BIG = "123456789012345678901234567890"
DATES = ["2024-02-29", "0001-01-01", "9999-12-31", "1582-10-10"]
DATES_BEYOND = ["infinity", "-infinity", "0044-03-15 BC", "10000-01-01", "5874897-12-31"]
STAMPS = ["2024-02-29 12:34:56.123456", "2024-01-01 00:00:00.1", "0001-01-01 00:00:00"]
STAMPS += ["9999-12-31 23:59:59.999999"]
STAMPS_BEYOND = ["infinity", "-infinity", "0044-03-15 01:02:03 BC", "10000-01-01 00:00:00"]
STAMPS_BEYOND += ["294276-12-31 23:59:59.999999"]
INTERVALS = [
    "0", "1 day", "-1 day", "1 year 2 mons 3 days 04:05:06.7", "-1 year -2 mons +3 days -04:05:06.000007",
    "1 mon -1 day", "00:00:00.000001", "-00:00:00.5", "200:00:00", "178000000 years", "-178000000 years",
]
TEXTS = [
    "", " ", "plain", "NULL", "null", 'quo"te', "back\\slash", "new\nline\ttab", "comma, {brace} (paren)",
    "naïve café", "😀 \u2028 \x7f", "\x01\x1f", "a" * 70_000, "\\x41", "t", "'",
]
JSONS = [
    "{}", "[]", "null", "true", '"text"', "0", "-0", "-0.0", "1.10", "1e5", "1e-400", BIG, "-" + BIG,
    f"[{BIG}, 1.5]", "9223372036854775807", "-9223372036854775808", "-9223372036854775809",
    "18446744073709551615", "18446744073709551616", "0.1234567890123456789",
    '{"a": 1, "b": [null, {"c": "\\u00e9\\n\\"\\\\"}], "": []}', '{"b": 1, "a": 2, "b": 3}',
    '  { "spaces" :  1 }  ', '"1234567890123456789012"', "9" * 4301, "[" * 200 + "]" * 200,
    '"😀\x7f\u2028"', "1e300",
]
# Type → values in their text form; PostgreSQL reads them as literals. None is SQL NULL.
CORPUS: dict[str, list[str]] = {
    "int2": ["0", "-32768", "32767"],
    "int4": ["0", "-2147483648", "2147483647"],
    "int8": ["0", "-9223372036854775808", "9223372036854775807", "9007199254740993"],
    "oid": ["0", "4294967295"],
    "numeric": [
        "0", "1", "-1", "1.10", "1.00", "0.1", "-0.000000000000000000000000000001", BIG, f"-{BIG}.{BIG}",
        "18446744073709551615", "18446744073709551616", "9007199254740993", "9007199254740993.1",
        "1e-400", "1e400", "9" * 131072, f"{'9' * 131072}.{'9' * 16383}", "0.00",
    ],
    "numeric(10,2)": ["1", "-0.5", "12345678.90"],
    "numeric(5,-2)": ["123456", "-149"],
    "float4": ["0", "-0", "1", "1.1", "3.4028235e38", "1e-45", "16777217"],
    "float8": [
        "0", "-0", "1", "0.1", "-1.5", "5e-324", "1e308", "1.7976931348623157e308", "1e16", "1e23",
        "123456789012345680000",
    ],
    "bool": ["true", "false"],
    "text": TEXTS,
    "varchar": TEXTS,
    "varchar(5)": ["", "abc", "ünïcö"],
    "char(5)": ["", "abc", "ünïcö"],
    "bpchar": ["", "abc  "],
    "name": ["", "Some Name"],
    '"char"': ["", "a", "\\"],
    "bytea": ["", "\\x", "\\x00", "\\xdeadbeef", "\\x5c78", "abc"],
    "uuid": ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "00000000-0000-0000-0000-000000000000"],
    "date": DATES + DATES_BEYOND,
    "time": ["00:00", "12:34:56.123456", "23:59:59.9", "24:00:00"],
    "time(0)": ["12:34:56.5"],
    "timetz": ["00:00+00", "12:34:56.123456+05:30", "23:59:59-15:59", "12:00:00+01:02:03", "24:00:00+00"],
    "timestamp": STAMPS + STAMPS_BEYOND,
    "timestamptz": [
        *(f"{stamp}+00" for stamp in STAMPS), "2024-07-01 00:00:00+05:30", "2024-07-01 00:00:00-11",
        "infinity", "-infinity", "0044-03-15 01:02:03+00 BC", "10000-01-01 00:00:00+00",
        "0001-01-01 00:00:00+14", "9999-12-31 23:59:59-12",
    ],
    "timestamptz(3)": ["2024-02-29 12:34:56.1235+00"],
    "interval": INTERVALS,
    "json": [*JSONS, "1e400", '"\\ud800"', '"\\u0000"'],
    "jsonb": [*JSONS, "1e400", "1e-5", "1" + "0" * 40 + ".5"],
    "inet": ["10.0.0.1", "10.0.0.1/24", "10.0.0.0/8", "::1", "2001:db8::1/64", "::ffff:1.2.3.4"],
    "cidr": ["10.0.0.0/8", "10.0.0.1/32", "2001:db8::/32", "::/0"],
    "macaddr": ["08:00:2b:01:02:03"],
    "macaddr8": ["08:00:2b:01:02:03:04:05"],
    "int4range": ["empty", "[1,10)", "(,)", "[1,)", "(,5]"],
    "int8range": ["empty", "[-9223372036854775808,9223372036854775807)"],
    "numrange": ["empty", "(1.10,2.000]", "[0,)", "[1,infinity]"],
    "daterange": ["[2024-01-01,2024-02-01)", "(,2024-01-01)", "[2024-01-01,infinity)"],
    "tsrange": ["[2024-01-01 00:00,2024-01-02 12:34:56.789)", "(,)", "[2024-01-01,infinity]"],
    "tstzrange": ["[2024-01-01 00:00+00,2024-01-02 12:34:56.789+05)", "empty", "[-infinity,infinity]"],
    "int4multirange": ["{}", "{[1,3),[5,)}"],
    "int8multirange": ["{}", "{[1,3)}"],
    "nummultirange": ["{}", "{(1.10,2],[5,)}"],
    "datemultirange": ["{}", "{[2024-01-01,2024-02-01),[2025-01-01,)}", "{[2024-01-01,infinity)}"],
    "tsmultirange": ["{}", "{[2024-01-01 00:00,2024-01-02 12:34:56.789)}"],
    "tstzmultirange": ["{}", "{[2024-01-01 00:00+00,2024-01-02 12:34:56.789+05)}"],
    "int2[]": ["{}", "{1,NULL,-32768}"],
    "int4[]": [
        "{}", "{1,2}", "{{1,2},{3,NULL}}", "[2:3]={1,2}", "[0:1][-1:0]={{1,2},{3,4}}", "{{{1}},{{2}}}",
        "{NULL}",
    ],
    "int8[]": ["{9223372036854775807}"],
    "oid[]": ["{4294967295}"],
    "numeric[]": ["{1.10,NaN,Infinity,NULL,123456789012345678901234567890.5}"],
    "float4[]": ["{1.1,NaN}"],
    "float8[]": ["{1,0.1,-0,NaN,Infinity,-Infinity,5e-324}"],
    "bool[]": ["{t,f,NULL}", "{{t},{f}}"],
    "text[]": [
        '{"",a,"b c","NULL",NULL,"qu\\"ote","back\\\\slash","com,ma","{brace}","new\nline",😀}',
        '{{"a","b"},{NULL,"\\"}"}}', "[5:5]={x}",
    ],
    "varchar[]": ['{"a b",c}'],
    "char(3)[]": ["{a,ab}"],
    "name[]": ["{a}"],
    '"char"[]': ["{a,b}"],
    "bytea[]": ['{"\\\\x00ff","",NULL}'],
    "uuid[]": ["{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}"],
    "date[]": ["{2024-01-01,NULL}", "{2024-01-01,infinity}"],
    "time[]": ["{12:34:56.5}", "{24:00}"],
    "timetz[]": ["{12:34:56.5+05:30}"],
    "timestamp[]": ['{"2024-01-01 00:00:00.5"}', "{-infinity}"],
    "timestamptz[]": ['{"2024-01-01 00:00:00.5+00",NULL}', "{infinity}"],
    "interval[]": ['{"1 mon -1 day 02:03:04.5"}'],
    "json[]": ['{"{\\"a\\": [1, 2.50]}",NULL,"null","[]"}'],
    "jsonb[]": ['{"{\\"a\\": \\"x,y\\"}"}', f"{{{BIG}}}"],
    "inet[]": ["{10.0.0.1,10.0.0.1/24,::1}"],
    "cidr[]": ["{10.0.0.0/8}"],
    "macaddr[]": ["{08:00:2b:01:02:03}"],
    "macaddr8[]": ["{08:00:2b:01:02:03:04:05}"],
    "int4range[]": ['{"[1,3)",empty,NULL}'],
    "numrange[]": ['{"[1.10,3)"}'],
    "daterange[]": ['{"[2024-01-01,2024-02-01)"}', '{"[2024-01-01,infinity)"}'],
    "tstzrange[]": ['{"[2024-01-01 00:00+00,)"}'],
    "int4multirange[]": ['{"{[1,3),[5,7)}"}'],
    "tstzmultirange[]": ['{"{[2024-01-01 00:00+00,2024-01-02 00:00+00)}"}'],
    "bit(4)": ["1010"],
    "bit(4)[]": ["{1010,0001}"],
    "varbit": ["", "10101"],
    "money": ["12.34", "-1234567.89"],
    "money[]": ['{"$1,234.50"}'],
    "xml": ["<a b='c'>text &amp; more</a>"],
    "xml[]": ["{<a/>}"],
    "tsvector": ["'fat':2A 'it''s':4", ""],
    "tsquery": ["'fat' & ( 'rat' | !'cat' )"],
    "tsvector[]": ["{\"'a':1 'b':2\"}"],
    "point": ["(1.5,-2)"],
    "point[]": ['{"(1,2)","(3,4)"}'],
    "box": ["(3,4),(1,2)"],
    "box[]": ["{(3,4),(1,2);(5,6),(0,0)}"],
    "line": ["{1,2,3}"],
    "lseg": ["[(1,2),(3,4)]"],
    "path": ["((1,2),(3,4))", "[(1,2),(3,4)]"],
    "polygon": ["((1,2),(3,4),(5,6))"],
    "circle": ["<(1,2),3>"],
    "pg_lsn": ["16/B374D848"],
    "pg_lsn[]": ["{16/B374D848}"],
    "xid": ["123"],
    "xid8": ["12345678901"],
    "cid": ["1"],
    "tid": ["(1,2)"],
    "regclass": ["pg_class"],
    "regtype": ["integer"],
    "regclass[]": ["{pg_class}"],
    "int2vector": ["1 2 3"],
    "oidvector": ["1 2 3"],
    "pg_snapshot": ["10:20:10,14,15"],
    "jsonpath": ["$.a[*] ? (@.b > 1)"],
    "mood": ["sad", "so, so", "NULL", 'qu"oted'],
    "mood[]": ['{sad,"so, so","NULL",NULL,"qu\\"oted"}', "{{sad},{sad}}", "{}"],
    '"Strange ""one"" here"."Kind; of"': ["a"],
    '"Strange ""one"" here"."Kind; of"[]': ["{a,b}"],
    "pair": ["(1,)", '(2,"a ""quoted"", one")'],
    "pair[]": ['{"(1,x)",NULL,"(2,\\"a b\\")"}'],
    "floatrange": ["[1.5,2.5)"],
    "floatrange[]": ['{"[1.5,2.5)",empty}'],
    "floatmultirange": ["{[1.5,2.5)}"],
    "positive": ["1"],
    "small": ["99"],
    "flag": ["true", "false"],
    "blob": ["\\xcafe", ""],
    "amount": ["1.10", "NaN", "Infinity", "-Infinity", BIG],
    "ratio": ["1", "0.1", "NaN", "-Infinity"],
    "day": DATES + DATES_BEYOND,
    "document": [*JSONS],
    "feeling": ["sad"],
    "ints": ["{1,NULL}", "{{1},{2}}"],
    "moods": ['{sad,"so, so"}'],
    "point_pair": ["(1,a)"],
    "label": ["x"],
}
# fmt: on
# psycopg knows only the name of such an element; we load it as its base type.
DOMAIN_ARRAYS = {
    "small[]": ("int[]", ["{1,NULL,99}", "{{1},{2}}"]),
    "flag[]": ("bool[]", ["{t,f,NULL}"]),
    "blob[]": ("bytea[]", ['{"\\\\xcafe",""}']),
    "amount[]": ("numeric[]", ["{1.10,NaN}"]),
    "day[]": ("date[]", ["{2024-01-01}", "{2024-01-01,infinity}"]),
    "document[]": ("jsonb[]", ['{"{\\"a\\": 1}"}']),
    "feeling[]": ("mood[]", ['{sad,"so, so"}']),
    "label[]": ("text[]", ['{"x y",NULL}']),
}
SINGLE_NULLS_ON_THE_WIRE = {"float4": "NaN", "float8": "-Infinity", "numeric": "NaN"}


def read_literal(literal: str, oid: int) -> Any:
    """As the decoder does it: where a JSON number would lose digits, the loader gets the literal."""
    if oid == 1700 and (len(literal) > 18 or not literal.lstrip("-").isdecimal()):
        return literal
    is_zero = literal in ("0", "-0") and oid in (700, 701)  # JSON's -0 is an integer, thus 0
    return literal if is_zero else orjson.loads(literal)


class Literal(str):
    """A bare number of the plugin's JSON, unread."""

    __slots__ = ()


def read_changes(connection: psycopg.Connection, slot: str) -> list[dict[str, Any]]:
    """All changes in the slot, numbers unread."""
    rows = connection.execute(
        f"SELECT data FROM pg_logical_slot_get_changes('{slot}', NULL, NULL, {OPTIONS})".encode()
    ).fetchall()
    decoder = json.JSONDecoder(parse_float=Literal, parse_int=Literal)
    return [decoder.decode(data) for (data,) in rows]


def payload_of(change: dict[str, Any], loaders: Loaders) -> dict[str, Any]:
    """The new row of an insert, converted."""
    payload = {}
    for column in change["columns"]:
        oid, value = int(column["typeoid"]), column["value"]
        if isinstance(value, Literal):
            value = read_literal(str(value), oid)
        payload[column["name"]] = None if value is None else loaders[oid](value)
    return payload


@dataclass(frozen=True)
class Streamed:
    """The corpus after it has gone through the stream."""

    connection: psycopg.Connection
    tables: dict[str, str]
    payloads: dict[str, list[Any]]

    def selected(self, type_name: str, cast: str = "") -> list[Any]:
        """What psycopg returns for the same rows: the value, or its text where psycopg gives up."""
        return [self.oracle(type_name, row, cast) for row in range(len(self.payloads[type_name]))]

    def oracle(self, type_name: str, row: int, cast: str) -> Any:
        """One value, as psycopg selects it."""
        query = f"SELECT v{{}} FROM {self.tables[type_name]} WHERE id = {row}"
        try:
            return self.fetch(query.format(f"::{cast}" if cast else ""))
        except (psycopg.DataError, ValueError):
            return self.fetch(query.format("::text"))

    def fetch(self, query: str) -> Any:
        """The only value of a query."""
        found = self.connection.execute(query.encode()).fetchone()
        assert found is not None
        return found[0]


@pytest.fixture(scope="module")
def streamed(cluster: Cluster) -> Iterator[Streamed]:
    """Every value of the corpus, inserted, decoded by wal2json and converted, in one go."""
    name = f"test_{secrets.token_hex(6)}"
    cluster.create_database(name)
    try:
        with Database(cluster, name).connect(options=SESSION) as connection:
            yield stream_corpus(connection, Database(cluster, name))
    finally:
        drop_database(cluster, name)


def stream_corpus(connection: psycopg.Connection, database: Database) -> Streamed:
    """Tables t0, t1, ... of one type each; row n holds its n-th value, and one more row NULL."""
    corpus = CORPUS | {name: values for name, (_, values) in DOMAIN_ARRAYS.items()}
    tables = {type_name: f"t{number}" for number, type_name in enumerate(corpus)}
    connection.execute(SCHEMA.encode())
    for type_name, table in tables.items():
        connection.execute(f"CREATE TABLE {table} (id int, v {type_name})".encode())
    slot = f"slot_{database.name}"
    connection.execute(f"SELECT pg_create_logical_replication_slot('{slot}', 'wal2json')".encode())
    with connection.transaction():
        for type_name, values in corpus.items():
            for row, value in enumerate([*values, None]):
                insert = sql.SQL("INSERT INTO {} VALUES ({}, {})")
                name = sql.Identifier(tables[type_name])
                connection.execute(insert.format(name, row, sql.Literal(value)))
    catalog = Catalog(database.dsn)
    payloads: dict[str, list[Any]] = {type_name: [] for type_name in corpus}
    types = {table: type_name for type_name, table in tables.items()}
    for change in read_changes(connection, slot):
        if change["action"] == "I":
            payloads[types[change["table"]]].append(payload_of(change, catalog.loaders)["v"])
    for own in ("mood", "pair", "floatrange", '"Strange ""one"" here"."Kind; of"'):
        info = PsycopgTypeInfo.fetch(connection, own)
        assert info is not None
        info.register(connection)
    return Streamed(connection, tables, payloads)


def exactly(values: list[Any]) -> list[tuple[str, str]]:
    """Type and repr tell apart what == does not: 1 and True, 0.0 and -0.0, 1.10 and 1.1; NaN equals NaN."""
    return [(type(value).__name__, repr(value)) for value in values]


@pytest.mark.parametrize("type_name", CORPUS)
def test_streamed_value_equals_what_psycopg_selects(streamed: Streamed, type_name: str) -> None:
    """A payload value has the type and the value psycopg gives for the same row; text where it has none."""
    got = streamed.payloads[type_name]

    assert len(got) == len(CORPUS[type_name]) + 1
    assert exactly(got) == exactly(streamed.selected(type_name))


@pytest.mark.parametrize("type_name", DOMAIN_ARRAYS)
def test_elements_of_a_domain_array_are_of_the_base_type(streamed: Streamed, type_name: str) -> None:
    """An array of a domain is a list of what the domain's base type gives."""
    got = streamed.payloads[type_name]

    assert exactly(got) == exactly(streamed.selected(type_name, cast=DOMAIN_ARRAYS[type_name][0]))


@pytest.mark.parametrize(
    ("type_name", "text"),
    [("date", "infinity"), ("timestamptz", "0044-03-15 01:02:03+00 BC"), ("time", "24:00:00")],
)
def test_value_beyond_python_comes_as_text(streamed: Streamed, type_name: str, text: str) -> None:
    """What psycopg cannot represent is PostgreSQL's text, and no error."""
    assert text in streamed.payloads[type_name]


@pytest.mark.parametrize(("type_name", "text"), SINGLE_NULLS_ON_THE_WIRE.items())
def test_nan_and_infinity_arrive_as_null(database: Database, type_name: str, text: str) -> None:
    """wal2json writes null for NaN and infinity of the plain number types: nobody can tell it from NULL."""
    database.execute(f"CREATE TABLE t (v {type_name})")
    database.execute(f"SELECT pg_create_logical_replication_slot('{database.name}', 'wal2json')")
    database.execute(f"INSERT INTO t VALUES ('{text}')")
    with database.connect() as connection:
        changes = read_changes(connection, database.name)

    assert [change["columns"][0]["value"] for change in changes if change["action"] == "I"] == [None]


@pytest.mark.parametrize(
    ("extension", "type_name", "value"),
    [
        ("hstore", "hstore", 'a=>1, "b c"=>NULL, "qu\\"ote"=>"back\\\\slash", ""=>""'),
        ("hstore", "hstore[]", '{"\\"a\\"=>\\"1\\"",NULL}'),
        ("citext", "citext", "MiXed"),
        ("citext", "citext[]", '{MiXed,"a b"}'),
    ],
)
def test_types_of_extensions(database: Database, extension: str, type_name: str, value: str) -> None:
    """hstore is a dict, as psycopg makes it once told; types nobody knows are text, their arrays lists."""
    database.execute(f"CREATE EXTENSION {extension}")
    database.execute(f"CREATE TABLE t (v {type_name})")
    database.execute(f"SELECT pg_create_logical_replication_slot('{database.name}', 'wal2json')")
    with database.connect() as connection:
        connection.execute(sql.SQL("INSERT INTO t VALUES ({})").format(sql.Literal(value)))
        info = PsycopgTypeInfo.fetch(connection, extension)
        assert info is not None
        info.register(connection)
        if extension == "hstore":
            register_hstore(info, connection)
        (selected,) = connection.execute("SELECT v FROM t").fetchall()[0]
        change = next(c for c in read_changes(connection, database.name) if c["action"] == "I")

    assert payload_of(change, Catalog(database.dsn).loaders) == {"v": selected}


# --- loaders without a server ------------------------------------------------------------------------


def no_type(oid: int) -> TypeInfo | None:
    """A catalog without types of its own."""
    return None


@pytest.mark.parametrize("oid", [16, 20, 21, 23, 25, 26, 1042, 1043, 18, 19, 790, 142, 600, 3614, 2205])
def test_loader_of_a_plain_type_can_be_skipped(oid: int) -> None:
    """Booleans, integers and all that is text are `as_is`: the caller need not call."""
    assert Loaders(no_type)[oid] is as_is


def test_numbers_as_text_are_read() -> None:
    """wal2json 2.6 can send all numbers as strings, and then NaN and infinity, too."""
    loaders = Loaders(no_type, numbers_as_text=True)

    got = [loaders[20]("5"), loaders[701]("1"), loaders[700]("-Infinity"), loaders[1700]("1.10")]

    assert exactly(got) == exactly([5, 1.0, float("-inf"), Decimal("1.10")])
    assert repr([loaders[701]("NaN"), loaders[1700]("NaN")]) == "[nan, Decimal('NaN')]"


@pytest.mark.parametrize("oid", [700, 701])
def test_float_refuses_the_integer_zero(oid: int) -> None:
    """It may have been -0, of which only the literal tells."""
    load = Loaders(lambda _: None)[oid]

    with pytest.raises(ValueError, match="-0"):
        load(0)
    assert [str(load(value)) for value in ("0", "-0", 3)] == ["0.0", "-0.0", "3.0"]


def test_numeric_refuses_a_float() -> None:
    """A float has lost digits before it got here: that is a fault of the decoder and must be seen."""
    with pytest.raises(ValueError, match="not as a float"):
        Loaders(no_type)[1700](1.1)


def test_type_that_is_gone_is_text() -> None:
    """A type which the catalog no longer has gives its text, and the catalog is asked once."""
    asked = []

    def resolve(oid: int) -> TypeInfo | None:
        asked.append(oid)
        return None

    loaders = Loaders(resolve)

    assert [loaders[99_999]("{a}"), loaders[99_999]("{b}")] == ["{a}", "{b}"]
    assert asked == [99_999]


def test_oid_beyond_31_bits_is_asked_for_as_what_it_is() -> None:
    """wal2json prints such an OID as a negative number."""
    types = {2**32 - 5: TypeInfo(2**32 - 5, "flag", TypeKind.DOMAIN, base_oid=16)}

    assert Loaders(types.get)[-5]("t") is True


def test_error_of_the_catalog_passes_and_the_next_look_up_asks_again() -> None:
    """While the database is away nothing is guessed, and nothing is remembered."""
    answers = iter([None])

    def resolve(oid: int) -> TypeInfo | None:
        if not asked:
            asked.append(oid)
            raise ConnectionError("away")
        return TypeInfo(oid, "small", TypeKind.DOMAIN, base_oid=next(answers, 23) or 23)

    asked: list[int] = []
    loaders = Loaders(resolve)

    with pytest.raises(ConnectionError):
        loaders[99_999]
    assert loaders[99_999]("7") == 7


def test_loaders_of_one_database_do_not_reach_another() -> None:
    """An OID is an array in one database and a domain in another; psycopg's own adapters stay as they are."""
    one = Loaders({70_000: TypeInfo(70_000, "_x", TypeKind.ARRAY, element_oid=70_001)}.get)
    two = Loaders({70_000: TypeInfo(70_000, "x", TypeKind.DOMAIN, base_oid=17)}.get)

    assert (one[70_000]("{a}"), two[70_000]("\\x41")) == (["a"], b"A")
    assert psycopg.adapters.get_loader(70_000, psycopg.pq.Format.TEXT) is None


def test_array_is_split_at_the_delimiter_of_its_element() -> None:
    """An extension's type may have a delimiter of its own, as box has."""
    loaders = Loaders({70_000: TypeInfo(70_000, "_x", TypeKind.ARRAY, element_oid=70_001, delimiter="|")}.get)

    assert loaders[70_000]("{a,b|c}") == ["a,b", "c"]


def test_arrays_of_domains_over_arrays_nest() -> None:
    """PostgreSQL quotes the inner array; both become lists."""
    types = {
        1: TypeInfo(1, "_ints", TypeKind.ARRAY, element_oid=2),
        2: TypeInfo(2, "ints", TypeKind.DOMAIN, base_oid=1007),
        3: TypeInfo(3, "_moods", TypeKind.ARRAY, element_oid=4),
        4: TypeInfo(4, "moods", TypeKind.DOMAIN, base_oid=5),
        5: TypeInfo(5, "_mood", TypeKind.ARRAY, element_oid=6),
        6: TypeInfo(6, "mood", TypeKind.ENUM),
    }
    loaders = Loaders({70_000 + oid: moved(info) for oid, info in types.items()}.get)

    assert loaders[70_001]('{"{1,2}",NULL,"{}"}') == [[1, 2], None, []]
    assert loaders[70_003]('{"{a,\\"b c\\"}"}') == [["a", "b c"]]


def moved(info: TypeInfo) -> TypeInfo:
    """Out of the range of the built-in types."""
    far = {name: getattr(info, name) for name in ("oid", "element_oid", "base_oid")}
    far = {name: oid + 70_000 if 0 < oid < 10 else oid for name, oid in far.items()}
    return TypeInfo(name=info.name, kind=info.kind, **far)


def test_first_look_up_from_many_threads() -> None:
    """Threads that meet at an unknown type all get a loader that works."""
    types = {
        70_000 + n: TypeInfo(70_000 + n, f"_t{n}", TypeKind.ARRAY, element_oid=1184 if n % 2 else 80_000 + n)
        for n in range(50)
    }
    loaders = Loaders(types.get)
    start = Barrier(8)

    def read_all() -> list[Any]:
        start.wait(10)
        return [loaders[oid]('{"2024-01-01 00:00:00+00",NULL}') for oid in types]

    with ThreadPoolExecutor(8) as pool:
        results = [future.result() for future in [pool.submit(read_all) for _ in range(8)]]

    moment = datetime(2024, 1, 1, tzinfo=UTC)
    expected = [[moment if n % 2 else "2024-01-01 00:00:00+00", None] for n in range(50)]
    assert results == [expected] * 8


documents = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=15,
)


@settings(deadline=None)  # a busy machine is no failure
@given(documents)
def test_json_is_read_as_json_loads_reads_it(document: Any) -> None:
    """The fast reader and psycopg's json.loads agree on every document, big integers included."""
    text = json.dumps(document, ensure_ascii=False)
    if not any(0xD800 <= ord(char) < 0xE000 for char in text):  # PostgreSQL's UTF-8 has no surrogates
        assert repr(Loaders(no_type)[3802](text)) == repr(json.loads(text))


@settings(deadline=None)  # a busy machine is no failure
@given(st.datetimes(timezones=st.just(UTC)))
def test_every_moment_of_python_is_read_back(moment: datetime) -> None:
    """PostgreSQL's text of any moment gives that moment: fraction cut short, year with four digits."""
    text = moment.isoformat(" ").removesuffix("+00:00")
    text = (text.rstrip("0") if "." in text else text) + "+00"

    assert Loaders(no_type)[1184](text) == moment


# --- to_json -----------------------------------------------------------------------------------------


class Colour(Enum):
    """A value that an application emits."""

    RED = "red"


class Pair(NamedTuple):
    """What psycopg makes of a registered composite."""

    x: int
    label: str


JSON_FORMS: list[tuple[Any, Any]] = [
    (None, None),
    (True, True),
    (2**63, 2**63),
    (-(2**80), -(2**80)),
    (1.5, 1.5),
    (float("nan"), "NaN"),
    (float("inf"), "Infinity"),
    (float("-inf"), "-Infinity"),
    (Decimal("1.10"), "1.10"),
    (Decimal("1E-10"), "0.0000000001"),
    (Decimal("NaN"), "NaN"),
    (Decimal("-Infinity"), "-Infinity"),
    ("naïve \x00 \x1f \x7f \u2028 😀", "naïve \x00 \x1f \x7f \u2028 😀"),
    ("\ud800", "\ud800"),
    (b"\xca\xfe", "\\xcafe"),
    (b"", "\\x"),
    (bytearray(b"a"), "\\x61"),
    (memoryview(b"a"), "\\x61"),
    (date(1, 1, 1), "0001-01-01"),
    (time(12, 34, 56, 5), "12:34:56.000005"),
    (time(12, 34, tzinfo=timezone(timedelta(hours=5, minutes=30))), "12:34:00+05:30"),
    (datetime(2024, 1, 1, 0, 0), "2024-01-01T00:00:00"),  # noqa: DTZ001 - a timestamp without time zone
    (datetime(1, 1, 1, 0, 0, 0, 1, tzinfo=UTC), "0001-01-01T00:00:00.000001+00:00"),
    (timedelta(), "P0D"),
    (timedelta(days=1, hours=2, seconds=3.5), "P1DT2H3.5S"),
    (timedelta(microseconds=-1), "-PT0.000001S"),
    (timedelta(minutes=-90), "-PT1H30M"),
    (timedelta(days=-400), "-P400D"),
    (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (ip_address("::1"), "::1"),
    (ip_interface("10.0.0.1/24"), "10.0.0.1/24"),
    (ip_network("10.0.0.0/8"), "10.0.0.0/8"),
    (Range(1, 10), "[1,10)"),
    (Range(empty=True), "empty"),
    (Range(None, Decimal("2.50"), "(]"), "(,2.50]"),
    (Range(date(2024, 1, 1), None), "[2024-01-01,)"),
    (Multirange([Range(1, 3), Range(5, None)]), "{[1,3),[5,)}"),
    ([1, [None, "a"]], [1, [None, "a"]]),
    ((1, 2), [1, 2]),
    (Pair(1, "a"), [1, "a"]),
    ({3}, [3]),
    (frozenset({"a"}), ["a"]),
    ({"b": 1, "a": {"z": [2]}}, {"b": 1, "a": {"z": [2]}}),
    (MappingProxyType({"a": Decimal(1)}), {"a": "1"}),
    ([{"deep": (float("nan"), None)}], [{"deep": ["NaN", None]}]),
    ({1: "int", None: "none", False: "bool"}, {"1": "int", "null": "none", "false": "bool"}),
    ({date(2024, 1, 1): 1, Decimal("1.0"): 2, 2.5: 3}, {"2024-01-01": 1, "1.0": 2, "2.5": 3}),
    (Colour.RED, "red"),
]


def json_name(value: Any) -> str:
    """The same in each run: a memoryview's repr is its address."""
    return "memoryview" if isinstance(value, memoryview) else repr(value)[:50]


@pytest.mark.parametrize(("value", "expected"), JSON_FORMS, ids=[json_name(value) for value, _ in JSON_FORMS])
def test_json_form(value: Any, expected: Any) -> None:
    """Every value has one JSON form, whatever the document around it needs from the encoder."""
    surroundings = [
        {"value": value},
        {"value": value, "null": None},
        {"value": value, "beyond 64 bits": 2**70},
        {"value": value, "nan": float("nan")},
        {"value": [value], "key": {7: None}},
    ]

    for whole in surroundings:
        assert json.loads(to_json(whole))["value"] in (expected, [expected]), whole
    assert json.loads(to_json(value)) == expected


@settings(deadline=None)  # a busy machine is no failure
@given(documents)
def test_json_out_is_the_document(document: Any) -> None:
    """What goes out reads back as the same, with its keys in order."""
    assert repr(json.loads(to_json(document))) == repr(json.loads(json.dumps(document)))


def test_json_of_deep_documents() -> None:
    """orjson gives up at 254 levels; we do not."""
    document: Any = [2**70]
    for _ in range(300):
        document = {"in": [document]}

    assert json.loads(to_json(document)) == document


def test_object_without_json_form_is_an_error() -> None:
    """An object that PostgreSQL does not know is named by its class, never by its value."""
    with pytest.raises(TypeError, match=r"^object is no PostgreSQL value"):
        to_json({"secret": object()})


def test_ranges_are_read_back_by_postgresql(database: Database) -> None:
    """The text of a range in JSON is a literal that PostgreSQL reads as the same range."""
    value = Range(datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=UTC), "(]")
    text = orjson.loads(to_json(value))

    with database.connect(options=SESSION) as connection:
        assert connection.execute("SELECT %s::tstzrange", [text]).fetchone() == (value,)
