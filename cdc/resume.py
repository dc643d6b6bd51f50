"""Where the stream starts: checkpoint and slot compared. Pure: facts in, a position or a refusal out.

The slot alone is no durable checkpoint (a server of version 16 or older forgets acknowledged positions
even at a clean stop), and our checkpoint alone says nothing of what the server still has. What the two can
mean together is the table `CASES`; nothing else decides. What it cannot see: a copy of the data folder that was put
back without recovery to a point in time (which makes a new timeline), once it has written past our checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

from cdc.codes import Code
from cdc.config import SourceConfig
from cdc.errors import CheckpointMismatch, SlotInvalidated, SlotMismatch, SlotMissing, StreamLost, StreamRefused
from cdc.lsn import Lsn
from cdc.replication import SystemIdentity
from cdc.slots import SlotInfo
from cdc.state import Checkpoint, Source

__all__ = ["CASES", "Case", "Facts", "ResumePoint", "Ruling", "resume_point", "source_of"]


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Where to start. `note` is said once in the log; `gap_from` is set when events before are given up.

    `create`: the slot is to be made, and `lsn` is known only then; `drop`: the invalidated one goes first.
    """

    lsn: Lsn
    last_event_id: int
    create: bool = False
    note: str = ""
    gap_from: Lsn | None = None
    drop: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """What there is to compare. `received`: up to there it lies in the memory of this run."""

    identity: SystemIdentity
    slot: SlotInfo | None
    checkpoint: Checkpoint | None
    config: SourceConfig
    received: Lsn = Lsn(0)

    @property
    def flushed(self) -> Lsn:
        """The checkpoint's position; 0/0 without one."""
        return self.checkpoint.flushed_lsn if self.checkpoint else Lsn(0)

    @property
    def reached(self) -> Lsn:
        """Up to there events were handed out, or are about to be."""
        return max(self.flushed, self.received)

    @property
    def confirmed(self) -> Lsn:
        """What the slot begins at."""
        return (self.slot.confirmed_flush_lsn if self.slot else None) or Lsn(0)

    @property
    def written(self) -> Lsn:
        """How far the server is."""
        return self.identity.flushed_lsn

    @property
    def last_known(self) -> Lsn:
        """What was the last to be known for certain: the checkpoint, or without one the slot's own position."""
        return self.flushed if self.checkpoint else self.confirmed

    @property
    def timeline(self) -> int:
        """The checkpoint's; 0 without one."""
        return self.checkpoint.source.timeline if self.checkpoint else 0

    @property
    def fork(self) -> Lsn:
        """Where the server left the checkpoint's timeline; how far it is when it has not, or cannot say."""
        left = self.identity.left(self.timeline)
        return self.written if left is None else left

    @property
    def is_other_cluster(self) -> bool:
        """The checkpoint was made on another."""
        return self.checkpoint is not None and (
            self.checkpoint.source.system_identifier != self.identity.system_identifier
        )

    @property
    def is_other_stream(self) -> bool:
        """The checkpoint was made of another slot, or in another database."""
        if self.checkpoint is None:
            return False
        source = self.checkpoint.source
        here = self.identity.database, self.config.slot, self.config.plugin
        return (source.database, source.slot, source.plugin) != here

    @property
    def is_standby_to_wait_for(self) -> bool:
        """A standby that has not the slot, or not yet replayed what we have: as it is just before its promotion."""
        behind = self.checkpoint is not None and (self.slot is None or self.flushed > self.written)
        copied = self.slot is not None and self.slot.synced is True
        return self.identity.in_recovery and (behind or copied)


class Ruling(Enum):
    """What follows from a case."""

    GO_ON = "go on"
    NOTE = "say so in the log, and look at the next cases"
    WAIT = "try again later"
    STOP = "stop"
    GAP = "stop; with --accept-gap go on behind the gap, with its range on record"


@dataclass(frozen=True, slots=True)
class Case:
    """One row: when it applies, and what follows. Texts are formats with the facts as `f`.

    `gap` is the range in doubt, first position and end; the end is not part of it. `point` where to go on.
    """

    name: str
    applies: Callable[[Facts], bool]
    ruling: Ruling
    says: str = ""
    hint: str = ""
    error: type[StreamRefused] = StreamRefused
    gap: Callable[[Facts], tuple[Lsn, Lsn]] | None = None
    point: Callable[[Facts], ResumePoint] | None = None
    code: str = ""  # finer than that of `error`


_WHICH_DSN = "point source.dsn at the server of the checkpoint, or give this one a state.url of its own"
_ACCEPT = "cdc run --accept-gap goes on behind the gap and puts its range on record"
_MAKE = "cdc slot create"
_DIVERGED = "events in it were delivered that this server never had; start with a new state.url when that is settled"


