"""A channel: one Apprise URL, and what became of a message that was sent there.

Apprise says only that it failed, and why to its own log, together with addresses, hosts and texts. Owns reading
the reason out of that log, and keeping the rest to itself: the log of the library is not passed on. Must not know
events, rules or digests.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import apprise

from cdc import PermanentError

__all__ = ["Channel", "Unsent"]

MAX_LINES = 100
PACE_SECONDS = 1.0
"""Between two messages to a service that Apprise knows no pace of. Its own default, 5.5 s, would let the ten messages
of a rule run into the handler's timeout; how many there are is the rules' business."""

MAX_LINE = 2000
"""Kept of the library's log for one message: a line per recipient, and answers that may be pages of HTML."""

_MAIL = ("mailto", "mailtos")
_ERRNO = re.compile(r"\[Errno (-?\d+)\]")
# "error=404" of HTTP services; "(550, b'no such user')" and "was refused: 550" of mail.
_CODE = re.compile(r"\berror=(\d{3})\b|\((\d{3}), b['\"]|was refused: (\d{3})\b")

# Refusals that another attempt, or an operator in the meantime, may turn: of the moment, or of the credentials.
_PASSING_HTTP = frozenset({401, 403, 407, 408, 425, 429})
_PASSING_SMTP = frozenset({530, 534, 535, 538})


class Unsent(Exception):
    """The message was not taken, and may be when it is sent again."""


class Channel:
    """Send to one place. Not for several threads at once. ValueError for a URL that Apprise does not know."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        schema = url.partition(":")[0].strip().lower()
        with _quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the first URL imports the modules of all services
            asset = apprise.AppriseAsset(app_id="walsignal", async_mode=False)
            service = apprise.Apprise.instantiate(url, asset=asset)
        if service is None:
            known = re.fullmatch(r"[a-z0-9]+", schema)
            raise ValueError(
                f"is no URL that Apprise knows{f' ({schema}://...)' if known else ''}:"
                " see https://github.com/caronc/apprise/wiki"
            )
        self._is_mail = schema in _MAIL
        if self._is_mail:
            service.request_rate_per_sec = 0  # it would wait 5.5 s after each mail; the rules' limits are ours
        elif service.request_rate_per_sec == apprise.NotifyBase.request_rate_per_sec:
            service.request_rate_per_sec = PACE_SECONDS
        self._apprise = apprise.Apprise(asset=asset)
        self._apprise.add(service)

    def send(self, title: str, body: str, severity: str) -> None:
        """Return when the channel has taken the message; Unsent or PermanentError, without addresses, if it has not."""
        with _quiet() as heard:
            taken = self._apprise.notify(
                title=title, body=body, notify_type=apprise.NotifyType(severity), body_format=apprise.NotifyFormat.TEXT
            )
        if not taken:
            raise self._failure("\n".join(heard))

    def _failure(self, heard: str) -> Exception:
        codes = {int(next(filter(None, found))) for found in _CODE.findall(heard)}
        if codes:
            told = f"channel {self.name} answered {', '.join(map(str, sorted(codes)))}"
            if all(map(self._is_final, codes)):
                return PermanentError(told, hint="it refuses this message, or its recipient, for good")
            return Unsent(told)
        if match := _ERRNO.search(heard):
            return Unsent(f"channel {self.name} cannot be reached: {_words(int(match[1]))}")
        if "timed out" in heard:
            return Unsent(f"channel {self.name} has not answered in time")
        return Unsent(f"channel {self.name} has not taken the message")

    def _is_final(self, code: int) -> bool:
        if self._is_mail:
            return code >= 500 and code not in _PASSING_SMTP
        return 400 <= code < 500 and code not in _PASSING_HTTP


def _words(number: int) -> str:
    return os.strerror(number) if number > 0 else "its name cannot be resolved"


_heard: ContextVar[list[str] | None] = ContextVar("apprise_heard", default=None)  # the library hands it on to threads


@contextmanager
def _quiet() -> Iterator[list[str]]:
    """Collects what the library logs about the calls of the block."""
    lines: list[str] = []
    token = _heard.set(lines)
    try:
        yield lines
    finally:
        _heard.reset(token)


class _Listener(logging.Handler):
    """Takes the library's log in: lines of a call that somebody listens to are kept for it, the others are let go."""

    def emit(self, record: logging.LogRecord) -> None:
        """See logging."""
        lines = _heard.get()
        if lines is not None and len(lines) < MAX_LINES:
            lines.append(record.getMessage()[:MAX_LINE])


_library = logging.getLogger("apprise")
_library.addHandler(_Listener(logging.DEBUG))
_library.setLevel(logging.DEBUG)  # the reason of a failed mail is told there only
_library.propagate = False  # lines hold recipients, and the text of messages
