"""What an error says about another attempt: whether, and when."""

from __future__ import annotations

import pytest

from cdc import PermanentError, RetryLater
from cdc.failures import BACKOFF_SECONDS, MAX_RETRY_AFTER_SECONDS, is_permanent, retry_after, wait_before


def test_waits_are_drawn_from_a_range_that_doubles_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full jitter: from nothing to the step, so that those that failed together do not come back together."""
    ranges: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        ranges.append((low, high))
        return high

    monkeypatch.setattr("random.uniform", uniform)
    first, longest = BACKOFF_SECONDS
    for attempt in range(2, 12):
        wait_before(attempt, ValueError())
    wait_before(10_000, ValueError())
    assert ranges == [(0, min(longest, first * 2**n)) for n in range(10)] + [(0, longest)]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, 0.0),
        (2, 2.0),
        (0.5, 0.5),
        (1e9, MAX_RETRY_AFTER_SECONDS),
        (-1, None),
        ("5", None),
        (True, None),
        (None, None),
    ],
)
def test_the_wait_that_an_error_asks_for_is_kept_within_reason(seconds: object, expected: float | None) -> None:
    """Seconds as a number; anything else says nothing."""
    error = ValueError()
    error.retry_after = seconds  # type: ignore[attr-defined]
    assert retry_after(error) == expected
    if expected is not None:
        assert wait_before(5, error) == expected


def test_an_error_is_permanent_by_its_class_or_its_attribute() -> None:
    """Only the plain truth counts: an attribute of another meaning does not."""
    marked, other = ValueError(), ValueError()
    marked.permanent = True  # type: ignore[attr-defined]
    other.permanent = "no"  # type: ignore[attr-defined]
    assert is_permanent(PermanentError("x"))
    assert is_permanent(marked)
    assert not is_permanent(other)
    assert not is_permanent(RetryLater("x", seconds=1))
