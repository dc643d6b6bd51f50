"""Ctrl-C in two steps: the first asks, the second insists.

Owns the process's handlers of SIGINT, SIGTERM and SIGHUP for a while. An exception out of a signal handler
may come between any two instructions, also between a process's start and the note that it runs: a signal
is therefore only counted, and the count is looked at where stopping is safe.
"""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType
from typing import Self

__all__ = ["Interrupted", "Interrupts"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PAUSE_SECONDS = 0.05  # between two looks at the count: nobody feels less


class Interrupted(Exception):
    """Somebody asked to stop, or insisted."""


class Interrupts:
    """Context manager: until its end signals are counted and do nothing else."""

    def __init__(self) -> None:
        self._count = 0

    def __enter__(self) -> Self:
        self._before = [(number, signal.signal(number, self._on_signal)) for number in SIGNALS]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)

    def check(self, *, stopping: bool = False) -> None:
        """Raise Interrupted at the first signal; while all is `stopping` anyway, at the second."""
        if self._count > stopping:
            raise Interrupted

    def pause(self, *, stopping: bool = False) -> None:
        """Wait a moment, then `check`."""
        time.sleep(PAUSE_SECONDS)
        self.check(stopping=stopping)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - Python's signature
        self._count += 1
