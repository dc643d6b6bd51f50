"""The service's figures, read off at a scrape.

Reads plain counters when asked, so that the stream never takes a metric's lock. It must not know HTTP, and remembers
nothing but who has a label: a table or callback beyond the bound shares `OTHER` with the rest.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from itertools import accumulate
from time import monotonic

from cdc import families
from cdc.callbacks import CallbackState, Registration
from cdc.events import EventType, Kind
from cdc.exposition import Buckets, Family, Reading, Sample
from cdc.histogram import SECONDS_BUCKETS, Histogram
from cdc.registry import OTHER, Tally
from cdc.reload import Outcome
from cdc.service import Phase, Service
from cdc.snapshot import snapshot
from cdc.state import LetterState
from cdc.status import Status

__all__ = ["MAX_LABELS", "ServiceCollector", "version"]

MAX_LABELS = 1_000
"""Tables, and callbacks, with series of their own: what one Prometheus takes from one target without a thought.
The first that were seen have them; the configured handlers are registered before all others."""

# Shown from the beginning, so that a rate sees the first; others once they occur.
OUTCOMES = ("ok", "failed", "timeout", "parked", "missed", "skipped")
REMOVAL_REASONS = ("failures", "inactive", "unsubscribed")
FILTER_REASONS = ("table", "redelivered", "tag_message_outside_transaction")
LOSS_REASONS = ("connection_lost", "connect", "server_shutdown", "silent", "slot_busy", "slot_moved")
WAL_STATUSES = ("reserved", "extended", "unreserved", "lost")
BUCKETS = (*map(str, SECONDS_BUCKETS), "+Inf")


class ServiceCollector:
    """Collect on the service's event loop; what comes out may be rendered anywhere."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._build = (version(), platform.python_version())
        self._started = _unix(service.started)  # once: a clock that is set would look like a restart
        self._named: dict[str, str] = {}
        self._parts: Sequence[Callable[[Status], Iterator[Reading]]] = (
            self._process,
            self._stream,
            self._positions,
            self._slot,
            self._queue,
            self._callback_gauges,
            self._callback_counters,
            self._letters,
            self._upkeep,
        )

    def collect(self) -> Iterator[Reading]:
        """All families, of one moment: counts are copied here, and put into words when they are rendered."""
        status = snapshot(self._service)
        for part in self._parts:
            yield from part(status)

    def _process(self, status: Status) -> Iterator[Reading]:
        yield Reading(families.BUILD, [(self._build, 1)])
        yield _one(families.START_TIME, self._started)
        yield _by_word(families.PHASE, {phase.value: int(phase.value == status.phase) for phase in Phase})
        yield _one(families.READY, int(status.ready))
        yield _one(families.LOOP_BLOCKED, self._service.heartbeat.blocked_seconds)

    def _stream(self, status: Status) -> Iterator[Reading]:
        service, assembler = self._service, self._service.assembler
        yield _one(families.CONNECTED, int(status.connected))
        yield _by_word(families.RECONNECTS, dict.fromkeys(LOSS_REASONS, 0) | dict(status.reconnects))
        yield _one(families.LAST_MESSAGE, _unix(service.last_message))
        yield _one(families.RECEIVED_BYTES, service.received_bytes)
        yield _one(families.TRANSACTIONS, assembler.transactions if assembler is not None else 0)
        counts = dict(assembler.counts) if assembler is not None else {}
        yield Reading(families.EVENTS, _events(counts))
        filtered = dict(assembler.filtered) if assembler is not None else {}
        yield _by_word(families.FILTERED, dict.fromkeys(FILTER_REASONS, 0) | filtered)
        yield Reading(families.UNCHANGED_TOAST, _summed(dict(service.unchanged.counts)))
        yield Reading(families.MISSING_IDENTITY, _summed(status.missing_replica_identity))
        yield _one(families.UNDECODABLE, service.undecodable)

    def _positions(self, status: Status) -> Iterator[Reading]:
        yield _one(families.LAG_SECONDS, status.lag_seconds)
        yield _one(families.LAG_BYTES, status.lag_bytes)
        yield _one(families.RECEIVED_LSN, status.received_lsn)
        yield _one(families.FLUSHED_LSN, status.flushed_lsn)

    def _slot(self, status: Status) -> Iterator[Reading]:
        slot = status.slot
        yield _one(families.SLOT_ACTIVE, int(slot.active_pid is not None) if slot else None)
        yield _one(families.SLOT_RETAINED, slot.retained_bytes if slot else None)
        yield _one(families.SLOT_SAFE_WAL, slot.safe_wal_bytes if slot else None)
        yield _one(families.SLOT_SECONDS_LEFT, slot.seconds_to_invalidation if slot else None)
        names = dict.fromkeys((*WAL_STATUSES, slot.wal_status or "unknown")) if slot else ()
        current = (slot.wal_status or "unknown") if slot else ""
        yield _by_word(families.SLOT_WAL_STATUS, {name: int(name == current) for name in names})
        yield _one(families.SLOT_INVALIDATED, int(status.slot_invalidated))
        yield _one(families.SLOT_CONFIRMED, slot.confirmed_flush_lsn if slot else None)
        yield _one(families.SLOT_LOOKED, _unix(self._service.monitor.looked_time))

    def _queue(self, status: Status) -> Iterator[Reading]:
        queue = status.queue
        yield _one(families.QUEUED_EVENTS, queue.events)
        yield _one(families.QUEUED_BYTES, queue.bytes)
        yield _one(families.QUEUE_LIMIT_EVENTS, queue.limit_events)
        yield _one(families.QUEUE_LIMIT_BYTES, queue.limit_bytes)
        yield _one(families.HELD_BACK, int(queue.held_back))

    def _callback_gauges(self, status: Status) -> Iterator[Reading]:
        yield _one(families.CALLBACKS, self._service.manager.callback_count())
        # Beyond the bound a gauge has nothing to be added to: those callbacks have none.
        shown = [item for item in status.callbacks if self._label(item.name) != OTHER]
        up = {item.name: int(item.state == CallbackState.ACTIVE.value) for item in shown}
        yield _by_word(families.CALLBACK_UP, up)
        failures = {item.name: item.consecutive_failures for item in shown}
        yield _by_word(families.CONSECUTIVE_FAILURES, failures)
        yield _by_word(families.HOLDBACK_BYTES, {item.name: item.holdback_bytes for item in shown})
        yield _by_word(families.HOLDBACK_SECONDS, {item.name: item.holdback_seconds for item in shown})
        yield _by_word(families.CALLBACK_HELD, {item.name: int(bool(item.held)) for item in shown})

    def _callback_counters(self, _status: Status) -> Iterator[Reading]:
        tallies = self._tallies()
        yield Reading(families.CALLBACK_SECONDS, (((name,), _buckets(one.seconds)) for name, one in tallies.items()))
        yield Reading(families.CALLBACK_EVENTS, _outcomes(tallies))
        yield _by_word(families.CALLBACK_RETRIES, {name: tally.retries for name, tally in tallies.items()})
        removed = dict.fromkeys(REMOVAL_REASONS, 0) | dict(self._service.manager.registry.removed_total)
        yield _by_word(families.CALLBACKS_REMOVED, removed)

    def _tallies(self) -> Mapping[str, Tally]:
        """Counts by name, those of callbacks that are gone included."""
        registry = self._service.manager.registry
        counted: list[tuple[str, Tally | Registration]] = [(item.name, item) for item in registry]
        counted += registry.retired.items()  # last: where names are too many, those of the gone share one
        tallies: dict[str, Tally] = {}
        for name, counts in counted:
            tallies.setdefault(self._label(name), Tally()).add(counts)
        return tallies

    def _label(self, callback: str) -> str:
        """Its own for good, or `OTHER`: one that moved from there to a label of its own would make a counter fall."""
        if callback not in self._named:
            if len(self._named) >= MAX_LABELS:
                return OTHER
            self._named[callback] = callback
        return callback

    def _letters(self, status: Status) -> Iterator[Reading]:
        known = [item.name for item in status.callbacks if item.configured]
        none = {(self._label(name), state.value): 0 for name in known for state in LetterState}
        count, size, oldest = Counter(none), Counter(none), dict[tuple[str, str], float](none)
        for item in status.dead_letters:
            key = self._label(item.callback), item.state
            count[key] += item.count
            size[key] += item.bytes
            oldest[key] = max(oldest.get(key, 0.0), item.oldest_seconds if item.count else 0.0)
        yield Reading(families.DEAD_LETTERS, count.items())
        yield Reading(families.DEAD_LETTERS_BYTES, size.items())
        yield Reading(families.DEAD_LETTERS_OLDEST, oldest.items())

    def _upkeep(self, _status: Status) -> Iterator[Reading]:
        checkpointer, letters = self._service.checkpointer, self._service.letters
        seconds = checkpointer.seconds if checkpointer is not None else Histogram()
        yield Reading(families.CHECKPOINT_SECONDS, [((), _buckets(seconds))])
        yield _one(families.CHECKPOINTS, seconds.count)
        failing = {
            "checkpoint": int(checkpointer is not None and checkpointer.error != ""),
            "dead_letters": int(letters is not None and letters.error != ""),
        }
        yield _by_word(families.STATE_FAILING, failing)
        yield from self._reloads()

    def _reloads(self) -> Iterator[Reading]:
        reloads = self._service.reloads
        last = reloads.last
        yield _by_word(families.RELOADS, {outcome.value: reloads.counts[outcome] for outcome in Outcome})
        yield _one(families.RELOAD_SUCCESSFUL, None if last is None else int(last.outcome is not Outcome.REFUSED))
        yield _one(families.RELOAD_TIME, None if last is None else last.time.timestamp())


