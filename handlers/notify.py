"""The `notify` handler: events that a rule wants become messages by mail, chat and the like, at most so many.

Owns the order of things between the pool's calls and the digests that are due in between; which event gets a
message is `handlers.notify_route`, what was sent is `handlers.notify_journal`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import structlog

from cdc import CdcError, DatabaseEvent, PermanentError
from handlers.notify_channels import Channel, Unsent
from handlers.notify_journal import Journal
from handlers.notify_options import NotifyOptions
from handlers.notify_route import Route

__all__ = ["Notify", "NotifyOptions"]

_log = structlog.get_logger(__name__)

CLOSE_SECONDS = 15.0
"""For a digest in work at `close`: longer than the library waits for a connection and an answer (4 s each)."""


class Notify:
    """Send a message for each event that a rule wants, and digests where there are too many.

    An event is settled when each of its channels has taken a message of its own, or when it is in the journal, on
    the disk, to be told of in a digest. Errors: `handlers.notify_channels.Unsent` (again), `cdc.PermanentError`.
    """

    def __init__(self, options: NotifyOptions) -> None:
        self._journal = Journal(options.journal)
        # A channel may be used by several rules: one object, one connection at a time.
        channels = {name: Channel(name, url.get_secret_value()) for name, url in options.channels.items()}
        self._routes = [
            Route(rule, channels[name], self._journal)
            for rule in options.rules
            for name in dict.fromkeys(rule.channels)
        ]
        # Everything happens under it: an attempt that was given up may still be sending when its retry comes,
        # which then waits, and finds what was sent.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._clock: threading.Thread | None = None

    def open(self) -> None:
        """Open the journal and go on with the digests that wait; RuntimeError if another handler has it."""
        with self._lock:
            if self._journal.is_open:
                return
            self._journal.open()
            for route in self._routes:
                route.open()
            self._tell_orphans()
            # A daemon: it may be in a connection that hangs when the process ends.
            self._clock = threading.Thread(target=self._send_due_digests, name="notify-digests", daemon=True)
            self._clock.start()

    def handle_batch(self, events: Sequence[DatabaseEvent]) -> None:
        """Send or hold what the rules want of the events, every route for itself; the worst error is raised."""
        with self._lock:
            if not self._journal.is_open:
                raise RuntimeError("the notify handler is not open")
            errors = self._each(lambda route: route.deliver(events))
            self._changed.notify()
        if errors:
            # Again as long as one of the routes may succeed; the others know what they have sent.
            raise min(errors, key=lambda error: isinstance(error, PermanentError))

    def close(self) -> None:
        """Send the digests that wait, at once, and let the journal go; what cannot be sent stays in it."""
        with self._lock:
            clock, self._clock = self._clock, None
            if not self._journal.is_open:
                return
            for error in self._each(Route.send_digest):
                _log.warning("digest_kept", error=_told(error))
            self._journal.close()
            self._changed.notify()
        if clock is not None:
            clock.join(CLOSE_SECONDS)

    def _each(self, act: Callable[[Route], None]) -> list[Exception]:
        """Let every route act; a channel that is away does not keep the others from theirs."""
        errors: list[Exception] = []
        for route in self._routes:
            try:
                act(route)
            except Exception as error:  # noqa: BLE001 - raised, or told, by the caller
                errors.append(error)
        return errors

    def _send_due_digests(self) -> None:
        """What the clock's thread does: between the pool's calls, and when no more come."""
        with self._lock:
            while self._clock is threading.current_thread():
                now = time.time()
                due = [route.due for route in self._routes if route.due is not None]
                if not due or min(due) > now:
                    self._changed.wait(min(due) - now if due else None)
                    continue
                for error in self._each(Route.send_due_digest):
                    _log.warning("digest_not_sent", error=_told(error))

    def _tell_orphans(self) -> None:
        """What waits for a rule or channel that is not in the configuration any more will never be told of."""
        names = {route.name for route in self._routes}
        for name, count in self._journal.waiting().items():
            if name not in names:
                _log.warning("digest_orphaned", journal=str(self._journal.path), events=count, route=name)


def _told(error: Exception) -> str:
    """Ours name channels and columns; the text of others may hold values."""
    return str(error) if isinstance(error, Unsent | CdcError) else type(error).__name__