def _anew(f: Facts, *, drop: bool = False) -> ResumePoint:
    """The slot is made, behind a gap if there was anything before."""
    last_id = f.checkpoint.last_event_id if f.checkpoint else 0
    if f.checkpoint is None and f.slot is None:
        return ResumePoint(Lsn(0), last_id, create=True, note="slot created: events from now on")
    return ResumePoint(Lsn(0), last_id, create=True, drop=drop, note="slot created anew", gap_from=f.last_known)


def _at_slot(f: Facts) -> ResumePoint:
    if f.checkpoint is None:
        return ResumePoint(f.confirmed, 0, note="no checkpoint: going on from the slot's own position")
    note = f"gap accepted: {f.flushed} to {f.confirmed}"
    return ResumePoint(f.confirmed, f.checkpoint.last_event_id, note=note, gap_from=f.flushed)


def _at_checkpoint(f: Facts) -> ResumePoint:
    return ResumePoint(f.flushed, f.checkpoint.last_event_id if f.checkpoint else 0)


CASES: tuple[Case, ...] = (
    # The server: is it the one that the checkpoint speaks of?
    Case(
        "another cluster",
        lambda f: f.is_other_cluster,
        Ruling.STOP,
        "the checkpoint is of cluster {f.checkpoint.source.system_identifier}, "
        "this server is {f.identity.system_identifier}",
        _WHICH_DSN,
        CheckpointMismatch,
    ),
    Case(
        "another database, slot or plugin",
        lambda f: f.is_other_stream,
        Ruling.STOP,
        "the checkpoint is of database {f.checkpoint.source.database!r}, slot {f.checkpoint.source.slot!r}, "
        "plugin {f.checkpoint.source.plugin!r}, "
        "not of {f.identity.database!r}, {f.config.slot!r}, {f.config.plugin!r}",
        _WHICH_DSN,
        CheckpointMismatch,
    ),
    Case(
        "an old primary",
        lambda f: f.timeline > f.identity.timeline,
        Ruling.STOP,
        "the checkpoint is of timeline {f.timeline}, this server is on {f.identity.timeline}: "
        "an old primary that has come back?",
        "point source.dsn at the server that was promoted",
        CheckpointMismatch,
        code=Code.OLD_PRIMARY,
    ),
    Case(
        "a standby before its promotion",
        lambda f: f.is_standby_to_wait_for,
        Ruling.WAIT,
        "the server is a standby, at {f.written}, and cannot serve slot {f.config.slot!r}",
        "point source.dsn at the primary; or promote this one",
    ),
    Case(
        "a promoted standby without all that we have",
        lambda f: f.timeline < f.identity.timeline and f.reached > f.fork,
        Ruling.STOP,
        "timeline {f.identity.timeline} of this server left timeline {f.timeline} at {f.fork}, "
        "but we had received up to {f.reached}: a standby that was behind when it was promoted",
        _DIVERGED,
        CheckpointMismatch,
        gap=lambda f: (f.fork, f.reached),
        code=Code.HISTORY_DIVERGED,
    ),
    Case(
        "a server older than the checkpoint",
        lambda f: f.flushed > f.written,
        Ruling.STOP,
        "the checkpoint at {f.flushed} lies beyond this server's WAL, which ends at {f.written}: "
        "a restored backup, or a standby that was behind when it was promoted?",
        _DIVERGED,
        CheckpointMismatch,
        gap=lambda f: (f.written, f.flushed),
        code=Code.HISTORY_DIVERGED,
    ),
    Case(
        "a promoted standby",
        lambda f: f.checkpoint is not None and f.timeline < f.identity.timeline,
        Ruling.NOTE,
        "the server was promoted or restored: from timeline {f.timeline} to {f.identity.timeline}",
    ),
    # The slot: is it there, is it ours?
    Case(
        "the first start",
        lambda f: f.slot is None and f.checkpoint is None and f.config.create_slot,
        Ruling.GO_ON,
        point=_anew,
    ),
    Case(
        "the first start, and the slot is made by others",
        lambda f: f.slot is None and f.checkpoint is None,
        Ruling.STOP,
        "slot {f.config.slot!r} does not exist",
        _MAKE,
        SlotMissing,
    ),
    Case(
        "the slot is gone, and made by others",
        lambda f: f.slot is None and not f.config.create_slot,
        Ruling.STOP,
        "slot {f.config.slot!r} is gone, and with it all events after {f.flushed}",
        f"find out who dropped it; then: {_MAKE}; {_ACCEPT}",
        SlotMissing,
        gap=lambda f: (f.flushed, f.written),
        code=Code.SLOT_GONE,
    ),
    Case(
        "the slot is gone",
        lambda f: f.slot is None,
        Ruling.GAP,
        "slot {f.config.slot!r} is gone, and with it all events after {f.flushed}",
        f"find out who dropped it; then: {_ACCEPT}",
        SlotMissing,
        gap=lambda f: (f.flushed, f.written),
        point=_anew,
        code=Code.SLOT_GONE,
    ),
    Case(
        "a physical slot",
        lambda f: f.slot is not None and f.slot.slot_type != "logical",
        Ruling.STOP,
        "slot {f.slot.name!r} is a {f.slot.slot_type} slot, not of plugin {f.config.plugin!r}",
        "choose another source.slot",
        SlotMismatch,
    ),
    Case(
        "another plugin or database",
        lambda f: f.slot is not None and (f.slot.plugin, f.slot.database) != (f.config.plugin, f.identity.database),
        Ruling.STOP,
        "slot {f.slot.name!r} is of plugin {f.slot.plugin!r} in database {f.slot.database!r}, "
        "not of {f.config.plugin!r} in {f.identity.database!r}",
        "choose another source.slot, or the database of this one in source.dsn",
        SlotMismatch,
    ),
    Case(
        "a temporary slot",
        lambda f: f.slot is not None and f.slot.temporary,
        Ruling.STOP,
        "slot {f.slot.name!r} is temporary: it belongs to another connection and goes with it",
        "choose another source.slot",
        SlotMismatch,
    ),
    # Only now, past the rows above, may --accept-gap drop it: it is of our name, plugin and database. Whether
    # somebody uses it is for the server to judge, which drops no slot in use.
    Case(
        "invalidated, and made by others",
        lambda f: f.slot is not None and f.slot.invalidation != "" and not f.config.create_slot,
        Ruling.STOP,
        "slot {f.slot.name!r} is invalidated ({f.slot.invalidation}): the server has removed WAL that was not consumed",
        f"cdc slot drop; {_MAKE}; then: {_ACCEPT}",
        SlotInvalidated,
        gap=lambda f: (f.last_known, f.written),
    ),
    Case(
        "invalidated",
        lambda f: f.slot is not None and f.slot.invalidation != "",
        Ruling.GAP,
        "slot {f.slot.name!r} is invalidated ({f.slot.invalidation}): the server has removed WAL that was not consumed",
        f"{_ACCEPT}; the slot is made anew",
        SlotInvalidated,
        gap=lambda f: (f.last_known, f.written),
        point=lambda f: _anew(f, drop=True),
    ),
    # The positions.
    Case("no checkpoint", lambda f: f.checkpoint is None, Ruling.GO_ON, point=_at_slot),
    # We record a position before we report it: beyond the record, somebody else has moved the slot, or made it
    # anew. A slot made anew on the same server always begins beyond all that was sent before.
    Case(
        "advanced or made anew",
        lambda f: f.confirmed > f.flushed,
        Ruling.GAP,
        "slot {f.slot.name!r} was advanced or made anew by somebody else: it begins at {f.confirmed}, "
        "the checkpoint is at {f.flushed}, and events between them are not in it any more",
        _ACCEPT,
        SlotMismatch,
        gap=lambda f: (f.flushed, f.confirmed),
        point=_at_slot,
        code=Code.SLOT_ADVANCED,
    ),
    # The slot is where we are, or before it: it gives all that committed from its own position on.
    Case("all is well", lambda _: True, Ruling.GO_ON, point=_at_checkpoint),
)
"""The policy at start: the first case that applies and is no note decides."""


