"""How near the slot is to its end: measured, said once per crossing, and at last a reason not to be ready."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cdc import guard as guarding
from cdc import monitor as monitoring
from cdc.config import SlotGuardConfig
from cdc.guard import Finding, Guard, Level
from cdc.lsn import Lsn
from cdc.monitor import Monitor
from cdc.slots import SlotInfo
from tests.conftest import Database, OwnCluster
from tests.waiting import eventually, make_config, running

MIB = 1024**2
SLOT = SlotInfo.of(
    {
        "slot_name": "cdc",
        "slot_type": "logical",
        "plugin": "wal2json",
        "database": "shop",
        "temporary": False,
        "active_pid": 1,
        "restart_lsn": "1/0",
        "confirmed_flush_lsn": "1/0",
        "server_lsn": "1/0",
        "wal_status": "reserved",
        "safe_wal_size": None,
    }
)
OFF = dict.fromkeys(SlotGuardConfig.model_fields, 0)


def slot(*, retained: int = 0, safe: int | None = None, status: str = "reserved") -> SlotInfo:
    """A slot for which the server keeps so much, and may keep so much more."""
    return replace(SLOT, server_lsn=Lsn((1 << 32) + retained), safe_wal_bytes=safe, wal_status=status)


def limits(**settings: float) -> SlotGuardConfig:
    """Only these thresholds, all others off."""
    return SlotGuardConfig.model_validate(OFF | settings)


def levels(found: list[Finding]) -> list[tuple[str, Level]]:
    """What has changed."""
    return [(finding.figure, finding.level) for finding in found]


def test_each_crossing_is_said_once_and_only_the_second_threshold_is_a_reason() -> None:
    """Up through warn and past, and down again."""
    guard = Guard(limits(warn_retained_bytes=10 * MIB, max_retained_bytes=20 * MIB))
    found = [levels(guard.note(slot(retained=size * MIB), time)) for time, size in enumerate((5, 11, 12, 25, 26))]
    assert found == [[], [("retained_bytes", Level.WARN)], [], [("retained_bytes", Level.PAST)], []]
    assert list(guard.reasons) == ["the server keeps 26.0 MiB of WAL for the slot"]

    found = [levels(guard.note(slot(retained=size * MIB), time)) for time, size in enumerate((15, 5), 5)]
    assert found == [[("retained_bytes", Level.WARN)], [("retained_bytes", Level.FINE)]]
    assert list(guard.reasons) == []


def test_a_value_that_trembles_at_its_threshold_is_said_once() -> None:
    """A level is left only with some distance from it."""
    guard = Guard(limits(warn_retained_bytes=100 * MIB))
    found = [
        levels(guard.note(slot(retained=size * MIB), time)) for time, size in enumerate((101, 99, 101, 95, 101, 80))
    ]

    assert [item for one in found for item in one] == [("retained_bytes", Level.WARN), ("retained_bytes", Level.FINE)]


def test_little_safe_wal_is_a_reason() -> None:
    """From below; without a limit on the server there is nothing to say."""
    guard = Guard(limits(warn_safe_wal_bytes=64 * MIB, min_safe_wal_bytes=16 * MIB))

    assert guard.note(slot(safe=None), 0) == []
    assert levels(guard.note(slot(safe=63 * MIB), 1)) == [("safe_wal_bytes", Level.WARN)]
    assert levels(guard.note(slot(safe=-MIB), 2)) == [("safe_wal_bytes", Level.PAST)]
    assert list(guard.reasons) == ["the slot may be invalidated after 0.0 MiB more of WAL"]
    assert levels(guard.note(None, 3)) == [("safe_wal_bytes", Level.FINE)]


def test_the_time_to_invalidation_is_what_is_left_at_the_present_rate() -> None:
    """A slot that stands still while the server writes 2 MiB a second: measured after a minute, exact."""
    guard = Guard(limits(warn_seconds_to_invalidation=400, min_seconds_to_invalidation=100))
    found: dict[int, list[tuple[str, Level]]] = {}
    for time in range(0, 480, 5):
        changed = levels(guard.note(slot(safe=(1000 - 2 * time) * MIB), time))
        if changed:
            found[time] = changed
        left = guard.seconds_to_invalidation
        assert left is None if time < 60 else left == pytest.approx(500 - time)

    assert found == {
        105: [("seconds_to_invalidation", Level.WARN)],
        405: [("seconds_to_invalidation", Level.PAST)],
    }


def test_a_slot_that_advances_in_jumps_has_no_end() -> None:
    """PostgreSQL lets WAL go every quarter of a minute or so; falling in between is not shrinking."""
    guard = Guard(limits(min_seconds_to_invalidation=3600))
    for time in range(0, 600, 5):
        guard.note(slot(safe=(1000 - 10 * (time % 30)) * MIB), time)
        assert guard.seconds_to_invalidation is None
    assert list(guard.reasons) == []


def test_a_slot_that_the_next_checkpoint_may_invalidate_has_no_time_left() -> None:
    """Whatever was measured before."""
    guard = Guard(limits(min_seconds_to_invalidation=1))

    assert levels(guard.note(slot(safe=-5, status="unreserved"), 0)) == [("seconds_to_invalidation", Level.PAST)]
    assert guard.seconds_to_invalidation == 0


def test_every_threshold_can_be_turned_off() -> None:
    """With 0."""
    guard = Guard(SlotGuardConfig.model_validate(OFF))

    assert guard.note(slot(retained=1 << 50, safe=-1, status="unreserved"), 0) == []
    assert list(guard.reasons) == []


async def test_a_slot_that_stands_still_is_seen_shrinking(
    own_cluster: OwnCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real server with a limit: less and less is safe, a time is named, and it is warned of once."""
    monkeypatch.setattr(guarding, "SPAN_SECONDS", 0.2)
    server = own_cluster({"max_slot_wal_keep_size": "256MB"})
    database = Database(server, "postgres")
    database.execute("SELECT pg_create_logical_replication_slot('still', 'wal2json')")
    # No time is left at this rate, or hardly any; but 256 MiB are more than what is written here.
    monitor = Monitor(database.dsn, "still", limits(warn_seconds_to_invalidation=1e9, warn_safe_wal_bytes=250 * MIB))

    async def is_shrinking() -> bool:
        database.execute("SELECT pg_logical_emit_message(false, '', repeat('x', 1000000))")
        await monitor.look()
        return monitor.guard.seconds_to_invalidation is not None

    try:
        with capture_logs() as logs:
            await eventually(is_shrinking, timeout=30)
            for _ in range(3):
                await is_shrinking()
    finally:
        await monitor.close()
    assert monitor.slot is not None
    assert monitor.slot.safe_wal_bytes is not None
    assert 0 < monitor.slot.safe_wal_bytes < 272 * MIB
    said = [entry["figure"] for entry in logs if entry["event"] == "slot_guard"]
    assert said.count("seconds_to_invalidation") == 1


