"""The slot guard: how near the slot is to its end, measured against the thresholds of the configuration.

Pure: it is told what the monitor saw and when, and answers what must be said and why the service is not
ready. It knows no connection, no clock and no log.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from cdc.config import SlotGuardConfig
from cdc.slots import SlotInfo

__all__ = ["Finding", "Guard", "Level"]

WINDOW_SECONDS = 120.0
SPAN_SECONDS = 60.0
"""Over what the rate is measured, at most and at least. A slot that fares well lets WAL go in jumps, about as often
as the server notes its running transactions (15 s), so the peaks of two halves are compared, and each half must be
long enough for a jump or two."""
CLEARANCE = 1.1
"""A level is left again only this factor away from its threshold, so that a value at the threshold is said once."""
MIB = 1024**2


class Level(IntEnum):
    """How bad it is."""

    FINE = 0
    WARN = 1
    PAST = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """A figure that has come to another level; `text` is for people."""

    figure: str
    level: Level
    text: str


@dataclass(frozen=True, slots=True)
class _Figure:
    """What is measured, and from which values on it is worth a word: above them, or below."""

    name: str
    warn: float
    past: float
    is_ceiling: bool
    words: str

    def level(self, value: float | None, before: Level) -> Level:
        """Of `value`; what is not known is fine."""
        if value is None:
            return Level.FINE
        for level, threshold in ((Level.PAST, self.past), (Level.WARN, self.warn)):
            if threshold > 0 and self._is_beyond(value, threshold, slack=CLEARANCE if before >= level else 1.0):
                return level
        return Level.FINE

    def _is_beyond(self, value: float, threshold: float, *, slack: float) -> bool:
        return value * slack > threshold if self.is_ceiling else value < threshold * slack


class Guard:
    """Watches one slot; `note` what was seen, in the order of time."""

    def __init__(self, limits: SlotGuardConfig) -> None:
        self.seconds_to_invalidation: float | None = None
        self._seen: deque[tuple[float, int]] = deque()  # (monotonic seconds, safe WAL bytes)
        self._levels: dict[str, Finding] = {}
        self._figures = (
            _Figure(
                "retained_bytes",
                limits.warn_retained_bytes,
                limits.max_retained_bytes,
                is_ceiling=True,
                words="the server keeps {0:,.1f} MiB of WAL for the slot",
            ),
            _Figure(
                "safe_wal_bytes",
                limits.warn_safe_wal_bytes,
                limits.min_safe_wal_bytes,
                is_ceiling=False,
                words="the slot may be invalidated after {0:,.1f} MiB more of WAL",
            ),
            _Figure(
                "seconds_to_invalidation",
                limits.warn_seconds_to_invalidation,
                limits.min_seconds_to_invalidation,
                is_ceiling=False,
                words="the slot may be invalidated in {1:,.0f} s",
            ),
        )

    @property
    def reasons(self) -> Sequence[str]:
        """Why the service is not ready."""
        return [finding.text for finding in self._levels.values() if finding.level is Level.PAST]

    def note(self, slot: SlotInfo | None, time: float) -> list[Finding]:
        """What was seen at `time`, monotonic seconds; what has changed its level since the last look."""
        safe = slot.safe_wal_bytes if slot is not None else None
        self.seconds_to_invalidation = self._seconds_left(slot, safe, time)
        values = {
            "retained_bytes": slot.retained_bytes if slot is not None else None,
            "safe_wal_bytes": None if safe is None else max(safe, 0),
            "seconds_to_invalidation": self.seconds_to_invalidation,
        }
        changed = []
        for figure in self._figures:
            value = values[figure.name]
            before = self._levels[figure.name].level if figure.name in self._levels else Level.FINE
            level = figure.level(value, before)
            known = 0.0 if value is None else float(value)
            finding = Finding(figure.name, level, figure.words.format(known / MIB, known))
            self._levels[figure.name] = finding
            if level is not before:
                changed.append(finding)
        return changed

    def _seconds_left(self, slot: SlotInfo | None, safe: int | None, time: float) -> float | None:
        """At the rate of the window. None when it does not shrink, or has no limit."""
        if slot is None or safe is None:
            self._seen.clear()
            return None
        self._seen.append((time, safe))
        while self._seen[-1][0] - self._seen[0][0] > WINDOW_SECONDS:
            self._seen.popleft()
        if safe <= 0 or slot.wal_status == "unreserved":
            return 0.0  # at the server's next checkpoint
        if time - self._seen[0][0] < SPAN_SECONDS:
            return None
        middle = (time + self._seen[0][0]) / 2
        early = max((look for look in self._seen if look[0] < middle), key=_safe)
        late = max((look for look in self._seen if look[0] >= middle), key=_safe)
        lost = _safe(early) - _safe(late)
        return safe * (late[0] - early[0]) / lost if lost > 0 else None


def _safe(look: tuple[float, int]) -> int:
    return look[1]