def resume_point(
    identity: SystemIdentity,
    slot: SlotInfo | None,
    checkpoint: Checkpoint | None,
    config: SourceConfig,
    *,
    accept_gap: bool = False,
    received: int = 0,
) -> ResumePoint:
    """Where to start, by `CASES`. StreamRefused where an operator must decide, StreamLost where time will tell."""
    facts = Facts(identity, slot, checkpoint, config, Lsn(received))
    notes: list[str] = []
    for case in CASES:
        if not case.applies(facts):
            continue
        text = case.says.format(f=facts)
        if case.ruling is Ruling.NOTE:
            notes.append(text)
        elif case.ruling is Ruling.WAIT:
            raise StreamLost(text, reason="standby_server", hint=case.hint)
        elif case.point is None or (case.ruling is Ruling.GAP and not accept_gap):
            raise _refusal(case, facts, text)
        else:
            point = case.point(facts)
            return replace(point, note="; ".join(filter(None, (*notes, point.note))))
    raise AssertionError("the last case always applies")


def _refusal(case: Case, facts: Facts, text: str) -> StreamRefused:
    gap = case.gap(facts) if case.gap is not None else None
    if gap is not None:
        text += f" | in doubt: [{gap[0]}, {gap[1]})"
    return case.error(text, hint=case.hint, gap=gap, code=case.code)


def source_of(identity: SystemIdentity, config: SourceConfig, selection: str) -> Source:
    """What a checkpoint made on this connection speaks of."""
    return Source(
        system_identifier=identity.system_identifier,
        timeline=identity.timeline,
        database=identity.database,
        slot=config.slot,
        plugin=config.plugin,
        selection=selection,
    )
