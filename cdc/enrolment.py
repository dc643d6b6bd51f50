"""Registers the handlers of the configuration, each where an earlier run had left it.

A new one begins at the live position. One that comes back after it was out of the configuration goes on there,
too, and what it has missed is put on record. A removed one stays removed.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import structlog

from cdc.callbacks import CallbackState
from cdc.config import Config, HandlerConfig
from cdc.events import Position
from cdc.loading import load_callback
from cdc.lsn import Lsn
from cdc.signals import SignalManager
from cdc.state import CallbackRecord, Checkpoint, Gap

__all__ = ["enrol"]

log = structlog.get_logger("cdc.enrolment")


def enrol(
    config: Config, manager: SignalManager, records: Mapping[str, CallbackRecord], checkpoint: Checkpoint | None
) -> list[Gap]:
    """Register all handlers; what some of them have missed meanwhile. CdcError for one that cannot be loaded."""
    gaps: list[Gap] = []
    for handler in config.handlers:
        record = records.get(handler.name)
        if checkpoint is not None and record is None:
            log.info("handler_new", callback=handler.name, start=str(checkpoint.flushed_lsn))
        if checkpoint is not None and record is not None and record.settled.commit_lsn < checkpoint.flushed_lsn:
            gaps.append(_absence(record, checkpoint.flushed_lsn))
        _register(config, manager, handler, record)
    return gaps


def _register(config: Config, manager: SignalManager, handler: HandlerConfig, record: CallbackRecord | None) -> None:
    is_active = record is None or record.state is CallbackState.ACTIVE
    if record is not None and not is_active:
        log.error("handler_stays_removed", callback=handler.name, since=str(record.removed_at), reason=record.reason)
    manager.add_callback(
        load_callback(handler, config.folder, config.python_path),
        name=handler.name,
        tables=handler.tables,
        event_types=handler.event_types,
        tags=handler.tags,
        exclude_columns=handler.columns.exclude,
        mask_columns=handler.columns.mask,
        concurrency=handler.concurrency,
        timeout_seconds=handler.timeout_seconds,
        max_attempts=handler.max_attempts,
        on_failure=handler.on_failure,
        after_removal=handler.after_removal,
        configured=True,
        settled=record.settled if record is not None else None,
        state=CallbackState.ACTIVE if is_active else CallbackState.REMOVED,
    )


def _absence(record: CallbackRecord, until: Lsn) -> Gap:
    """From where it had come to, to where all the others had."""
    log.warning("handler_returns", callback=record.name, settled=str(record.settled), start=str(until))
    now = datetime.now(UTC)
    return Gap(record.name, record.settled, Position(until, 0), 0, "not_configured", now, now)
