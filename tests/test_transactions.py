"""The assembler: whatever is sent again, each event is made once, with the same id and position."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.errors import DecodeError
from cdc.events import DatabaseEvent, EventType, FixedRow, Position
from cdc.lsn import Lsn
from cdc.messages import Begin, Commit, Decoded, Message
from cdc.patterns import TablePatterns
from cdc.transactions import Assembled, Assembler, CommitMark, Selection, TagRule

TIME = "2024-02-29 12:00:00.5+00"
CREATE, UPDATE, DELETE, TRUNCATE = EventType


@dataclass(slots=True)
class PlainChange:
    """A change that no plugin spoke; `old` and `new` of the soft delete column are its only value."""

    table: str = "t"
    event_type: EventType = CREATE
    schema: str = "public"
    watched: bool = False
    is_soft_delete: bool = False
    tags: tuple[str, ...] = ()
    lsn: int = 0
    row: FixedRow = field(default_factory=lambda: FixedRow({"id": 1}, key="1"))

    def payload(self) -> dict[str, int]:
        return {"id": 1}

    def before(self) -> None:
        return None

    def unchanged(self) -> frozenset[str]:
        return frozenset()

    def record_id(self) -> str | None:
        return "1"

    def previous_record_id(self) -> str | None:
        return "1"

    def deleted_softly(self, columns: frozenset[str]) -> bool:
        return self.is_soft_delete and bool(columns)

    def text_list(self, column: str) -> tuple[str, ...]:
        return self.tags if column == "__tags__" else ()


def transaction(lsn: int, *messages: Decoded) -> list[Decoded]:
    """A whole transaction that ends at `lsn`."""
    return [Begin(lsn, 7, TIME), *messages, Commit(lsn)]


def everything(**facts: object) -> Selection:
    """All tables."""
    return Selection(TablePatterns(["*.*"]), **facts)  # type: ignore[arg-type]


def identity(event: DatabaseEvent) -> tuple[int, Position]:
    """What must be the same again on redelivery."""
    return event.id, event.position


# --- ids, positions, kinds -------------------------------------------------------------------------------


def test_ids_are_dense_and_ordinals_count_from_one() -> None:
    """Ids go on over transactions and after the checkpoint's; ordinals begin anew."""
    assembled = Assembler(everything(), flushed=5, last_event_id=40).feed(
        [*transaction(10, PlainChange(), PlainChange()), *transaction(15), *transaction(20, PlainChange())]
    )

    assert list(map(identity, assembled.events)) == [
        (41, Position(Lsn(10), 1)),
        (42, Position(Lsn(10), 2)),
        (43, Position(Lsn(20), 1)),
    ]
    assert assembled.commits == [CommitMark(10, 42), CommitMark(15, 42), CommitMark(20, 43)]


def test_events_carry_the_facts_of_their_transaction() -> None:
    """Commit time in UTC, xid, and the end of the commit."""
    (event,) = Assembler(everything()).feed(transaction(10, PlainChange("users", UPDATE))).events

    assert (event.event_type, event.schema, event.table_name, event.kind.table) == (
        UPDATE,
        "public",
        "users",
        "public.users",
    )
    assert event.timestamp == datetime(2024, 2, 29, 12, 0, 0, 500_000, UTC)
    assert event.transaction_id == 7
    assert event.payload == {"id": 1}


def test_tables_that_are_left_out_take_an_ordinal_but_no_id() -> None:
    """The ordinal counts what the server sends, so that it is the same for everybody; ids have no holes."""
    assembler = Assembler(Selection(TablePatterns(["*.*"], ["public.secret"])))
    assembled = assembler.feed(transaction(10, PlainChange(), PlainChange("secret"), PlainChange()))

    assert list(map(identity, assembled.events)) == [(1, Position(Lsn(10), 1)), (2, Position(Lsn(10), 3))]
    assert assembler.filtered == {"table": 1}


def test_kind_is_shared_by_all_events_of_table_and_type() -> None:
    """One object, compared by identity, also over bursts."""
    assembler = Assembler(everything())
    first = assembler.feed(transaction(10, PlainChange(), PlainChange(event_type=UPDATE))).events
    second = assembler.feed(transaction(20, PlainChange(), PlainChange("u"))).events

    assert first[0].kind is second[0].kind
    assert len({first[0].kind, first[1].kind, second[1].kind}) == 3
    assert assembler.counts[first[0].kind] == 2


