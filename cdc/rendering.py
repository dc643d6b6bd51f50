"""What `/metrics` answers: the figures that were collected, the process's own, and those of handlers, in one text.

Owns the formats and what happens where names collide or a handler's metric fails. It must not know the service, and
runs in a thread, beside the event loop.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence

import structlog
from prometheus_client import REGISTRY, CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from cdc.exposition import Reading, text_of

__all__ = ["Families", "render"]

log = structlog.get_logger("cdc.rendering")


class Families:
    """What was collected, to be rendered in whichever form is asked for."""

    def __init__(self, readings: Iterable[Reading]) -> None:
        self.readings: Sequence[Reading] = tuple(readings)


def render(collected: Families, accept: str) -> tuple[bytes, str]:
    """The exposition and its content type: OpenMetrics if `accept` wants it. Call it in a thread.

    With the process's own figures, and with what handlers and libraries have registered with `prometheus_client`'s
    default registry, but for names that are taken. Whatever fails there costs only theirs.
    """
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # a version that is none
        encode, content_type = choose_encoder("")
    ours: list[bytes] = []
    for text in text_of(collected.readings, openmetrics=content_type.startswith("application/openmetrics-text")):
        ours.append(text.encode(errors="replace"))
        time.sleep(0)  # lets the event loop have the interpreter, which it waits for 5 ms otherwise
    process = list(ProcessCollector(registry=None).collect())
    taken = {*(item.family.full_name for item in collected.readings), *(metric.name for metric in process)}
    try:
        theirs = encode(_registry([*process, *_registered(taken)]))
    except Exception as error:  # noqa: BLE001 - the user's code, and what it has put into its metrics
        log.warning("metrics_of_handlers_failed", error=type(error).__name__)
        theirs = encode(_registry(process))
    return b"".join([*ours, theirs]), content_type


class _Collected(Collector):
    """What was collected, for the encoders of `prometheus_client`."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Sequence[Metric]:
        """As collected."""
        return self._metrics


def _registered(taken: Collection[str]) -> Iterator[Metric]:
    """Of the default registry, where any code of the process may show its figures."""
    return (metric for metric in REGISTRY.collect() if metric.name not in taken)


def _registry(metrics: Sequence[Metric]) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(metrics))
    return registry
