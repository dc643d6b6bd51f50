"""A position in the write-ahead log: 64 bits, printed as PostgreSQL prints them (``16/B374D848``).

`Lsn` is an `int`, so that comparing costs nothing and any integer of the wire is one already;
only reading and printing are its own.
"""

from __future__ import annotations

import re

__all__ = ["Lsn"]

_TEXT = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_LIMIT = 1 << 64


class Lsn(int):
    """A log sequence number, 0 to 2**64 - 1. ``0/0`` stands for "none yet", as in the protocol."""

    __slots__ = ()

    def __new__(cls, value: int = 0) -> Lsn:
        """Take a 64-bit integer; ValueError outside its range."""
        if not 0 <= value < _LIMIT:
            raise ValueError(f"an LSN has 64 bits, {value} does not fit")
        return super().__new__(cls, value)

    @classmethod
    def parse(cls, text: str) -> Lsn:
        """Read ``X/X``: two hexadecimal halves of up to 8 digits; ValueError for anything else."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not an LSN like 16/B374D848")
        return cls(int(match[1], 16) << 32 | int(match[2], 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"Lsn({self!s})"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)
