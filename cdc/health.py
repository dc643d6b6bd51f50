"""Whether the service is ready, and whether it is alive: each answer a list of what speaks against it, with its code.

Owns the limits of both. It must not know who asks.
"""

from __future__ import annotations

from time import monotonic

from cdc.callbacks import CallbackState
from cdc.codes import Code
from cdc.logs import clean
from cdc.service import Phase, Service

__all__ = ["LAG_OBJECTIVE_SECONDS", "WIRE_SILENCE_SECONDS", "Reason", "held", "not_alive", "not_ready"]

LAG_OBJECTIVE_SECONDS = 300.0
"""Later than this is not ready. Ten calls that run into the default timeout, one after the other, or a restart
of the server with its recovery, stay within it; what lasts longer wants a person."""
WIRE_SILENCE_SECONDS = 60.0
"""A healthy wire is never quiet for so long: status updates go at least every 10 s, and ask for an answer when
nothing came for one interval. It is also PostgreSQL's own default `wal_sender_timeout`."""

Reason = tuple[Code, str]
PHASE_WORDS = {Phase.STANDBY: "standby: another one holds the state"}


def not_ready(service: Service, lag: float) -> list[Reason]:
    """Why no traffic should rely on it; `lag` in seconds. Empty: it is ready."""
    reasons: list[Reason] = []
    if service.phase is not Phase.STREAMING:
        code = Code.STATE_BUSY if service.phase is Phase.STANDBY else Code.NOT_STREAMING
        reasons.append((code, PHASE_WORDS.get(service.phase, service.phase.value)))
    reasons += _state_reasons(service)
    reasons += [
        (Code.CALLBACK_REMOVED, f"handler {item.name!r} is removed")
        for item in service.manager.registry
        if item.configured and item.state is CallbackState.REMOVED
    ]
    if service.monitor.is_invalidated:
        reasons.append((Code.SLOT_INVALIDATED, "the slot is invalidated"))
    reasons += [(Code.SLOT_GUARD, text) for text in service.monitor.guard.reasons]
    if service.monitor.server_stopping is not None and service.is_connected:
        reasons.append((Code.SERVER_STOPPING, "the server is being stopped"))
    if lag > LAG_OBJECTIVE_SECONDS:
        text = f"{lag:.0f} s behind, the objective is {LAG_OBJECTIVE_SECONDS:.0f} s"
        reasons.append((Code.LAG_TOO_LONG, text))
    return reasons


def _state_reasons(service: Service) -> list[Reason]:
    """What is wrong with the state, and what waits for it."""
    reasons: list[Reason] = []
    if service.checkpointer is not None and service.checkpointer.error:
        text = f"the checkpoint cannot be written: {clean(service.checkpointer.error)}"
        reasons.append((Code.CHECKPOINT_FAILED, text))
    if service.letters is not None and service.letters.error:
        text = f"the dead letters cannot be written: {clean(service.letters.error)}"
        reasons.append((Code.DEAD_LETTERS_NOT_WRITTEN, text))
    waiting = held(service).items()
    reasons += [(Code.DEAD_LETTERS_FULL, f"handler {name!r} waits: {clean(why)}") for name, why in waiting]
    return reasons


def held(service: Service) -> dict[str, str]:
    """Callbacks of which something cannot be settled, and why."""
    full = {
        item.name: "its parked events are at their bound, and what comes is not given up"
        for item in service.manager.registry
        if item.state is CallbackState.PAUSED and service.manager.pool.waits_for_room(item)
    }
    return full | (service.letters.held if service.letters is not None else {})


def not_alive(service: Service) -> list[Reason]:
    """Why it should be started anew. Empty: it is alive, which is what a restart would not make better.

    While streaming: the wire was active lately, or it is we who do not read, for want of room. Starting, standing by,
    reconnecting (a server that is down stays down whatever we do) and draining (it has a deadline) are alive.
    """
    if service.phase is Phase.STOPPED:
        return [(Code.NOT_STREAMING, "stopped")]
    if service.phase is not Phase.STREAMING or service.last_message is None:
        return []
    if service.pump is not None and service.pump.is_held_back:
        return []
    silence = monotonic() - service.last_message
    if silence <= WIRE_SILENCE_SECONDS:
        return []
    return [(Code.NO_MESSAGE, f"no message for {silence:.0f} s")]
