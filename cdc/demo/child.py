"""The real service, started as anybody starts it: `cdc run --config ...`, in a process of its own.

Owns that process from start to exit. It must not know what the service says on the screen.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from cdc.codes import Code
from cdc.errors import CdcError

__all__ = ["ChildService", "DemoError"]

DRAIN_SECONDS = 45  # the service itself drains for 30 at most
LOG_TAIL_LINES = 2  # the last says why it has failed


class DemoError(CdcError):
    """The demonstration cannot go on, and why."""

    default_code = Code.DEMO_FAILED


class ChildService:
    """`cdc run` with its events on our own standard output and its log in a file."""

    def __init__(self, config: Path, environment: Mapping[str, str], log_file: Path) -> None:
        self._log_file = log_file
        with log_file.open("wb") as log:
            # A session of its own: Ctrl-C on the terminal reaches us, and we end it in its turn.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cdc.cli", "run", "--config", config],
                stdin=subprocess.DEVNULL,
                stderr=log,
                cwd=config.parent,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        self.pid = self._process.pid

    def check(self) -> None:
        """DemoError with the end of its log when it has ended by itself."""
        if (code := self._process.poll()) is not None:
            raise self._failed(f"the service has ended with exit code {code}")

    def stop(self, pause: Callable[[], None]) -> None:
        """SIGTERM: it drains, saves and ends; DemoError when it ends otherwise. Calls `pause` while it waits."""
        self._process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + DRAIN_SECONDS
        while (code := self._process.poll()) is None:
            pause()
            if time.monotonic() > deadline:
                raise self._failed(f"the service did not stop within {DRAIN_SECONDS} s")
        if code != 0:
            raise self._failed(f"the service has stopped with exit code {code}")

    def kill(self) -> None:
        """End it and all it has started, now; nothing happens when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def _failed(self, text: str) -> DemoError:
        lines = self._log_file.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return DemoError(f"{text}; the end of its log: {' | '.join(lines) or 'empty'}")
