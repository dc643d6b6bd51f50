"""What cannot be written to the state at the moment: said once, and known for as long as it lasts.

Who writes tries again: the disk or the server may be back. Nothing is acknowledged meanwhile. It must not know what is
written.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from cdc.errors import CdcError, StateBusy

__all__ = ["Outage"]


class Outage:
    """Of one kind of writes; a context around each attempt, which lets an error of `kind` go no further.

    `error`: why the last one failed, "" when it did not; the first is given to `tell`. StateBusy does go further:
    another process has taken over, and it is not ours to write any more.
    """

    def __init__(self, kind: type[CdcError], tell: Callable[[CdcError], None]) -> None:
        self.error = ""
        self._kind = kind
        self._tell = tell

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> bool:
        if error is None:
            self.error = ""
        if not isinstance(error, self._kind) or isinstance(error, StateBusy):
            return False
        if not self.error:
            self._tell(error)
        self.error = str(error)
        return True
