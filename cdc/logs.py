"""Structured logs: set up once per process, to stderr, in UTC, with nothing in them that must not be there.

Owns the rendering, and the cleaners of every value: secrets of connection strings are struck out, what a terminal or a
log collector could take for its own (control characters) is escaped, and errors that are none of ours are shown by
their type and place, never by their text: it may quote a row. Every warning and error has a `code` (see `cdc.codes`).
It must not know who logs; nobody hands it row values.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, ExcInfo, Processor

from cdc.errors import CdcError

__all__ = ["clean", "is_for_people", "redact", "set_level", "setup", "text_of"]

MAX_VALUE = 2_000  # characters of one value: a whole server message with its hint fits, a row does not
MAX_DEPTH = 4  # of nested values: logs are read by line
MAX_ITEMS = 100  # of one list or table: a thousand long names are no line any more
MAX_CAUSES = 10  # of one traceback
LIBRARY_EVENT = "library_log"  # of all that libraries log, and the code of their warnings: their texts are no names
_HIDDEN = "***"

# user:password@ in a URI, and password=... as libpq and query strings write it, plain or in quotes.
# Greedy on purpose: a password that was not percent-encoded may hold slashes and at signs.
_URI_PASSWORD = re.compile(r"(?P<before>\b[a-z][a-z0-9+.-]*://[^\s/?#:@]*:)\S*(?P<after>@)", re.IGNORECASE)
_NAMED_PASSWORD = re.compile(
    r"(?P<before>\b(?:ssl)?(?:password|passwd|pwd)\b[\"']?\s*[=:]\s*)(?:'(?:[^'\\]|\\.|'')*'|\"(?:[^\"\\]|\\.)*\"|[^\s&,;'\"]+)",
    re.IGNORECASE,
)
# C0 and C1 controls, line separators, and what turns the direction of text: none may forge a line of log. Halves of
# characters, as come from bytes that are no UTF-8, could not even be written.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_NUMBERS = {name.lower(): number for name, number in logging.getLevelNamesMapping().items()} | {
    "exception": logging.ERROR
}
_level = [logging.INFO]  # of the process
_SECRET_KEYS = re.compile(r"passw|secret|token|api_?key|^dsn$|_dsn$", re.IGNORECASE)


def setup(level: str = "info", format: str = "auto", *, stream: TextIO | None = None) -> None:  # noqa: A002 - the setting's name
    """Send all logs of the process to `stream` (stderr), `level` and above.

    `format`: "console" for people, "json" one object per line for programs, "auto" chooses by terminal.
    The standard library's logging goes the same way, so that libraries' warnings are cleaned, too.
    """
    stream = stream or sys.stderr
    as_console = is_for_people(format, stream)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    exceptions = structlog.processors.ExceptionRenderer(_traceback)
    end: list[Processor] = [exceptions, clean_event, _renderer(as_console, stream)]
    structlog.configure(
        processors=[_drop_below, *shared, _name_situation, *end],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),  # loggers keep it: the level may change
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _Unfailing(stream))),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, _name_library],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *end],
        )
    )
    logging.basicConfig(handlers=[handler], force=True)
    set_level(level)


def set_level(level: str) -> None:
    """From now on `level` and above; libraries never say less than what is worth an "info"."""
    _level[:] = [logging.getLevelNamesMapping()[level.upper()]]
    logging.getLogger().setLevel(max(_level[0], logging.INFO))


def _drop_below(_logger: object, method: str, event: EventDict) -> EventDict:
    if _NUMBERS.get(method, logging.CRITICAL) < _level[0]:
        raise structlog.DropEvent
    return event


class _Unfailing:
    """The end of the log. A full disk, a closed pipe or a terminal that is gone costs lines, never the service."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def is_for_people(format: str, stream: TextIO | None = None) -> bool:  # noqa: A002 - the setting's name
    """Whether `setup` with the same arguments chooses the console format."""
    return format == "console" or (format == "auto" and (stream or sys.stderr).isatty())


