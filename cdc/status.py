"""One frozen picture of the running service, and what it means: is it ready, is it alive.

What `/status` answers and what the metrics are made from. No row values, no secrets; it must not know HTTP
or Prometheus, and looking changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from cdc.callbacks import CallbackState, Registration
from cdc.events import DatabaseEvent
from cdc.logs import clean
from cdc.lsn import Lsn
from cdc.service import Phase, Service

__all__ = [
    "LAG_OBJECTIVE_SECONDS",
    "CallbackStatus",
    "CheckpointStatus",
    "LetterStatus",
    "QueueStatus",
    "SlotStatus",
    "Status",
    "snapshot",
]

LAG_OBJECTIVE_SECONDS = 300.0
"""Later than this is not ready. Ten calls that run into the default timeout, one after the other, or a restart
of the server with its recovery, stay within it; what lasts longer wants a person."""
WIRE_SILENCE_SECONDS = 60.0
"""A healthy wire is never quiet for so long: status updates go at least every 10 s, and ask for an answer when
nothing came for one interval. It is also PostgreSQL's own default `wal_sender_timeout`."""

PHASE_WORDS = {Phase.STANDBY: "standby: another one holds the state"}


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

    `held`: why it waits, empty when it does not.
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


@dataclass(frozen=True, slots=True)
class Status:
    """The service at one moment. `lag_bytes` is what the server has written and we have not flushed.

    `lag_seconds` is 0 when all is received and settled; else the age of the oldest unsettled commit, or
    for how long the server has been ahead of what was received, whichever is more.
    """

    phase: str
    uptime_seconds: float
    connected: bool
    ready: bool
    not_ready: Sequence[str]
    alive: bool
    not_alive: Sequence[str]
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

    def to_dict(self) -> dict[str, Any]:
        """For JSON: LSNs as PostgreSQL writes them, unknown is None."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


def snapshot(service: Service) -> Status:
    """Look at the service; on its event loop. Costs microseconds per callback and lane."""
    now = datetime.now(UTC)
    received, flushed, server = _received(service), _flushed(service), _server(service)
    waiting = {item: service.manager.pool.first_unsettled(item) for item in service.manager.registry}
    holder = _holder(waiting)
    ages = {item: 0.0 if event is None else _age(event, now) for item, event in waiting.items()}
    lag = max([_seconds_behind(service, received or 0), *ages.values()])
    last = service.last_message
    held = service.letters.held if service.letters is not None else {}
    stopping = service.monitor.server_stopping
    not_ready, not_alive = tuple(_not_ready(service, lag)), tuple(_not_alive(service))
    return Status(
        phase=service.phase.value,
        uptime_seconds=monotonic() - service.started,
        connected=_is_connected(service),
        ready=not not_ready,
        not_ready=not_ready,
        alive=not not_alive,
        not_alive=not_alive,
        received_lsn=received,
        flushed_lsn=flushed,
        server_lsn=server,
        lag_bytes=None if server is None or flushed is None else max(server - flushed, 0),
        lag_seconds=lag,
        silence_seconds=None if last is None else monotonic() - last,
        reconnects=dict(service.reconnects),
        slot=_slot(service),
        slot_invalidated=_is_invalidated(service),
        slot_held_by=None if holder is None else holder.name,
        server_stopping_seconds=None if stopping is None else monotonic() - stopping,
        queue=_queue(service),
        checkpoint=_checkpoint(service),
        callbacks=[
            _callback(
                item,
                ages[item],
                0 if event is None else _holdback_bytes(service, event, item is holder),
                held.get(item.name, ""),
            )
            for item, event in waiting.items()
        ],
        dead_letters=_letters(service, now),
        missing_replica_identity=dict(service.missing_identity),
        last_error=clean(service.last_error),
    )


def _received(service: Service) -> Lsn | None:
    """All transactions that end up to here were received, whole."""
    if service.assembler is None or service.pump is None:
        return None
    return Lsn(max(service.assembler.commit_lsn, service.pump.idle_lsn))


def _flushed(service: Service) -> Lsn | None:
    """All up to here is settled and durable."""
    saved = service.checkpointer.saved if service.checkpointer is not None else None
    return saved.flushed_lsn if saved is not None else None


def _server(service: Service) -> Lsn | None:
    """Where the server was when last asked, or already past that by what it has sent."""
    known = [lsn for lsn in (service.monitor.server_lsn, _received(service)) if lsn is not None]
    return max(known, default=None)


def _is_connected(service: Service) -> bool:
    return service.stream is not None and service.phase is not Phase.STOPPED


def _holder(waiting: Mapping[Registration, DatabaseEvent | None]) -> Registration | None:
    """The callback that the slot waits for: the one whose first unsettled event is the oldest."""
    first = [(event.position, item.id, item) for item, event in waiting.items() if event is not None]
    return min(first)[2] if first else None


def _age(event: DatabaseEvent, now: datetime) -> float:
    """Since the commit, by our clock against the server's; never below 0."""
    return max((now - event.timestamp).total_seconds(), 0.0)


def _seconds_behind(service: Service, received: int) -> float:
    behind = service.monitor.seconds_behind(received)
    if not _is_connected(service):
        # What was committed since we last heard of the server cannot have been received.
        last = service.last_message
        behind = max(behind, monotonic() - (service.started if last is None else last))
    return behind


