"""The service's figures in Prometheus' terms: the names, types and labels of the design.

Reads plain counters when asked, so that the stream never takes a metric's lock. It must not know HTTP,
and keeps no state of its own; a table or callback beyond the bound of labels shares `OTHER` with the rest.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from cdc.callbacks import OTHER, SECONDS_BUCKETS, CallbackState, Histogram, Registration, Tally
from cdc.events import EventType
from cdc.service import Service
from cdc.status import Status, snapshot

__all__ = ["MAX_LABELS", "Families", "ServiceCollector", "render"]

MAX_LABELS = 1_000
"""Tables, and callbacks, with series of their own: what one Prometheus takes from one target without a thought.
The first that were seen have them; the configured handlers are registered before all others."""

OUTCOMES = ("ok", "failed", "timeout", "parked", "missed", "skipped")
"""Shown from the beginning, so that a rate sees the first; others once they occur."""
REMOVAL_REASONS = ("failures", "inactive", "unsubscribed")
WAL_STATUSES = ("reserved", "extended", "unreserved", "lost")
BUCKETS = (*map(str, SECONDS_BUCKETS), "+Inf")


class ServiceCollector(Collector):
    """Collect on the service's event loop; what comes out may be rendered anywhere."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._parts: Sequence[Callable[[Status], Iterator[Metric]]] = (
            self._stream,
            self._positions,
            self._slot,
            self._queue,
            self._callback_counters,
            self._callback_gauges,
            self._letters,
            self._upkeep,
        )

    def collect(self) -> Iterator[Metric]:
        """All families, of one moment."""
        status = snapshot(self._service)
        for part in self._parts:
            yield from part(status)

    def _stream(self, status: Status) -> Iterator[Metric]:
        service, assembler = self._service, self._service.assembler
        yield _events(service)
        filtered = dict(assembler.filtered) if assembler is not None else {}
        yield _counter("events_filtered", "Changes that made no event.", filtered, "reason")
        yield _total("received_bytes", "Bytes of the stream's messages.", service.received_bytes)
        transactions = assembler.transactions if assembler is not None else 0
        yield _total("transactions", "Transactions received whole.", transactions)
        yield _gauge("connected", "Whether the stream is open.", int(status.connected))
        yield _counter("reconnects", "Streams that were lost.", status.reconnects, "reason")
        heard = None if status.silence_seconds is None else time.time() - status.silence_seconds
        yield _gauge("last_message_timestamp_seconds", "When the wire last brought something.", heard)

    def _positions(self, status: Status) -> Iterator[Metric]:
        yield _gauge("lag_seconds", "Age of what is not settled, 0 when all is.", status.lag_seconds)
        yield _gauge("lag_bytes", "WAL between the server's position and the flushed one.", status.lag_bytes)
        yield _gauge("received_lsn", "All transactions up to here were received.", status.received_lsn)
        yield _gauge("flushed_lsn", "All up to here is settled and durable.", status.flushed_lsn)

    def _slot(self, status: Status) -> Iterator[Metric]:
        slot = status.slot
        retained = slot.retained_bytes if slot is not None else None
        yield _gauge("slot_retained_bytes", "WAL that the server keeps for the slot.", retained)
        safe = slot.safe_wal_bytes if slot is not None else None
        yield _gauge("slot_safe_wal_bytes", "WAL until the slot is in danger; absent without a limit.", safe)
        left = slot.seconds_to_invalidation if slot is not None else None
        help_text = "Until the server may invalidate it, at the present rate; absent when nothing speaks for it."
        yield _gauge("slot_seconds_to_invalidation", help_text, left)
        help_text = "Whether the server has removed WAL that was still needed."
        yield _gauge("slot_invalidated", help_text, int(status.slot_invalidated))
        family = GaugeMetricFamily("cdc_slot_wal_status", "1 for the slot's wal_status.", labels=["status"])
        if slot is not None:
            for name in dict.fromkeys((*WAL_STATUSES, slot.wal_status or "unknown")):
                family.add_metric([name], int(name == (slot.wal_status or "unknown")))
        yield family

    def _queue(self, status: Status) -> Iterator[Metric]:
        queue = status.queue
        yield _gauge("queued_events", "Events queued or in work.", queue.events)
        yield _gauge("queued_bytes", "Memory that they take, about.", queue.bytes)
        yield _gauge("queue_limit_events", "signal.max_queued_events.", queue.limit_events)
        yield _gauge("queue_limit_bytes", "signal.max_queued_bytes.", queue.limit_bytes)

    def _callback_counters(self, _status: Status) -> Iterator[Metric]:
        seconds = HistogramMetricFamily("cdc_callback_seconds", "Calls that succeeded.", labels=["callback"])
        outcomes = CounterMetricFamily(
            "cdc_callback_events", "Events by what became of them.", labels=["callback", "outcome"]
        )
        retries: dict[str, int] = {}
        for name, tally in self._tallies().items():
            retries[name] = tally.retries
            seconds.add_metric([name], _buckets(tally.seconds), tally.seconds.sum)
            counts = dict.fromkeys(OUTCOMES, 0) | dict(tally.outcomes)
            for outcome, count in counts.items():
                outcomes.add_metric([name, outcome], count)
        yield seconds
        yield outcomes
        yield _counter("callback_retries", "Attempts but the first.", retries, "callback")
        removed = dict.fromkeys(REMOVAL_REASONS, 0) | dict(self._service.manager.registry.removed_total)
        yield _counter("callbacks_removed", "Callbacks that get no more events.", removed, "reason")

    def _tallies(self) -> Mapping[str, Tally]:
        """Counts by name, those of callbacks that are gone included."""
        registry = self._service.manager.registry
        counted: list[tuple[str, Tally | Registration]] = [(item.name, item) for item in registry]
        counted += registry.retired.items()  # last: where names are too many, those of the gone share one
        names = _bounded(name for name, _ in counted)
        tallies: dict[str, Tally] = {}
        for name, counts in counted:
            tallies.setdefault(names[name], Tally()).add(counts)
        return tallies

    def _callback_gauges(self, status: Status) -> Iterator[Metric]:
        yield _gauge("callbacks", "Callbacks that get events.", self._service.manager.callback_count())
        # Beyond the bound a gauge has nothing to be added to: those callbacks have none.
        shown = status.callbacks[:MAX_LABELS]
        up = {item.name: int(item.state == CallbackState.ACTIVE.value) for item in shown}
        yield _gauges("callback_up", "Whether it gets events.", up)
        failures = {item.name: item.consecutive_failures for item in shown}
        yield _gauges("callback_consecutive_failures", "Since its last success.", failures)
        held = {item.name: item.holdback_bytes for item in shown}
        yield _gauges("callback_holdback_bytes", "WAL that it lies behind what was received.", held)
        late = {item.name: item.holdback_seconds for item in shown}
        yield _gauges("callback_holdback_seconds", "Age of its oldest unsettled commit.", late)

    def _letters(self, status: Status) -> Iterator[Metric]:
        counts: dict[tuple[str, str], int] = {}
        names = _bounded(item.callback for item in status.dead_letters)
        for item in status.dead_letters:
            key = names[item.callback], item.state
            counts[key] = counts.get(key, 0) + item.count
        family = GaugeMetricFamily("cdc_dead_letters", "Events that lie there.", labels=["callback", "state"])
        for (callback, state), count in counts.items():
            family.add_metric([callback, state], count)
        yield family

    def _upkeep(self, status: Status) -> Iterator[Metric]:
        checkpointer = self._service.checkpointer
        seconds = checkpointer.seconds if checkpointer is not None else Histogram()
        family = HistogramMetricFamily("cdc_checkpoint_seconds", "Time to write a checkpoint.")
        family.add_metric([], _buckets(seconds), seconds.sum)
        yield family
        yield _total("checkpoints", "Checkpoints written.", seconds.count)
        missing = _by_label(status.missing_replica_identity)
        help_text = "Changes that the server dropped: their table has no replica identity."
        yield _counter("missing_replica_identity", help_text, missing, "table")
        blocked = self._service.loop_blocked_seconds
        yield _total("event_loop_blocked_seconds", "Time that callbacks kept the event loop.", blocked)
        facts = {"version": _version(), "python_version": platform.python_version()}
        yield InfoMetricFamily("cdc_build", "What runs here.", value=facts)


