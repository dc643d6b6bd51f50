"""walsignal: change data capture from PostgreSQL's logical replication to Python callbacks."""

from cdc.callbacks import CallbackState
from cdc.config import SignalConfig
from cdc.dedupe import exactly_once
from cdc.errors import CallbackError, CallbackTimeout, CdcError, ConfigError, ManagerClosed, TooManyCallbacks
from cdc.events import DatabaseEvent, EventType, Position
from cdc.exact import dump_event, load_event
from cdc.failures import PermanentError, RetryLater
from cdc.lsn import Lsn
from cdc.options import HandlerOptions
from cdc.patterns import TablePatterns, TagPatterns
from cdc.signals import CallbackHandle, SignalManager
from cdc.stats import SignalStats
from cdc.tagging import emit_tags
from cdc.traces import traceparent
from cdc.values import PostgresValue, to_json

__all__ = [
    "CallbackError",
    "CallbackHandle",
    "CallbackState",
    "CallbackTimeout",
    "CdcError",
    "ConfigError",
    "DatabaseEvent",
    "EventType",
    "HandlerOptions",
    "Lsn",
    "ManagerClosed",
    "PermanentError",
    "Position",
    "PostgresValue",
    "RetryLater",
    "SignalConfig",
    "SignalManager",
    "SignalStats",
    "TablePatterns",
    "TagPatterns",
    "TooManyCallbacks",
    "dump_event",
    "emit_tags",
    "exactly_once",
    "load_event",
    "to_json",
    "traceparent",
]
