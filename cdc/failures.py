"""What a callback's error says about another attempt: whether, and when.

A callback says it by raising :class:`PermanentError` or :class:`RetryLater`, or any error of its own with an
attribute ``permanent`` (true) or ``retry_after`` (seconds): client libraries' errors need no wrapping.
"""

from __future__ import annotations

import random
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime

from cdc.codes import Code
from cdc.errors import CallbackError
from cdc.events import DatabaseEvent

__all__ = ["LONGEST_WAIT", "Failure", "PermanentError", "RetryLater", "is_permanent", "retry_after", "wait_before"]

BACKOFF_SECONDS = (0.5, 60.0)
"""Bounds of the first wait and of any: a restarted neighbour is back within the first few attempts, and one
attempt a minute is no load on one that stays away (https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter)."""
MAX_RETRY_AFTER_SECONDS = 3600.0
"""What an error may ask for at most: a server's slip of a digit must not stop a handler for a day."""

LONGEST_WAIT: ContextVar[float | None] = ContextVar("longest_wait", default=None)
"""Seconds that no wait exceeds, also none that an error asks for, in lanes that begin in this context: for tests."""


class PermanentError(CallbackError):
    """Raised by a callback: trying this event again is useless. It goes to the dead letters at once."""

    default_code = Code.PERMANENT_ERROR


class RetryLater(CallbackError):
    """Raised by a callback: try this event again, `retry_after` seconds from now at the earliest."""

    default_code = Code.RETRY_LATER

    def __init__(self, message: str, *, seconds: float, callback: str = "", hint: str = "", code: str = "") -> None:
        super().__init__(message, callback=callback, hint=hint, code=code)
        self.retry_after = seconds


@dataclass(slots=True)
class Failure:
    """One event with which a callback has failed so far: how often, when, and how the last time."""

    event: DatabaseEvent
    error: BaseException
    attempts: int
    first_time: datetime  # aware, of the end of the first attempt
    last_time: datetime


def is_permanent(error: BaseException) -> bool:
    """Whether the error says that another attempt is useless."""
    return isinstance(error, PermanentError) or getattr(error, "permanent", False) is True


def retry_after(error: BaseException) -> float | None:
    """Seconds that the error asks us to wait; None when it does not say."""
    seconds = getattr(error, "retry_after", None)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
        return None
    return min(float(seconds), MAX_RETRY_AFTER_SECONDS)


def wait_before(attempt: int, error: BaseException) -> float:
    """Seconds to wait before the attempt with this number, from 2: what the error asks for, or full jitter."""
    limit = LONGEST_WAIT.get()
    if (asked := retry_after(error)) is not None:
        return asked if limit is None else min(asked, limit)
    first, longest = BACKOFF_SECONDS
    longest = longest if limit is None else min(longest, limit)
    return random.uniform(0, min(longest, first * 2.0 ** min(attempt - 2, 30)))
