"""Looks at the running service, and fills in its `Status`. Looking changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from time import monotonic

from cdc.callbacks import Registration
from cdc.health import held, not_alive, not_ready
from cdc.lag import Holdback, Lag
from cdc.logs import clean
from cdc.pulse import Activity, CallbackPace, Pulse
from cdc.recent import position_of
from cdc.service import Service
from cdc.status import (
    ActivityStatus,
    CallbackStatus,
    CheckpointStatus,
    LetterStatus,
    QueueStatus,
    RateStatus,
    RecentEvent,
    ReloadStatus,
    SlotStatus,
    Status,
)

__all__ = ["snapshot"]


def snapshot(service: Service, pulse: Pulse | None = None) -> Status:
    """Look at the service; on its event loop. Costs microseconds per callback and lane. `pulse` knows the rates."""
    lag = Lag.of(service)
    against_ready, against_alive = not_ready(service, lag.seconds), not_alive(service)
    why_held = held(service)
    last = service.last_message
    stopping = service.monitor.server_stopping
    assembler = service.assembler
    paces = pulse.callbacks if pulse is not None else {}
    return Status(
        phase=service.phase.value,
        uptime_seconds=monotonic() - service.started,
        connected=service.is_connected,
        ready=not against_ready,
        not_ready=[text for _, text in against_ready],
        not_ready_codes=[str(code) for code, _ in against_ready],
        alive=not against_alive,
        not_alive=[text for _, text in against_alive],
        not_alive_codes=[str(code) for code, _ in against_alive],
        received_lsn=lag.received,
        flushed_lsn=lag.flushed,
        server_lsn=lag.server,
        lag_bytes=lag.bytes,
        lag_seconds=lag.seconds,
        silence_seconds=None if last is None else monotonic() - last,
        reconnects=dict(service.reconnects),
        slot=_slot(service),
        slot_invalidated=service.monitor.is_invalidated,
        slot_held_by=None if lag.holder is None else lag.holder.name,
        server_stopping_seconds=None if stopping is None else monotonic() - stopping,
        queue=_queue(service),
        checkpoint=_checkpoint(service),
        callbacks=[
            _callback(item, holdback, why_held.get(item.name, ""), paces.get(item.id))
            for item, holdback in lag.holdbacks.items()
        ],
        dead_letters=_letters(service),
        missing_replica_identity=dict(service.missing_identity),
        last_error=clean(service.last_error),
        last_error_code=service.last_error_code,
        events=sum(assembler.counts.values()) if assembler is not None else 0,
        transactions=assembler.transactions if assembler is not None else 0,
        rates=None if pulse is None or not pulse.pace.seconds else _rates(pulse),
        activity=[] if pulse is None else [_activity(item) for item in pulse.active],
        activity_kinds=0 if pulse is None else pulse.kinds,
        recent_events=_recent(service),
        reload=_reload(service),
    )


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


def _callback(item: Registration, holdback: Holdback, why_held: str, pace: CallbackPace | None) -> CallbackStatus:
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
        held=why_held,
        mean_seconds=item.seconds.sum / calls if calls else 0.0,
        holdback_bytes=holdback.bytes,
        holdback_seconds=holdback.seconds,
        last_error=item.last_error,
        events_per_second=pace.events_per_second if pace is not None else None,
        recent_mean_seconds=pace.mean_seconds if pace is not None else None,
        recent_p99_seconds=pace.p99_seconds if pace is not None else None,
    )


def _letters(service: Service) -> Sequence[LetterStatus]:
    now = datetime.now(UTC)
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


def _rates(pulse: Pulse) -> RateStatus:
    pace = pulse.pace
    return RateStatus(pace.seconds, pace.events, pace.transactions, pace.bytes)


def _activity(item: Activity) -> ActivityStatus:
    return ActivityStatus(clean(item.kind.table), item.kind.event_type.value, item.events, item.events_per_second)


def _recent(service: Service) -> Sequence[RecentEvent]:
    return [
        RecentEvent(
            table=clean(seen[0].table),
            event_type=seen[0].event_type.value,
            position=str(position_of(seen)),
            time=seen[1].timestamp.isoformat(),
            tags=seen[3],
        )
        for seen in service.manager.recent.latest()
    ]


def _reload(service: Service) -> ReloadStatus | None:
    if (report := service.reloads.last) is None:
        return None
    return ReloadStatus(report.time.isoformat(), report.outcome.value, len(report.problems), tuple(report.waits))
