"""A measured child process: when it ended, its CPU seconds, its peak of resident memory.

Owns the process from start to end. It must not know which contender it is.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.server import BenchError

__all__ = ["Measured"]

POLL_SECONDS = 0.02  # for the memory; the times come from the processes themselves
STOP_SECONDS = 60.0  # twice the drain timeout
LOG_TAIL_BYTES = 2000


class Measured:
    """A child that runs until it ends by itself or is stopped; killed when the `with` block is left before.

    Its working directory is that of its log: what it leaves lying about goes with the run's folder.
    """

    def __init__(self, command: Sequence[str | Path], environment: Mapping[str, str], log: Path) -> None:
        self.peak_bytes = 0
        self.ended = 0.0
        self.cpu_seconds = 0.0
        self._log = log
        with log.open("wb") as output:
            self.started = time.time()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                env={**os.environ, **environment},
            )
        self._reaper = threading.Thread(target=self._reap, name="bench-reaper", daemon=True)
        self._reaper.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def wait_until(self, done: Callable[[], bool], timeout: float) -> None:
        """Wait until `done` says so, watching the memory; BenchError when the process ends before."""
        deadline = time.monotonic() + timeout
        while not done():
            self._look_at_memory()
            if not self._reaper.is_alive() and not done():
                raise BenchError(f"ended too early, exit code {self._process.returncode}:\n{self._last_words()}")
            if time.monotonic() > deadline:
                raise BenchError(f"not done within {timeout:.0f} s:\n{self._last_words()}")
            time.sleep(POLL_SECONDS)
        self._look_at_memory()

    def wait(self, timeout: float) -> None:
        """Wait until it has ended, with exit code 0."""
        self.wait_until(lambda: not self._reaper.is_alive(), timeout)
        if self._process.returncode != 0:
            raise BenchError(f"exit code {self._process.returncode}:\n{self._last_words()}")

    def stop(self) -> None:
        """SIGTERM, and wait; what it exits with does not matter."""
        self._signal(signal.SIGTERM)
        self._reaper.join(STOP_SECONDS)
        if self._reaper.is_alive():
            raise BenchError(f"does not end after SIGTERM:\n{self._last_words()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._signal(signal.SIGKILL)
        self._reaper.join()

    def _signal(self, number: signal.Signals) -> None:
        if self._reaper.is_alive():
            with contextlib.suppress(ProcessLookupError):  # it has ended, and the reaper is about to say so
                os.kill(self.pid, number)

    def _reap(self) -> None:
        _, status, usage = os.wait4(self.pid, 0)
        self.ended = time.time()
        self.cpu_seconds = usage.ru_utime + usage.ru_stime
        self._process.returncode = os.waitstatus_to_exitcode(status)

    def _look_at_memory(self) -> None:
        """VmHWM; not ru_maxrss, which begins with the memory of the process that we were forked from."""
        try:
            found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        except OSError:
            return
        if found:
            self.peak_bytes = max(self.peak_bytes, int(found[1]) * 1024)

    def _last_words(self) -> str:
        return self._log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
