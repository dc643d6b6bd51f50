"""What a measured Python process says about its run, in a file.

Runs inside the measured process, whoever that is: it imports nothing but the standard library.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

__all__ = ["Report"]


class Report:
    """CPU seconds up to now, which are the start-up's, and later the time of the end."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._facts: dict[str, Any] = {"cpu_at_start": time.process_time()}

    def warm(self, changes: int) -> None:
        """So many changes have been handled, and from now on counts what is done."""
        self._facts["warm"] = {"time": time.time(), "cpu": time.process_time(), "changes": changes}

    def done(self, **facts: Any) -> None:
        """The last event has been handled; `facts` are what else there is to say."""
        self._write({"ended": time.time(), **self._facts, **facts})

    def started(self) -> None:
        """Tell of the start alone."""
        self._write(self._facts)

    def _write(self, facts: dict[str, Any]) -> None:
        unfinished = self._file.with_suffix(".part")
        unfinished.write_text(json.dumps(facts))
        unfinished.rename(self._file)  # whoever sees the file sees all of it
