"""walsignal: change data capture from PostgreSQL's logical replication to Python callbacks."""

from cdc.callbacks import CallbackState
from cdc.config import SignalConfig
from cdc.errors import CallbackError, CallbackTimeout, CdcError, ConfigError, ManagerClosed, TooManyCallbacks
from cdc.events import DatabaseEvent, EventType, Position
from cdc.failures import PermanentError, RetryLater
from cdc.lsn import Lsn
from cdc.signals import CallbackHandle, SignalManager, SignalStats
from cdc.tagging import emit_tags
from cdc.values import PostgresValue

__all__ = [
    "CallbackError",
    "CallbackHandle",
    "CallbackState",
    "CallbackTimeout",
    "CdcError",
    "ConfigError",
    "DatabaseEvent",
    "EventType",
    "Lsn",
    "ManagerClosed",
    "PermanentError",
    "Position",
    "PostgresValue",
    "RetryLater",
    "SignalConfig",
    "SignalManager",
    "SignalStats",
    "TooManyCallbacks",
    "emit_tags",
]