async def test_past_its_threshold_the_service_is_not_ready(
    own_cluster: OwnCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a callback holds the slot; settled, it is ready again. Status and metrics carry the figures."""
    monkeypatch.setattr(monitoring, "SLOT_SECONDS", 0.1)
    server = own_cluster({"max_slot_wal_keep_size": "1GB"})
    database = Database(server, "postgres")
    database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    config = make_config(database.dsn, tmp_path).model_copy(
        update={"slot_guard": limits(warn_retained_bytes=4 * MIB, max_retained_bytes=8 * MIB)}
    )
    async with running(config) as run:
        run.callbacks.gate.clear()
        database.execute("INSERT INTO a VALUES (1)")
        for _ in range(12):
            database.execute("SELECT pg_logical_emit_message(false, '', repeat('x', 1000000))")

        async def reasons() -> str:
            return (await run.get("/readyz"))[1]

        async def is_past() -> bool:
            return "MiB of WAL for the slot" in await reasons()

        await eventually(is_past)
        status = json.loads((await run.get("/status"))[1])
        assert status["slot"]["retained_bytes"] > 8 * MIB
        assert status["slot_invalidated"] is False
        run.callbacks.gate.set()

        async def is_ready() -> bool:
            # What has ended the wait on the server's side is a note of its running transactions.
            database.execute("CHECKPOINT")
            return (await run.get("/readyz"))[0] == 200

        await eventually(is_ready, timeout=30)