def _slot(service: Service) -> SlotStatus | None:
    monitor = service.monitor
    if (slot := monitor.slot) is None or monitor.looked_time is None:
        return None
    return SlotStatus(
        name=slot.name,
        restart_lsn=slot.restart_lsn,
        confirmed_flush_lsn=slot.confirmed_flush_lsn,
        wal_status=slot.wal_status,
        safe_wal_bytes=slot.safe_wal_bytes,
        retained_bytes=slot.retained_bytes,
        active_pid=slot.active_pid,
        invalidation=slot.invalidation,
        seconds_to_invalidation=monitor.guard.seconds_to_invalidation,
        failover=slot.failover,
        synced=slot.synced,
        inactive_since=slot.inactive_since,
        age_seconds=monotonic() - monitor.looked_time,
    )


def _is_invalidated(service: Service) -> bool:
    slot = service.monitor.slot
    return slot is not None and slot.invalidation != ""


def _letters(service: Service, now: datetime) -> Sequence[LetterStatus]:
    totals = service.letters.totals() if service.letters is not None else {}
    return [
        LetterStatus(
            callback=total.callback,
            state=total.state.value,
            count=total.count,
            bytes=total.bytes,
            retry=total.retry,
            oldest_seconds=max((now - total.oldest).total_seconds(), 0.0),
        )
        for total in totals.values()
    ]


def _queue(service: Service) -> QueueStatus:
    pool, limits = service.manager.pool, service.config.signal
    return QueueStatus(
        events=pool.queued_events,
        bytes=pool.queued_bytes,
        limit_events=limits.max_queued_events,
        limit_bytes=limits.max_queued_bytes,
        held_back=service.pump is not None and service.pump.is_held_back,
    )


def _checkpoint(service: Service) -> CheckpointStatus:
    checkpointer = service.checkpointer
    if checkpointer is None or (saved := checkpointer.saved) is None:
        return CheckpointStatus(None, None, None, clean(checkpointer.error) if checkpointer else "")
    age = monotonic() - checkpointer.saved_time
    return CheckpointStatus(saved.flushed_lsn, saved.last_event_id, age, clean(checkpointer.error))


def _callback(item: Registration, holdback_seconds: float, holdback_bytes: int, held: str) -> CallbackStatus:
    calls, outcomes = item.seconds.count, item.outcomes
    return CallbackStatus(
        name=item.name,
        configured=item.configured,
        state=item.state.value,
        ok=outcomes["ok"],
        failed=outcomes["failed"],
        timeout=outcomes["timeout"],
        parked=outcomes["parked"],
        missed=outcomes["missed"],
        skipped=outcomes["skipped"],
        retries=item.retries,
        consecutive_failures=item.consecutive_failures,
        held=held,
        mean_seconds=item.seconds.sum / calls if calls else 0.0,
        holdback_bytes=holdback_bytes,
        holdback_seconds=holdback_seconds,
        last_error=item.last_error,
    )


def _holdback_bytes(service: Service, waiting: DatabaseEvent, is_holder: bool) -> int:
    """WAL behind the last commit that the callback has settled.

    Known exactly of the one that holds the slot; of the others from the end of the transaction that they
    are in, which is the least that it can be.
    """
    if service.assembler is None or service.ledger is None:
        return 0
    settled = service.ledger.flushable().lsn if is_holder else waiting.transaction.commit_lsn
    return max(service.assembler.frontier.commit_lsn - settled, 0)


def _not_ready(service: Service, lag: float) -> list[str]:
    reasons = [] if service.phase is Phase.STREAMING else [PHASE_WORDS.get(service.phase, service.phase.value)]
    reasons += _state_reasons(service)
    reasons += [
        f"handler {item.name!r} is removed"
        for item in service.manager.registry
        if item.configured and item.state is CallbackState.REMOVED
    ]
    if _is_invalidated(service):
        reasons.append("the slot is invalidated")
    reasons += service.monitor.guard.reasons
    if service.monitor.server_stopping is not None and _is_connected(service):
        reasons.append("the server is being stopped")
    if lag > LAG_OBJECTIVE_SECONDS:
        reasons.append(f"{lag:.0f} s behind, the objective is {LAG_OBJECTIVE_SECONDS:.0f} s")
    return reasons


def _state_reasons(service: Service) -> list[str]:
    """What is wrong with the state, and what waits for it."""
    reasons = []
    if service.checkpointer is not None and service.checkpointer.error:
        reasons.append(f"the checkpoint cannot be written: {clean(service.checkpointer.error)}")
    if (letters := service.letters) is not None:
        if letters.error:
            reasons.append(f"the dead letters cannot be written: {clean(letters.error)}")
        reasons += [f"handler {name!r} waits: {clean(why)}" for name, why in letters.held.items()]
    return reasons


def _not_alive(service: Service) -> list[str]:
    """Alive is what a restart would not make better.

    While streaming: the wire was active lately, or it is we who do not read, for want of room. Starting, standing by,
    reconnecting (a server that is down stays down whatever we do) and draining (it has a deadline) are alive.
    """
    if service.phase is Phase.STOPPED:
        return ["stopped"]
    if service.phase is not Phase.STREAMING or service.last_message is None:
        return []
    if service.pump is not None and service.pump.is_held_back:
        return []
    silence = monotonic() - service.last_message
    return [f"no message for {silence:.0f} s"] if silence > WIRE_SILENCE_SECONDS else []


def _plain(value: Any) -> Any:
    if isinstance(value, Lsn):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
