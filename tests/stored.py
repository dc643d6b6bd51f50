"""Records for the tests of the state, in few letters, and a process that saves them as fast as it can."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cdc.events import Position
from cdc.lsn import Lsn
from cdc.state import Checkpoint, DeadLetter, Gap, LetterState, Source

SOURCE = Source("7301234567890123456", 1, "shop", "cdc", "wal2json", "0f3a")
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)

SAVER = """
import sys
from cdc.events import Position
from cdc.lsn import Lsn
from cdc.state import Checkpoint, Gap, Source, open_state
from datetime import UTC, datetime

store = open_state(sys.argv[1], owner=True)
last = store.load()
number = last.last_event_id if last else 0
while True:
    number += 1
    position = Position(Lsn(number), 1)
    gap = Gap("", Position(Lsn(1), 1), position, number, "test", datetime.now(UTC), datetime.now(UTC))
    store.save(Checkpoint(Source("1", 1, "d", "s", "p", "x"), Lsn(number), number, {"a": position}), [gap])
    print(number, flush=True)
"""


def checkpoint(lsn: int = 100, **callbacks: Position) -> Checkpoint:
    """A checkpoint of SOURCE at `lsn`, its last event numbered like it."""
    return Checkpoint(SOURCE, Lsn(lsn), lsn, callbacks)


def at(lsn: int, ordinal: int = 1) -> Position:
    """A position in few letters."""
    return Position(Lsn(lsn), ordinal)


def gap(callback: str, first: int, last: int, events: int = 1) -> Gap:
    """A gap of one second between two LSNs."""
    return Gap(callback, at(first), at(last), events, "removed", NOON, NOON + timedelta(seconds=1))


def letter(callback: str, lsn: int, state: LetterState = LetterState.FAILED, **fields: Any) -> DeadLetter:
    """A dead letter of an hour before noon; its event names it, so that no two are alike."""
    error = {"error": "ValueError", "error_text": "no", "attempts": 3} if state is LetterState.FAILED else {}
    return replace(
        DeadLetter(
            callback=callback,
            position=at(lsn),
            state=state,
            table="public.users",
            event_type="create",
            event=f"{callback} {lsn}".encode(),
            first_time=NOON - timedelta(hours=1),
            last_time=NOON,
        ),
        **{**error, **fields},
    )