def test_frontier_and_commit_follow_the_stream() -> None:
    """The frontier is inside a transaction, the commit at its last end."""
    assembler = Assembler(everything(), flushed=5)
    assembler.feed(transaction(10, PlainChange()))
    assembler.feed([Begin(20, 7, TIME), PlainChange(), PlainChange()])

    before = (assembler.is_open, assembler.commit_lsn, assembler.last_event_id, assembler.frontier)
    assembler.reconnect()
    after = (assembler.is_open, assembler.commit_lsn, assembler.last_event_id, assembler.frontier)

    assert before == (True, 10, 1, Position(Lsn(20), 2))
    assert after == (False, 10, 1, Position(Lsn(20), 2))


# --- tags ------------------------------------------------------------------------------------------------


def tag_message(content: str, prefix: str = "cdc.tags", *, transactional: bool = True, lsn: int = 0) -> Message:
    """What `pg_logical_emit_message` sends."""
    return Message(transactional, prefix, content, lsn)


def test_tag_messages_join_for_later_changes_of_their_transaction() -> None:
    """Not for earlier ones, not for the next transaction; each tag once."""
    events = (
        Assembler(everything())
        .feed(
            [
                *transaction(
                    10,
                    PlainChange(),
                    tag_message("a, b ,,"),
                    PlainChange(),
                    tag_message("b,c"),
                    tag_message("x", "other.prefix"),
                    PlainChange(),
                ),
                *transaction(20, PlainChange()),
            ]
        )
        .events
    )

    assert [event.tags for event in events] == [(), ("a", "b"), ("a", "b", "c"), ()]


@st.composite
def savepoints(draw: st.DrawFn) -> tuple[list[tuple[str, ...]], list[Decoded]]:
    """Changes and tags of one transaction: the tags of each change, and what the server sends.

    A record begins where the one before it ends, if nobody else has written in between; many rows may be in one.
    A message that ends where a record begins may be sent behind the rows of that record.
    """
    lsn = 1
    tags: tuple[str, ...] = ()
    wanted: list[tuple[str, ...]] = []
    sent: list[Decoded] = []
    late: list[Message] = []
    for number, rows in enumerate(draw(st.lists(st.integers(0, 3), max_size=12))):
        lsn += draw(st.sampled_from([0, 0, 5]))  # of another session
        if rows == 0:
            sent += late
            late, tags = [], (*tags, f"tag {number}")
            lsn += 10
            message = tag_message(tags[-1], lsn=lsn)
            if draw(st.booleans()):
                late.append(message)
            else:
                sent.append(message)
            continue
        if late and late[0].lsn < lsn:
            sent += late
            late = []
        wanted += [tags] * rows
        sent += [*([PlainChange(lsn=lsn)] * rows), *late]
        late = []
        lsn += 10
    return wanted, [*sent, *late]


@given(savepoints(), st.data())
def test_tags_reach_what_comes_after_their_message_whatever_the_server_sends_first(
    source: tuple[list[tuple[str, ...]], list[Decoded]], data: st.DataObject
) -> None:
    """In subtransactions a message may come behind the change that follows it; bursts may end anywhere."""
    wanted, messages = source
    assembler = Assembler(everything(), flushed=5)
    events = [event for burst in bursts(data, transaction(1000, *messages)) for event in assembler.feed(burst).events]

    assert [event.tags for event in events] == wanted
    assert [event.position.ordinal for event in events] == list(range(1, len(wanted) + 1))


def test_last_record_of_a_burst_waits_for_what_comes_behind_it() -> None:
    """Until the next burst; not when there is none, and a lost connection forgets it."""
    record = [PlainChange(lsn=3), PlainChange(lsn=3)]
    assembler = Assembler(everything())

    assert len(assembler.feed([Begin(10, 7, TIME), PlainChange(lsn=1), *record]).events) == 1
    assert assembler.frontier == Position(Lsn(10), 1)
    assembler.reconnect()
    assert assembler.feed([Begin(10, 7, TIME), PlainChange(lsn=1), *record]).events == []
    assert len(assembler.feed(record, is_last=True).events) == 4


def test_tag_message_outside_a_transaction_is_counted() -> None:
    """A non-transactional message belongs to no change, even one that arrives in between."""
    assembler = Assembler(everything())
    assembled = assembler.feed(
        [
            tag_message("a", transactional=False),
            tag_message("x", "other", transactional=False),
            *transaction(10, tag_message("b", transactional=False), PlainChange()),
        ]
    )

    assert assembled.events[0].tags == ()
    assert assembler.filtered == {"tag_message_outside_transaction": 2}


