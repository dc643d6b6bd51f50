"""One connection to the source: checked, resumed and streaming, with a catalog and a decoder that fit it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import psycopg
import structlog
from psycopg import sql
from psycopg.errors import Diagnostic

from cdc.catalog import Catalog
from cdc.codes import Code
from cdc.config import Config, SourceConfig
from cdc.consumer import Consumer
from cdc.encodings import CODECS
from cdc.errors import ServerUnfit, SlotMissing, StreamLost
from cdc.messages import Decoder
from cdc.patterns import TablePatterns
from cdc.refusals import connect_error
from cdc.replication import ReplicationConnection, ReplicationStream, SystemIdentity
from cdc.replication.connection import source_conninfo
from cdc.replication.stream import NoticeHandler
from cdc.resume import ResumePoint, resume_point, source_of
from cdc.slots import SlotInfo, slot_query
from cdc.state import Checkpoint, Source
from cdc.transactions import Selection, TagRule
from cdc.wal2json import OPTIONS
from cdc.wal2json import Decoder as Wal2JsonDecoder

__all__ = [
    "NUMBERS_AS_TEXT",
    "Session",
    "codec_of",
    "identity_notices",
    "refuses_numbers_as_text",
    "selection_of",
    "server_filters",
    "status_interval",
]

log = structlog.get_logger("cdc.session")

NUMBERS_AS_TEXT = {"numeric-data-types-as-string": "on"}
"""wal2json 2.6 and newer: NaN and infinities survive. Older ones refuse the option, and are asked without it."""
LONGEST_STATUS_SECONDS = 10.0
"""Also where the server's timeout is off or long: the status update is what moves the slot on an idle stream."""
PLAIN_PREFIX = re.compile(r"[A-Za-z0-9_.:-]+")
NO_IDENTITY = re.compile(r'no tuple identifier for (\w+) in table "(.*)"\."(.*)"', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Session:
    """What belongs to one connection."""

    identity: SystemIdentity
    source: Source
    resume: ResumePoint
    stream: ReplicationStream
    catalog: Catalog
    decoder: Decoder

    @classmethod
    async def open(
        cls,
        config: SourceConfig,
        selection: Selection,
        checkpoint: Checkpoint | None,
        *,
        received: int,
        accept_gap: bool,
        missing_identity: Counter[str],
        consumer: Consumer | None = None,
    ) -> Session:
        """Connect, compare slot and checkpoint, start. `received`: up to there it lies in our memory already.

        StreamLost when it may work later, StreamRefused when an operator must act.
        """
        consumer = consumer or Consumer()
        connection = await ReplicationConnection.connect(config.dsn, consumer.application_name)
        try:
            identity = await connection.identify()
            settings = await connection.settings()
            codec = codec_of(settings)
            slot = await connection.slot(config.slot)
            resume = resume_point(identity, slot, checkpoint, config, accept_gap=accept_gap, received=received)
            if received and resume.note:
                log.warning(
                    "resume_changed", note=resume.note, lsn=str(resume.lsn)
                )  # not the first connection of this run
            await _end_leftover(connection, slot, consumer)
            filters = server_filters(selection)
            interval = status_interval(int(settings.get("wal_sender_timeout", "60000")) / 1000)
            with _still_there():
                resume = await _prepare(connection, slot, resume, config)
                stream, as_text = await _start(
                    connection,
                    config.slot,
                    max(resume.lsn, received),
                    OPTIONS | filters,
                    interval,
                    identity_notices(missing_identity),
                )
        except BaseException:
            await connection.close()
            raise
        try:
            await _not_moved_meanwhile(config, max(resume.lsn, received))
            catalog = Catalog(config.dsn, numbers_as_text=as_text)
            await catalog.load()
        except BaseException:
            await stream.close()
            raise
        decoder = Wal2JsonDecoder(catalog, watch=selection.watched_columns, codec=codec)
        fingerprint = ";".join(f"{key}={value}" for key, value in sorted(filters.items()))
        return cls(identity, source_of(identity, config, fingerprint), resume, stream, catalog, decoder)


def selection_of(config: Config, without: str = "") -> Selection:
    """Which changes the configuration makes events of; `without` is a schema that is left out as well."""
    source = config.source
    hidden = [f'"{without.replace(chr(34), chr(34) * 2)}".*'] if without else []
    return Selection(
        tables=TablePatterns(source.tables, [*source.exclude_tables, *hidden]),
        tag_prefix=source.tag_message_prefix,
        tags_column=source.tags_column,
        soft_delete_columns=frozenset(source.soft_delete_columns),
        tag_rules=[TagRule(TablePatterns(rule.tables), rule.event_types, rule.tags) for rule in config.tag_rules],
    )


async def _end_leftover(connection: ReplicationConnection, slot: SlotInfo | None, consumer: Consumer) -> None:
    """The slot is held by a connection that is provably ours, and dead: the server does not know it yet."""
    if slot is None or slot.active_pid is None or not consumer.outlives(slot.active_application):
        return
    if await connection.end_walsender(slot.name, slot.active_application):
        log.warning("leftover_ended", slot=slot.name, pid=slot.active_pid, application_name=slot.active_application)


@contextmanager
def _still_there() -> Iterator[None]:
    """A slot that has gone since we looked at it is a StreamLost: what that means, the next attempt judges."""
    try:
        yield
    except SlotMissing as error:
        raise StreamLost(error.message, reason="slot_moved") from None


async def _prepare(
    connection: ReplicationConnection, slot: SlotInfo | None, resume: ResumePoint, config: SourceConfig
) -> ResumePoint:
    """Make the slot what the configuration says, and what the policy has decided."""
    if resume.create:
        if resume.drop:
            await connection.drop_slot(config.slot)
            log.warning("slot_dropped", slot=config.slot, invalidation=slot.invalidation if slot else "")
        return replace(resume, lsn=await connection.create_slot(config.slot, config.plugin, failover=config.failover))
    if config.failover and (slot is None or not slot.failover):
        await connection.enable_failover(config.slot)
        log.info("slot_failover_enabled", slot=config.slot)
    return resume


async def _start(
    connection: ReplicationConnection,
    slot: str,
    lsn: int,
    options: dict[str, str],
    interval: float,
    notice: NoticeHandler,
) -> tuple[ReplicationStream, bool]:
    """Start with numbers as text where the plugin can, and say whether it could."""
    try:
        newer = options | NUMBERS_AS_TEXT
        return await connection.start(slot, lsn, newer, status_interval=interval, notice=notice), True
    except ServerUnfit as error:
        if not refuses_numbers_as_text(error):
            raise
    return await connection.start(slot, lsn, options, status_interval=interval, notice=notice), False


def refuses_numbers_as_text(error: ServerUnfit) -> bool:
    """Whether the plugin is too old for `NUMBERS_AS_TEXT`."""
    return next(iter(NUMBERS_AS_TEXT)) in error.message


async def _not_moved_meanwhile(config: SourceConfig, start: int) -> None:
    """Now that the slot is ours: that nobody moved it between our look at it and the start of the stream.

    The server forwards a start below the slot's position without a word. StreamLost: the next attempt judges.
    """
    try:
        async with await psycopg.AsyncConnection.connect(source_conninfo(config.dsn), autocommit=True) as connection:
            row = await (await connection.execute(slot_query(config.slot))).fetchone()
    except psycopg.Error as error:
        raise connect_error(error) from None
    slot = SlotInfo.of(row[0]) if row else None
    if slot is None or (slot.confirmed_flush_lsn or 0) > start:
        raise StreamLost(f"slot {config.slot!r} was moved while the stream was started", reason="slot_moved")


def status_interval(wal_sender_timeout: float) -> float:
    """Seconds between status updates: a third of the server's timeout (0: it has none) or less."""
    if wal_sender_timeout <= 0:
        return LONGEST_STATUS_SECONDS
    return min(LONGEST_STATUS_SECONDS, wal_sender_timeout / 3)


def server_filters(selection: Selection) -> dict[str, str]:
    """What the plugin can leave out by itself; the assembler filters again, and exactly."""
    options: dict[str, str] = {}
    add, without = selection.tables.server_side()
    if add is not None:
        options["add-tables"] = add
    if without is not None:
        options["filter-tables"] = without
    if PLAIN_PREFIX.fullmatch(selection.tag_prefix):
        options["add-msg-prefixes"] = selection.tag_prefix
    return options


def codec_of(settings: dict[str, str]) -> str | None:
    """Whether the server can do it; the codec of its encoding, None for UTF-8. ServerUnfit says what is missing."""
    if settings.get("wal_level") != "logical":
        raise ServerUnfit(
            f"wal_level is {settings.get('wal_level')!r}, logical decoding needs 'logical'",
            hint="ALTER SYSTEM SET wal_level = logical; then restart the server",
            code=Code.WAL_LEVEL_WRONG,
        )
    encoding = settings.get("server_encoding", "UTF8")
    if encoding == "UTF8":
        return None
    if encoding not in CODECS:
        raise ServerUnfit(
            f"the database's encoding is {encoding}, its text cannot be decoded for certain",
            hint="use a database with encoding UTF8",
            code=Code.ENCODING_UNFIT,
        )
    return CODECS[encoding]


def identity_notices(counts: Counter[str]) -> NoticeHandler:
    """Counts rows that the plugin drops because their table has no replica identity, and says so once a table."""

    def notice(diagnostic: Diagnostic) -> None:
        match = NO_IDENTITY.search(diagnostic.message_primary or "")
        if match is None:
            log.debug("server_notice", text=(diagnostic.message_primary or "")[:200])
            return
        table = f"{match[2]}.{match[3]}"
        counts[table] += 1
        if counts[table] == 1:
            name = sql.Identifier(match[2], match[3]).as_string()  # to be pasted: whatever it holds
            log.warning(
                "missing_replica_identity",
                table=table,
                operation=match[1],
                hint=f"ALTER TABLE {name} REPLICA IDENTITY FULL; or give it a primary key",
            )

    return notice
