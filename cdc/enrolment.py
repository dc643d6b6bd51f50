"""Registers the handlers of the configuration, each where an earlier run had left it.

A new one begins at the live position. One that comes back after it was out of the configuration goes on there,
too, and what it has missed is put on record. A removed one stays removed. At a reload the live position is that of
the first event routed afterwards, at a start that of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime

import structlog

from cdc.callbacks import CallbackState
from cdc.config import AfterRemoval, Config, HandlerConfig, OnFailure, SignalConfig
from cdc.errors import ConfigError
from cdc.events import Position
from cdc.loading import find_callback, load_invocation
from cdc.patterns import TablePatterns, TagPatterns
from cdc.signals import CallbackHandle, SignalManager
from cdc.state import CallbackRecord, Checkpoint, Gap
from cdc.terms import Terms

__all__ = ["absence", "enrol", "load_all", "load_terms", "register"]

log = structlog.get_logger("cdc.enrolment")


def enrol(
    config: Config, manager: SignalManager, records: Mapping[str, CallbackRecord], checkpoint: Checkpoint | None
) -> list[Gap]:
    """Register all handlers; what some of them have missed meanwhile. ConfigError with all that is wrong with them."""
    gaps: list[Gap] = []
    for name, terms in load_all(config, manager.config).items():
        record = records.get(name)
        if checkpoint is not None:
            gaps += absence(name, record, Position(checkpoint.flushed_lsn, 0))
        register(manager, name, terms, record)
    return gaps


def load_all(config: Config, signal: SignalConfig, *, unchanged: Collection[str] = ()) -> dict[str, Terms]:
    """Load the handlers, in the order of the file; of those named in `unchanged` see only whether they may still be.

    ConfigError with all that is wrong with them.
    """
    loaded: dict[str, Terms] = {}
    errors: list[ConfigError] = []
    problems: list[str] = []
    for handler in config.handlers:
        try:
            if handler.name in unchanged:
                find_callback(handler, config.folder, config.python_path)  # it may not be allowed any more
            else:
                loaded[handler.name] = load_terms(handler, config, signal)
        except ConfigError as error:
            errors.append(error)
            problems += error.problems or [str(error)]
    if errors:
        text = errors[0].message if len(errors) == 1 else f"{len(errors)} handlers are wrong"
        raise ConfigError(text, problems=problems, hint="mend them, look again: cdc check", code=errors[0].code)
    return loaded


def load_terms(handler: HandlerConfig, config: Config, signal: SignalConfig) -> Terms:
    """Load the handler, which lies where `config` says, with what it wants and how it is called."""
    return Terms(
        invocation=load_invocation(handler, config.folder, config.python_path),
        tables=TablePatterns(handler.tables),
        event_types=handler.event_types,
        tags=TagPatterns(handler.tags),
        excluded=frozenset(handler.columns.exclude),
        masked=frozenset(handler.columns.mask),
        concurrency=handler.concurrency,
        timeout_seconds=handler.timeout_seconds or signal.callback_timeout_seconds,
        max_attempts=handler.max_attempts,
        blocks=handler.on_failure is OnFailure.BLOCK,
        parks=handler.after_removal is AfterRemoval.PARK,
    )


def register(
    manager: SignalManager, name: str, terms: Terms, record: CallbackRecord | None, *, routed: bool = True
) -> CallbackHandle:
    """Register a handler that is loaded; a `record` says where it goes on."""
    state = CallbackState.ACTIVE
    if record is not None and record.state is CallbackState.PAUSED:
        state = CallbackState.PAUSED
        log.warning("handler_stays_paused", callback=name, since=str(record.removed_at), reason=record.reason)
    elif record is not None and record.state is not CallbackState.ACTIVE:
        state = CallbackState.REMOVED
        log.error("handler_stays_removed", callback=name, since=str(record.removed_at), reason=record.reason)
    settled = record.settled if record is not None else None
    return manager.register(terms, name=name, configured=True, settled=settled, state=state, routed=routed)


def absence(name: str, record: CallbackRecord | None, start: Position) -> list[Gap]:
    """What a handler has missed that begins at `start`: from where it had come to. Nothing, if it is new."""
    if record is None:
        log.info("handler_new", callback=name, start=str(start))
        return []
    if record.settled >= start:
        return []
    log.warning("handler_returns", callback=name, settled=str(record.settled), start=str(start))
    now = datetime.now(UTC)
    return [Gap(name, record.settled, start, 0, "not_configured", now, now)]