def _events(counts: Mapping[Kind, int]) -> Iterator[Sample]:
    tables = _bounded(kind.table for kind in counts)
    summed: dict[tuple[str, EventType], int] = {}
    for kind, count in counts.items():
        # Two tables may share a label: "a.b"."c" and "a"."b.c". A series must not occur twice.
        key = tables[kind.table], kind.event_type
        summed[key] = summed.get(key, 0) + count
    for (table, event_type), count in summed.items():
        yield (table, event_type.value), count


def _summed(counts: Mapping[str, int]) -> Iterator[Sample]:
    """Of tables."""
    labels = _bounded(counts)
    summed: Counter[str] = Counter()
    for name, count in counts.items():
        summed[labels[name]] += count
    for label, count in summed.items():
        yield (label,), count


def _outcomes(tallies: Mapping[str, Tally]) -> Iterator[Sample]:
    for name, tally in tallies.items():
        for outcome, count in (dict.fromkeys(OUTCOMES, 0) | tally.outcomes).items():
            yield (name, outcome), count


def _bounded(tables: Iterable[str]) -> dict[str, str]:
    """Table → label: the first `MAX_LABELS` different ones are their own; they come in the order first seen."""
    labels: dict[str, str] = {}
    for name in tables:
        if name not in labels:
            labels[name] = name if len(labels) < MAX_LABELS else OTHER
    return labels


def _buckets(histogram: Histogram) -> Buckets:
    return Buckets(BUCKETS, list(accumulate(list(histogram.counts))), histogram.sum)


def _one(family: Family, value: float | None) -> Reading:
    """Without a sample when the value is not known."""
    return Reading(family, [] if value is None else [((), value)])


def _by_word(family: Family, values: Mapping[str, float]) -> Reading:
    return Reading(family, [((name,), value) for name, value in values.items()])


def _unix(moment: float | None) -> float | None:
    """Of monotonic seconds."""
    return None if moment is None else time.time() - monotonic() + moment


def version() -> str:
    """Of what runs here."""
    try:
        return metadata.version("walsignal")
    except metadata.PackageNotFoundError:
        return "unknown"
