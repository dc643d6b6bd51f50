"""What operators order of a handler, by way of the state: pause, resume, remove. One place, for every way to ask.

Checks that the order means something, and writes it down; a service that runs looks there (`cdc.redelivery`), any other
does at its next start. It must not know how the order came, nor call a handler.
"""

from __future__ import annotations

from enum import Enum

from cdc.codes import Code
from cdc.config import Config
from cdc.errors import CallbackError, UnknownCallback
from cdc.state import CallbackRecord, CallbackState, StateStore

__all__ = ["Order", "obey", "require_handler"]

OPERATOR = "operator"
"""The reason of what somebody has ordered."""


class Order(Enum):
    """What shall become of a handler; `value` is the word that people type."""

    PAUSE = "pause"  # called no more until it is resumed; all that comes for it is parked, and nothing given up
    RESUME = "resume"  # gets what was parked, in order, then the live stream
    REMOVE = "remove"  # called no more until it is resumed; what comes for it is parked, or missed if it says so


def obey(store: StateStore, config: Config, name: str, order: Order) -> CallbackState:
    """Write the order down: the state that the handler shall have. CallbackError when it means nothing."""
    record = require_handler(store, config, name)
    if name not in [handler.name for handler in config.handlers]:
        hint = (
            f"write it into {config.file.name} again, under this name"
            if order is Order.RESUME
            else f"forget it: cdc handlers forget {name}"
        )
        raise CallbackError(
            f"{name} is not in the configuration any more", callback=name, hint=hint, code=Code.HANDLER_NOT_CONFIGURED
        )
    if order is Order.RESUME:
        return _resume(store, name, record)
    if record is None:
        raise CallbackError(
            f"{name} has not run yet",
            callback=name,
            hint="take it out of the configuration, or start: cdc run",
            code=Code.HANDLER_NOT_RUN,
        )
    resume = f"cdc handlers resume {name}"
    if record.state is CallbackState.REMOVED:
        raise CallbackError(
            f"{name} is removed already ({record.reason})", callback=name, hint=resume, code=Code.HANDLER_REMOVED
        )
    if order is Order.REMOVE:
        store.mark_removed(name, record.settled, OPERATOR)
        return CallbackState.REMOVED
    if record.state is CallbackState.PAUSED:
        raise CallbackError(f"{name} is paused already", callback=name, hint=resume, code=Code.HANDLER_REMOVED)
    store.mark_paused(name, record.settled, OPERATOR)
    return CallbackState.PAUSED


def _resume(store: StateStore, name: str, record: CallbackRecord | None) -> CallbackState:
    if record is None or record.state is CallbackState.ACTIVE:
        waiting = {CallbackState.REMOVED, CallbackState.PAUSED}
        others = [one.name for one in store.callbacks() if one.state in waiting]
        raise CallbackError(
            f"{name} is not removed or paused",
            callback=name,
            hint=f"removed or paused: {', '.join(others) or 'none'}",
            code=Code.HANDLER_NOT_REMOVED,
        )
    store.mark_resuming(name)
    return CallbackState.RESUMING


def require_handler(store: StateStore, config: Config, name: str) -> CallbackRecord | None:
    """What the state knows of the handler; UnknownCallback when neither it nor the configuration does."""
    records = {record.name: record for record in store.callbacks()}
    known = {
        *records,
        *(handler.name for handler in config.handlers),
        *(total.callback for total in store.letter_totals()),
    }
    if name not in known:
        raise UnknownCallback(
            f"no handler is named {name!r}",
            callback=name,
            hint=f"known: {', '.join(sorted(known)) or 'none'}; look: cdc handlers list",
            code=Code.HANDLER_UNKNOWN,
        )
    return records.get(name)
