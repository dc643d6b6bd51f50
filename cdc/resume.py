"""Where the stream starts: checkpoint and slot compared. Pure: facts in, a position or a refusal out.

The slot alone is no durable checkpoint (a server of version 16 or older forgets acknowledged positions
even at a clean stop), and our checkpoint alone says nothing of what the server still has.
"""

from __future__ import annotations

from dataclasses import dataclass

from cdc.config import SourceConfig
from cdc.errors import CheckpointMismatch, SlotInvalidated, SlotMismatch, SlotMissing
from cdc.lsn import Lsn
from cdc.replication import SystemIdentity
from cdc.slots import SlotInfo
from cdc.state import Checkpoint, Source

__all__ = ["ResumePoint", "resume_point"]

_WHICH_DSN = "point source.dsn at the server of the checkpoint, or give this one a state.url of its own"
_ACCEPT = "cdc run --accept-gap goes on behind the gap and puts its range on record"


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Where to start. `note` is said once in the log; `gap_from` is set when events before are given up."""

    lsn: Lsn
    last_event_id: int
    create: bool = False
    note: str = ""
    gap_from: Lsn | None = None


def resume_point(
    identity: SystemIdentity,
    slot: SlotInfo | None,
    checkpoint: Checkpoint | None,
    config: SourceConfig,
    *,
    accept_gap: bool = False,
) -> ResumePoint:
    """The policy at start, one case after the other; StreamRefused where an operator must decide."""
    if checkpoint is not None:
        _same_history(identity, checkpoint, config)
    if slot is None:
        return _without_slot(checkpoint, config, accept_gap=accept_gap)
    _usable(identity, slot, config)
    confirmed = slot.confirmed_flush_lsn or Lsn(0)
    if checkpoint is None:
        return ResumePoint(confirmed, 0, note="no checkpoint: going on from the slot's own position")
    if confirmed <= checkpoint.flushed_lsn:
        return ResumePoint(checkpoint.flushed_lsn, checkpoint.last_event_id)
    # We record a position before we report it: beyond the record, somebody else has moved the slot.
    if accept_gap:
        note = f"gap accepted: {checkpoint.flushed_lsn} to {confirmed}"
        return ResumePoint(confirmed, checkpoint.last_event_id, note=note, gap_from=checkpoint.flushed_lsn)
    raise SlotMismatch(
        f"slot {slot.name!r} was advanced or made anew by somebody else: it begins at {confirmed}, "
        f"the checkpoint is at {checkpoint.flushed_lsn}, and events between them are not in it any more",
        hint=_ACCEPT,
    )


def _same_history(identity: SystemIdentity, checkpoint: Checkpoint, config: SourceConfig) -> None:
    source = checkpoint.source
    if source.system_identifier != identity.system_identifier:
        raise CheckpointMismatch(
            f"the checkpoint is of cluster {source.system_identifier}, this server is {identity.system_identifier}",
            hint=_WHICH_DSN,
        )
    if (source.database, source.slot, source.plugin) != (identity.database, config.slot, config.plugin):
        raise CheckpointMismatch(
            f"the checkpoint is of database {source.database!r}, slot {source.slot!r}, plugin {source.plugin!r}, "
            f"not of {identity.database!r}, {config.slot!r}, {config.plugin!r}",
            hint=_WHICH_DSN,
        )
    if source.timeline > identity.timeline:
        raise CheckpointMismatch(
            f"the checkpoint is of timeline {source.timeline}, this server is on {identity.timeline}: "
            "an old primary that has come back?",
            hint="point source.dsn at the server that was promoted",
        )
    if checkpoint.flushed_lsn > identity.flushed_lsn:
        raise CheckpointMismatch(
            f"the checkpoint at {checkpoint.flushed_lsn} lies beyond this server's WAL, which ends at "
            f"{identity.flushed_lsn}: a standby that was behind when it was promoted, or a restored backup?",
            hint="events were delivered that this server never had; start with a new state.url when that is settled",
        )


def _without_slot(checkpoint: Checkpoint | None, config: SourceConfig, *, accept_gap: bool) -> ResumePoint:
    if checkpoint is not None and not accept_gap:
        raise SlotMissing(
            f"slot {config.slot!r} is gone, and with it all events after {checkpoint.flushed_lsn}",
            hint=f"find out who dropped it; then: {_ACCEPT}",
        )
    if not config.create_slot:
        raise SlotMissing(f"slot {config.slot!r} does not exist", hint="cdc slot create")
    if checkpoint is None:
        return ResumePoint(Lsn(0), 0, create=True, note="slot created: events from now on")
    return ResumePoint(
        Lsn(0),
        checkpoint.last_event_id,
        create=True,
        note="slot created anew",
        gap_from=checkpoint.flushed_lsn,
    )


def _usable(identity: SystemIdentity, slot: SlotInfo, config: SourceConfig) -> None:
    if slot.plugin != config.plugin or slot.database != identity.database:
        raise SlotMismatch(
            f"slot {slot.name!r} is of plugin {slot.plugin!r} in database {slot.database!r}, "
            f"not of {config.plugin!r} in {identity.database!r}",
            hint="choose another source.slot, or the database of this one in source.dsn",
        )
    if slot.invalidation:
        raise SlotInvalidated(
            f"slot {slot.name!r} is invalidated ({slot.invalidation}): "
            "the server has removed WAL that was not consumed",
            hint=f"cdc slot drop; then: {_ACCEPT}",
        )


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
