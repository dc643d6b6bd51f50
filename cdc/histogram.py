"""How long calls take: counts per bucket, as a Prometheus histogram wants them. It must not know who calls whom."""

from __future__ import annotations

from bisect import bisect_left

__all__ = ["SECONDS_BUCKETS", "Histogram"]

SECONDS_BUCKETS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0)
"""From "did nothing" to the default timeout."""


class Histogram:
    """Durations in seconds: counts per bucket of `SECONDS_BUCKETS` (the last is "more"), and their sum."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS_BUCKETS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """One call that took `seconds`."""
        self.counts[bisect_left(SECONDS_BUCKETS, seconds)] += 1
        self.sum += seconds

    def observe_fast(self, calls: int, seconds: float) -> None:
        """`calls` calls, each within the first bucket, that took `seconds` together."""
        self.counts[0] += calls
        self.sum += seconds

    @property
    def count(self) -> int:
        """How many calls were seen."""
        return sum(self.counts)

    def add(self, other: Histogram) -> None:
        """All that `other` has seen, too."""
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum
