"""A tail: live events from a slot of its own, which the server drops as soon as the connection ends.

Owns the temporary slot, its connections, and what the server keeps for it. It touches no other slot and no
state, and knows nothing of terminals: whoever it hands events to may be as slow as he likes, up to `max_wal`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Self

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from cdc.catalog import Catalog, Table
from cdc.codes import Code
from cdc.config import Config, SignalConfig, SlotGuardConfig
from cdc.errors import CdcError, ServerUnfit, StreamLost
from cdc.events import DatabaseEvent, EventType
from cdc.lsn import Lsn
from cdc.monitor import Monitor
from cdc.patterns import TablePatterns
from cdc.progress import Ledger
from cdc.pump import Pump
from cdc.refusals import command_error, connect_error
from cdc.replication import ReplicationConnection, ReplicationStream
from cdc.replication.connection import source_conninfo
from cdc.session import (
    NUMBERS_AS_TEXT,
    codec_of,
    identity_notices,
    refuses_numbers_as_text,
    selection_of,
    server_filters,
    status_interval,
)
from cdc.signals import SignalManager
from cdc.transactions import Assembler, CommitMark
from cdc.wal2json import OPTIONS, Decoder

__all__ = ["Tail", "View"]

APPLICATION = "cdc tail"
REPORT_SECONDS = 1.0
"""How long the server keeps WAL that was shown already; and how late a bound of what it keeps is noticed."""
PATIENCE_SECONDS = 1.0
"""A slot is made in a few milliseconds, unless transactions are running: after this time somebody wants to know."""
QUEUED_EVENTS = 1_000
QUEUED_BYTES = 8 << 20
"""What is read ahead of a slow receiver, and a burst more; the rest stays with the server."""
FOR_EVER = 1e7  # seconds: a stopped terminal is no failure
MIB = 1 << 20

Receive = Callable[[Sequence[DatabaseEvent]], Awaitable[None]]
_NO_GUARD = SlotGuardConfig(
    warn_retained_bytes=0, max_retained_bytes=0, warn_seconds_to_invalidation=0, min_seconds_to_invalidation=0
)


@dataclass(frozen=True, slots=True)
class View:
    """Which events are shown, and what of them: the conditions of a handler, as the configuration has them."""

    tables: Sequence[str] = ()
    event_types: frozenset[EventType] = frozenset(EventType)
    tags: Sequence[str] = ()
    exclude: Sequence[str] = ()
    mask: Sequence[str] = ()


class Tail:
    """``async with Tail(config) as tail: await tail.run(view, receive)``; on one event loop.

    Selection, tag rules and soft deletes are those of `config.source` and `config.tag_rules`; its slot and state are
    left alone. `max_wal` bytes is what the server may keep for it, 0 for no bound. `tell` gets remarks for people.
    """

    def __init__(self, config: Config, *, max_wal: int = 0, tell: Callable[[str], None] = lambda _: None) -> None:
        self.slot = f"cdc_tail_{secrets.token_hex(6)}"
        self.lsn = Lsn(0)  # where it begins
        self.database = ""
        self.tables: Collection[Table] = ()  # that are there when it begins
        self._config = config
        self._dsn = make_conninfo(config.source.dsn, application_name=APPLICATION)
        self._max_wal = max_wal
        self._tell = tell
        self._selection = selection_of(config)
        self._stream: ReplicationStream | None = None
        self._decoder: Decoder | None = None
        self._monitor = Monitor(self._dsn, self.slot, _NO_GUARD)
        self._warned = False

    async def __aenter__(self) -> Self:
        """Connect, make the slot, start. StreamLost and StreamRefused say why not."""
        try:
            connection = await psycopg.AsyncConnection.connect(
                source_conninfo(self._dsn, replication="database"), autocommit=True
            )
        except psycopg.Error as error:
            raise connect_error(error) from None
        self.database = connection.info.dbname
        try:
            await self._start(connection)
        except BaseException:
            await connection.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._stream is not None:
            await self._stream.close()
        await self._monitor.close()

    async def _start(self, connection: psycopg.AsyncConnection[Any]) -> None:
        settings = await ReplicationConnection(connection).settings()
        codec = codec_of(settings)
        interval = status_interval(int(settings.get("wal_sender_timeout", "60000")) / 1000)
        try:
            self._stream, as_text = await self._stream_of(connection, interval, NUMBERS_AS_TEXT), True
        except ServerUnfit as error:
            if not refuses_numbers_as_text(error):
                raise
            self._stream, as_text = await self._stream_of(connection, interval, {}), False
        catalog = Catalog(self._dsn, numbers_as_text=as_text)
        try:
            await catalog.load()
        except BaseException:
            await self._stream.close()
            raise
        self.tables = catalog.tables
        self._monitor.catalog = catalog
        self._decoder = Decoder(catalog, watch=self._selection.watched_columns, codec=codec)

    async def _stream_of(
        self, connection: psycopg.AsyncConnection[Any], interval: float, options: dict[str, str]
    ) -> ReplicationStream:
        """The slot and its stream, together: with every refusal a walsender drops its temporary slots."""
        self.lsn = await self._make_slot(connection)
        return await ReplicationConnection(connection).start(
            self.slot,
            self.lsn,
            OPTIONS | options | server_filters(self._selection),
            status_interval=interval,
            notice=identity_notices(Counter()),
        )

    async def _make_slot(self, connection: psycopg.AsyncConnection[Any]) -> Lsn:
        """The position from which on it has everything; says whom it waits for when it waits."""
        command = sql.SQL("CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL {} NOEXPORT_SNAPSHOT").format(
            sql.Identifier(self.slot), sql.Identifier(self._config.source.plugin)
        )
        making = asyncio.ensure_future(connection.execute(command))
        try:
            await self._tell_whom_it_waits_for(making, connection.info.backend_pid)
            row = await (await making).fetchone()
        except psycopg.Error as error:
            raise command_error(error) from None
        finally:
            making.cancel()
        return Lsn.parse(row[1]) if row else Lsn(0)

    async def _tell_whom_it_waits_for(self, making: asyncio.Future[Any], pid: int) -> None:
        """Once, when it takes longer; a server that is only slow waits for nobody."""
        pids: Sequence[int] | None = []
        while pids == [] and not (await asyncio.wait([making], timeout=PATIENCE_SECONDS))[0]:
            pids = await self._blocking(pid)
        if pids != []:
            text = "a slot begins where no transaction runs that began before it: waiting for their end"
            names = ", ".join(str(one) for one in pids or () if one)  # 0 is a prepared transaction
            self._tell(f"{text} (process {names} of the server)" if names else text)

    async def _blocking(self, pid: int) -> Sequence[int] | None:
        """Server processes that this one waits for; None when the server does not say."""
        try:
            async with await psycopg.AsyncConnection.connect(source_conninfo(self._dsn), autocommit=True) as connection:
                row = await (await connection.execute("SELECT pg_blocking_pids(%s)", [pid])).fetchone()
        except psycopg.Error:
            return None
        return list(row[0]) if row else None

    def delivers(self, view: View, schema: str, table: str) -> bool:
        """Whether the configuration lets events of this table come to `view`."""
        return self._selection.tables.matches(schema, table) and TablePatterns(view.tables).matches(schema, table)

    async def run(self, view: View, receive: Receive) -> None:
        """Hand on events until cancelled; what `receive` raises is raised here, as is why it cannot go on.

        StreamLost: the slot went with the connection. CdcError: the server keeps more than `max_wal` for us.
        """
        if self._stream is None or self._decoder is None:
            raise RuntimeError("Tail is an asynchronous context manager: enter it first")
        assembler, ledger = Assembler(self._selection, flushed=self.lsn), Ledger(CommitMark(self.lsn, 0))
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        limits = SignalConfig(
            max_queued_events=QUEUED_EVENTS,
            max_queued_bytes=QUEUED_BYTES,
            callback_timeout_seconds=FOR_EVER,
            auto_remove_inactive_callbacks=False,
        )
        manager = SignalManager(limits)
        manager.add_callback(
            _Receiver(receive, over),
            tables=view.tables,
            event_types=view.event_types,
            tags=view.tags,
            exclude_columns=view.exclude,
            mask_columns=view.mask,
        )
        pump = Pump(assembler, ledger, manager)
        self._monitor.on_server_stopping = lambda: _end(
            over, StreamLost("the server is being stopped", reason="server_shutdown", hint=_ANEW)
        )
        tasks = [
            asyncio.create_task(pump.run(self._stream, self._decoder)),
            asyncio.create_task(self._report(self._stream, assembler, ledger, pump)),
            asyncio.create_task(self._monitor.run()),
        ]
        try:
            done, _ = await asyncio.wait([over, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for ended in done:
                ended.result()
        except StreamLost as error:
            error.hint = error.hint or _ANEW
            raise
        finally:
            over.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await manager.shutdown(0)

    async def _report(self, stream: ReplicationStream, assembler: Assembler, ledger: Ledger, pump: Pump) -> None:
        """Let the server throw away what was shown, and end before it keeps too much of what was not."""
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            ledger.idle(pump.idle_lsn)
            mark = ledger.flushable()
            if mark.lsn > stream.flushed:
                stream.report(assembler.commit_lsn, mark.lsn)
            self._judge((self._monitor.slot.retained_bytes if self._monitor.slot else None) or 0)

    def _judge(self, retained: int) -> None:
        if self._max_wal <= 0 or retained <= self._max_wal // 2:
            self._warned = False
            return
        text = f"the server keeps {retained / MIB:,.0f} MiB of WAL that is not shown yet"
        if retained > self._max_wal:
            raise CdcError(
                f"{text}: ended before its disk is full",
                hint="read faster, or narrow it with --table and --type; --max-wal sets the bound, 0 is none",
                code=Code.TAIL_ENDED,
            )
        if not self._warned:
            self._warned = True
            self._tell(f"{text}; at {self._max_wal / MIB:,.0f} MiB this ends")


_ANEW = "its slot went with the connection; what is committed until the next `cdc tail` is not shown by it"


class _Receiver:
    """The callback: what it raises ends the tail, instead of counting as a failure."""

    def __init__(self, receive: Receive, over: asyncio.Future[None]) -> None:
        self._receive = receive
        self._over = over

    async def handle_batch(self, events: Sequence[DatabaseEvent]) -> None:
        """Hand them on, unless it is over."""
        if self._over.done():
            return
        try:
            await self._receive(events)
        except Exception as error:  # noqa: BLE001 - `Tail.run` raises it
            _end(self._over, error)


def _end(over: asyncio.Future[None], error: Exception) -> None:
    if not over.done():
        over.set_exception(error)
