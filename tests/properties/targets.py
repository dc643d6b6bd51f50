"""What is fuzzed: for each place where bytes come from outside, real examples, what reads them, and how it may fail."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from cdc.codec import pack, unpack
from cdc.errors import ConfigError, DecodeError
from cdc.events import DatabaseEvent, EventType, Position
from cdc.exact import dump_event, load_event
from cdc.lsn import Lsn
from cdc.patterns import TablePatterns
from cdc.protocol import PrimaryKeepalive, StandbyStatusUpdate, data_start
from cdc.transactions import Assembler, Selection
from cdc.values import to_json
from cdc.wal2json import Decoder, Wal2JsonChange
from tests.properties import messages
from tests.properties.messages import Cell, FixedCatalog

RECORDED = Path(__file__).parent / "recorded.jsonl"
"""What a PostgreSQL with wal2json sent once, a message a line: `tests/properties/test_fuzz.py` says of what."""


@dataclass(frozen=True, slots=True)
class Target:
    """`read` gives any result for `examples`; for other bytes also one of the `documented` errors."""

    name: str
    read: Callable[[bytes], object]
    documented: tuple[type[Exception], ...]
    examples: Sequence[bytes]
    words: Sequence[bytes] = ()  # that mean something here, besides what the examples hold


WATCHED = ("__tags__", "__is_active__")
JSON_WORDS = (
    b"null", b"true", b"[]", b"{}", b"-0", b"1e999", b"9" * 400, b'""', b'"0/1"', b'"name":', b'"value":',
    b'"typeoid":',
    b'"columns":[', b'"identity":[', b'"pk":[', b'{"action":"M"', b"\\ud800", b"\\u0000", b"\xff", b'"infinity"',
    b'"__tags__"', b'"__is_active__"', b'"typeoid":1700,"value":1.5', b"[" * 300, b'"D"', b'"U"', b'"I"', b'"T"',
    b'"B"', b"NaN",
)  # fmt: skip


def read_change(change: Wal2JsonChange) -> None:
    """All that the service and a callback may read of it."""
    change.text_list("__tags__")
    if change.event_type is EventType.UPDATE:
        change.deleted_softly(frozenset(WATCHED))
    change.record_id()
    change.previous_record_id()
    change.unchanged()
    to_json(change.payload())
    to_json(change.before())


def decoding(codec: str | None) -> Callable[[bytes], object]:
    """Decode one message of a server with this encoding, and read it."""
    decoder = Decoder(FixedCatalog(frozenset({"t", "big"})), watch=WATCHED, codec=codec)

    def read(data: bytes) -> object:
        decoded = decoder.decode(data)
        if isinstance(decoded, Wal2JsonChange):
            read_change(decoded)
        return decoded

    return read


def read_stream(data: bytes) -> object:
    """A stream, a message a line, up to the first that makes no sense there."""
    decoder = Decoder(FixedCatalog(), watch=WATCHED)
    events = Assembler(Selection(TablePatterns(["*.*"]))).feed(map(decoder.decode, data.split(b"\n"))).events
    for event in events:
        event.to_json()
    return events


TYPES = (
    16, 17, 20, 21, 23, 25, 26, 114, 600, 650, 700, 701, 790, 829, 869, 1000, 1001, 1007, 1009, 1014, 1016, 1042, 1043,
    1082, 1083, 1114, 1115, 1182, 1184, 1185, 1186, 1187, 1231, 1266, 1560, 1700, 2249, 2950, 2951, 3802, 3807, 3904,
    3906, 3908, 3910, 3912, 3926, 4451, 4532, 6155, -2, 20_000, 20_001, 20_002, 20_003, 30_000,
)  # fmt: skip
LOADERS = FixedCatalog().loaders


def read_value(data: bytes) -> object:
    """One byte for the type, and the text of a value."""
    text = data[1:].decode("utf-8", "replace")
    value = LOADERS[TYPES[data[0] % len(TYPES)] if data else 25](text)
    return to_json(value)


TEXTS = [
    (17, "00ff"), (20, "-7"), (701, "Infinity"), (1007, "{1,NULL,{2}}"), (1009, '{"a,\\"",NULL,b}'),
    (1016, "[0:1]={1,2}"), (1082, "4713-01-01 BC"), (1083, "24:00:00"), (1114, "infinity"), (600, "(1,2)"),
    (1184, "2024-02-29 12:00:00.5+00"), (1186, "1 year 2 mons -3 days +04:05:06.7"), (1266, "12:00:00+15:59:59"),
    (1700, "NaN"), (2950, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"), (3802, '{"a":[1e400,"\\ud800"]}'),
    (3904, "[1,5)"), (3910, '["2024-01-01 00:00:00+00",)'), (4451, "{[1,2),[5,6)}"), (869, "::1/64"),
    (650, "10.0.0.0/8"), (829, "08:00:2b:01:02:03"), (20_003, '"a"=>NULL, "b"=>"\\"c"'), (2249, '(1,"a,b",)'),
    (3926, "empty"), (3906, "(,1.5]"), (1560, "0101"), (790, "$1.00"), (1231, "{1.10,NaN}"), (20_002, "{ok,sad}"),
    (20_001, "1.5"),
]  # fmt: skip


def value(oid: int, text: str) -> bytes:
    """An example for `read_value`."""
    return bytes([TYPES.index(oid)]) + text.encode()


def read_wire(data: bytes) -> object:
    """As the stream takes messages apart."""
    if data[:1] == b"w":
        return data_start(memoryview(data))
    return str(PrimaryKeepalive.parse(memoryview(data)))


def read_packed(data: bytes) -> object:
    """What can be unpacked can be packed again, and is then the same."""
    event = unpack(data)
    again = pack(event)
    assert pack(unpack(again)) == again
    return event.to_json()


def read_text(data: bytes) -> object:
    """Positions and patterns of tables, as people write them."""
    text = data.decode("utf-8", "replace")
    if text.startswith("@"):
        return str(Position.parse(text[1:]))
    return TablePatterns([text]).server_side()


def recorded() -> list[bytes]:
    """What the server sent."""
    return RECORDED.read_bytes().splitlines()


def targets(more: Sequence[bytes] = ()) -> list[Target]:
    """All of them; `more` are further messages of a server."""
    changes = [*recorded(), *more]
    moment = Cell("at", messages.TIMESTAMPTZ, '"2024-02-29 12:00:00+00"', None)
    event = DatabaseEvent.of(
        "update", "t",
        {"n": Decimal("1.50"), "l": [1, None, "x"], "d": {"$decimal": 1}, "b": b"\0", "i": 1 << 80, "f": float("inf")},
        before={"id": 1}, unchanged=["big"], tags=["a"], record_id="1", position=Position(Lsn(1 << 40), 3),
    )  # fmt: skip
    begin, commit = messages.boundary("B", 1 << 33), messages.boundary("C", 1 << 33)
    built = [
        messages.change("U", [moment, Cell("n", 1700, "-0.0", 0)], [Cell("n", 1700, "9" * 400, 0)], ["at", "n"]),
        messages.logical_message("cdc.tags", "a, b", transactional=True),
        messages.logical_message("cdc.tags", "a", transactional=False),
    ]
    wire = [
        struct.pack("!cQqB", b"k", 1 << 40, 0, 0), struct.pack("!cQqB", b"k", 1 << 63, -5, 1),
        b"w" + bytes(24) + begin, StandbyStatusUpdate(7, 5).encode(0),
    ]  # fmt: skip
    return [
        Target("decoder", decoding(None), (DecodeError,), [*changes, *built, begin, commit], JSON_WORDS),
        Target("decoder-latin1", decoding("iso8859-1"), (DecodeError,), [*changes, *built], JSON_WORDS),
        Target("decoder-euc", decoding("gb2312"), (DecodeError,), [*built, begin], JSON_WORDS),
        Target(
            "stream",
            read_stream,
            (DecodeError,),
            [b"\n".join([begin, *built, commit]), b"\n".join(changes)],
            JSON_WORDS,
        ),
        Target("values", read_value, (ValueError,), [value(oid, text) for oid, text in TEXTS]),
        Target("wire", read_wire, (ValueError,), wire),
        Target("codec", read_packed, (ValueError,), [pack(event)], [b"$decimal", b"$part", b"$items", *JSON_WORDS]),
        Target("exact", load_event, (ValueError,), [dump_event(event)], [b"$range", b"decimal", b"types", *JSON_WORDS]),
        Target("text", read_text, (ValueError, ConfigError), [b"@1/AB:3", b"*.*", b'public."a.b"', b"a*.b"]),
    ]
