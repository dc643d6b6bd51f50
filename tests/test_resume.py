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
    StreamLost,
    StreamRefused,
    is_retryable,
)
from cdc.lsn import Lsn
from cdc.replication import SystemIdentity
from cdc.resume import CASES, Ruling, resume_point, source_of
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
    """With a checkpoint there were events in it; all from there to where the server is."""
    with pytest.raises(SlotMissing, match="accept-gap") as caught:
        resume_point(IDENTITY, None, CHECKPOINT, CONFIG)
    assert caught.value.gap == (3000, 5000)


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
    """A reason of a newer server, too; with the range from the checkpoint to where the server is."""
    with pytest.raises(SlotInvalidated, match="accept-gap") as caught:
        resume_point(IDENTITY, SlotInfo.of(ROW | change), CHECKPOINT, CONFIG)

    assert caught.value.gap == (3000, 5000)
    assert "[0/BB8, 0/1388)" in caught.value.message
    assert caught.value.exit_code == 3


INVALIDATED = SlotInfo.of(ROW | {"wal_status": "lost"})


def test_an_invalidated_slot_is_dropped_and_made_anew_only_with_an_accepted_gap() -> None:
    """With the gap from the checkpoint on, and without one from the slot's own position on."""
    point = resume_point(IDENTITY, INVALIDATED, CHECKPOINT, CONFIG, accept_gap=True)
    assert (point.drop, point.create, point.gap_from, point.last_event_id) == (True, True, 3000, 42)

    point = resume_point(IDENTITY, INVALIDATED, None, CONFIG, accept_gap=True)
    assert (point.drop, point.create, point.gap_from, point.last_event_id) == (True, True, 2000, 0)


@pytest.mark.parametrize(
    "change",
    [{"plugin": "test_decoding"}, {"database": "other"}, {"slot_type": "physical"}, {"temporary": True}],
    ids=["plugin", "database", "physical", "temporary"],
)
def test_a_slot_of_others_is_never_dropped(change: dict[str, object]) -> None:
    """Invalidated or not, accepted or not."""
    slot = SlotInfo.of(ROW | {"wal_status": "lost"} | change)

    with pytest.raises(SlotMismatch, match=r"source\.slot"):
        resume_point(IDENTITY, slot, CHECKPOINT, CONFIG, accept_gap=True)


def test_nothing_is_dropped_or_made_where_others_make_the_slot() -> None:
    """create_slot = false: the words say who, and the range."""
    config = CONFIG.model_copy(update={"create_slot": False})

    for slot, kind in ((None, SlotMissing), (INVALIDATED, SlotInvalidated)):
        with pytest.raises(kind, match="cdc slot create") as caught:
            resume_point(IDENTITY, slot, CHECKPOINT, config, accept_gap=True)
        assert isinstance(caught.value, StreamRefused)
        assert caught.value.gap == (3000, 5000)


def test_a_slot_that_somebody_is_making_is_not_invalidated() -> None:
    """For a moment it has no restart_lsn; its maker holds it."""
    assert SlotInfo.of(ROW | {"restart_lsn": None, "wal_status": None, "active_pid": 7}).invalidation == ""


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
    """A higher timeline of the same cluster, with the checkpoint before the fork; it is said."""
    identity = replace(IDENTITY, timeline=3, history=((1, Lsn(1000)), (2, Lsn(3000))))
    point = resume_point(identity, SLOT, CHECKPOINT, CONFIG)

    assert point.lsn == 3000
    assert "from timeline 2 to 3" in point.note


def test_a_promoted_server_that_lacks_what_was_delivered_is_refused() -> None:
    """Also when it has written past our checkpoint since: its own events there would be skipped without a word."""
    identity = replace(IDENTITY, timeline=3, history=((1, Lsn(1000)), (2, Lsn(2900))), flushed_lsn=Lsn(9000))

    for accept_gap in (False, True):
        with pytest.raises(CheckpointMismatch, match=r"\[0/B54, 0/BB8\)") as caught:
            resume_point(identity, SLOT, CHECKPOINT, CONFIG, accept_gap=accept_gap)
        assert caught.value.gap == (2900, 3000)


def test_what_lies_in_memory_must_be_of_the_promoted_servers_history_too() -> None:
    """The checkpoint is before the fork, but events behind it were received from the old server."""
    identity = replace(IDENTITY, timeline=3, history=((2, Lsn(3500)),))

    assert resume_point(identity, SLOT, CHECKPOINT, CONFIG, received=3500).lsn == 3000
    with pytest.raises(CheckpointMismatch) as caught:
        resume_point(identity, SLOT, CHECKPOINT, CONFIG, received=3501)
    assert caught.value.gap == (3500, 3501)


@pytest.mark.parametrize(
    ("slot", "written"),
    [(None, 5000), (replace(SLOT, synced=True), 5000), (SLOT, 2999)],
    ids=["no_slot", "synchronized", "behind"],
)
def test_a_standby_is_waited_for(slot: SlotInfo | None, written: int) -> None:
    """In the moment before its promotion it has no slot of ours, or only a copy, or not all WAL."""
    identity = replace(IDENTITY, in_recovery=True, flushed_lsn=Lsn(written))

    with pytest.raises(StreamLost) as caught:
        resume_point(identity, slot, CHECKPOINT, CONFIG)
    assert caught.value.reason == "standby_server"
    assert is_retryable(caught.value)


def test_a_slot_of_the_standbys_own_is_used() -> None:
    """PostgreSQL 16 and newer decode on a standby."""
    assert (
        resume_point(replace(IDENTITY, in_recovery=True), replace(SLOT, synced=False), CHECKPOINT, CONFIG).lsn == 3000
    )


def test_a_checkpoint_at_the_very_end_of_the_wal_is_fine() -> None:
    """All was delivered, and nothing has happened since."""
    assert resume_point(replace(IDENTITY, flushed_lsn=Lsn(3000)), SLOT, CHECKPOINT, CONFIG).lsn == 3000


def test_no_refusal_is_tried_again() -> None:
    """An operator decides."""
    with pytest.raises(StreamRefused) as caught:
        resume_point(IDENTITY, None, CHECKPOINT, CONFIG)

    assert not is_retryable(caught.value)
    assert caught.value.hint


def test_every_case_that_loses_something_names_the_range() -> None:
    """And those that an operator may accept say where to go on; the last case takes all that is left."""
    for case in CASES:
        if case.ruling is Ruling.GAP:
            assert case.gap is not None, case.name
            assert case.point is not None, case.name
            assert "accept-gap" in case.hint, case.name
        assert (case.point is None) == (case.ruling in (Ruling.STOP, Ruling.WAIT, Ruling.NOTE)), case.name
        assert case.says or case.ruling is Ruling.GO_ON, case.name
    assert CASES[-1].ruling is Ruling.GO_ON


@pytest.mark.parametrize(("confirmed", "accepted"), [(2999, True), (3000, True), (3001, False)])
def test_a_slot_at_or_before_the_checkpoint_has_all_that_follows(confirmed: int, accepted: bool) -> None:
    """Whoever made it: a copied slot, or one from before; one position further and something is missing."""
    slot = replace(SLOT, confirmed_flush_lsn=Lsn(confirmed))

    if accepted:
        assert resume_point(IDENTITY, slot, CHECKPOINT, CONFIG).lsn == 3000
    else:
        with pytest.raises(SlotMismatch) as caught:
            resume_point(IDENTITY, slot, CHECKPOINT, CONFIG)
        assert caught.value.gap == (3000, 3001)
