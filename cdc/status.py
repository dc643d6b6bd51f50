"""What a look at the running service brings: the shape of `/status`, and what the metrics are made from.

Figures and words, frozen: no row values, no secrets. Who fills it in is `cdc.snapshot`; it must not know the service,
HTTP or Prometheus.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cdc.lsn import Lsn

__all__ = [
    "ActivityStatus",
    "CallbackStatus",
    "CheckpointStatus",
    "LetterStatus",
    "QueueStatus",
    "RateStatus",
    "RecentEvent",
    "ReloadStatus",
    "SlotStatus",
    "Status",
]


@dataclass(frozen=True, slots=True)
class SlotStatus:
    """What the server says of the slot; `age_seconds` is how long ago it was asked.

    `seconds_to_invalidation` at the present rate; None when nothing speaks for it.
    """

    name: str
    restart_lsn: Lsn | None
    confirmed_flush_lsn: Lsn | None
    wal_status: str
    safe_wal_bytes: int | None
    retained_bytes: int | None
    active_pid: int | None
    invalidation: str
    seconds_to_invalidation: float | None
    failover: bool | None
    synced: bool | None
    inactive_since: str | None
    age_seconds: float


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """What waits or is in work, and how much may; `held_back`: reading waits for room."""

    events: int
    bytes: int
    limit_events: int
    limit_bytes: int
    held_back: bool


@dataclass(frozen=True, slots=True)
class CheckpointStatus:
    """What is durable; `error` is why the last attempt to write failed, empty when it did not."""

    lsn: Lsn | None
    last_event_id: int | None
    age_seconds: float | None
    error: str


@dataclass(frozen=True, slots=True)
class LetterStatus:
    """The dead letters of one callback and state; `retry`: how many of them wait for another attempt."""

    callback: str
    state: str
    count: int
    bytes: int
    retry: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class CallbackStatus:
    """One callback. `holdback_*`: how far it lies behind what was received, in WAL and since the commit.

    `held`: why it waits, empty when it does not. `events_per_second`, `recent_*`: of the last seconds, None when
    nobody measures; of the calls' seconds also when there were none (see `cdc.pulse.CallbackPace`).
    """

    name: str
    configured: bool
    state: str
    ok: int
    failed: int
    timeout: int
    parked: int
    missed: int
    skipped: int
    retries: int
    consecutive_failures: int
    held: str
    mean_seconds: float
    holdback_bytes: int
    holdback_seconds: float
    last_error: str
    events_per_second: float | None = None
    recent_mean_seconds: float | None = None
    recent_p99_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class RateStatus:
    """What the stream brings per second, a mean of the last `window_seconds`."""

    window_seconds: float
    events_per_second: float
    transactions_per_second: float
    bytes_per_second: float


@dataclass(frozen=True, slots=True)
class ActivityStatus:
    """How many events of one table and type there were since the start; per second: of the last seconds."""

    table: str
    event_type: str
    events: int
    events_per_second: float


@dataclass(frozen=True, slots=True)
class RecentEvent:
    """One of the last events: where and when it was committed, and how many tags it has. Nothing of its row."""

    table: str
    event_type: str
    position: str
    time: str
    tags: int


@dataclass(frozen=True, slots=True)
class ReloadStatus:
    """The last reload; its problems are in the log. `waits_for_restart`: keys of the file that it did not apply."""

    time: str
    outcome: str
    problems: int
    waits_for_restart: Sequence[str]


@dataclass(frozen=True, slots=True)
class Status:
    """The service at one moment. `lag_bytes` is what the server has written and we have not flushed.

    `lag_seconds` is 0 when all is received and settled; else the age of the oldest unsettled commit, or
    for how long the server has been ahead of what was received, whichever is more. `events` and `transactions` were
    received since the start. `rates` is None and `activity` empty where nobody measures; `activity` holds the busiest
    of `activity_kinds` tables and types, `recent_events` the newest first. The codes stand in the order of the
    reasons (see `cdc.codes`).
    """

    phase: str
    uptime_seconds: float
    connected: bool
    ready: bool
    not_ready: Sequence[str]
    not_ready_codes: Sequence[str]
    alive: bool
    not_alive: Sequence[str]
    not_alive_codes: Sequence[str]
    received_lsn: Lsn | None
    flushed_lsn: Lsn | None
    server_lsn: Lsn | None
    lag_bytes: int | None
    lag_seconds: float
    silence_seconds: float | None
    reconnects: Mapping[str, int]
    slot: SlotStatus | None
    slot_invalidated: bool
    slot_held_by: str | None
    server_stopping_seconds: float | None
    queue: QueueStatus
    checkpoint: CheckpointStatus
    callbacks: Sequence[CallbackStatus]
    dead_letters: Sequence[LetterStatus]
    missing_replica_identity: Mapping[str, int]
    last_error: str
    last_error_code: str
    events: int = 0
    transactions: int = 0
    rates: RateStatus | None = None
    activity: Sequence[ActivityStatus] = ()
    activity_kinds: int = 0
    recent_events: Sequence[RecentEvent] = ()
    reload: ReloadStatus | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: LSNs as PostgreSQL writes them, unknown is None."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Lsn):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
