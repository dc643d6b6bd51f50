"""The stable name of every situation that an operator may have to act on: in logs, on the screen, in JSON.

A code is a short word rather than a number: `cdc check`, the log's events and the labels of metrics are words
already, and whoever is woken at night reads what it means before opening docs/runbook.md, which has a section for
each. Codes are never given another meaning; the wording of messages may change at any time. In the log a
warning or an error whose cause is no error of ours has its event's name as its code.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Code"]


class Code(StrEnum):
    """One per situation; the groups are the chapters of the runbook."""

    # What was typed, and the configuration
    USAGE_WRONG = "usage_wrong"
    CONFIRMATION_MISSING = "confirmation_missing"
    CONFIG_MISSING = "config_missing"
    CONFIG_UNREADABLE = "config_unreadable"
    CONFIG_INVALID = "config_invalid"
    CONFIG_EXISTS = "config_exists"
    HANDLERS_MISSING = "handlers_missing"
    HANDLER_NOT_LOADED = "handler_not_loaded"
    HANDLER_OPTIONS_WRONG = "handler_options_wrong"
    HTTP_PORT_UNAVAILABLE = "http_port_unavailable"

    # The server, and what it lets us do
    SERVER_UNREACHABLE = "server_unreachable"
    SERVER_SHUTDOWN = "server_shutdown"
    SERVER_UNFIT = "server_unfit"
    LOGIN_REFUSED = "login_refused"
    ROLE_UNFIT = "role_unfit"
    TLS_REFUSED = "tls_refused"
    DATABASE_UNKNOWN = "database_unknown"
    CONNECTIONS_EXHAUSTED = "connections_exhausted"
    WAL_LEVEL_WRONG = "wal_level_wrong"
    ENCODING_UNFIT = "encoding_unfit"
    PLUGIN_MISSING = "plugin_missing"
    PLUGIN_NOT_ALLOWED = "plugin_not_allowed"
    PLUGIN_TOO_OLD = "plugin_too_old"
    SLOTS_EXHAUSTED = "slots_exhausted"
    CATALOG_UNREACHABLE = "catalog_unreachable"
    STANDBY_SERVER = "standby_server"

    # The stream and the slot
    STREAM_LOST = "stream_lost"
    STREAM_SILENT = "stream_silent"
    STREAM_REFUSED = "stream_refused"
    UNDECODABLE_MESSAGE = "undecodable_message"
    SLOT_BUSY = "slot_busy"
    SLOT_MOVED = "slot_moved"
    SLOT_EXISTS = "slot_exists"
    SLOT_MISSING = "slot_missing"
    SLOT_GONE = "slot_gone"
    SLOT_MISMATCH = "slot_mismatch"
    SLOT_ADVANCED = "slot_advanced"
    SLOT_INVALIDATED = "slot_invalidated"
    CHECKPOINT_MISMATCH = "checkpoint_mismatch"
    OLD_PRIMARY = "old_primary"
    HISTORY_DIVERGED = "history_diverged"

    # The state
    STATE_UNUSABLE = "state_unusable"
    STATE_URL_WRONG = "state_url_wrong"
    STATE_MISSING = "state_missing"
    STATE_FOREIGN = "state_foreign"
    STATE_NEWER = "state_newer"
    STATE_DAMAGED = "state_damaged"
    STATE_DISK = "state_disk"
    STATE_NOT_PERMITTED = "state_not_permitted"
    STATE_UNREACHABLE = "state_unreachable"
    STATE_LOCKED = "state_locked"
    STATE_BUSY = "state_busy"
    STATE_TAKEN_OVER = "state_taken_over"
    CHECKPOINT_BACKWARDS = "checkpoint_backwards"

    # Callbacks, handlers and dead letters
    CALLBACK_ERROR = "callback_error"
    CALLBACK_WRONG = "callback_wrong"
    CALLBACK_NOT_OPENED = "callback_not_opened"
    CALLBACK_TIMEOUT = "callback_timeout"
    CALLBACK_REMOVED = "callback_removed"
    TOO_MANY_CALLBACKS = "too_many_callbacks"
    MANAGER_CLOSED = "manager_closed"
    PERMANENT_ERROR = "permanent_error"
    RETRY_LATER = "retry_later"
    HANDLER_UNKNOWN = "handler_unknown"
    HANDLER_NOT_CONFIGURED = "handler_not_configured"
    HANDLER_CONFIGURED = "handler_configured"
    HANDLER_NOT_RUN = "handler_not_run"
    HANDLER_REMOVED = "handler_removed"
    HANDLER_NOT_REMOVED = "handler_not_removed"
    HANDLER_HAS_LETTERS = "handler_has_letters"
    LETTER_UNKNOWN = "letter_unknown"
    LETTER_PARKED = "letter_parked"
    WAIT_ENDED = "wait_ended"
    TAIL_ENDED = "tail_ended"
    LOG_UNREADABLE = "log_unreadable"

    # Why the service is not ready, beside those above
    NOT_STREAMING = "not_streaming"
    CHECKPOINT_FAILED = "checkpoint_failed"
    DEAD_LETTERS_NOT_WRITTEN = "dead_letters_not_written"
    DEAD_LETTERS_FULL = "dead_letters_full"
    SLOT_GUARD = "slot_guard"
    SERVER_STOPPING = "server_stopping"
    LAG_TOO_LONG = "lag_too_long"
    NO_MESSAGE = "no_message"

    # Whatever else
    DEMO_FAILED = "demo_failed"
    FAILED = "failed"