class Families(Collector):
    """What was collected, to be rendered elsewhere."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = tuple(families)

    def collect(self) -> Sequence[Metric]:
        """As collected."""
        return self._families


def render(families: Families, accept: str) -> tuple[bytes, str]:
    """The exposition, with the process's own figures, and its content type: OpenMetrics if `accept` wants it."""
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # a version that is none
        encode, content_type = choose_encoder("")
    registry = CollectorRegistry(auto_describe=False)
    registry.register(families)
    ProcessCollector(registry=registry)
    return encode(registry), content_type


def _events(service: Service) -> Metric:
    family = CounterMetricFamily("cdc_events", "Events handed out.", labels=["table", "event_type"])
    counts = dict(service.assembler.counts) if service.assembler is not None else {}
    tables = _bounded(kind.table for kind in counts)
    summed: dict[tuple[str, EventType], int] = {}
    for kind, count in counts.items():
        # Two tables may share a label: "a.b"."c" and "a"."b.c". A series must not occur twice.
        key = tables[kind.table], kind.event_type
        summed[key] = summed.get(key, 0) + count
    for (table, event_type), count in summed.items():
        family.add_metric([table, event_type.value], count)
    return family


def _bounded(names: Iterable[str]) -> dict[str, str]:
    """Name → label: the first `MAX_LABELS` different ones are their own."""
    labels: dict[str, str] = {}
    for name in names:
        if name not in labels:
            labels[name] = name if len(labels) < MAX_LABELS else OTHER
    return labels


def _by_label(counts: Mapping[str, int]) -> dict[str, int]:
    summed: dict[str, int] = {}
    for name, label in _bounded(counts).items():
        summed[label] = summed.get(label, 0) + counts[name]
    return summed


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    return list(zip(BUCKETS, accumulate(list(histogram.counts)), strict=True))


def _total(name: str, documentation: str, value: float) -> Metric:
    return CounterMetricFamily(f"cdc_{name}", documentation, value=value)


def _counter(name: str, documentation: str, counts: Mapping[str, int], label: str) -> Metric:
    family = CounterMetricFamily(f"cdc_{name}", documentation, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family


def _gauge(name: str, documentation: str, value: float | None) -> Metric:
    """Without a sample when the value is not known."""
    return GaugeMetricFamily(f"cdc_{name}", documentation, value=value)


def _gauges(name: str, documentation: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"cdc_{name}", documentation, labels=["callback"])
    for callback, value in values.items():
        family.add_metric([callback], value)
    return family


def _version() -> str:
    try:
        return version("walsignal")
    except PackageNotFoundError:
        return "unknown"
