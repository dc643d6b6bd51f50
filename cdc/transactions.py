"""Messages of a decoder → events: ids, ordinals, tags, soft deletes, and which event is new.

Pure. The assembler sees every change of the slot, counts it, and makes an event of each that the
configuration selects and that was not handed on before: after a reconnect or a restart the server
sends whole transactions again, and what lies at or before `seen` is counted but not made again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import cast

from cdc.errors import DecodeError
from cdc.events import DatabaseEvent, EventType, Kind, Position, Transaction
from cdc.lsn import Lsn
from cdc.messages import Begin, Change, Commit, Decoded, Message
from cdc.patterns import TablePatterns

__all__ = ["Assembled", "Assembler", "CommitMark", "Selection", "TagRule"]

_NO_CHANGES: frozenset[type] = frozenset({Begin, Commit, Message})
_lsn = attrgetter("lsn")


@dataclass(frozen=True, slots=True)
class CommitMark:
    """A transaction that is complete: its end LSN, and the id of the last event up to it."""

    lsn: int
    event_id: int


@dataclass(frozen=True, slots=True)
class TagRule:
    """Tags for the events of some tables and types."""

    tables: TablePatterns
    event_types: frozenset[EventType]
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which changes become events, and what the configuration adds to them."""

    tables: TablePatterns
    tag_prefix: str = "cdc.tags"
    tags_column: str = "__tags__"
    soft_delete_columns: frozenset[str] = frozenset({"__is_active__"})
    tag_rules: Sequence[TagRule] = ()

    @property
    def watched_columns(self) -> tuple[str, ...]:
        """Columns that the decoder shall look out for."""
        return tuple(filter(None, (self.tags_column, *sorted(self.soft_delete_columns))))


@dataclass(slots=True)
class Assembled:
    """What a slice of the stream gave: new events in order, and the commits that it completed."""

    events: list[DatabaseEvent] = field(default_factory=list)
    kinds: Counter[Kind] = field(default_factory=Counter)  # how many events of each
    commits: list[CommitMark] = field(default_factory=list)


