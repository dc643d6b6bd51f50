"""Messages that make no sense: what reading them raises, and the error that tells of them without a row value."""

from __future__ import annotations

import re

import msgspec

from cdc.errors import DecodeError
from cdc.lsn import Lsn

__all__ = ["DAMAGES", "undecodable"]

DAMAGES = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, msgspec.MsgspecError)
"""What reading a row raises that is of the wrong shape, or holds a text that is none of its type."""

_COLUMN_NAME = re.compile(r'"name":("(?:[^"\\]|\\.)*")')
# The keys before the row, and nothing behind the first one that is not of them: in a message that makes no
# sense a row value may stand under any key.
_SCALAR = r'"(?:[^"\\]|\\.)*"|-?\d+|null|true|false'
_HEAD = re.compile(
    r'\{"action":"\w"(?:,"(?:xid|timestamp|origin|lsn|nextlsn|transactional|prefix|schema|table)":'
    rf"(?:{_SCALAR}))*",
    re.DOTALL,
)
_LSN = re.compile(r'"lsn":"([0-9A-F]{1,8}/[0-9A-F]{1,8})"')


def undecodable(payload: bytes, reason: str) -> DecodeError:
    """The error for a message that makes no sense: its head and column names, never a value."""
    text = payload.decode("utf-8", "replace")
    head = match[0] if (match := _HEAD.match(text)) else "(no action)"
    names = ",".join(_COLUMN_NAME.findall(text)[:20])
    lsn = match[1] if (match := _LSN.search(head)) else "0/0"
    return DecodeError(
        f"a message of {len(payload)} bytes cannot be decoded at {lsn}: {reason[:120]}",
        lsn=Lsn.parse(lsn),
        excerpt=f"{head[:300]} columns: {names[:500]}",
        hint="nothing was acknowledged past it; report it with this line, then decide about the slot",
    )
