"""What an endpoint's answer means: done, again, again at a time, or never.

Owns the one table from a status to an outcome; must not know connections or events.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from cdc import PermanentError, RetryLater

__all__ = ["Unanswered", "check", "seconds_until"]

# Refusals of the moment, not of the content: too slow, too early, too many.
_PASSING = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})


class Unanswered(Exception):
    """The endpoint could not be reached, or asks for another attempt: worth one."""


def check(status: int, retry_after: str | None, where: str) -> None:
    """Return if the request was taken; raise what the pool understands otherwise.

    `where` names the endpoint without its path, which may hold a token. 2xx is done; 408, 425, 429 and 5xx are
    tried again, at the time of `retry_after` (the header's text) if there is one; all others are final: 410
    says that the endpoint is gone, 3xx that it has moved, and redirects are not followed.
    """
    if 200 <= status < 300:
        return
    answer = f"{where} answered {status}{_phrase(status)}"
    if status in _PASSING or status >= 500:
        seconds = None if retry_after is None else seconds_until(retry_after)
        if seconds is not None:
            raise RetryLater(answer, seconds=seconds)
        raise Unanswered(answer)
    raise PermanentError(answer, hint=_hint(status))


def seconds_until(retry_after: str, now: datetime | None = None) -> float | None:
    """Of a Retry-After header: a number of seconds, or until a date (0 if it is past); None for neither."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])  # no more digits than an hour or a century need
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:  # "-0000", which says UTC and nothing of the sender's zone
        moment = moment.replace(tzinfo=UTC)
    return max((moment - (now or datetime.now(UTC))).total_seconds(), 0.0)


def _phrase(status: int) -> str:
    try:
        return f" {HTTPStatus(status).phrase}"
    except ValueError:
        return ""


def _hint(status: int) -> str:
    if status == HTTPStatus.GONE:
        return "the endpoint wants no more webhooks: remove this handler, or give it another url"
    if 300 <= status < 400:
        return "redirects are not followed: set url to where the endpoint is now"
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return "look at secrets and headers; what was refused waits in the dead letters"
    return "look at the endpoint's own log"
