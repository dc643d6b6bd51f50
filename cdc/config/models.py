"""The settings as values: one frozen model per section of the file, with its names, defaults and bounds."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Le
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from cdc.config.allowed import ANY, AllowedCallbacks
from cdc.config.expand import plain
from cdc.config.fields import (
    CallbackEntries,
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
    "ROW_EVENTS",
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
    """Connection string of the database, a libpq URI or key=value pairs. Its role needs LOGIN and REPLICATION."""
    slot: SlotName = "cdc"
    """The logical replication slot. One per service: the server keeps WAL for it until it is received."""
    create_slot: Flag = True
    """Make the slot when it is missing at the first start. Once there is a checkpoint, a slot that is gone is never
    made anew by itself."""
    failover: Flag = False
    """PostgreSQL 17 and newer: standbys that synchronize slots have this one, too."""
    plugin: Literal["wal2json"] = "wal2json"
    """The output plugin that decodes the WAL on the server."""
    tables: TableList = ALL_TABLES
    """Only changes of these tables are delivered. Partitions come under their own names."""
    exclude_tables: tuple[TablePattern, ...] = ()
    """But not those of these."""
    tag_message_prefix: Word = "cdc.tags"
    """Prefix of the transactional messages (`pg_logical_emit_message`) that carry tags."""
    tags_column: str = "__tags__"
    """A column (`text[]`) whose values become tags of the row's event; `""` for none."""
    soft_delete_columns: Words = ("__is_active__",)
    """Columns that mark a row as deleted: an update of a boolean to false, or of a timestamp from null, is a DELETE
    event."""


class StateConfig(Section):
    """[state]: where the checkpoint and the callbacks' records lie. A relative path starts at the file's folder."""

    url: StateUrl = Field(default="sqlite:///cdc-state.db", repr=False)
    """Where checkpoint, records and dead letters lie: `sqlite:///FILE`, on a disk that stays, or
    `postgresql://USER@HOST/DATABASE?schema=NAME`, which also serves a standby."""
    checkpoint_interval_seconds: Seconds = 1.0
    """At most so often is a checkpoint written, and the server told."""


class SignalConfig(Section):
    """[signal]: the bounds of the pool of callbacks, and when a callback is given up. Sizes in bytes."""

    callback_timeout_seconds: Seconds = 30.0
    """What one attempt of a callback may take, where its handler says nothing else."""
    max_callbacks: Count = 100
    """How many callbacks there may be at a time."""
    remove_failing_callbacks: Flag = True
    """Whether a callback that keeps failing is removed."""
    max_consecutive_failures: Count = 3
    """After so many failed events in a row. A success begins the count anew."""
    cleanup_interval_seconds: Seconds = 60.0
    """How often inactive subscriptions are looked for."""
    auto_remove_inactive_callbacks: Flag = True
    """Remove callbacks that were added by code and get no events any more. Handlers of this file stay."""
    inactive_callback_threshold_seconds: Seconds = 300.0
    """After so long without an event."""
    max_queued_events: Count = 10_000
    """Bound of all queues together. When it is reached, reading stops and the server keeps the WAL."""
    max_queued_bytes: Size = 64 * MIB
    """The same in memory."""
    max_parked_events: Count = 100_000
    """Bound of the dead letters of each handler, failed and parked ones. Nothing is overwritten."""
    max_parked_bytes: Size = GIB
    """The same on the disk."""
    drain_timeout_seconds: Seconds = 30.0
    """How long a stop waits for what is queued. What is not settled then comes again at the next start."""


class SlotGuardConfig(Section):
    """[slot_guard]: how near the slot may come to its end. Past `warn_*` the log says so, past the others the
    service is not ready; 0 turns a threshold off. Sizes in bytes.

    Seconds and safe WAL are known only where the server has a `max_slot_wal_keep_size`.
    """

    warn_retained_bytes: SizeBound = 2 * GIB
    """A warning when the server keeps more WAL than this for the slot."""
    max_retained_bytes: SizeBound = 20 * GIB
    """Not ready when it keeps more than this."""
    warn_safe_wal_bytes: SizeBound = 0
    """A warning when the server may invalidate the slot after less WAL than this."""
    min_safe_wal_bytes: SizeBound = 0
    """Not ready when it may after less than this."""
    warn_seconds_to_invalidation: SecondsBound = 3600.0
    """A warning when that is nearer than this, at the rate of the last minute."""
    min_seconds_to_invalidation: SecondsBound = 600.0
    """Not ready when it is nearer than this."""


