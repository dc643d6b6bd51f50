"""The kinds of value a setting can have, each with the words that tell what it must look like."""

from __future__ import annotations

import re
from collections.abc import Sized
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Gt
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo
from pydantic import AfterValidator, BeforeValidator, Field

from cdc.config.allowed import checked
from cdc.config.expand import Expanded
from cdc.errors import ConfigError
from cdc.patterns import TablePatterns

__all__ = [
    "CallbackEntries",
    "CallbackName",
    "Count",
    "Dsn",
    "Flag",
    "HandlerName",
    "Integer",
    "Seconds",
    "SecondsBound",
    "Size",
    "SizeBound",
    "SlotName",
    "StateUrl",
    "TableList",
    "TablePattern",
    "Word",
    "Words",
    "at_least_one",
]

_Items = TypeVar("_Items", bound=Sized)

_UNITS = {
    "": 1,
    "B": 1,
    "kB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
    "TiB": 1024**4,
}
_SIZE = re.compile(rf"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>{'|'.join(_UNITS)})")
_FLAGS = {
    "true": True,
    "1": True,
    "on": True,
    "false": False,
    "0": False,
    "off": False,
}

_SLOT = re.compile(r"[a-z0-9_]{1,63}")  # what the server accepts as the name of a slot
_HANDLER = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # a metric's label and a word on the command line: no quoting needed
_SCHEMA = re.compile(r"([?&])schema=[^&]*&?")
_PARAMETER = re.compile(r'invalid (?:URI query parameter:|connection option) "(\w+)"')  # libpq's words
_ALIKE = 0.75  # "sslmod" is taken for sslmode, a piece of a password for nothing
_NO_DSN = "is neither a libpq URI nor key=value pairs (in a URI, special characters of a password are percent-encoded)"
_CALLBACK = re.compile(r"[A-Za-z_][\w.]*(?::[A-Za-z_][\w.]*)?")


def _integer(value: Any) -> Any:
    if isinstance(value, Expanded) and value.strip().lstrip("-").isdecimal():
        return int(value)  # the environment knows only text; a quoted number in the file itself is a mistake
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("must be a whole number, without quotes")  # noqa: TRY004 - pydantic collects only ValueError
    return value


def _number(value: Any) -> Any:
    if isinstance(value, Expanded):
        try:
            return float(value)
        except ValueError:
            raise ValueError("must be a number") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a number, without quotes")  # noqa: TRY004
    try:
        return float(value)
    except OverflowError:
        raise ValueError("is too large") from None


def _flag(value: Any) -> Any:
    if isinstance(value, Expanded) and value.strip().lower() in _FLAGS:
        return _FLAGS[value.strip().lower()]
    if not isinstance(value, bool):
        raise ValueError("must be true or false, without quotes")  # noqa: TRY004
    return value


def _size(value: Any) -> Any:
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            raise ValueError('must be a size such as "64MiB", "1.5GiB" or a number of bytes')
        return round(float(match["number"]) * _UNITS[match["unit"]])
    return _integer(value)


def _text(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("must be text in quotes")  # noqa: TRY004
    if not value:
        raise ValueError("must not be empty")
    return value


def _table_pattern(value: str) -> str:
    try:
        TablePatterns([value])
    except ConfigError as error:
        raise ValueError(f"{error.message}; {error.hint}") from None
    return value


def _slot_name(value: str) -> str:
    if not _SLOT.fullmatch(value):
        raise ValueError("must be 1 to 63 lower-case letters, digits and underscores")
    return value


def _handler_name(value: str) -> str:
    if not _HANDLER.fullmatch(value):
        raise ValueError("must be 1 to 64 letters, digits, dots, dashes and underscores; set `name`")
    return value


def _callback(value: str) -> str:
    if not _CALLBACK.fullmatch(value):
        raise ValueError('must be "package.module:name", or the short name of a built-in handler')
    return value


def _dsn(value: str) -> str:
    try:
        conninfo_to_dict(value)
    except ProgrammingError as error:
        raise ValueError(_mistyped(str(error)) or _NO_DSN) from None
    return value


def _mistyped(refusal: str) -> str:
    """Which parameter libpq does not know, when it is much like one that it knows: else it may be of a password."""
    if (found := _PARAMETER.search(refusal)) is None:
        return ""
    known = [option.keyword.decode() for option in Conninfo.get_defaults()]
    near = get_close_matches(found[1], known, n=1, cutoff=_ALIKE)
    return f"libpq has no parameter {found[1]}; did you mean {near[0]}?" if near else ""


def _state_url(value: str) -> str:
    if value.startswith("sqlite:///"):
        if not value.removeprefix("sqlite:///") or ":memory:" in value:
            raise ValueError("must name a file: sqlite:///cdc-state.db")
        return value
    if value.startswith(("postgresql://", "postgres://")):
        _dsn(_SCHEMA.sub(r"\1", value).rstrip("?&"))  # ours among libpq's parameters: which schema
        return value
    raise ValueError("must start with sqlite:/// or postgresql://")


def at_least_one(value: _Items) -> _Items:
    """Not a length bound of pydantic's: that would also count the items that are wrong in themselves."""
    if not value:
        raise ValueError("must name at least one")
    return value


Integer = Annotated[int, BeforeValidator(_integer)]
Count = Annotated[int, BeforeValidator(_integer), Ge(1)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Seconds = Annotated[float, BeforeValidator(_number), Gt(0), Field(allow_inf_nan=False)]
Size = Annotated[int, BeforeValidator(_size), Ge(1)]
SecondsBound = Annotated[float, BeforeValidator(_number), Ge(0), Field(allow_inf_nan=False)]  # 0 for none
SizeBound = Annotated[int, BeforeValidator(_size), Ge(0)]  # 0 for none
Word = Annotated[str, BeforeValidator(_text)]
Words = tuple[Word, ...]
TablePattern = Annotated[Word, AfterValidator(_table_pattern)]
TableList = Annotated[tuple[TablePattern, ...], AfterValidator(at_least_one)]
SlotName = Annotated[Word, AfterValidator(_slot_name)]
HandlerName = Annotated[Word, AfterValidator(_handler_name)]
CallbackName = Annotated[Word, AfterValidator(_callback)]
CallbackEntries = Annotated[tuple[Word, ...], AfterValidator(checked), AfterValidator(at_least_one)]
Dsn = Annotated[Word, AfterValidator(_dsn)]
StateUrl = Annotated[Word, AfterValidator(_state_url)]
