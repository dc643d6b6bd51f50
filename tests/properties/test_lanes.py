"""Lanes under any load: order per record, settling and counting, whatever the callback does and how long it takes."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.callbacks import CallbackState
from cdc.config import AfterRemoval, SignalConfig
from cdc.events import DatabaseEvent, EventType, FixedRow, Position
from cdc.lsn import Lsn
from cdc.progress import Batch, Ledger
from cdc.signals import SignalManager
from cdc.transactions import CommitMark
from tests.properties.profiles import examples

EVERYTHING = "*"
"""The record of a truncate, or of a change of a row without a key."""
DRAIN_SECONDS = 30
MAX_ATTEMPTS = 3


class Failing(Exception):
    """What the callbacks of these tests raise; `retry_after` saves the tests the backoff."""

    retry_after = 0

    def __init__(self, *, permanent: bool) -> None:
        super().__init__()
        self.permanent = permanent


class MovedRow(FixedRow):
    """A row that had another key."""

    def previous_record_id(self) -> str | None:
        return self.old["id"] if self.old else None  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Plan:
    """One event: its record, the one it was before (the same unless the key changed), and how its calls go."""

    record: str
    previous: str
    awaits: int = 0
    failures: int = 0
    permanent: bool = False
    ends_transaction: bool = True

    @property
    def attempts(self) -> int:
        """How often the callback is called with this event alone."""
        return 1 if self.permanent and self.failures else min(self.failures + 1, MAX_ATTEMPTS)

    @property
    def succeeds(self) -> bool:
        return self.failures < self.attempts

    def touches(self, other: Plan) -> bool:
        """Whether the order of the two matters."""
        mine, its = {self.record, self.previous}, {other.record, other.previous}
        return EVERYTHING in mine | its or bool(mine & its)


records = st.sampled_from("abcd")


@st.composite
def plans(draw: st.DrawFn, *, fails: bool) -> Plan:
    """Mostly changes of few records, now and then a change of a key, a truncate, a row without a key."""
    record = draw(st.sampled_from(["a", "a", "b", "b", "c", "d", EVERYTHING]))
    moved = record != EVERYTHING and draw(st.integers(0, 5)) == 5
    return Plan(
        record,
        draw(records) if moved else record,
        draw(st.integers(0, 3)),
        draw(st.sampled_from([0, 0, 0, 1, 2, 9])) if fails else 0,
        draw(st.booleans()) if fails else False,
        draw(st.booleans()),
    )


def events_of(stream: Sequence[Plan]) -> tuple[list[DatabaseEvent], dict[int, CommitMark]]:
    """The events, numbered by their ids from 0, and the marks behind those that end a transaction."""
    events: list[DatabaseEvent] = []
    marks: dict[int, CommitMark] = {}
    lsn, ordinal = 10, 0
    for number, plan in enumerate(stream):
        ordinal += 1
        is_all = plan.record == EVERYTHING
        one = DatabaseEvent.of(
            "truncate" if is_all and plan.awaits % 2 else "update", "t", id=number, position=Position(Lsn(lsn), ordinal)
        )
        key = None if is_all else plan.record
        events.append(one.with_row(MovedRow({"id": key}, {"id": None if is_all else plan.previous}, key=key)))
        if plan.ends_transaction:
            marks[number] = CommitMark(lsn, number)
            lsn, ordinal = lsn + 10, 0
    return events, marks


@dataclass(slots=True)
class Witness:
    """A callback of one of four kinds, and what it saw; `wrong` is empty when all went well."""

    stream: Sequence[Plan]
    kind: str
    concurrency: int
    running: set[int] = field(default_factory=set)
    calls: Counter[int] = field(default_factory=Counter)
    single_calls: Counter[int] = field(default_factory=Counter)
    done: list[int] = field(default_factory=list)
    unsettled: set[int] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def callback(self) -> Any:
        """What `add_callback` takes."""
        return {
            "coroutine": self.coroutine,
            "function": self.function,
            "coroutine batch": CoroutineBatch(self),
            "function batch": FunctionBatch(self),
        }[self.kind]

    async def coroutine(self, event: DatabaseEvent) -> None:
        for _ in self.call([event]):
            await asyncio.sleep(0)

    def function(self, event: DatabaseEvent) -> None:
        for _ in self.call([event]):
            pass

    def call(self, events: Sequence[DatabaseEvent]) -> Iterator[None]:
        """One call: yields where it may wait."""
        numbers = [event.id for event in events]
        self._begin(numbers)
        try:
            for number in numbers:
                for _ in range(self.stream[number].awaits):
                    yield
            self._raise(numbers)
        finally:
            with self.lock:
                self.running.difference_update(numbers)

    def _begin(self, numbers: list[int]) -> None:
        with self.lock:
            for number in numbers:
                plan = self.stream[number]
                if beside := [
                    other for other in self.running if self.concurrency == 1 or plan.touches(self.stream[other])
                ]:
                    self.wrong.append(f"{number} beside {beside}")
                if number in self.done:
                    self.wrong.append(f"{number} again")
                before = (other for other in self.unsettled if other < number and other not in numbers)
                if late := [other for other in before if self.concurrency == 1 or plan.touches(self.stream[other])]:
                    self.wrong.append(f"{number} before {late}")
            self.running.update(numbers)
            self.calls.update(numbers)

    def _raise(self, numbers: list[int]) -> None:
        with self.lock:
            if len(numbers) > 1 and any(self.stream[number].failures for number in numbers):
                raise Failing(permanent=True)  # nobody knows which is to blame
            self.single_calls.update(numbers)
            for number in numbers:
                plan = self.stream[number]
                if self.single_calls[number] >= plan.attempts:
                    self.unsettled.discard(number)
                if self.single_calls[number] <= plan.failures:
                    raise Failing(permanent=plan.permanent)
            self.done += numbers


@dataclass(slots=True)
class CoroutineBatch:
    """Takes batches, on the event loop."""

    witness: Witness

    async def handle_batch(self, events: Sequence[DatabaseEvent]) -> None:
        for _ in self.witness.call(events):
            await asyncio.sleep(0)


@dataclass(slots=True)
class FunctionBatch:
    """Takes batches, in a thread."""

    witness: Witness

    def handle_batch(self, events: Sequence[DatabaseEvent]) -> None:
        for _ in self.witness.call(events):
            pass


@dataclass(slots=True)
class Run:
    """A manager and a ledger, fed as the pump feeds them."""

    witnesses: Sequence[Witness]
    events: Sequence[DatabaseEvent]
    marks: dict[int, CommitMark]
    config: SignalConfig = field(default_factory=lambda: SignalConfig(remove_failing_callbacks=False))
    after_removal: AfterRemoval = AfterRemoval.PARK
    ledger: Ledger = field(default_factory=lambda: Ledger(CommitMark(0, -1)))

    async def of(self, sizes: Sequence[int]) -> SignalManager:
        """Feed all of the stream in slices of these sizes, one turn of the loop between them."""
        manager = SignalManager(self.config)
        for witness in self.witnesses:
            manager.add_callback(
                witness.callback(),
                name=f"{witness.kind} {id(witness)}",
                concurrency=witness.concurrency,
                max_attempts=MAX_ATTEMPTS,
                after_removal=self.after_removal,
                event_types=list(EventType),
            )
        watching = asyncio.create_task(self._watch(manager))
        at = turn = 0
        while at < len(self.events):
            size = sizes[turn % len(sizes)]
            self._submit(manager, range(at, min(at + size, len(self.events))))
            at, turn = at + size, turn + 1
            await asyncio.sleep(0)
        assert await manager.drain(DRAIN_SECONDS)
        watching.cancel()
        self._look(manager)
        await manager.shutdown(0)
        return manager

    def _submit(self, manager: SignalManager, numbers: range) -> None:
        for witness in self.witnesses:
            with witness.lock:
                witness.unsettled.update(numbers)
        batch = Batch(
            self.events[numbers.start : numbers.stop], [self.marks[one] for one in numbers if one in self.marks]
        )
        manager.submit(batch)
        self.ledger.add(batch)

    async def _watch(self, manager: SignalManager) -> None:
        while True:
            self._look(manager)
            await asyncio.sleep(0)

    def _look(self, manager: SignalManager) -> None:
        """What is said to be settled first, then what is not: that only shrinks meanwhile."""
        flushable = self.ledger.flushable().lsn
        frontier = self.events[-1].position
        for registration, witness in zip(manager.registry, self.witnesses, strict=True):
            settled = manager.pool.settled(registration, frontier)
            with witness.lock:
                open_ = [self.events[number].position for number in witness.unsettled]
            if open_ and flushable >= min(open_).commit_lsn:
                witness.wrong.append(f"flushed {flushable} past {min(open_)}")
            if (submitted := [one for one in open_ if one <= settled]) and settled != frontier:
                witness.wrong.append(f"settled {settled} past {min(submitted)}")


kinds = st.sampled_from(["coroutine", "function", "coroutine batch", "function batch"])
shapes = st.lists(st.tuples(kinds, st.integers(1, 8)), min_size=1, max_size=2)
sizes = st.lists(st.integers(1, 12), min_size=1, max_size=5)


def run(stream: Sequence[Plan], shapes: Sequence[tuple[str, int]], sizes: Sequence[int]) -> list[Witness]:
    """The witnesses of a stream that was worked off."""
    witnesses = [Witness(stream, kind, concurrency) for kind, concurrency in shapes]
    events, marks = events_of(stream)
    the_run = Run(witnesses, events, marks)
    manager = asyncio.run(the_run.of(sizes))
    last = max((mark.lsn for mark in marks.values()), default=0)
    assert the_run.ledger.flushable().lsn == last
    assert the_run.ledger.is_settled
    for witness, registration in zip(witnesses, manager.registry, strict=True):
        assert witness.wrong == []
        assert set(witness.calls) == set(range(len(stream)))
        succeeded = {number for number, plan in enumerate(stream) if plan.succeeds}
        assert set(witness.done) == succeeded
        assert registration.outcomes["ok"] == len(succeeded)
        assert registration.outcomes["failed"] == len(stream) - len(succeeded)
    return witnesses


def assert_in_order(witness: Witness) -> None:
    """All of the stream with concurrency 1; otherwise those whose order matters."""
    place = {number: place for place, number in enumerate(witness.done)}
    for second in witness.done:
        for first in range(second):
            if first in place and (witness.concurrency == 1 or witness.stream[first].touches(witness.stream[second])):
                assert place[first] < place[second]


@examples(60)
@given(st.lists(plans(fails=False), min_size=1, max_size=40), shapes, sizes)
def test_every_event_is_handed_out_once_and_in_order_when_nothing_fails(
    stream: list[Plan], shapes: list[tuple[str, int]], sizes: list[int]
) -> None:
    """Per record, and over all records with concurrency 1; a change of a key keeps the order of both records."""
    for witness in run(stream, shapes, sizes):
        assert set(witness.calls.values()) == {1}
        assert_in_order(witness)


@examples(60)
@given(st.lists(plans(fails=True), min_size=1, max_size=30), shapes, sizes)
def test_failing_calls_change_neither_order_nor_what_counts_as_settled(
    stream: list[Plan], shapes: list[tuple[str, int]], sizes: list[int]
) -> None:
    """An event is tried as often as it may be before anything that has to come after it, and unsettled till then."""
    for witness in run(stream, shapes, sizes):
        assert_in_order(witness)
        for number, plan in enumerate(stream):
            assert witness.single_calls[number] == plan.attempts


@examples(60)
@given(st.lists(plans(fails=True), min_size=1, max_size=30), shapes, sizes, st.integers(1, 3))
def test_removed_callback_is_called_no_more_and_every_event_is_accounted_for(
    stream: list[Plan], shapes: list[tuple[str, int]], sizes: list[int], failures: int
) -> None:
    """Handled, failed or missed: each event is one of them, and what was missed was never a success."""
    witnesses = [Witness(stream, kind, concurrency) for kind, concurrency in shapes]
    events, marks = events_of(stream)
    config = SignalConfig(max_consecutive_failures=failures)
    the_run = Run(witnesses, events, marks, config, AfterRemoval.DROP)
    manager = asyncio.run(the_run.of(sizes))
    assert the_run.ledger.is_settled
    for witness, registration in zip(witnesses, manager.registry, strict=True):
        assert_in_order(witness)
        outcomes = registration.outcomes
        assert outcomes["ok"] == len(witness.done)
        assert outcomes["ok"] + outcomes["failed"] + outcomes["missed"] == len(stream)
        if registration.state is CallbackState.ACTIVE:
            assert outcomes["missed"] == 0
            assert set(witness.calls) == set(range(len(stream)))
        else:
            assert outcomes["failed"] >= failures
            assert outcomes["missed"] == len(stream) - outcomes["ok"] - outcomes["failed"]
            assert len(set(range(len(stream))) - set(witness.calls)) <= outcomes["missed"]


@pytest.mark.parametrize("kind", ["coroutine", "function", "coroutine batch", "function batch"])
def test_lanes_run_side_by_side(kind: str) -> None:
    """The properties would hold of one lane, too: records that have nothing to do with each other do overlap."""
    met = threading.Event()

    class Meeting(Witness):
        def _begin(self, numbers: list[int]) -> None:
            super()._begin(numbers)
            if len({self.stream[number].record for number in self.running}) > 1:
                met.set()
            elif self.kind.startswith("function"):
                met.wait(DRAIN_SECONDS / 3)

    stream = [Plan(record, record, awaits=3) for record in "abcdefgh" * 5]
    witness = Meeting(stream, kind, 8)
    events, marks = events_of(stream)
    asyncio.run(Run([witness], events, marks).of([1] if "batch" in kind else [8]))
    assert witness.wrong == []
    assert met.is_set()
