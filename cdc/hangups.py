"""What SIGHUP means: a reload, unless the terminal that the process writes to is gone. Then nobody sees it any more.

A SIGHUP ends a process that has not said otherwise; made first of all, this remembers one until there is a service.
"""

from __future__ import annotations

import os
import signal

__all__ = ["Hangups"]

_OUTPUTS = (1, 2)


class Hangups:
    """Catches SIGHUP from now on; `asked` once one has come. To be made in the main thread."""

    def __init__(self) -> None:
        self.asked = False
        self._terminals = [output for output in _OUTPUTS if os.isatty(output)]
        signal.signal(signal.SIGHUP, self._note)

    def _note(self, *_: object) -> None:
        self.asked = True

    def lost_terminal(self) -> bool:
        """Whether a terminal that was there is gone; what is written to it from now on goes nowhere, without error."""
        gone = [output for output in self._terminals if not os.isatty(output)]
        if gone:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for output in gone:
                os.dup2(nowhere, output)
            os.close(nowhere)
        return bool(gone)