class HttpConfig(Section):
    """[http]: metrics, health, status and the page; port 0 takes a free one.

    `token_file` holds the token that changes need, without it there are none; `load` makes it absolute.
    `allowed_hosts`: names beside those of this machine that requests may come under, such as that of a proxy.
    """

    enabled: Flag = True
    """Whether anything listens."""
    host: Word = "127.0.0.1"
    """The address to listen on. Nothing listens beyond this machine unless told here."""
    port: Annotated[Integer, Ge(0), Le(65535)] = 9464
    """The port; 0 takes a free one."""
    allowed_hosts: Words = ()
    """Names that requests may come under beside those of this machine, such as that of a proxy in front."""
    token_file: str = ""
    """A file with a token of 16 characters or more: turns on `POST /handlers/NAME/pause|resume|remove`."""


class LogConfig(Section):
    """[log]: how much, and for whom."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that is logged."""
    format: Literal["auto", "console", "json"] = "auto"
    """`auto` is `console` on a terminal and `json`, one object per line, elsewhere."""


class TagRule(Section):
    """[[tag_rules]]: tags that every event of these tables and types gets."""

    tables: TableList = ALL_TABLES
    """Of which tables."""
    event_types: EventTypes = frozenset(EventType)
    """Of which types."""
    tags: Annotated[Words, AfterValidator(at_least_one)]
    """The tags that are added."""


class Columns(Section):
    """`columns` of a handler: what it does not get to see, by exact name."""

    exclude: Words = ()
    """Columns that are left out."""
    mask: Words = ()
    """Columns whose value is replaced by `***`, where it is not NULL."""


class HandlerConfig(Section):
    """[[handlers]]: one callback. Without `name` it is called after `callback`, with a dot for the colon."""

    callback: CallbackName
    """`package.module:name`, a function or a class; or the short name of a [built-in handler](handlers/README.md)."""
    name: HandlerName = ""
    """What it is called in logs, metrics and commands, and under which its position is kept: a renamed handler is a
    new one. Without it: the callback, with a dot for the colon."""
    tables: TableList = ALL_TABLES
    """Only events of these tables."""
    event_types: EventTypes = ROW_EVENTS
    """Only events of these types. TRUNCATE reaches only handlers that ask for it."""
    tags: Words = ()
    """Only events with a tag that fits one of these patterns, such as `audit:*`; without any, all."""
    columns: Columns = Columns()
    """Columns that it does not get to see, see below."""
    concurrency: Annotated[Integer, Ge(1), Le(64)] = 1
    """1 keeps commit order; more keeps it per record, and runs so many records at once."""
    timeout_seconds: Seconds | None = None
    """What one attempt may take; without it `signal.callback_timeout_seconds`."""
    max_attempts: Count = 3
    """How often an event is tried before it has failed; with growing, random waits."""
    on_failure: OnFailure = OnFailure.DEAD_LETTER
    """`dead_letter` keeps a failed event and goes on; `block` tries for ever, and holds the slot."""
    after_removal: AfterRemoval = AfterRemoval.PARK
    """What becomes of the events of a removed handler: kept in order until it is resumed, or missed, with the range on
    record."""
    options: dict[str, Any] = Field(default_factory=dict, repr=False)
    """Keyword arguments of its class, checked against it."""
    _allowed: tuple[AllowedCallbacks, ...] = PrivateAttr(default=())

    @property
    def allowed(self) -> tuple[AllowedCallbacks, ...]:
        """The lists that must all let the callback through: that of its file, that of the environment."""
        return self._allowed

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
    """Folders in which callbacks are looked for, beside what is installed."""
    allowed_callbacks: CallbackEntries = (ANY,)
    """What a handler may be: `*` lets all through, `package.*` a package and all in it, `package.module` one module,
    `package.module:name` one name, `kafka` that built-in handler. `$CDC_ALLOWED_CALLBACKS` holds a second list, where
    it is set; both must let a callback through."""
    state: StateConfig = StateConfig()
    signal: SignalConfig = SignalConfig()
    slot_guard: SlotGuardConfig = SlotGuardConfig()
    http: HttpConfig = HttpConfig()
    log: LogConfig = LogConfig()
    tag_rules: tuple[TagRule, ...] = ()
    handlers: tuple[HandlerConfig, ...] = ()
    _file: Path = PrivateAttr(default_factory=lambda: Path.cwd() / "cdc.toml")
    _warnings: tuple[str, ...] = PrivateAttr(default=())

    @model_validator(mode="after")
    def _restricted(self) -> Self:
        """Each handler carries the list: nobody can load it and forget to ask."""
        self.restrict(AllowedCallbacks(self.allowed_callbacks))
        return self

    def restrict(self, allowed: AllowedCallbacks) -> None:
        """From now on `allowed`, too, must let the handlers' callbacks through."""
        for handler in self.handlers:
            handler._allowed = (*(one for one in handler.allowed if one.origin != allowed.origin), allowed)

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
