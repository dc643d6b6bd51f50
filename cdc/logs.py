"""Structured logs: set up once per process, to stderr, in UTC, with nothing in them that must not be there.

Owns the rendering, and the two cleaners of every value: secrets of connection strings are struck out, and
what a terminal or a log collector could take for its own (control characters) is escaped. It must not
know who logs; nobody hands it row values.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor

__all__ = ["clean", "redact", "setup"]

MAX_VALUE = 2_000  # characters of one value: a whole server message with its hint fits, a row does not
MAX_DEPTH = 4  # of nested values: logs are read by line
_HIDDEN = "***"

# user:password@ in a URI, and password=... as libpq and query strings write it, plain or in quotes.
# Greedy on purpose: a password that was not percent-encoded may hold slashes and at signs.
_URI_PASSWORD = re.compile(r"(?P<before>\b[a-z][a-z0-9+.-]*://[^\s/?#:@]*:)\S*(?P<after>@)", re.IGNORECASE)
_NAMED_PASSWORD = re.compile(
    r"(?P<before>\b(?:ssl)?(?:password|passwd|pwd)\b[\"']?\s*[=:]\s*)(?:'(?:[^'\\]|\\.|'')*'|\"(?:[^\"\\]|\\.)*\"|[^\s&,;'\"]+)",
    re.IGNORECASE,
)
# C0 and C1 controls, line separators, and what turns the direction of text: none may forge a line of log.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SECRET_KEYS = re.compile(r"passw|secret|token|api_?key|^dsn$|_dsn$", re.IGNORECASE)


def setup(level: str = "info", format: str = "auto", *, stream: TextIO | None = None) -> None:  # noqa: A002 - the setting's name
    """Send all logs of the process to `stream` (stderr), `level` and above.

    `format`: "console" for people, "json" one object per line for programs, "auto" chooses by terminal.
    The standard library's logging goes the same way, so that libraries' warnings are cleaned, too.
    """
    stream = stream or sys.stderr
    as_console = format == "console" or (format == "auto" and stream.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    end: list[Processor] = [structlog.processors.format_exc_info, clean_event, _renderer(as_console, stream)]
    numeric = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, *end],
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *end],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(numeric, logging.INFO), force=True)


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


def _clean_item(key: str, value: object) -> object:
    return _HIDDEN if value and _SECRET_KEYS.search(key) else _clean_value(value, MAX_DEPTH)


def _clean_value(value: object, depth: int) -> Any:
    if value is None or isinstance(value, bool | int | float):
        # An Lsn is an int that prints as PostgreSQL prints it.
        return value if type(value) in (type(None), bool, int, float) else clean(str(value))
    if depth and isinstance(value, Mapping):
        return {
            clean(str(key)): _HIDDEN if _SECRET_KEYS.search(str(key)) else _clean_value(item, depth - 1)
            for key, item in value.items()
        }
    if depth and isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return [_clean_value(item, depth - 1) for item in value]
    return clean(str(value))


def _renderer(as_console: bool, stream: TextIO) -> Processor:
    if as_console:
        return structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback)
    return structlog.processors.JSONRenderer()
