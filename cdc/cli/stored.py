"""How commands reach the state: opened for as long as a command needs it, beside a service that may run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from time import monotonic, sleep

from cdc.config import Config
from cdc.orders import require_handler
from cdc.state import DeadLetter, LetterFilter, LetterTotal, StateStore, open_state

__all__ = ["MOST_COUNTED", "changes", "count", "moment", "opened", "pages", "require_handler", "summed"]

PAGE_LETTERS = 1_000
PAGE_BYTES = 8 << 20  # what a command holds at once, whatever the letters' size
MOST_COUNTED = 10_000  # beyond it nobody needs to know how many exactly, and looking takes time
LOOK_SECONDS = 0.2
"""A command that waits for the service, which looks at the state twice a second itself."""


@contextmanager
def opened(config: Config, *, read_only: bool = False) -> Iterator[StateStore]:
    """The state of this configuration, not as its owner; StateError when there is none yet, and none is made."""
    url = config.state.url
    if not read_only:
        open_state(url, read_only=True).close()
    store = open_state(url, read_only=read_only)
    try:
        yield store
    finally:
        store.close()


def pages(
    store: StateStore, wanted: LetterFilter, after: DeadLetter | None = None, limit: int = PAGE_LETTERS
) -> Iterator[Sequence[DeadLetter]]:
    """Dead letters behind `after`, a bounded number of bytes at a time; `limit` is that of one page."""
    while True:
        place = None if after is None else (after.callback, after.position)
        page = store.letters(wanted, after=place, limit=limit, max_bytes=PAGE_BYTES)
        if not page:
            return
        yield page
        after = page[-1]


def count(
    store: StateStore, wanted: LetterFilter, most: int = MOST_COUNTED, *, behind: DeadLetter | None = None
) -> int:
    """How many there are (behind that one); `most` stands for as many or more."""
    found = 0
    for page in pages(store, wanted, behind):
        found += len(page)
        if found >= most:
            return most
    return found


def summed(store: StateStore, wanted: LetterFilter) -> int | None:
    """How many there are, None when the sums do not tell."""
    if wanted != LetterFilter(callback=wanted.callback, state=wanted.state):
        return None
    return sum(total.count for total in store.letter_totals() if _is_of(total, wanted))


def _is_of(total: LetterTotal, wanted: LetterFilter) -> bool:
    return wanted.callback in (None, total.callback) and wanted.state in (None, total.state)


def changes(store: StateStore, seconds: float | None = None) -> Iterator[None]:
    """Yields at once, after each change of the state, and at least once a second; ends after `seconds`."""
    start = monotonic()
    seen: tuple[int, int] | None = None
    while seconds is None or monotonic() < start + seconds:
        now = store.version(), int(monotonic() - start)
        if now != seen:
            seen = now
            yield
        sleep(LOOK_SECONDS)


def moment(time: datetime | None) -> str:
    """For people, in their own time zone."""
    return "-" if time is None else time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