def test_tags_of_message_rule_and_column_are_joined() -> None:
    """In this order, each once; the column's only when the decoder has seen it."""
    rule = TagRule(TablePatterns(["public.t"]), frozenset({CREATE}), ("rule", "both"))
    events = (
        Assembler(everything(tag_rules=[rule]))
        .feed(
            transaction(
                10,
                PlainChange(),
                tag_message("message,both"),
                PlainChange(watched=True, tags=("row", "both")),
                PlainChange(event_type=UPDATE),
                PlainChange("u"),
            )
        )
        .events
    )

    assert [event.tags for event in events] == [
        ("rule", "both"),
        ("message", "both", "rule", "row"),
        ("message", "both"),
        ("message", "both"),
    ]


def test_soft_delete_is_a_delete_for_its_rules_too() -> None:
    """The type an event is told with is the one that the rules see; an insert is never one."""
    rule = TagRule(TablePatterns(["*.*"]), frozenset({DELETE}), ("gone",))
    changes = [
        PlainChange(event_type=UPDATE, watched=True, is_soft_delete=True),
        PlainChange(event_type=UPDATE, watched=True),
        PlainChange(event_type=CREATE, watched=True, is_soft_delete=True),
        PlainChange(event_type=TRUNCATE),
    ]
    events = Assembler(everything(tag_rules=[rule])).feed(transaction(10, *changes)).events

    assert [(event.event_type, event.tags) for event in events] == [
        (DELETE, ("gone",)),
        (UPDATE, ()),
        (CREATE, ()),
        (TRUNCATE, ()),
    ]


def test_nothing_is_looked_for_without_columns() -> None:
    """An empty name switches it off."""
    selection = everything(tags_column="", soft_delete_columns=frozenset())
    change = PlainChange(event_type=UPDATE, watched=True, is_soft_delete=True, tags=("a",))
    (event,) = Assembler(selection).feed(transaction(10, change)).events

    assert selection.watched_columns == ()
    assert (event.event_type, event.tags) == (UPDATE, ())


# --- what must not be ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "messages",
    [
        [PlainChange()],
        [Commit(10)],
        [Begin(10, 7, TIME), Begin(20, 8, TIME)],
        [Begin(10, 7, TIME), Commit(20)],
        [*transaction(10), Commit(10)],
    ],
)
def test_messages_out_of_order_stop_the_stream(messages: list[Decoded]) -> None:
    """A stream that makes no sense is not guessed at."""
    with pytest.raises(DecodeError):
        Assembler(everything()).feed(messages)


def failing(messages: Iterable[Decoded], after: int) -> Iterator[Decoded]:
    """The messages up to one that cannot be decoded, as the decoder gives them in one burst."""
    for number, message in enumerate(messages):
        if number == after:
            raise DecodeError("broken", lsn=0)
        yield message


def test_burst_that_fails_was_not_taken() -> None:
    """The events before the broken message went nowhere, so that the frontier must not speak of them."""
    assembler = Assembler(everything(), flushed=5, last_event_id=3)
    messages = [*transaction(10, PlainChange()), *transaction(20, PlainChange(), PlainChange())]

    with pytest.raises(DecodeError):
        assembler.feed(failing(messages, after=5))

    assert assembler.frontier == Position(Lsn(5), 0)
    assert (assembler.commit_lsn, assembler.last_event_id, assembler.transactions) == (5, 3, 0)
    assert [event.id for event in assembler.feed(messages).events] == [4, 5, 6]
    assert assembler.counts.total() == 3


# --- sent again ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stream:
    """Everything a server has for us, in order."""

    transactions: Sequence[tuple[int, tuple[Decoded, ...]]]

    def after(self, lsn: int) -> list[Decoded]:
        """What START_REPLICATION at `lsn` sends."""
        return [
            message
            for commit_lsn, messages in self.transactions
            if commit_lsn > lsn
            for message in transaction(commit_lsn, *messages)
        ]


