"""Keeps what callbacks have not handled: failed and parked events, durably, within bounds, in order.

The `Keeper` of the signal manager. Writes go to the state's thread one after the other; one that fails is
tried until it succeeds, and meanwhile nothing that waits for it is settled. At the bound, failed events wait
for room and hold the slot; parked ones are given up, but for those of a callback that is being resumed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from typing import Any, TypeVar

import structlog

from cdc.callbacks import Registration
from cdc.codec import pack, unpack
from cdc.config import SignalConfig
from cdc.errors import CdcError, DecodeError
from cdc.events import DatabaseEvent, Position
from cdc.failures import Failure
from cdc.logs import redact, text_of
from cdc.outage import Outage
from cdc.state import DeadLetter, LetterState, LetterTotal, StateStore, StateThread
from cdc.traces import trace_fields

__all__ = ["DeadLetters"]

log = structlog.get_logger("cdc.letters")
T = TypeVar("T")

TRY_AGAIN_SECONDS = 1.0
"""Between two attempts to write, and to find room: an operator who makes some sees it taken at once."""

MAX_ERROR_TEXT = 4_000
"""Characters of an error's own words: enough for what people read."""


@dataclass(slots=True)
class _Job:
    """One call of the store; `then` runs with its result before the next job's."""

    function: Callable[[], Any]
    then: Callable[[Any], None] | None
    result: asyncio.Future[Any]