def redact(text: str) -> str:
    """`text` with the passwords of connection strings struck out."""
    text = _URI_PASSWORD.sub(rf"\g<before>{_HIDDEN}\g<after>", text)
    return _NAMED_PASSWORD.sub(rf"\g<before>{_HIDDEN}", text)


def clean(text: str, limit: int = MAX_VALUE) -> str:
    """`text` redacted, on one line, without control characters, and cut to `limit` characters."""
    text = _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), redact(text))
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def clean_event(_logger: object, _method: str, event: EventDict) -> EventDict:
    """The structlog processor: every key and every value cleaned, secrets known by their key hidden."""
    exception = event.pop("exception", None)
    cleaned: EventDict = {clean(str(key)): _clean_item(str(key), value) for key, value in event.items()}
    if exception is not None:
        # A traceback needs its lines; each is cleaned by itself.
        cleaned["exception"] = "\n".join(clean(line) for line in str(exception).splitlines())
    return cleaned


def _name_situation(_logger: object, method: str, event: EventDict) -> EventDict:
    """Give every warning and error of ours a code: that of its cause, if it brings one, or its own name."""
    if method not in ("debug", "info"):
        event.setdefault("code", event.get("event", ""))
    return event


def _name_library(_logger: object, _method: str, event: EventDict) -> EventDict:
    """The same for a library's: one event for all of them, with who says it and what in fields of their own.

    Of asyncio's texts only the first line: the others quote the error that it tells of.
    """
    name, text = event["_record"].name, str(event["event"])
    if name == "asyncio":
        text = text.partition("\n")[0]
    event.update(event=LIBRARY_EVENT, logger=name, text=text)
    if event["level"] not in ("debug", "info"):
        event["code"] = LIBRARY_EVENT
    return event


def _traceback(exc_info: ExcInfo) -> str:
    """Type and place of an error and its causes; the text only of ours, which hold no row values."""
    return "\n".join(_told(exc_info[1]))


def _told(error: BaseException | None) -> Iterator[str]:
    for _ in range(MAX_CAUSES):
        if error is None:
            return
        yield from "".join(traceback.format_tb(error.__traceback__)).splitlines()
        if isinstance(error, CdcError):
            yield f"{type(error).__name__}: {error}"
        elif isinstance(error, OSError) and error.strerror:
            yield f"{type(error).__name__}: {error.strerror}"
        else:
            yield type(error).__name__
        if isinstance(error, BaseExceptionGroup):
            for part in error.exceptions[:MAX_CAUSES]:
                yield from _told(part)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if error is not None:
            yield "which came from:"


def _clean_item(key: str, value: object) -> object:
    return _HIDDEN if value and _SECRET_KEYS.search(key) else _clean_value(value, MAX_DEPTH)


def _clean_value(value: object, depth: int) -> Any:
    if value is None or isinstance(value, bool | int | float):
        # An Lsn is an int that prints as PostgreSQL prints it.
        return value if type(value) in (type(None), bool, int, float) else clean(str(value))
    if depth and isinstance(value, Mapping):
        return {
            clean(str(key)): _HIDDEN if _SECRET_KEYS.search(str(key)) else _clean_value(item, depth - 1)
            for key, item in islice(value.items(), MAX_ITEMS)
        }
    if depth and isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return [_clean_value(item, depth - 1) for item in value[:MAX_ITEMS]]
    return clean(text_of(value))


def text_of(value: object) -> str:
    """`str(value)`, also of what raises when it is asked for it."""
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001 - somebody else's __str__; a line of log must not end the service
        return f"<{type(value).__name__}, whose text raises {type(error).__name__}>"


def _renderer(as_console: bool, stream: TextIO) -> Processor:
    if as_console:
        return structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback)
    return structlog.processors.JSONRenderer()
