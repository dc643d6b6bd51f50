"""The ledger against a model that remembers everything: whatever is handed out, taken, tried again or settled when."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cdc.events import DatabaseEvent, Position
from cdc.lsn import Lsn
from cdc.progress import Batch, Ledger, Share
from cdc.transactions import CommitMark
from tests.properties.profiles import examples

START = CommitMark(100, 7)


@dataclass(slots=True, eq=False)
class Part:
    """A share, and what the model knows of it: `waiting` was not handed out, `in_work` was."""

    share: Share
    waiting: list[DatabaseEvent]
    in_work: list[DatabaseEvent] = field(default_factory=list)  # one or none


class LedgerMachine(RuleBasedStateMachine):
    """Slices of a stream come in, lanes work them off in any order; after each step the answer is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[Part] = []
        self.marks = [START]
        self.lsn = START.lsn  # where the stream has come to
        self.ordinal = 0  # in the transaction that is open; 0: none is
        self.event_id = START.event_id
        self.last = START

    @initialize(compact_at=st.integers(1, 4))
    def begin(self, compact_at: int) -> None:
        self.ledger = Ledger(START)
        self.compact_at = compact_at

    @rule(
        content=st.lists(st.sampled_from(["event", "event", "commit"]), max_size=8),
        seen_by=st.lists(st.sets(st.integers(0, 7)), max_size=3),
    )
    def add(self, content: list[str], seen_by: list[set[int]]) -> None:
        """The next slice, cut anywhere: each lane wants some of its events."""
        events, commits = self._slice(content)
        batch = Batch(events, commits)
        for numbers in seen_by:
            if wanted := [event for number, event in enumerate(events) if number in numbers]:
                self.open.append(Part(batch.share(wanted), list(wanted)))
        self.ledger._compact_at = self.compact_at  # joins as often as it can
        self.ledger.add(batch)
        self.marks += commits
        pending = len({id(part.share.batch) for part in self.open})
        assert len(self.ledger._batches) <= max(2 * pending + 1, self.compact_at)

    def _slice(self, content: list[str]) -> tuple[list[DatabaseEvent], list[CommitMark]]:
        events: list[DatabaseEvent] = []
        commits: list[CommitMark] = []
        for what in content:
            if self.ordinal == 0:
                self.lsn += 10
            if what == "event":
                self.ordinal += 1
                self.event_id += 1
                events.append(DatabaseEvent.of("create", "t", position=Position(Lsn(self.lsn), self.ordinal)))
            else:
                self.ordinal = 0
                commits.append(CommitMark(self.lsn, self.event_id))
        return events, commits

    def _part(self, number: int) -> Part:
        return self.open[number % len(self.open)]

    @precondition(lambda self: self.open)
    @rule(number=st.integers(0, 99))
    def hand_out(self, number: int) -> None:
        """A worker takes the next event: the one before it is done."""
        part = self._part(number)
        event = next(part.share.iterator, None)
        if event is None:
            assert part.waiting == []
            return
        part.in_work = [part.waiting.pop(0)]
        assert [event] == part.in_work

    @precondition(lambda self: any(part.in_work for part in self.open))
    @rule(number=st.integers(0, 99))
    def try_again(self, number: int) -> None:
        """The event in work has failed and waits for its next attempt."""
        busy = [part for part in self.open if part.in_work]
        part = busy[number % len(busy)]
        part.share.put_back()
        part.waiting = part.in_work + part.waiting
        part.in_work = []

    @precondition(lambda self: self.open)
    @rule(number=st.integers(0, 99))
    def hold(self, number: int) -> None:
        """A worker is given up; another goes on with the share."""
        self._part(number).share.hold()

    @precondition(lambda self: self.open)
    @rule(number=st.integers(0, 99))
    def remove(self, number: int) -> None:
        """The callback is removed: what waits becomes a share of its own, what is in work runs to its end."""
        part = self._part(number)
        if part.waiting:
            batch = part.share.batch
            rest = part.share.take_rest()
            assert rest == part.waiting
            self.open.append(Part(batch.share(rest), rest.copy()))
            part.waiting = []
        if not part.in_work:
            self._settle(part)

    @precondition(lambda self: self.open)
    @rule(number=st.integers(0, 99))
    def finish(self, number: int) -> None:
        """A worker comes to the end of its share."""
        part = self._part(number)
        assert list(part.share.iterator) == part.waiting
        self._settle(part)

    @precondition(lambda self: any(part.in_work or part.waiting for part in self.open))
    @rule(number=st.integers(0, 99), ended=st.booleans())
    def give_back(self, number: int, ended: bool) -> None:
        """A lane is closed, its call in work `ended` or cancelled: what is left becomes a share for somebody else."""
        left = [part for part in self.open if part.in_work or part.waiting]
        part = left[number % len(left)]
        if ended and part.waiting:
            part.share.paused = True
            part.in_work = []
        rest = list(part.share.rest())
        assert rest == [*part.in_work, *part.waiting]
        self.open.append(Part(part.share.batch.share(rest), rest.copy()))
        self._settle(part)

    def _settle(self, part: Part) -> None:
        part.share.batch.settle(part.share)
        self.open.remove(part)

    @rule(beyond=st.integers(-50, 50))
    def keepalive(self, beyond: int) -> None:
        """The server has nothing for us up to there; while a transaction is open it says so of nothing in it."""
        lsn = min(self.lsn + beyond, self.lsn - 1 if self.ordinal else self.lsn + beyond)
        self.ledger.idle(lsn)
        if not self.open:
            self.marks.append(CommitMark(lsn, self._expected().event_id))
            self.lsn = max(self.lsn, lsn)

    def _expected(self) -> CommitMark:
        """The highest mark with nothing unsettled at or before it, by looking at all there ever was."""
        unsettled = [event for part in self.open for event in (*part.in_work, *part.waiting)]
        limit = min((event.position.commit_lsn for event in unsettled), default=None)
        free = [mark for mark in self.marks if limit is None or mark.lsn < limit]
        return max(free, key=lambda mark: mark.lsn)

    @invariant()
    def is_exact(self) -> None:
        """Not past an unsettled event, and not one commit less than that."""
        flushable = self.ledger.flushable()
        assert flushable == self._expected()
        assert flushable.lsn >= self.last.lsn
        self.last = flushable
        assert self.ledger.is_settled == (not self.open)

    @invariant()
    def shares_know_what_is_unsettled(self) -> None:
        """Each by itself: what waits, and what is in work."""
        for part in self.open:
            assert list(part.share.waiting()) == part.waiting
            assert part.share.has_waiting == bool(part.waiting)
            assert list(part.share.rest()) == [*part.in_work, *part.waiting]
            if part.in_work or part.waiting:
                assert part.share.first_unsettled() is (*part.in_work, *part.waiting)[0]


def test_event_before_the_one_that_is_tried_again_is_done() -> None:
    """While an event waits for its next attempt, what came before it does not count as unsettled."""
    events = [DatabaseEvent.of("create", "t", position=Position(Lsn(lsn), 1)) for lsn in (110, 120, 130)]
    ledger, batch = Ledger(START), Batch(events, [CommitMark(lsn, lsn) for lsn in (110, 120, 130)])
    share = batch.share(events)
    ledger.add(batch)
    assert [next(share.iterator), next(share.iterator)] == events[:2]

    share.put_back()

    assert share.first_unsettled() is events[1]
    assert list(share.rest()) == events[1:]
    assert ledger.flushable() == CommitMark(110, 110)
    assert list(share.iterator) == events[1:]


test_ledger_is_exact_whatever_happens_when = LedgerMachine.TestCase
test_ledger_is_exact_whatever_happens_when.settings = settings(examples(80), stateful_step_count=40)
# When it fails, finding the shortest way to the failure takes minutes.
pytestmark = pytest.mark.timeout(600)
