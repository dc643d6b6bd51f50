"""The ledger: batches settle in any order, and the flushed position is never past what is not settled."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from cdc.events import DatabaseEvent, Position
from cdc.lsn import Lsn
from cdc.progress import COMPACT_BATCHES, Batch, Ledger, Share
from cdc.transactions import CommitMark

START = CommitMark(0, 0)


def event(lsn: int, ordinal: int = 1) -> DatabaseEvent:
    """An event of the transaction that ends at `lsn`."""
    return DatabaseEvent.of("create", "t", position=Position(Lsn(lsn), ordinal))


def transactions(*lsns: int) -> Batch:
    """A batch of complete transactions of one event each."""
    return Batch([event(lsn) for lsn in lsns], [CommitMark(lsn, lsn) for lsn in lsns])


def queued(ledger: Ledger, *lsns: int) -> tuple[Batch, Share]:
    """Such a batch in the ledger, with one share that holds all its events."""
    batch = transactions(*lsns)
    share = batch.share(batch.events)
    ledger.add(batch)
    return batch, share


def test_flushable_without_batches_is_where_the_ledger_began() -> None:
    """With nothing seen, what may be flushed is the checkpoint's position."""
    assert Ledger(CommitMark(70, 7)).flushable() == CommitMark(70, 7)


def test_flushable_waits_for_the_first_batch_when_a_later_one_settles_first() -> None:
    """Out-of-order settling holds back what came after the gap, and lets all go when it closes."""
    ledger = Ledger(START)
    first, first_share = queued(ledger, 10)
    second, second_share = queued(ledger, 20)
    second.settle(second_share)
    assert ledger.flushable() == START
    first.settle(first_share)
    assert ledger.flushable() == CommitMark(20, 20)


def test_flushable_waits_for_the_slowest_share_of_a_batch() -> None:
    """One callback that is done does not speak for the other."""
    ledger = Ledger(START)
    batch = transactions(10)
    fast, slow = batch.share(batch.events), batch.share(batch.events)
    ledger.add(batch)
    batch.settle(fast)
    assert ledger.flushable() == START
    batch.settle(slow)
    assert ledger.flushable() == CommitMark(10, 10)


def test_flushable_rises_commit_by_commit_inside_a_batch() -> None:
    """Work on the third transaction means that the second may be flushed."""
    ledger = Ledger(START)
    _, share = queued(ledger, 10, 20, 30)
    next(share.iterator)
    assert ledger.flushable() == START
    next(share.iterator)
    assert ledger.flushable() == CommitMark(10, 10)
    next(share.iterator)
    assert ledger.flushable() == CommitMark(20, 20)


def test_flushable_stays_at_the_event_in_work_when_the_rest_is_taken_away() -> None:
    """A removed callback's call in work is not settled by the removal of what stood behind it."""
    ledger = Ledger(START)
    _, share = queued(ledger, 10, 20, 30)
    next(share.iterator)
    share.take_rest()
    assert share.first_unsettled().position.commit_lsn == 10
    assert ledger.flushable() == START


def test_flushable_ignores_a_mark_that_lies_before_it() -> None:
    """A transaction that the server sends again does not turn the position back."""
    ledger = Ledger(CommitMark(50, 5))
    ledger.add(Batch([], [CommitMark(40, 4)]))
    assert ledger.flushable() == CommitMark(50, 5)


def test_batch_without_shares_counts_as_settled() -> None:
    """A commit that nobody wanted anything of moves the position on."""
    ledger = Ledger(START)
    ledger.add(transactions(10))
    assert ledger.flushable() == CommitMark(10, 10)


def test_transaction_without_its_commit_is_not_flushable_when_settled() -> None:
    """The first slice of a large transaction may be done; its LSN is nobody's commit yet."""
    ledger = Ledger(START)
    batch = Batch([event(10), event(10, 2)])
    share = batch.share(batch.events)
    ledger.add(batch)
    batch.settle(share)
    assert ledger.flushable() == START
    ledger.add(Batch([], [CommitMark(10, 2)]))
    assert ledger.flushable() == CommitMark(10, 2)


def test_idle_counts_only_when_nothing_is_unsettled() -> None:
    """A keepalive beyond an open event says nothing about that event."""
    ledger = Ledger(START)
    batch, share = queued(ledger, 10)
    ledger.idle(100)
    assert ledger.flushable() == START
    batch.settle(share)
    ledger.idle(100)
    assert ledger.flushable() == CommitMark(100, 10)


def test_idle_never_goes_back() -> None:
    """An old keepalive changes nothing."""
    ledger = Ledger(CommitMark(50, 5))
    ledger.idle(40)
    assert ledger.flushable() == CommitMark(50, 5)


