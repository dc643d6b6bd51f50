"""The shapes of wal2json's messages, and the parsers that read them; msgspec checks types and syntax.

Numbers with a fraction or an exponent are their literals, each a `str`: a float would lose digits.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Protocol, TypeAlias

import msgspec
from msgspec import Raw

from cdc.values import PostgresValue

__all__ = [
    "NOTHING",
    "Boundary",
    "Column",
    "Columns",
    "Convert",
    "Head",
    "Payload",
    "Whole",
    "read_boundary",
    "read_columns",
    "read_exactly",
    "read_generally",
    "read_head",
    "read_keys",
]

NOTHING = Raw()
# Bare numbers whose text must survive. The unescaped quotes cannot occur inside a JSON string,
# so the pattern finds structure only.
_NUMBER = re.compile(rb'("typeoid":(?:1700|70[01]),"value":)(-?[0-9][-+.0-9eE]*)')
_QUOTED = rb'\1"\2"'


class Column(msgspec.Struct, gc=False, eq=False):
    """A column of `columns` or `identity`. A number with a fraction or an exponent is its literal, a str."""

    name: str
    typeoid: int
    value: Any


Payload: TypeAlias = bytes | memoryview
Columns: TypeAlias = tuple[Column, ...]


class Convert(Protocol):
    """A function that makes a row of its columns; raises what `cdc.wal2json.damage` names."""

    def __call__(self, columns: Columns, /) -> dict[str, PostgresValue]:
        """Values by name."""


class Head(msgspec.Struct, gc=False, eq=False):
    """A message as far as the stream itself reads it; the rest is checked for its syntax only.

    With msgspec that takes 0.62 us for a row of 8 columns, where orjson makes objects of all of it in 2.2 us.
    """

    convert: ClassVar[Convert | None] = None

    action: str
    schema: str = ""
    table: str = ""
    columns: Raw = NOTHING
    identity: Raw = NOTHING
    pk: Raw = NOTHING


class Whole(msgspec.Struct, gc=False, eq=False):
    """The same with its row: 1.3 us at once, where the head and then the row take 1.7 us.

    `convert` is what a plan knows better than the general way to make the values of `columns`.
    """

    convert: ClassVar[Convert | None] = None

    action: str
    schema: str = ""
    table: str = ""
    columns: Columns | None = None
    identity: Columns | None = None
    pk: Raw = NOTHING


class Boundary(msgspec.Struct, gc=False, eq=False):
    """What B, C and M hold."""

    action: str
    lsn: str = ""
    nextlsn: str = ""
    xid: int | None = None
    timestamp: str | None = None
    transactional: bool | None = None
    prefix: str | None = None
    content: str | None = None


class Key(msgspec.Struct, gc=False, eq=False):
    """A column of `pk`, which names and types it."""

    name: str
    typeoid: int


read_head = msgspec.json.Decoder(Head).decode
read_columns = msgspec.json.Decoder(Columns, float_hook=str).decode
read_boundary = msgspec.json.Decoder(Boundary).decode
read_keys = msgspec.json.Decoder(list[Key]).decode
_read_whole = msgspec.json.Decoder(Whole, float_hook=str).decode


def read_generally(payload: Payload) -> Head | Whole:
    """With its row, whatever table it is of; without it where msgspec cannot take the row."""
    try:
        return _read_whole(payload)
    except msgspec.ValidationError:  # a row with an integer of more digits than msgspec takes, or of the wrong shape
        return read_head(payload)


def read_exactly(payload: bytes) -> Whole:
    """With its row, in which the numbers that are no integers by their type are all literals, also -0."""
    return _read_whole(_NUMBER.sub(_QUOTED, payload))