class DeadLetters:
    """See the module. Lives on one event loop; `run` must be running for anything to be written."""

    def __init__(self, store: StateStore, thread: StateThread, config: SignalConfig) -> None:
        self._store = store
        self._thread = thread
        self._max_events = config.max_parked_events
        self._max_bytes = config.max_parked_bytes
        self._jobs: deque[_Job] = deque()
        self._wake = asyncio.Event()
        self._totals: dict[tuple[str, LetterState], LetterTotal] = {}
        self._under_way: dict[tuple[str, Position], DeadLetter] = {}
        self.removals = 0  # rises with each callback that is removed
        self.held: dict[str, str] = {}  # callback → why an event of it cannot be settled
        # The state's, or of the catalog that knows the row's types.
        self._outage = Outage(CdcError, _tell)

    @property
    def error(self) -> str:
        """Why the last write failed, "" when it did not."""
        return self._outage.error

    def totals(self) -> Mapping[tuple[str, LetterState], LetterTotal]:
        """What is kept, by callback and state."""
        return self._totals

    async def run(self) -> None:
        """Write what is asked for, in order, for ever. StateBusy: another process has taken the state over."""
        while True:
            while self._jobs:
                await self._write(self._jobs[0])
                self._jobs.popleft()
            self._wake.clear()
            await self._wake.wait()

    async def ask(self, function: Callable[[], T], then: Callable[[T], None] | None = None) -> T:
        """What `function` returns on the state's thread, after all that was asked for before."""
        return await self._submit(function, then)  # type: ignore[no-any-return]

    async def finish(self, seconds: float) -> None:
        """Let what was asked for before be written, at most for so long: nobody waits for the record of a removal."""
        if self._jobs:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self.ask(lambda: None)

    async def refresh(self) -> None:
        """Read the totals anew: an operator has discarded some, or asked for another attempt."""
        await self.ask(self._store.letter_totals, self._count_anew)

    def bring_back(self, name: str, letters: Sequence[DeadLetter]) -> None:
        """These are on their way to their callback once more: what fails again replaces its letter."""
        self._under_way.update({(name, letter.position): letter for letter in letters})

    def forget_under_way(self, name: str, letters: Sequence[DeadLetter]) -> None:
        """After `bring_back`: the callback is through with them."""
        for letter in letters:
            self._under_way.pop((name, letter.position), None)

    async def readable(self, letters: Sequence[DeadLetter]) -> list[tuple[DeadLetter, DatabaseEvent]]:
        """The letters with their events. One that cannot be read has failed, and waits for an operator as such."""
        found: list[tuple[DeadLetter, DatabaseEvent]] = []
        unreadable: list[DeadLetter] = []
        broken: list[DeadLetter] = []
        for letter in letters:
            try:
                found.append((letter, unpack(letter.event)))
            except ValueError as error:
                text = f"the dead letter cannot be read: {error}"
                state = LetterState.FAILED
                unreadable.append(letter)
                broken.append(replace(letter, state=state, retry=False, error="UnreadableLetter", error_text=text))
        if broken:
            log.error("dead_letters_unreadable", callback=broken[0].callback, letters=len(broken))
            await self.ask(lambda: self._store.add_letters(broken), lambda _: self._replace(unreadable, broken))
        return found

    async def drop(self, letters: Sequence[DeadLetter]) -> None:
        """These were delivered."""
        ids = [letter.id for letter in letters]
        await self.ask(lambda: self._store.remove_letters(ids), lambda _: self._replace(letters, []))

    async def keep_failed(self, registration: Registration, failure: Failure) -> None:
        """Of the manager (see `Keeper`): returns once the event is a dead letter, which waits for room."""
        known = self._under_way.get((registration.name, failure.event.position))
        letter = await self.ask(lambda: _failed_letter(registration.name, failure, known))
        if known is None:
            await self._wait_for_room(letter)
        replaced = [known] if known is not None else []
        await self.ask(lambda: self._store.add_letters([letter]), lambda _: self._replace(replaced, [letter]))

    async def keep_parked(self, registration: Registration, events: Sequence[DatabaseEvent]) -> int:
        """Of the manager (see `Keeper`): how many were kept, from the front; for the rest there is no room."""
        name = registration.name
        letters = await self.ask(lambda: self._park(name, events), lambda kept: self._replace([], kept))
        return len(letters)

    def note_removed(self, registration: Registration, reason: str, position: Position) -> None:
        """Of the manager (see `Keeper`): on record before anything of it is parked."""
        self.removals += 1
        self._submit(lambda: self._store.mark_removed(registration.name, position, reason))

    def _submit(self, function: Callable[[], Any], then: Callable[[Any], None] | None = None) -> asyncio.Future[Any]:
        job = _Job(function, then, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self._wake.set()
        return job.result

    async def _write(self, job: _Job) -> None:
        while True:
            with self._outage:
                result = await self._thread.run(job.function)
                break
            await asyncio.sleep(TRY_AGAIN_SECONDS)
        if job.then is not None:
            job.then(result)
        if not job.result.done():  # who asked may have been cancelled
            job.result.set_result(result)

    def _park(self, name: str, events: Sequence[DatabaseEvent]) -> list[DeadLetter]:
        """On the state's thread: keep as many as there is room for, from the front."""
        now = datetime.now(UTC)
        count, size = self._kept(name)
        letters: list[DeadLetter] = []
        for event in islice(events, max(self._max_events - count, 0)):
            letter = _letter(name, event, LetterState.PARKED, now)
            size += letter.size
            if size > self._max_bytes and count + len(letters) > 0:
                break
            letters.append(letter)
        if letters:
            self._store.add_letters(letters)
        return letters

    async def _wait_for_room(self, letter: DeadLetter) -> None:
        try:
            while not self._has_room(letter):
                if letter.callback not in self.held:
                    log.error("dead_letters_full", callback=letter.callback, hint="cdc dead-letters list")
                self.held[letter.callback] = "its dead letters are full"
                await asyncio.sleep(TRY_AGAIN_SECONDS)
        finally:
            self.held.pop(letter.callback, None)

    def _has_room(self, letter: DeadLetter) -> bool:
        count, size = self._kept(letter.callback)
        return count == 0 or (count < self._max_events and size + letter.size <= self._max_bytes)

    def _kept(self, name: str) -> tuple[int, int]:
        kept = [total for key, total in list(self._totals.items()) if key[0] == name]
        return sum(total.count for total in kept), sum(total.bytes for total in kept)

    def _count_anew(self, totals: Sequence[LetterTotal]) -> None:
        self._totals = {(total.callback, total.state): total for total in totals}

    def _replace(self, old: Sequence[DeadLetter], new: Sequence[DeadLetter]) -> None:
        for letter in old:
            self._change(letter, -1)
        for letter in new:
            self._change(letter, 1)

    def _change(self, letter: DeadLetter, by: int) -> None:
        key = letter.callback, letter.state
        total = self._totals.get(key)
        if total is None or total.count == 0:
            total = LetterTotal(*key, 0, 0, letter.first_time, 0)
        self._totals[key] = replace(
            total,
            count=total.count + by,
            bytes=total.bytes + by * letter.size,
            retry=total.retry + by * letter.retry,
        )


def _failed_letter(name: str, failure: Failure, known: DeadLetter | None) -> DeadLetter:
    letter = _letter(name, failure.event, LetterState.FAILED, failure.first_time)
    attempts = failure.attempts + (known.attempts if known is not None else 0)
    # Libraries put connection strings into their errors; redacted before it is cut, or half a password would stay.
    error = type(failure.error).__name__
    text = redact(text_of(failure.error)[: 4 * MAX_ERROR_TEXT])[:MAX_ERROR_TEXT]
    if not letter.event:
        text = f"the row cannot be read; {text}"
    return replace(letter, error=error, error_text=text, attempts=attempts, last_time=failure.last_time)


def _letter(name: str, event: DatabaseEvent, state: LetterState, now: datetime) -> DeadLetter:
    """`event` b"": its values cannot be converted, not by us and not by the callback. CdcError: not at the moment."""
    try:
        packed = pack(event)
    except Exception as error:  # whatever it is, the event must be kept
        if isinstance(error, CdcError) and not isinstance(error, DecodeError):
            raise
        position, kind = str(event.position), type(error).__name__
        log.warning("dead_letter_unreadable", callback=name, position=position, error=kind, **trace_fields(event))
        packed = b""
    return DeadLetter(
        callback=name,
        position=event.position,
        state=state,
        table=event.kind.table,
        event_type=event.event_type.value,
        event=packed,
        first_time=now,
        last_time=now,
    )


def _tell(error: CdcError) -> None:
    log.error("dead_letters_not_written", code=error.code, error=str(error))