def test_settled_batch_lets_its_events_go() -> None:
    """The ledger may keep a settled batch behind an open one for long; its rows must not stay in memory."""

    class Payload(dict[str, str]):
        """A dict that can be watched."""

    ledger = Ledger(START)
    _open = queued(ledger, 10)
    payload = Payload(id="1")
    watched = weakref.ref(payload)
    batch = Batch([DatabaseEvent.of("create", "t", payload, position=Position(Lsn(20), 1))], [CommitMark(20, 20)])
    share = batch.share(batch.events)
    ledger.add(batch)
    batch.settle(share)
    del payload, share
    gc.collect()
    assert watched() is None


def test_settled_batches_behind_an_open_one_are_joined() -> None:
    """A callback that hangs for ever does not make the ledger grow with every batch of the others."""
    ledger = Ledger(START)
    first, open_share = queued(ledger, 1)
    last, last_share = queued(ledger, 2)
    for lsn in range(3, 5 * COMPACT_BATCHES):
        batch, share = queued(ledger, lsn)
        last.settle(last_share)  # always one behind, as a working pipeline is
        last, last_share = batch, share
    assert len(ledger._batches) < 2 * COMPACT_BATCHES
    assert ledger.flushable() == START
    first.settle(open_share)
    assert ledger.flushable().lsn == 5 * COMPACT_BATCHES - 2


def test_share_tells_its_progress_by_its_iterator() -> None:
    """What the iterator gave last is in work, what it still holds is waiting; the worker counts nothing."""
    events = [event(1, ordinal) for ordinal in (1, 2, 3)]
    share = Batch(events).share(events)
    assert (share.handed_out, share.has_waiting, share.first_unsettled()) == (0, True, events[0])
    next(share.iterator)
    assert (share.handed_out, share.first_unsettled(), share.waiting()) == (1, events[0], events[1:])
    next(share.iterator)
    assert (share.handed_out, share.first_unsettled(), share.waiting()) == (2, events[1], events[2:])


def test_share_ends_the_loop_of_its_worker_when_the_rest_is_taken() -> None:
    """A worker that walks along stops after the event in work."""
    events = [event(1, ordinal) for ordinal in (1, 2, 3)]
    share = Batch(events).share(events)
    seen = []
    for one in share.iterator:
        seen.append(one)
        assert share.take_rest() == events[1:]
    assert seen == events[:1]
    assert (share.handed_out, share.has_waiting, share.waiting()) == (1, False, [])


def test_share_holds_the_rest_for_another_worker() -> None:
    """A worker that is given up stops after its event, and another goes on behind it."""
    events = [event(1, ordinal) for ordinal in (1, 2, 3)]
    share = Batch(events).share(events)
    first_worker = []
    for one in share.iterator:
        first_worker.append(one)
        share.hold()
    assert first_worker == events[:1]
    assert list(share.iterator) == events[1:]


@dataclass
class Step:
    """One thing that happens: `number` chooses among what is possible."""

    what: str
    number: int


STEPS = st.lists(
    st.builds(Step, st.sampled_from(["add", "add_open", "walk", "settle", "idle"]), st.integers(0, 1000)), max_size=60
)


def naive(start: int, batches: Sequence[Batch], unsettled: Sequence[tuple[int, DatabaseEvent]], idle: int) -> int:
    """The highest commit before the first unsettled event, by looking at everything there ever was."""
    limit = min((one.transaction.commit_lsn for _, one in unsettled), default=None)
    marks = [mark.lsn for batch in batches for mark in batch.commits]
    return max([start, idle, *(lsn for lsn in marks if limit is None or lsn < limit)])


@given(STEPS)
def test_ledger_agrees_with_a_naive_model_whatever_settles_when(steps: list[Step]) -> None:
    """In any order of work the flushed position is exact: not past an unsettled event, never back."""
    ledger = Ledger(START)
    ledger._compact_at = 3  # joins as often as it can
    commits: list[Batch] = []
    open_shares: list[Share] = []
    lsn = idle = last = 0
    for step in steps:
        if step.what in ("add", "add_open"):
            first = lsn + 1
            lsn += 1 + step.number % 3
            batch = transactions(*range(first, lsn + 1))
            commits.append(Batch([], batch.commits))
            if step.what == "add_open":
                open_shares += [batch.share(batch.events) for _ in range(1 + step.number % 2)]
            ledger.add(batch)
        elif step.what == "walk" and open_shares:
            next(open_shares[step.number % len(open_shares)].iterator, None)
        elif step.what == "settle" and open_shares:
            share = open_shares.pop(step.number % len(open_shares))
            share.batch.settle(share)
        elif step.what == "idle":
            ledger.idle(lsn)
            if not open_shares:
                idle = lsn
        unsettled = [(0, share.first_unsettled()) for share in open_shares]
        flushable = ledger.flushable().lsn
        assert flushable == naive(0, commits, unsettled, idle)
        assert flushable >= last
        last = flushable
    assert ledger.is_settled == (not open_shares)