class Assembler:
    """Turns decoded messages into events; `last_event_id` and `flushed` come from the checkpoint."""

    def __init__(self, selection: Selection, *, flushed: int = 0, last_event_id: int = 0) -> None:
        self._selection = selection
        self._kinds: dict[tuple[EventType, str, str], Kind | None] = {}
        self._transaction: Transaction | None = None
        self._tags: tuple[str, ...] = ()
        self._ordinal = 0
        self._commit_id = last_event_id  # the id counter as it was at the last commit
        self._id = last_event_id
        self._seen_lsn = self._commit_lsn = flushed
        self._seen_ordinal = 0
        self._skipping = False
        self._held: list[Change] = []  # of the open transaction, see `_feed`
        self.counts: Counter[Kind] = Counter()
        self.filtered: Counter[str] = Counter()
        self.transactions = 0

    @property
    def is_open(self) -> bool:
        """Whether a transaction has begun and is not complete."""
        return self._transaction is not None

    @property
    def commit_lsn(self) -> int:
        """End LSN of the last transaction that is complete (or the position started from)."""
        return self._commit_lsn

    @property
    def last_event_id(self) -> int:
        """Id of the last event up to `commit_lsn`."""
        return self._commit_id

    @property
    def event_id(self) -> int:
        """Id of the last event of all, also inside the open transaction."""
        return self._id

    @property
    def frontier(self) -> Position:
        """Everything up to here was handed on."""
        return Position(Lsn(self._seen_lsn), self._seen_ordinal)

    def reconnect(self) -> None:
        """Forget the open transaction: the server sends it again from its beginning."""
        self._transaction = None
        self._held = []
        self._id = self._commit_id

    def feed(self, messages: Iterable[Decoded], *, is_last: bool = False) -> Assembled:
        """Take messages in the order of the stream.

        Inside a transaction the changes of the last record are held back until the next call, unless it `is_last`.
        When a message cannot be taken, none of this call was: the error passes, the caller has no events, and
        after `reconnect` the same messages give the same events.
        """
        before = (self._seen_lsn, self._seen_ordinal, self._commit_lsn, self._commit_id, self.transactions)
        try:
            return self._feed(messages, is_last=is_last)
        except BaseException:
            self._seen_lsn, self._seen_ordinal, self._commit_lsn, self._commit_id, self.transactions = before
            self.reconnect()
            raise

    def _feed(self, messages: Iterable[Decoded], *, is_last: bool) -> Assembled:
        """A message goes before the changes that begin where it ends, though the server may send it behind them.

        It merges a transaction and its subtransactions by LSN, and gives a message that of its record's end, a change
        that of its record's beginning. So the last record's changes wait for what comes next.
        """
        result = Assembled()
        run, self._held = self._held, []
        for message in messages:
            # Changes are nearly all there is: one look-up sorts them out, where each isinstance() costs as much.
            if message.__class__ not in _NO_CHANGES:
                run.append(cast(Change, message))
                continue
            behind = _cut(run, message.lsn) if isinstance(message, Message) else []
            if run:
                self._changes(run, result)
            run = behind
            if isinstance(message, Begin):
                self._begin(message)
            elif isinstance(message, Commit):
                if (mark := self._commit(message)) is not None:
                    result.commits.append(mark)
            elif isinstance(message, Message):
                self._message(message)
        if run and self._transaction is not None and not is_last:
            self._held = _cut(run, run[-1].lsn)
        if run:
            self._changes(run, result)
        self.counts.update(result.kinds)
        return result

    def _begin(self, begin: Begin) -> None:
        if self._transaction is not None:
            raise DecodeError("a transaction begins inside another", lsn=begin.commit_lsn)
        self._transaction = Transaction(begin.commit_lsn, begin.xid, begin.timestamp)
        self._tags = ()
        self._ordinal = 0
        self._skipping = begin.commit_lsn <= self._seen_lsn

    def _commit(self, commit: Commit) -> CommitMark | None:
        if self._transaction is None or self._transaction.commit_lsn != commit.commit_lsn:
            raise DecodeError("a commit without its begin", lsn=commit.commit_lsn)
        self._transaction = None
        if commit.commit_lsn <= self._commit_lsn:  # the server sent it again
            self._id = self._commit_id
            return None
        self._commit_lsn = commit.commit_lsn
        self._commit_id = self._id
        self.transactions += 1
        if commit.commit_lsn > self._seen_lsn:
            self._seen_lsn, self._seen_ordinal = commit.commit_lsn, self._ordinal
        return CommitMark(commit.commit_lsn, self._id)

    def _message(self, message: Message) -> None:
        if message.prefix != self._selection.tag_prefix:
            return
        if self._transaction is None or not message.transactional:
            self.filtered["tag_message_outside_transaction"] += 1
            return
        tags = (tag.strip() for tag in message.content.split(","))
        self._tags = _joined(self._tags, tuple(filter(None, tags)))

    def _changes(self, changes: Sequence[Change], result: Assembled) -> None:
        """Changes of the open transaction, one after the other: the hot path, which keeps what it counts in locals."""
        transaction = self._transaction
        if transaction is None:
            raise DecodeError(f"a change of {changes[0].schema}.{changes[0].table} outside a transaction", lsn=0)
        if self._skipping:
            changes = self._unseen(changes, transaction)
        kinds, own_tags, append = self._kinds, self._tags, result.events.append
        ordinal, event_id, before = self._ordinal, self._id, len(result.events)
        for change in changes:
            ordinal += 1
            event_type = change.event_type
            if change.watched:
                event_type = self._type_of(change)
            try:
                kind = kinds[event_type, change.schema, change.table]
            except KeyError:
                kind = self._kind(event_type, change.schema, change.table)
            if kind is None:
                self.filtered["table"] += 1
                continue
            event_id += 1
            tags = kind.tags
            if own_tags or change.watched:
                tags = self._tags_of(change, tags)
            append(DatabaseEvent(event_id, kind, tags, transaction, ordinal, change))
        self._ordinal, self._id = ordinal, event_id
        if len(result.events) > before:
            last = result.events[-1]
            self._seen_lsn, self._seen_ordinal = transaction.commit_lsn, last.ordinal
            result.kinds.update([event.kind for event in result.events[before:]])

    def _unseen(self, changes: Sequence[Change], transaction: Transaction) -> Sequence[Change]:
        """Count those that were handed on before, and return the rest."""
        for number, change in enumerate(changes):
            event_type = self._type_of(change) if change.watched else change.event_type
            if self._kind(event_type, change.schema, change.table) is None:
                self._ordinal += 1
                self.filtered["table"] += 1
            elif transaction.commit_lsn <= self._commit_lsn or self._ordinal < self._seen_ordinal:
                self._ordinal += 1
                self._id += 1
                self.filtered["redelivered"] += 1
            else:
                self._skipping = False
                return changes[number:]
        return ()

    def _type_of(self, change: Change) -> EventType:
        """What a change with watched columns is: an update may delete softly."""
        if change.event_type is EventType.UPDATE and change.deleted_softly(self._selection.soft_delete_columns):
            return EventType.DELETE
        return change.event_type

    def _tags_of(self, change: Change, by_rule: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the transaction, of rules, and of the row itself."""
        tags = _joined(self._tags, by_rule) if self._tags else by_rule
        if change.watched and self._selection.tags_column:
            tags = _joined(tags, change.text_list(self._selection.tags_column))
        return tags

    def _kind(self, event_type: EventType, schema: str, table: str) -> Kind | None:
        """The shared facts of a table and type; None where the configuration leaves the table out."""
        key = (event_type, schema, table)
        if key in self._kinds:
            return self._kinds[key]
        kind = None
        if self._selection.tables.matches(schema, table):
            tags: tuple[str, ...] = ()
            for rule in self._selection.tag_rules:
                if event_type in rule.event_types and rule.tables.matches(schema, table):
                    tags = _joined(tags, rule.tags)
            kind = Kind(event_type, schema, table, tags)
        self._kinds[key] = kind
        return kind


def _cut(run: list[Change], lsn: int) -> list[Change]:
    """Take the changes from `lsn` on off the end of a run, in which LSNs rise; none where `lsn` is not known."""
    at = bisect_left(run, lsn, key=_lsn) if lsn else len(run)
    behind = run[at:]
    del run[at:]
    return behind


def _joined(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    """Both, in order, each tag once."""
    return tuple(dict.fromkeys(first + second))
