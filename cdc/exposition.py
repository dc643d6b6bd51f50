"""Families of metrics, and their text: Prometheus' format and OpenMetrics.

Owns how a family is written down. It must not know what is measured. `prometheus_client` writes the same text, but
makes an object of each sample and its labels anew: 4,000 series took it 45 ms, these lines take 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from itertools import islice
from typing import TypeAlias

__all__ = ["PREFIX", "Buckets", "Family", "Kind", "Reading", "Sample", "text_of"]

PREFIX = "cdc_"
UNITS = frozenset({"seconds", "bytes"})
HEADS = 1 << 15
"""Names with their labels that are remembered as text: what a scrape of 1,000 tables and 1,000 callbacks shows. It
is 10 MB where all of it is needed, and a megabyte in most services."""
CHUNK_LINES = 512
"""Lines written before others have a turn: a quarter of a millisecond."""


class Kind(Enum):
    """The types of Prometheus; a gauge whose value is no more than its labels is an info."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Buckets:
    """A histogram: counts up to and including each upper bound, the last of which is "+Inf", and the sum."""

    bounds: Sequence[str]
    counts: Sequence[int]
    total: float


Sample: TypeAlias = tuple[tuple[str, ...], float | Buckets]
"""The values of the family's labels, and what was measured."""


@dataclass(frozen=True, slots=True)
class Family:
    """What is measured: `name` without the prefix and the endings that the formats add."""

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """As OpenMetrics names it."""
        return PREFIX + self.name

    @property
    def sample_name(self) -> str:
        """As its samples are called, those of a histogram aside: they have an ending more."""
        return self.full_name + _ENDINGS.get(self.kind, "")

    @property
    def unit(self) -> str:
        """The base unit in which it is measured, "" for a number of things."""
        last = self.name.rpartition("_")[2]
        return last if last in UNITS else ""


_ENDINGS = {Kind.COUNTER: "_total", Kind.INFO: "_info"}


@dataclass(frozen=True, slots=True)
class Reading:
    """A family and what it says at one moment; the samples are gone through once, later."""

    family: Family
    samples: Iterable[Sample]


def text_of(readings: Iterable[Reading], *, openmetrics: bool) -> Iterator[str]:
    """The exposition in pieces, each short; of OpenMetrics without its end, which others may stand before."""
    lines = _lines(readings, openmetrics=openmetrics)
    while chunk := list(islice(lines, CHUNK_LINES)):
        yield "".join(chunk)


def _lines(readings: Iterable[Reading], *, openmetrics: bool) -> Iterator[str]:
    for reading in readings:
        yield _comments(reading.family, openmetrics=openmetrics)
        name, labels = reading.family.sample_name, reading.family.labels
        for values, value in reading.samples:
            if isinstance(value, Buckets):
                yield from _histogram(name, labels, values, value)
            else:
                yield f"{_head(name, labels, values)} {_number(value)}\n"


def _comments(family: Family, *, openmetrics: bool) -> str:
    name, kind = family.sample_name, "gauge" if family.kind is Kind.INFO else family.kind.value
    unit = ""
    if openmetrics:
        name, kind = family.full_name, family.kind.value
        unit = f"# UNIT {name} {family.unit}\n" if family.unit else ""
    return f"# HELP {name} {_escape(family.text)}\n# TYPE {name} {kind}\n{unit}"


def _histogram(name: str, labels: tuple[str, ...], values: tuple[str, ...], value: Buckets) -> Iterator[str]:
    of_bucket = (*labels, "le")
    for bound, count in zip(value.bounds, value.counts, strict=True):
        yield f"{_head(f'{name}_bucket', of_bucket, (*values, bound))} {count}\n"
    yield f"{_head(f'{name}_count', labels, values)} {value.counts[-1]}\n"
    yield f"{_head(f'{name}_sum', labels, values)} {_number(value.total)}\n"


@lru_cache(HEADS)
def _head(name: str, labels: tuple[str, ...], values: tuple[str, ...]) -> str:
    if not labels:
        return name
    pairs = (
        f'{label}="{_escape(value).replace(chr(34), chr(92) + chr(34))}"'
        for label, value in zip(labels, values, strict=True)
    )
    return f"{name}{{{','.join(pairs)}}}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _number(value: float) -> str:
    """As both formats read it; none of our figures is infinite or no number."""
    return repr(value) if value.__class__ is float else str(int(value))
