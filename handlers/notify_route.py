"""A route: one rule to one channel, with its window, its limit and its digest.

Owns when an event gets a message of its own, when it waits for a digest, and when that is due. Must not know threads
or the pool.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime

import structlog

from cdc import DatabaseEvent, PermanentError
from handlers.notify_channels import Channel
from handlers.notify_journal import Held, Journal, Window
from handlers.notify_options import Rule
from handlers.notify_rules import Matcher
from handlers.notify_template import Template, one_line

__all__ = ["Route"]

_log = structlog.get_logger(__name__)

MAX_RETRY_SECONDS = 60.0
"""Between two attempts of a digest: as long as the pool waits at most between two of an event."""


class Route:
    """Deliver the events that a rule wants to one channel; what `deliver` returns without an error is settled.

    In each window of `rule.window_seconds`, which begins with its first event, at most `rule.limit` messages are
    sent. Events beyond that are counted in the journal, and told of by one digest, the next window's first message.
    """

    def __init__(self, rule: Rule, channel: Channel, journal: Journal) -> None:
        self.name = f"{rule.name}/{channel.name}"
        self.rule = rule
        self._matcher = Matcher(rule)
        self._channel = channel
        self._journal = journal
        self._title, self._body = Template(rule.title), Template(rule.body)
        self._number = 0
        self._window = Window(0.0, 0)
        self._waiting = 0
        self._samples = 0  # kept of those that wait
        self._not_before = 0.0  # the next attempt of a digest that has failed; seconds since 1970

    def open(self) -> None:
        """Go on with the window and with what waits of the last run."""
        self._number, self._window = self._journal.route(self.name)
        held, samples = self._journal.held(self._number)
        self._waiting, self._samples = sum(one.number for one in held), len(samples)
        self._not_before = 0.0

    @property
    def due(self) -> float | None:
        """When its digest shall be sent, seconds since 1970; None when nothing waits."""
        return max(self._window_ends(), self._not_before) if self._waiting else None

    def deliver(self, events: Sequence[DatabaseEvent]) -> None:
        """Send or hold those of the events that the rule wants and that are not known; Unsent, PermanentError."""
        wanted = self._journal.fresh(self._number, filter(self._matcher.wants, events))
        if not wanted:
            return
        if self._waiting and time.time() >= self._window_ends():
            self.send_digest()  # before more is taken in: if the channel is away, these events are not settled
        for number, event in enumerate(wanted):
            if time.time() >= self._window_ends():
                self._window = Window(time.time(), 0)
            if self._waiting or self._window.used >= self.rule.limit:
                self._hold(wanted[number:])
                return
            self._send(event)

    def send_due_digest(self) -> None:
        """The digest, if it is due."""
        if self.due is not None and self.due <= time.time():
            self.send_digest()

    def send_digest(self) -> None:
        """Tell of all that waits, in one message; nothing when nothing does."""
        if not self._waiting:
            return
        held, samples = self._journal.held(self._number)
        count = sum(one.number for one in held)
        title = self.rule.digest_title.format(rule=self.rule.name, count=count)
        try:
            self._channel.send(one_line(title), _digest(held, samples, count), self.rule.severity)
        except Exception:
            self._not_before = time.time() + min(self.rule.window_seconds, MAX_RETRY_SECONDS)
            raise
        window = Window(time.time(), 1)
        self._journal.digested(self._number, window)
        self._window, self._waiting, self._samples, self._not_before = window, 0, 0, 0.0

    def _window_ends(self) -> float:
        now = time.time()
        if self._window.started > now:  # the clock was put back, which must not stretch the window
            self._window = Window(now, self._window.used)
        return self._window.started + self.rule.window_seconds

    def _send(self, event: DatabaseEvent) -> None:
        missing = self.rule.missing
        title, body = self._title.of(event, missing=missing), self._body.of(event, missing=missing)
        self._channel.send(one_line(title), body, self.rule.severity)
        window = Window(self._window.started, self._window.used + 1)
        self._journal.sent(self._number, window, event)
        self._window = window

    def _hold(self, events: Sequence[DatabaseEvent]) -> None:
        room = max(self.rule.samples - self._samples, 0)
        samples = [self._sample(event) for event in events[:room]]
        self._journal.hold(self._number, self._window, events, samples)
        if not self._waiting:
            _log.info("digest_begun", rule=self.name)
        self._waiting += len(events)
        self._samples += len(samples)

    def _sample(self, event: DatabaseEvent) -> str:
        try:
            return one_line(self._title.of(event, missing=self.rule.missing or "?"))
        except PermanentError:  # a format that does not fit: one event of many must not spoil the digest
            return f"{event.event_type.value} {event.schema}.{event.table_name}"


def _digest(held: Sequence[Held], samples: Sequence[str], count: int) -> str:
    """How many of what, between when, and the titles of the first."""
    first, last = min(one.first for one in held), max(one.last for one in held)
    lines = [f"{one.number} x {one.what}" for one in held]
    lines += ["", f"committed between {_moment(first)} and {_moment(last)}"]
    if samples:
        more = count - len(samples)
        lines += ["", "Among them:", *(f"- {text}" for text in samples), *([f"- and {more} more"] if more else [])]
    return "\n".join(lines)


def _moment(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1_000_000, UTC).isoformat(timespec="seconds")
