"""The `metrics` handler: counts of events, and histograms of numeric columns, where the service's own metrics are.

Owns what is counted and under which labels, and that labels stay few; must not know who serves the figures: it
registers them with `prometheus_client`'s default registry, as any handler may.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from fnmatch import translate
from functools import lru_cache
from itertools import accumulate, pairwise
from math import isfinite
from typing import Annotated, Any, Literal, TypeVar

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import Field, field_validator, model_validator

from cdc import ConfigError, DatabaseEvent, EventType, HandlerOptions, Position, TablePatterns

__all__ = ["HistogramRule", "Metrics", "MetricsOptions"]

OTHER = "_other"
"""The label of what has come after `max_series` others: no table is called so, each has a dot."""
LABEL_CHARACTERS = 128  # a table and its schema, 63 bytes each, are whole; a tag that is a document is not
REMEMBERED = 16_384
"""Positions known to be counted: many times what can be in work at once, and so be tried again."""
RESERVED = ("events", "tagged_events", "skipped_values", "overflow", "redelivered")

Name = Annotated[str, Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$")]
T = TypeVar("T")


class HistogramRule(HandlerOptions):
    """A histogram of the values of one column."""

    column: str = Field(min_length=1, description="The column's name.")
    buckets: tuple[float, ...] = Field(min_length=1, description="Upper bounds, rising; infinity is added.")
    tables: tuple[str, ...] = Field(default=("*.*",), description="Patterns such as `public.orders`.")
    event_types: tuple[EventType, ...] = Field(
        default=(EventType.CREATE, EventType.UPDATE), description="Events whose row is looked at."
    )
    name: Name | None = Field(default=None, description="Of the metric, behind the namespace; default: the column's.")

    @field_validator("buckets")
    @classmethod
    def _rise(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(map(isfinite, value)) or any(one >= other for one, other in pairwise(value)):
            raise ValueError("must be finite numbers that rise")
        return value

    @field_validator("tables")
    @classmethod
    def _are_patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            TablePatterns(value)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return value

    @property
    def metric(self) -> str:
        """Its name behind the namespace."""
        return self.name or re.sub(r"[^a-zA-Z0-9_]", "_", self.column)


class MetricsOptions(HandlerOptions):
    """`[handlers.options]` of `metrics`."""

    namespace: Name = Field(default="cdc_handler", description="What the names of all metrics begin with.")
    tags: tuple[str, ...] = Field(default=(), description="Globs such as `audit:*`: tags that are counted.")
    tag_label: Literal["glob", "tag"] = Field(
        default="glob", description='What the label `tag` shows: the glob that matches, or with `"tag"` the tag itself.'
    )
    max_series: int = Field(
        default=1000, ge=1, le=100_000, description="Label sets of each metric; what comes later shares `_other`."
    )
    histograms: tuple[HistogramRule, ...] = Field(default=(), description="Histograms of numeric columns.")

    @field_validator("namespace")
    @classmethod
    def _is_not_ours(cls, value: str) -> str:
        if value == "cdc":
            raise ValueError("is that of the service itself; take another, such as cdc_handler or shop")
        return value

    @model_validator(mode="after")
    def _names_are_their_own(self) -> MetricsOptions:
        names = Counter(rule.metric for rule in self.histograms)
        for name, count in names.items():
            if count > 1 or name in RESERVED:
                raise self.wrong_option("histograms", f"the name {name} is taken; give the rule another `name`")
        return self


class Metrics:
    """Count events by table and type, by tag, and observe columns; figures begin at zero with the process.

    Guarantee: what is delivered again in one process is counted once, as far as the last 16,384 events tell. The
    figures live in memory: after a restart they begin anew, which Prometheus knows how to read, and what was
    delivered and not yet settled before a crash is counted by both processes.

    Errors: ConfigError at `open` when the names are taken by another handler; none while counting.
    """

    def __init__(self, options: MetricsOptions) -> None:
        self._figures = _Figures(options)
        self._counted: set[Position] = set()
        self._order: deque[Position] = deque()
        self._is_open = False
        self._namespace = options.namespace

    def open(self) -> None:
        """Show the figures."""
        if self._is_open:
            return
        try:
            REGISTRY.register(self._figures)
        except ValueError:
            raise ConfigError(
                f"another handler or library has metrics whose names begin with {self._namespace}_",
                hint="give this handler a namespace of its own",
            ) from None
        self._is_open = True

    async def handle_batch(self, events: Sequence[DatabaseEvent]) -> None:
        """Count what was not counted before. It never waits: nothing is counted in half."""
        figures = self._figures
        for event in events:
            if self._is_new(event.position):
                figures.count(event)
            else:
                figures.redelivered += 1

    def close(self) -> None:
        """Show them no more; opened again, they go on."""
        if self._is_open:
            self._is_open = False
            REGISTRY.unregister(self._figures)

    def _is_new(self, position: Position) -> bool:
        if position.commit_lsn == 0:  # made by hand, and cannot be told from others made by hand
            return True
        if position in self._counted:
            return False
        self._counted.add(position)
        self._order.append(position)
        if len(self._order) > REMEMBERED:
            self._counted.discard(self._order.popleft())
        return True


class _Figures(Collector):
    """The figures themselves; counted on the event loop, read by whichever thread shows them."""

    def __init__(self, options: MetricsOptions) -> None:
        self._namespace = options.namespace
        self._tag_label: Callable[[str, str], str] = _glob if options.tag_label == "glob" else _tag
        self._globs = [(glob, re.compile(translate(glob)).match) for glob in options.tags]
        self._events: _Series[list[int]] = _Series(options.max_series, _zero)
        self._tagged: _Series[list[int]] = _Series(options.max_series, _zero)
        self._histograms = [_Histogram(rule, options.max_series) for rule in options.histograms]
        self._table = lru_cache(REMEMBERED)(_table)
        self.redelivered = 0

    def count(self, event: DatabaseEvent) -> None:
        """One event in all figures."""
        event_type = event.kind.event_type.value
        table = self._table(event.kind)
        self._events.of((table, event_type), (OTHER, event_type))[0] += 1
        if self._globs and event.tags:
            for tag in self._tags(event.tags):
                self._tagged.of((table, event_type, tag), (OTHER, event_type, OTHER))[0] += 1
        for histogram in self._histograms:
            if histogram.concerns(event.kind):
                histogram.observe(table, event.payload)

    def _tags(self, tags: Sequence[str]) -> set[str]:
        return {_label(self._tag_label(glob, tag)) for tag in tags for glob, matches in self._globs if matches(tag)}

    def collect(self) -> Iterator[Metric]:
        """All of them; also those that are nothing yet, so that their names are taken."""
        name = self._namespace
        yield _counter(f"{name}_events", "Events.", ["table", "event_type"], self._events)
        if self._globs:
            yield _counter(f"{name}_tagged_events", "Events with a tag.", ["table", "event_type", "tag"], self._tagged)
        for histogram in self._histograms:
            yield histogram.family(name)
        if self._histograms:
            yield self._skipped()
        overflow = CounterMetricFamily(f"{name}_overflow", f"What shares the label {OTHER}.", labels=["metric"])
        overflow.add_metric(["events"], self._events.overflow)
        overflow.add_metric(["tagged_events"], self._tagged.overflow)
        for histogram in self._histograms:
            overflow.add_metric([histogram.name], histogram.series.overflow)
        yield overflow
        yield CounterMetricFamily(f"{name}_redelivered", "Deliveries of what was counted.", value=self.redelivered)

    def _skipped(self) -> Metric:
        family = CounterMetricFamily(
            f"{self._namespace}_skipped_values", "Values in no bucket.", labels=["histogram", "reason"]
        )
        for histogram in self._histograms:
            for reason, count in histogram.skipped.items():
                family.add_metric([histogram.name, reason], count)
        return family


class _Series(dict[tuple[str, ...], T]):
    """Label set → figure: the first `most` have their own."""

    def __init__(self, most: int, make: Callable[[], T]) -> None:
        super().__init__()
        self._left = most
        self._make = make
        self.overflow = 0

    def of(self, labels: tuple[str, ...], other: tuple[str, ...]) -> T:
        """The figure of these labels, or where there are too many of `other`."""
        if (found := self.get(labels)) is not None:
            return found
        if self._left > 0:
            self._left -= 1
        else:
            self.overflow += 1
            labels = other
        return self.setdefault(labels, self._make())


class _Histogram:
    """One rule: counts per bucket and the sum, by table."""

    def __init__(self, rule: HistogramRule, most: int) -> None:
        self.name = rule.metric
        self.skipped = dict.fromkeys(("null", "absent", "not_a_number"), 0)
        self.series: _Series[list[float]] = _Series(most, self._make)
        self._column = rule.column
        self._bounds = rule.buckets
        self._tables = TablePatterns(rule.tables)
        self._event_types = frozenset(rule.event_types)
        self.concerns = lru_cache(REMEMBERED)(self._matches)  # whether the rule is about this table and type

    def _matches(self, kind: Any) -> bool:
        return kind.event_type in self._event_types and self._tables.matches(kind.schema, kind.table_name)

    def observe(self, table: str, row: Mapping[str, Any]) -> None:
        """The column's value, if it is a number."""
        try:
            value = row[self._column]
        except KeyError:  # no such column here, or a large value that has not changed
            self.skipped["absent"] += 1
            return
        number = _number(value)
        if number is None:
            self.skipped["null" if value is None else "not_a_number"] += 1
            return
        counts = self.series.of((table,), (OTHER,))
        counts[bisect_left(self._bounds, number)] += 1
        counts[-1] += number

    def family(self, namespace: str) -> Metric:
        """In Prometheus' terms."""
        family = HistogramMetricFamily(f"{namespace}_{self.name}", f"Column {self._column}.", labels=["table"])
        bounds = [*map(str, self._bounds), "+Inf"]
        for labels, figures in list(self.series.items()):
            *counts, total = list(figures)
            family.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total)
        return family

    def _make(self) -> list[float]:
        """A count per bucket, and the sum."""
        return [0.0] * (len(self._bounds) + 2)


def _table(kind: Any) -> str:
    return _label(kind.table)


def _zero() -> list[int]:
    return [0]


def _glob(glob: str, _tag: str) -> str:
    return glob


def _tag(_glob: str, tag: str) -> str:
    return tag


def _number(value: object) -> float | None:
    """A finite number; NaN would make a sum NaN for ever."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    try:
        number = float(value)
    except (OverflowError, ValueError):  # an integer beyond float64, a signalling NaN
        return None
    return number if isfinite(number) else None


def _label(text: str) -> str:
    """Short, of one line, and what UTF-8 has; the exposition escapes quotes and backslashes."""
    if len(text) > LABEL_CHARACTERS:
        text = text[: LABEL_CHARACTERS - 1] + "…"
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _counter(name: str, documentation: str, labels: Sequence[str], series: _Series[list[int]]) -> Metric:
    family = CounterMetricFamily(name, documentation, labels=labels)
    for values, (count,) in list(series.items()):
        family.add_metric(values, count)
    return family
