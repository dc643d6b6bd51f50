"""The settings as values: one frozen model per section of the file, with its names, defaults and bounds."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from cdc.config.expand import plain
from cdc.config.fields import (
    CallbackName,
    Count,
    Dsn,
    Flag,
    HandlerName,
    Integer,
    Seconds,
    SecondsBound,
    Size,
    SizeBound,
    SlotName,
    StateUrl,
    TableList,
    TablePattern,
    Word,
    Words,
    at_least_one,
)
from cdc.events import EventType

__all__ = [
    "AfterRemoval",
    "Columns",
    "Config",
    "HandlerConfig",
    "HttpConfig",
    "LogConfig",
    "OnFailure",
    "SignalConfig",
    "SlotGuardConfig",
    "SourceConfig",
    "StateConfig",
    "TagRule",
]

MIB = 1024**2
GIB = 1024**3
ALL_TABLES = ("*.*",)
# TRUNCATE reaches only callbacks that ask for it.
ROW_EVENTS = frozenset({EventType.CREATE, EventType.UPDATE, EventType.DELETE})


class OnFailure(Enum):
    """What becomes of an event whose callback has failed."""

    DEAD_LETTER = "dead_letter"
    BLOCK = "block"


class AfterRemoval(Enum):
    """What becomes of the events of a removed callback."""

    PARK = "park"
    DROP = "drop"


EventTypes = Annotated[frozenset[EventType], AfterValidator(at_least_one)]


class Section(BaseModel):
    """What all sections have in common: nothing changes, and nothing unknown is accepted."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class SourceConfig(Section):
    """[source]: where the changes come from, and which of them."""

    dsn: Dsn = Field(repr=False)
    slot: SlotName = "cdc"
    create_slot: Flag = True
    failover: Flag = False  # of the slot; PostgreSQL 17 and newer
    plugin: Literal["wal2json"] = "wal2json"
    tables: TableList = ALL_TABLES
    exclude_tables: tuple[TablePattern, ...] = ()
    tag_message_prefix: Word = "cdc.tags"
    tags_column: str = "__tags__"
    soft_delete_columns: Words = ("__is_active__",)


class StateConfig(Section):
    """[state]: where the checkpoint and the callbacks' records lie. `load` makes a sqlite path absolute."""

    url: StateUrl = Field(default="sqlite:///cdc-state.db", repr=False)
    checkpoint_interval_seconds: Seconds = 1.0


class SignalConfig(Section):
    """[signal]: the bounds of the pool of callbacks, and when a callback is given up. Sizes in bytes."""

    callback_timeout_seconds: Seconds = 30.0
    max_callbacks: Count = 100
    remove_failing_callbacks: Flag = True
    max_consecutive_failures: Count = 3
    cleanup_interval_seconds: Seconds = 60.0
    auto_remove_inactive_callbacks: Flag = True
    inactive_callback_threshold_seconds: Seconds = 300.0
    max_queued_events: Count = 10_000
    max_queued_bytes: Size = 64 * MIB
    max_parked_events: Count = 100_000
    max_parked_bytes: Size = GIB
    drain_timeout_seconds: Seconds = 30.0


class SlotGuardConfig(Section):
    """[slot_guard]: how near the slot may come to its end. Past `warn_*` the log says so, past the others the
    service is not ready; 0 turns a threshold off. Sizes in bytes.

    Seconds and safe WAL are known only where the server has a `max_slot_wal_keep_size`.
    """

    warn_retained_bytes: SizeBound = 2 * GIB
    max_retained_bytes: SizeBound = 20 * GIB
    warn_safe_wal_bytes: SizeBound = 0
    min_safe_wal_bytes: SizeBound = 0
    warn_seconds_to_invalidation: SecondsBound = 3600.0
    min_seconds_to_invalidation: SecondsBound = 600.0


class HttpConfig(Section):
    """[http]: metrics, health and status; port 0 takes a free one."""

    enabled: Flag = True
    host: Word = "127.0.0.1"
    port: Annotated[Integer, Ge(0), Le(65535)] = 9464


class LogConfig(Section):
    """[log]: how much, and for whom."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class TagRule(Section):
    """[[tag_rules]]: tags that every event of these tables and types gets."""

    tables: TableList = ALL_TABLES
    event_types: EventTypes = frozenset(EventType)
    tags: Annotated[Words, AfterValidator(at_least_one)]


class Columns(Section):
    """`columns` of a handler: what it does not get to see, by exact name."""

    exclude: Words = ()
    mask: Words = ()


class HandlerConfig(Section):
    """[[handlers]]: one callback. Without `name` it is called after `callback`, with a dot for the colon."""

    callback: CallbackName
    name: HandlerName = ""
    tables: TableList = ALL_TABLES
    event_types: EventTypes = ROW_EVENTS
    tags: Words = ()
    columns: Columns = Columns()
    concurrency: Annotated[Integer, Ge(1), Le(64)] = 1
    timeout_seconds: Seconds | None = None  # None: signal.callback_timeout_seconds
    max_attempts: Count = 3
    on_failure: OnFailure = OnFailure.DEAD_LETTER
    after_removal: AfterRemoval = AfterRemoval.PARK
    options: dict[str, Any] = Field(default_factory=dict, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            data = dict(data)
            if "name" not in data and isinstance(data.get("callback"), str):
                data["name"] = data["callback"].replace(":", ".")
            data["options"] = plain(data.get("options", {}))
        return data


class Config(Section):
    """All settings of one file. `file` is where it lies; `warnings` are remarks that stop nothing."""

    source: SourceConfig
    python_path: tuple[Path, ...] = ()
    state: StateConfig = StateConfig()
    signal: SignalConfig = SignalConfig()
    slot_guard: SlotGuardConfig = SlotGuardConfig()
    http: HttpConfig = HttpConfig()
    log: LogConfig = LogConfig()
    tag_rules: tuple[TagRule, ...] = ()
    handlers: tuple[HandlerConfig, ...] = ()
    _file: Path = PrivateAttr(default_factory=lambda: Path.cwd() / "cdc.toml")
    _warnings: tuple[str, ...] = PrivateAttr(default=())

    @property
    def file(self) -> Path:
        """The file, absolute; of a configuration made by code, where it would lie."""
        return self._file

    @property
    def folder(self) -> Path:
        """Where relative paths start."""
        return self._file.parent

    @property
    def warnings(self) -> tuple[str, ...]:
        """Remarks for the log: what is allowed, but should not stay so."""
        return self._warnings

    def timeout_of(self, handler: HandlerConfig) -> float:
        """Seconds that one attempt of the handler may take."""
        return handler.timeout_seconds or self.signal.callback_timeout_seconds
