"""Where the stream starts: every case of checkpoint against slot."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cdc.config import SourceConfig
from cdc.errors import (
    CheckpointMismatch,
    SlotInvalidated,
    SlotMismatch,
    SlotMissing,
    StreamRefused,
    is_retryable,
)
from cdc.lsn import Lsn
from cdc.replication import SystemIdentity
from cdc.resume import resume_point, source_of
from cdc.slots import SlotInfo
from cdc.state import Checkpoint

CONFIG = SourceConfig(dsn="dbname=shop", slot="cdc")
IDENTITY = SystemIdentity("7301", 2, Lsn(5000), "shop")
CHECKPOINT = Checkpoint(source_of(IDENTITY, CONFIG, "all"), Lsn(3000), 42)
ROW: dict[str, object] = {
    "slot_name": "cdc",
    "slot_type": "logical",
    "plugin": "wal2json",
    "database": "shop",
    "temporary": False,
    "active_pid": None,
    "restart_lsn": "0/3E8",
    "confirmed_flush_lsn": "0/7D0",
    "wal_status": "reserved",
    "safe_wal_size": None,
}
SLOT = SlotInfo.of(ROW)


def test_the_checkpoint_counts_when_the_slot_is_behind() -> None:
    """A server may forget what was acknowledged; we do not."""
    point = resume_point(IDENTITY, SLOT, CHECKPOINT, CONFIG)

    assert (point.lsn, point.last_event_id, point.gap_from, point.create) == (3000, 42, None, False)


def test_slot_and_checkpoint_may_be_equal() -> None:
    """The usual case after a clean stop."""
    slot = replace(SLOT, confirmed_flush_lsn=Lsn(3000))

    assert resume_point(IDENTITY, slot, CHECKPOINT, CONFIG).lsn == 3000


def test_without_a_checkpoint_the_slot_counts_and_it_is_said() -> None:
    """An existing slot and no state: go on from the slot's own position."""
    point = resume_point(IDENTITY, SLOT, None, CONFIG)

    assert (point.lsn, point.last_event_id) == (2000, 0)
    assert "slot's own position" in point.note


def test_without_either_the_slot_is_to_be_created() -> None:
    """The first start."""
    point = resume_point(IDENTITY, None, None, CONFIG)

    assert point.create
    assert point.gap_from is None


def test_a_slot_is_not_created_against_the_configuration() -> None:
    """create_slot = false."""
    with pytest.raises(SlotMissing, match="cdc slot create"):
        resume_point(IDENTITY, None, None, CONFIG.model_copy(update={"create_slot": False}))


def test_a_slot_that_is_gone_is_never_made_anew_by_itself() -> None:
    """With a checkpoint there were events in it."""
    with pytest.raises(SlotMissing, match="accept-gap"):
        resume_point(IDENTITY, None, CHECKPOINT, CONFIG)


def test_an_accepted_gap_begins_at_the_checkpoint() -> None:
    """With the slot made anew, and the ids going on."""
    point = resume_point(IDENTITY, None, CHECKPOINT, CONFIG, accept_gap=True)

    assert (point.create, point.gap_from, point.last_event_id) == (True, 3000, 42)


def test_a_slot_beyond_the_checkpoint_is_refused() -> None:
    """We record before we report: somebody else has moved it."""
    slot = replace(SLOT, confirmed_flush_lsn=Lsn(3001))

    with pytest.raises(SlotMismatch, match=r"0/BB9.*0/BB8.*accept-gap"):
        resume_point(IDENTITY, slot, CHECKPOINT, CONFIG)


def test_a_slot_beyond_the_checkpoint_may_be_accepted() -> None:
    """Going on where the slot is, with the range on record."""
    slot = replace(SLOT, confirmed_flush_lsn=Lsn(4000))
    point = resume_point(IDENTITY, slot, CHECKPOINT, CONFIG, accept_gap=True)

    assert (point.lsn, point.gap_from, point.create) == (4000, 3000, False)


@pytest.mark.parametrize(
    "change",
    [{"plugin": "test_decoding"}, {"database": "other"}, {"plugin": None, "database": None, "slot_type": "physical"}],
    ids=["plugin", "database", "physical"],
)
def test_a_slot_of_another_kind_is_refused(change: dict[str, str | None]) -> None:
    """Of another plugin, of another database, or physical."""
    with pytest.raises(SlotMismatch, match=r"source\.slot"):
        resume_point(IDENTITY, SlotInfo.of(ROW | change), None, CONFIG)


@pytest.mark.parametrize(
    "change",
    [
        {"wal_status": "lost"},
        {"restart_lsn": None},
        {"invalidation_reason": "idle_timeout"},
        {"invalidation_reason": "a_reason_of_the_future"},
        {"conflicting": True},
    ],
    ids=["lost", "no_restart_lsn", "idle_timeout", "unknown", "conflicting"],
)
def test_an_invalidated_slot_is_refused_whatever_the_reason(change: dict[str, str | None]) -> None:
    """Also with --accept-gap: it gives nothing any more, and must be dropped first."""
    for accept_gap in (False, True):
        with pytest.raises(SlotInvalidated, match="cdc slot drop"):
            resume_point(IDENTITY, SlotInfo.of(ROW | change), CHECKPOINT, CONFIG, accept_gap=accept_gap)


@pytest.mark.parametrize(
    ("identity", "said"),
    [
        ({"system_identifier": "7302"}, "cluster 7301, this server is 7302"),
        ({"database": "other"}, "database 'shop'"),
        ({"timeline": 1}, "an old primary"),
        ({"flushed_lsn": Lsn(2999)}, "beyond this server's WAL"),
    ],
    ids=["cluster", "database", "timeline", "beyond"],
)
@pytest.mark.parametrize("accept_gap", [False, True], ids=["", "accept_gap"])
def test_a_checkpoint_of_another_history_is_refused(
    identity: dict[str, str | int], said: str, accept_gap: bool
) -> None:
    """Its positions mean nothing here, and no gap can be named that would be accepted."""
    with pytest.raises(CheckpointMismatch, match=said):
        resume_point(replace(IDENTITY, **identity), SLOT, CHECKPOINT, CONFIG, accept_gap=accept_gap)  # type: ignore[arg-type]


def test_a_promoted_server_may_go_on() -> None:
    """A higher timeline of the same cluster, with the checkpoint inside its WAL."""
    identity = replace(IDENTITY, timeline=3)

    assert resume_point(identity, SLOT, CHECKPOINT, CONFIG).lsn == 3000


def test_a_checkpoint_at_the_very_end_of_the_wal_is_fine() -> None:
    """All was delivered, and nothing has happened since."""
    assert resume_point(replace(IDENTITY, flushed_lsn=Lsn(3000)), SLOT, CHECKPOINT, CONFIG).lsn == 3000


def test_no_refusal_is_tried_again() -> None:
    """An operator decides."""
    with pytest.raises(StreamRefused) as caught:
        resume_point(IDENTITY, None, CHECKPOINT, CONFIG)

    assert not is_retryable(caught.value)
    assert caught.value.hint
