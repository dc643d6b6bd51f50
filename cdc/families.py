"""The service's metrics: names, types, labels and what each means. This list is the reference.

Names end in their unit. Whoever reads a figure, in `cdc.metrics`, names its family here; what is not here is not
shown. A label is a table, a callback or a word of ours, never a value, a key or the text of an error.
"""

from __future__ import annotations

from collections.abc import Sequence

from cdc.exposition import Family, Kind

__all__ = ["FAMILIES"]


def _counter(name: str, text: str, *labels: str) -> Family:
    return Family(name, Kind.COUNTER, text, labels)


def _gauge(name: str, text: str, *labels: str) -> Family:
    return Family(name, Kind.GAUGE, text, labels)


def _histogram(name: str, text: str, *labels: str) -> Family:
    return Family(name, Kind.HISTOGRAM, text, labels)


# The service
BUILD = Family("build", Kind.INFO, "What runs here.", ("version", "python_version"))
START_TIME = _gauge("start_time_seconds", "When the service was started, Unix time.")
PHASE = _gauge("phase", "1 for the phase that the service is in.", "phase")
READY = _gauge("ready", "Whether `/readyz` says yes.")
LOOP_BLOCKED = _counter("event_loop_blocked_seconds", "Time that callbacks kept the event loop from everybody else.")

# The stream
CONNECTED = _gauge("connected", "Whether the stream is open.")
RECONNECTS = _counter("reconnects", "Streams that were lost, or could not be opened.", "reason")
LAST_MESSAGE = _gauge(
    "last_message_timestamp_seconds", "When the wire last brought something, be it a keepalive, Unix time."
)
RECEIVED_BYTES = _counter("received_bytes", "Bytes of the stream's messages, with their heads and keepalives.")
TRANSACTIONS = _counter("transactions", "Transactions received whole.")
EVENTS = _counter("events", "Events handed out to the callbacks, each once, whoever wants it.", "table", "event_type")
FILTERED = _counter(
    "events_filtered",
    "Changes that made no event: of a table that is not selected, or sent again and handed out before; "
    "and tag messages outside a transaction.",
    "reason",
)
UNCHANGED_TOAST = _counter(
    "unchanged_toast",
    "Large values that an update's event lacks, because they did not change and the server did not send them.",
    "table",
)
MISSING_IDENTITY = _counter(
    "missing_replica_identity",
    "Changes that the plugin dropped because their table has no replica identity; one sent again counts again.",
    "table",
)
UNDECODABLE = _counter("undecodable_messages", "Messages that cannot be understood; the first one ends the service.")

# Positions
LAG_SECONDS = _gauge("lag_seconds", "Age of the oldest commit that is not settled, 0 when all is.")
LAG_BYTES = _gauge("lag_bytes", "WAL between the server's position and the flushed one.")
RECEIVED_LSN = _gauge("received_lsn", "All transactions up to here were received, as a number.")
FLUSHED_LSN = _gauge("flushed_lsn", "All up to here is settled and durable, as a number.")

# The slot, as the server says
SLOT_ACTIVE = _gauge("slot_active", "Whether a walsender holds the slot.")
SLOT_RETAINED = _gauge("slot_retained_bytes", "WAL that the server keeps for the slot.")
SLOT_SAFE_WAL = _gauge(
    "slot_safe_wal_bytes",
    "WAL that may be written until the slot is in danger; absent where the server sets no limit.",
)
SLOT_SECONDS_LEFT = _gauge(
    "slot_seconds_to_invalidation",
    "Until the server may invalidate the slot, at the present rate; absent when nothing speaks for it.",
)
SLOT_WAL_STATUS = _gauge("slot_wal_status", "1 for the slot's wal_status.", "status")
SLOT_INVALIDATED = _gauge("slot_invalidated", "Whether the server has invalidated the slot: changes are lost.")
SLOT_CONFIRMED = _gauge("slot_confirmed_flush_lsn", "The slot's confirmed_flush_lsn, as a number.")
SLOT_LOOKED = _gauge("slot_looked_timestamp_seconds", "When the server was last asked for these, Unix time.")

# The queue
QUEUED_EVENTS = _gauge("queued_events", "Events that wait for callbacks or are in work.")
QUEUED_BYTES = _gauge("queued_bytes", "Memory that they take, about.")
QUEUE_LIMIT_EVENTS = _gauge("queue_limit_events", "`signal.max_queued_events`.")
QUEUE_LIMIT_BYTES = _gauge("queue_limit_bytes", "`signal.max_queued_bytes`.")
HELD_BACK = _gauge("reading_held_back", "Whether reading waits for room in the queue.")

# Callbacks
CALLBACKS = _gauge("callbacks", "Callbacks that get events.")
CALLBACK_UP = _gauge(
    "callback_up", "Whether it gets events; 0: removed, paused, or resuming what was parked.", "callback"
)
CALLBACK_SECONDS = _histogram("callback_seconds", "Calls that succeeded, one for a whole batch.", "callback")
CALLBACK_EVENTS = _counter(
    "callback_events",
    "Events by what became of them: ok, failed, timeout (after the last attempt), parked, missed, skipped.",
    "callback",
    "outcome",
)
CALLBACK_RETRIES = _counter("callback_retries", "Attempts but the first.", "callback")
CONSECUTIVE_FAILURES = _gauge(
    "callback_consecutive_failures", "Events that failed since the last success; no retried dead letters.", "callback"
)
CALLBACKS_REMOVED = _counter("callbacks_removed", "Callbacks that were taken out.", "reason")
HOLDBACK_BYTES = _gauge("callback_holdback_bytes", "WAL that it lies behind what was received.", "callback")
HOLDBACK_SECONDS = _gauge("callback_holdback_seconds", "Age of its oldest unsettled commit.", "callback")
CALLBACK_HELD = _gauge("callback_held", "Whether it waits for room in its dead letters.", "callback")

# The state
DEAD_LETTERS = _gauge("dead_letters", "Events kept for an operator: failed, or parked.", "callback", "state")
DEAD_LETTERS_BYTES = _gauge("dead_letters_bytes", "Their size.", "callback", "state")
DEAD_LETTERS_OLDEST = _gauge("dead_letters_oldest_seconds", "Age of the oldest, 0 without any.", "callback", "state")
CHECKPOINT_SECONDS = _histogram("checkpoint_seconds", "Time to write a checkpoint.")
CHECKPOINTS = _counter("checkpoints", "Checkpoints written.")
STATE_FAILING = _gauge("state_failing", "Whether the last attempt to write it failed.", "part")

# The configuration
RELOADS = _counter("reloads", "Reloads of the configuration that are over.", "outcome")
RELOAD_SUCCESSFUL = _gauge("reload_successful", "Whether the last reload was not refused; absent before the first.")
RELOAD_TIME = _gauge("reload_timestamp_seconds", "When the last reload was over, Unix time; absent before the first.")

FAMILIES: Sequence[Family] = tuple(value for value in list(globals().values()) if isinstance(value, Family))
"""All of them, in the order in which they are shown."""