items: st.SearchStrategy[Decoded] = st.sampled_from(
    [
        PlainChange(),
        PlainChange("u", UPDATE),
        PlainChange("left_out"),
        PlainChange(event_type=UPDATE, watched=True, is_soft_delete=True),
        PlainChange(event_type=DELETE, watched=True, tags=("row",)),
        tag_message("a"),
        tag_message("b,c"),
        tag_message("n", transactional=False),
    ]
)


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    """Some transactions, empty ones among them, at rising positions."""
    contents = draw(st.lists(st.lists(items, max_size=6), max_size=6))
    steps = draw(st.lists(st.integers(1, 1000), min_size=len(contents), max_size=len(contents)))
    lsn = 100
    transactions: list[tuple[int, tuple[Decoded, ...]]] = []
    for content, step in zip(contents, steps, strict=True):
        lsn += step
        transactions.append((lsn, tuple(content)))
    return Stream(transactions)


SELECTION = Selection(TablePatterns(["*.*"], ["public.left_out"]))


def facts(event: DatabaseEvent) -> tuple[int, Position, EventType, str, tuple[str, ...]]:
    """All that must not depend on how often the stream broke."""
    return *identity(event), event.event_type, event.table_name, event.tags


def uninterrupted(stream: Stream) -> Assembled:
    """The source itself."""
    return Assembler(SELECTION, flushed=100, last_event_id=7).feed(stream.after(0))


def bursts(data: st.DataObject, messages: Sequence[Decoded]) -> Iterator[Sequence[Decoded]]:
    """The messages in slices as a socket may give them."""
    at = 0
    while at < len(messages):
        size = data.draw(st.integers(1, len(messages) - at), "burst")
        yield messages[at : at + size]
        at += size


@given(streams(), st.data())
def test_reconnects_anywhere_lose_and_repeat_nothing(stream: Stream, data: st.DataObject) -> None:
    """The connection breaks at any message; the server sends again from any position it may hold."""
    source = uninterrupted(stream)
    assembler = Assembler(SELECTION, flushed=100, last_event_id=7)
    got = Assembled()
    for again in (True, True, True, False):
        assembler.reconnect()
        ends = [100, *(lsn for lsn, _ in stream.transactions if lsn <= assembler.commit_lsn)]
        messages = stream.after(data.draw(st.sampled_from(ends), "start"))
        cut = data.draw(st.integers(0, len(messages)), "cut") if again else len(messages)
        for burst in bursts(data, messages[:cut]):
            if again and data.draw(st.booleans(), "fails"):
                with pytest.raises(DecodeError):
                    assembler.feed(failing([*burst, Commit(0)], after=len(burst)))
                break
            assembled = assembler.feed(burst)
            got.events += assembled.events
            got.commits += assembled.commits

    assert list(map(facts, got.events)) == list(map(facts, source.events))
    assert got.commits == source.commits
    assert assembler.counts.total() == len(source.events)
    assert assembler.transactions == len(source.commits)


@given(streams(), st.data())
def test_restart_from_any_checkpoint_goes_on_exactly(stream: Stream, data: st.DataObject) -> None:
    """A new process knows the checkpoint only; the server may send older transactions, too."""
    source = uninterrupted(stream)
    marks = [CommitMark(100, 7), *source.commits]
    mark = data.draw(st.sampled_from(marks), "checkpoint")
    start = data.draw(st.sampled_from([one.lsn for one in marks if one.lsn <= mark.lsn]), "start")

    again = Assembler(SELECTION, flushed=mark.lsn, last_event_id=mark.event_id).feed(stream.after(start))

    assert list(map(facts, again.events)) == [
        facts(event) for event in source.events if event.position.commit_lsn > mark.lsn
    ]
    assert again.commits == [one for one in source.commits if one.lsn > mark.lsn]


@given(streams())
def test_ids_have_no_holes(stream: Stream) -> None:
    """From the checkpoint's on, one by one; positions rise with them."""
    events = uninterrupted(stream).events

    assert [event.id for event in events] == list(range(8, 8 + len(events)))
    assert sorted(event.position for event in events) == [event.position for event in events]
    assert len({event.position for event in events}) == len(events)


@given(streams())
def test_redelivered_changes_are_counted(stream: Stream) -> None:
    """All of the stream a second time gives no event, and says how many it has dropped."""
    assembler = Assembler(SELECTION, flushed=100)
    made = assembler.feed(stream.after(0)).events
    assembler.reconnect()
    frontier = assembler.frontier

    assert assembler.feed(stream.after(0)) == Assembled()
    assert assembler.filtered["redelivered"] == len(made)
    assert assembler.frontier == frontier
