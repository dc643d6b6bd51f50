"""From the plugin's bytes to events, over any number of broken connections and restarts: each once, always the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from cdc.events import DatabaseEvent
from cdc.patterns import TablePatterns
from cdc.progress import Batch, Ledger, Share
from cdc.transactions import Assembler, CommitMark, Selection
from cdc.wal2json import Decoder
from tests.properties.messages import (
    BOOL,
    INT4,
    TEXTS,
    Cell,
    FixedCatalog,
    boundary,
    change,
    logical_message,
    quoted,
)

SELECTION = Selection(TablePatterns(["*.*"], ["public.left_out"]))
START = CommitMark(100, 7)


@dataclass(frozen=True, slots=True)
class Source:
    """All transactions of a server, each with its end and its messages."""

    transactions: Sequence[tuple[int, Sequence[bytes]]]

    def after(self, lsn: int) -> list[bytes]:
        """What the server sends to one who asks for the stream from `lsn` on: whole transactions."""
        return [
            payload
            for end, content in self.transactions
            if end > lsn
            for payload in (boundary("B", end), *content, boundary("C", end))
        ]


def cells(number: int, *, active: bool = True, tags: str | None = None) -> list[Cell]:
    """A row."""
    row = [Cell("id", INT4, str(number), number), Cell("__is_active__", BOOL, str(active).lower(), active)]
    return row if tags is None else [*row, Cell("__tags__", TEXTS, quoted(tags), None)]


contents = st.one_of(
    st.integers(0, 9).map(lambda n: change("I", cells(n), key=["id"])),
    st.integers(0, 9).map(lambda n: change("U", cells(n, active=False), cells(n), ["id"])),
    st.integers(0, 9).map(lambda n: change("U", cells(n, tags="{a,b}"), cells(n + 1), ["id"])),
    st.integers(0, 9).map(lambda n: change("D", None, cells(n, tags="{gone}"), ["id"])),
    st.just(change("T")),
    st.just(change("I", cells(1), table="left_out")),
    st.sampled_from([logical_message("cdc.tags", "x, y"), logical_message("other", "z")]),
    st.just(logical_message("cdc.tags", "n", transactional=False)),
)


@st.composite
def sources(draw: st.DrawFn) -> Source:
    """Some transactions at rising positions, empty ones among them."""
    lsn = START.lsn
    transactions = []
    for content in draw(st.lists(st.lists(contents, max_size=6), max_size=6)):
        lsn += draw(st.integers(1, 1 << 33))
        transactions.append((lsn, content))
    return Source(transactions)


def facts(event: DatabaseEvent) -> tuple[object, ...]:
    """All that has to be the same when an event comes again."""
    return (
        event.id, event.position, event.event_type, event.table_name, event.tags, event.record_id,
        dict(event.payload), event.before, event.timestamp, event.transaction_id,
    )  # fmt: skip


class Consumer:
    """Decoder and assembler of one process, which knows `mark` from its checkpoint."""

    def __init__(self, mark: CommitMark) -> None:
        self.assembler = Assembler(SELECTION, flushed=mark.lsn, last_event_id=mark.event_id)
        self.decoder = Decoder(FixedCatalog(), watch=SELECTION.watched_columns)

    def take(self, payloads: Sequence[bytes]) -> tuple[list[DatabaseEvent], list[CommitMark]]:
        """One burst."""
        assembled = self.assembler.feed([self.decoder.decode(payload) for payload in payloads])
        return assembled.events, assembled.commits


def bursts(data: st.DataObject, payloads: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """As a socket may give them."""
    at = 0
    while at < len(payloads):
        size = data.draw(st.integers(1, len(payloads) - at), "burst")
        yield payloads[at : at + size]
        at += size


@given(sources(), st.data())
def test_a_suffix_sent_again_gives_nothing_new_and_then_the_same(source: Source, data: st.DataObject) -> None:
    """The connection breaks anywhere, and the server begins again at any transaction it may begin with."""
    events, marks = Consumer(START).take(source.after(0))
    consumer = Consumer(START)
    got: list[DatabaseEvent] = []
    commits: list[CommitMark] = []
    for breaks in (True, True, False):
        consumer.assembler.reconnect()
        ends = [START.lsn, *(mark.lsn for mark in commits)]
        payloads = source.after(data.draw(st.sampled_from(ends), "from"))
        cut = data.draw(st.integers(0, len(payloads)), "cut") if breaks else len(payloads)
        for burst in bursts(data, payloads[:cut]):
            more, ended = consumer.take(burst)
            got += more
            commits += ended

    assert list(map(facts, got)) == list(map(facts, events))
    assert commits == marks


@given(sources(), st.data())
def test_a_restart_from_what_may_be_flushed_loses_nothing_and_repeats_it_the_same(
    source: Source, data: st.DataObject
) -> None:
    """The process dies at any moment, and goes on from the ledger's last answer: ids and positions agree."""
    events, _ = Consumer(START).take(source.after(0))
    known = {event.id: facts(event) for event in events}
    settled: set[int] = set()
    mark = START
    for dies in (True, True, False):
        consumer, ledger = Consumer(mark), Ledger(mark)
        shares: list[Share] = []
        payloads = source.after(data.draw(st.sampled_from([START.lsn, mark.lsn]), "from"))
        cut = data.draw(st.integers(0, len(payloads)), "cut") if dies else len(payloads)
        for burst in bursts(data, payloads[:cut]):
            more, ended = consumer.take(burst)
            assert [facts(event) for event in more] == [known[event.id] for event in more]
            batch = Batch(more, ended)
            shares += [batch.share(more)] if more else []
            ledger.add(batch)
            while shares and (not dies or data.draw(st.booleans(), "settles")):
                share = shares.pop(data.draw(st.integers(0, len(shares) - 1), "which"))
                settled.update(event.id for event in share.events)
                share.batch.settle(share)
        mark = ledger.flushable()
        assert {event.id for event in events if event.position.commit_lsn <= mark.lsn} <= settled
        assert mark.event_id == max((event.id for event in events if event.position.commit_lsn <= mark.lsn), default=7)

    assert settled == set(known)
    assert mark.lsn == max((end for end, _ in source.transactions), default=START.lsn)
