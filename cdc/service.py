"""The service: one slot, one state, one pool of callbacks, from start to a clean stop.

Connects, resumes where the checkpoint says, reconnects when the stream is lost, stops when going on
would lose events, and drains before it ends. What the parts do is theirs; here is who lives how long.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum
from time import monotonic
from typing import Any

import structlog

from cdc.checkpoints import Checkpointer
from cdc.config import Config
from cdc.consumer import Consumer
from cdc.enrolment import enrol
from cdc.errors import CdcError, ConfigError, DecodeError, StateBusy, StateError, StreamLost, is_retryable
from cdc.events import Position
from cdc.letters import DeadLetters
from cdc.lsn import Lsn
from cdc.monitor import Monitor
from cdc.patterns import TablePatterns
from cdc.progress import Ledger
from cdc.pump import Pump
from cdc.redelivery import Redelivery
from cdc.replication import ReplicationConnection, ReplicationStream
from cdc.resume import ResumePoint
from cdc.session import Session
from cdc.signals import SignalManager
from cdc.state import Checkpoint, Gap, StateStore, StateThread, open_state
from cdc.transactions import Assembler, CommitMark, Selection, TagRule
from cdc.watchman import Watchman

__all__ = ["Phase", "Service"]

log = structlog.get_logger("cdc.service")

BACKOFF_SECONDS = (0.1, 5.0)
"""First and longest wait between attempts to connect: a restarted server is back within seconds, and one
attempt in five seconds is no load on one that is not."""
HEARTBEAT_SECONDS = 0.25
STANDBY_SECONDS = 0.5
"""Between two attempts to become the state's owner: what a takeover may lose by it is no part of its 5 s."""
FENCE_SECONDS = 2.5
"""A state that was silent for so long may have another owner soon: its server gives up a silent one after 4 s."""
SHUTDOWN_SECONDS = 2.0
"""Once all is settled and reported, a server that is being stopped ends the stream itself, at once; where it does
not, the state lay in it and could not be written: then we leave."""
BLOCKED_SECONDS = 0.1
"""A heartbeat that comes this much too late tells of a callback that blocked the event loop."""


class Phase(Enum):
    """Where the service is in its life."""

    STARTING = "starting"
    STANDBY = "standby"  # another service holds the state; this one waits for it
    STREAMING = "streaming"
    RECONNECTING = "reconnecting"
    DRAINING = "draining"
    STOPPED = "stopped"


class Service:
    """Runs one configuration; `run` ends after `stop`, or with the error that nobody but an operator mends."""

    def __init__(self, config: Config, *, accept_gap: bool = False) -> None:
        self.config = config
        self.manager = SignalManager(config.signal)
        self.monitor = Monitor(config.source.dsn, config.source.slot, config.slot_guard)
        self.phase = Phase.STARTING
        self.started = monotonic()
        self.reconnects: Counter[str] = Counter()
        self.loop_blocked_seconds = 0.0
        self.last_error = ""
        self.session: Session | None = None
        self.stream: ReplicationStream | None = None
        self.assembler: Assembler | None = None
        self.ledger: Ledger | None = None
        self.pump: Pump | None = None
        self.checkpointer: Checkpointer | None = None
        self.letters: DeadLetters | None = None
        self.missing_identity: Counter[str] = Counter()
        self._last_message: float | None = None
        self._received_bytes = 0  # over the streams that have ended
        self._accept_gap = accept_gap
        self._stopping = asyncio.Event()
        self._state = StateThread()
        self._tasks: list[asyncio.Task[None]] = []
        self._selection = _selection(config)
        self._failed: asyncio.Future[None] | None = None
        self._redelivery: Redelivery | None = None
        self._gaps: list[Gap] = []
        self._owner_seen: float | None = None  # when the owner before us was last known to live, monotonic seconds
        self._consumer = Consumer()
        self._patience = 1
        self._deliver_from = 0.0  # monotonic seconds
        self._shares_wal: bool | None = None  # whether the state lies in the source's cluster; None: not known

    @property
    def received_bytes(self) -> int:
        """Bytes of the stream's messages, over all connections."""
        return self._received_bytes + (self.stream.received_bytes if self.stream is not None else 0)

    @property
    def last_message(self) -> float | None:
        """When the wire last brought something, monotonic seconds; None before the first connection."""
        return self.stream.last_message if self.stream is not None else self._last_message

    def stop(self) -> None:
        """Ask for a clean stop: drain, checkpoint, last status update."""
        self._stopping.set()

    async def run(self) -> None:
        """Until `stop`, or until a CdcError that ends the service; what was settled is saved in either case."""
        if not self.config.handlers:
            raise ConfigError(
                "the configuration has no handlers",
                hint='add a [[handlers]] section, e.g. callback = "console"',
            )
        self._failed = asyncio.get_running_loop().create_future()
        try:
            if (store := await self._own_state()) is not None:
                await self._run(store)
        finally:
            self.phase = Phase.STOPPED
            self._state.close()

    async def _own_state(self) -> StateStore | None:
        """Open the state, which waits as long as another service has it; None after `stop`."""
        while not self._stopping.is_set():
            try:
                return await self._state.run(open_state, self.config.state.url, owner=True)
            except StateBusy as busy:
                self._owner_seen = monotonic() - (busy.silent_seconds or 0.0)
                if self.phase is not Phase.STANDBY:
                    log.info("standby", held_by=busy.holder, hint="taking over when it ends")
                self.phase = Phase.STANDBY
            except StateError as error:
                if self.phase is not Phase.STANDBY:
                    raise
                log.debug("standby_waits", error=str(error))  # its server is away: for the owner, too
            with suppress(TimeoutError):
                async with asyncio.timeout(STANDBY_SECONDS):
                    await self._stopping.wait()
        return None

    async def _run(self, store: StateStore) -> None:
        """With the state in our hands: until it is over, and drained."""
        lost: StateBusy | None = None
        try:
            self.phase = Phase.STARTING
            self._state.store = store
            self._consumer = store.consumer or self._consumer
            if store.taken_over:
                seen = monotonic() if self._owner_seen is None else self._owner_seen
                self._deliver_from = seen + FENCE_SECONDS
            self.manager.may_deliver = self._may_deliver
            self.manager.on_broken = self._end_with
            checkpoint = await self._state.run(store.load)
            await self._prepare(store, checkpoint)
            self._start("heartbeat", self._heartbeat())
            self._start("monitor", self.monitor.run())
            self._start("stream", self._stream_for_ever(store, checkpoint))
            await self._until_over()
        except StateBusy as error:
            lost = error
            raise
        finally:
            try:
                await self._drain(0 if lost is not None else None)
            finally:
                await self._state.run(store.close)

    async def _prepare(self, store: StateStore, checkpoint: Checkpoint | None) -> None:
        """Who keeps what fails, who is called, and who hears the operator."""
        self.letters = self.manager.keeper = DeadLetters(store, self._state, self.config.signal)
        self._start("letters", self.letters.run())
        await self.letters.refresh()
        records = {record.name: record for record in await self._state.run(store.callbacks)}
        self._gaps += enrol(self.config, self.manager, records, checkpoint)
        await self.manager.open()
        self._redelivery = Redelivery(store, self._state, self.letters, self.manager)
        self._start("redelivery", self._redelivery.run())
        self.monitor.on_server_stopping = lambda: self._start("server-stop", self._let_server_stop())

    def _may_deliver(self) -> bool:
        """Whether the state is ours alone, for certain.

        Another service may have taken over what we do not hear of; and the owner before us, if it did not say
        goodbye, may go on until it misses its answer.
        """
        now = monotonic()
        return now - self._state.last_alive < FENCE_SECONDS and now >= self._deliver_from

    async def _until_over(self) -> None:
        """Wait for `stop`, or for a side task that ended: each of them is meant to run as long as we do."""
        stopping = asyncio.create_task(self._stopping.wait(), name="cdc-stopping")
        assert self._failed is not None  # noqa: S101 - set by `run`, for the type checker
        watched: list[asyncio.Future[Any]] = [stopping, self._failed]
        try:
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        if self._failed.done():
            self._failed.result()

    def _start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name=f"cdc-{name}")
        task.add_done_callback(self._task_ended)
        self._tasks.append(task)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._end_with(error)

    def _end_with(self, error: BaseException) -> None:
        """Going on would lose something, or wait for ever: the first such error ends the service."""
        if self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)

    async def _stream_for_ever(self, store: StateStore, checkpoint: Checkpoint | None) -> None:
        """Connect, stream, and again; ends by `stop`, or with an error that is not worth another attempt."""
        wait, longest = BACKOFF_SECONDS
        while not self._stopping.is_set():
            began = monotonic()
            try:
                await self._stream_once(store, checkpoint)
            except CdcError as error:
                if isinstance(error, DecodeError):
                    log.error("undecodable_message", lsn=str(Lsn(error.lsn)), structure=error.excerpt)  # noqa: TRY400
                if not is_retryable(error):
                    raise
                reason = getattr(error, "reason", "connection_lost")
                self.reconnects[reason] += 1
                if reason == "silent":  # was it only slow, it may need longer than that
                    self._patience *= 2
                self.monitor.look_soon()  # whether the slot is still worth an attempt
                if self.last_error != str(error):
                    log.warning("stream_lost", reason=reason, error=str(error))
                self.last_error = str(error)
                if monotonic() - began > longest:
                    wait = BACKOFF_SECONDS[0]
                await asyncio.sleep(wait * random.uniform(0.5, 1.0))
                wait = min(wait * 2, longest)

    async def _stream_once(self, store: StateStore, checkpoint: Checkpoint | None) -> None:
        """One connection, from its beginning to its end."""
        if store.schema and self._shares_wal is None:
            await self._learn_where_the_state_lies(store)
        saved = self.checkpointer.saved if self.checkpointer is not None else None
        session = self.session = await Session.open(
            self.config.source,
            self._selection,
            saved or checkpoint,
            received=self.assembler.commit_lsn if self.assembler is not None else 0,
            consumer=self._consumer,
            accept_gap=self._accept_gap,
            missing_identity=self.missing_identity,
        )
        stream = session.stream
        try:
            if self.checkpointer is None:
                await self._begin(store, checkpoint, session)
            assert self.checkpointer is not None  # noqa: S101 - made by `_begin`
            assert self.pump is not None  # noqa: S101
            self.checkpointer.source = session.source
            self.stream = self.checkpointer.stream = stream
            stream.silence_limit *= self._patience
            self.monitor.catalog = session.catalog
            self.monitor.look_soon()
            self.phase, self.last_error = Phase.STREAMING, ""
            self._accept_gap = False
            log.info("streaming", slot=self.config.source.slot, start=str(session.resume.lsn))
            await self.pump.run(stream, session.decoder)
        except BaseException:
            self._received_bytes += stream.received_bytes
            self._last_message = stream.last_message
            self.stream = None
            if self.checkpointer is not None:
                self.checkpointer.stream = None
            if self.phase is Phase.STREAMING:
                self.phase = Phase.RECONNECTING
            await stream.close()
            raise

    async def _learn_where_the_state_lies(self, store: StateStore) -> None:
        """In the source's own cluster it may lie among the tables: what we write there are no events."""
        connection = await ReplicationConnection.connect(self.config.source.dsn)
        try:
            identity = await connection.identify()
        finally:
            await connection.close()
        self._shares_wal = await self._state.run(store.shares_wal, identity.system_identifier)
        if self._shares_wal:
            self._selection = _selection(self.config, without=store.schema)

    async def _begin(self, store: StateStore, checkpoint: Checkpoint | None, session: Session) -> None:
        """The first connection says where we are: make what counts from there."""
        resume = session.resume
        if resume.note:
            log.info("resume", note=resume.note, lsn=str(resume.lsn))
        self.assembler = Assembler(self._selection, flushed=resume.lsn, last_event_id=resume.last_event_id)
        self.ledger = Ledger(CommitMark(resume.lsn, resume.last_event_id))
        self.pump = Pump(self.assembler, self.ledger, self.manager)
        self.checkpointer = Checkpointer(
            store,
            self._state,
            session.source,
            self.ledger,
            self.assembler,
            self.manager,
            self.pump,
            self.config.state.checkpoint_interval_seconds,
        )
        self.checkpointer.shares_wal = bool(self._shares_wal)
        self._check_positions(checkpoint, session)
        if resume.gap_from is not None:
            self._gaps.append(_accepted_gap(resume))
        for gap in self._gaps:
            self.checkpointer.note_gap(gap)
        self.pump.on_reply_requested = self.checkpointer.request
        await self.checkpointer.save()
        self._start("checkpoints", self.checkpointer.run())

    def _check_positions(self, checkpoint: Checkpoint | None, session: Session) -> None:
        """Positions inside a transaction count what the server sends: another selection, other ordinals."""
        if checkpoint is None or checkpoint.source.selection == session.source.selection:
            return
        log.warning("selection_changed", note="transactions after the checkpoint are delivered again, whole")
        for registration in self.manager.registry:
            registration.settled = None

    async def _heartbeat(self) -> None:
        watchman = Watchman(self.config.source.dsn, self.config.signal.drain_timeout_seconds, self._cut)
        try:
            await self._beat(watchman)
        finally:
            watchman.close()

    def _cut(self) -> None:
        if (stream := self.stream) is not None:
            stream.cut()

    async def _beat(self, watchman: Watchman) -> None:
        while True:
            watchman.beat()
            began = monotonic()
            await asyncio.sleep(HEARTBEAT_SECONDS)
            late = monotonic() - began - HEARTBEAT_SECONDS
            if late > BLOCKED_SECONDS:
                self.loop_blocked_seconds += late

    async def _let_server_stop(self) -> None:
        """A server in its fast stop waits until we have confirmed all: at most as long as we would drain ourselves."""
        deadline = monotonic() + self.config.signal.drain_timeout_seconds
        while self.monitor.server_stopping is not None and self.stream is not None:
            if self.ledger is not None and self.ledger.is_settled:
                deadline = min(deadline, monotonic() + SHUTDOWN_SECONDS)
            if monotonic() >= deadline and self.pump is not None:
                self.pump.give_up(StreamLost("the server is being stopped", reason="server_shutdown"))
                return
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def _drain(self, timeout: float | None = None) -> None:
        """Stop reading, let the callbacks finish what is queued, save, report, close."""
        self.phase = Phase.DRAINING
        self._stopping.set()  # whatever it was that ended us: no new connection
        if self.pump is not None:
            self.pump.stop()
        drained = await self.manager.shutdown(timeout)
        if self._redelivery is not None:
            await self._redelivery.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.monitor.close()
        try:
            if self.checkpointer is not None:
                await self.checkpointer.save()
        finally:
            if self.stream is not None:
                await self.stream.close()
        log.info("stopped", drained=drained, queued=self.manager.pool.queued_events)


def _selection(config: Config, without: str = "") -> Selection:
    source = config.source
    hidden = [f'"{without.replace(chr(34), chr(34) * 2)}".*'] if without else []
    return Selection(
        tables=TablePatterns(source.tables, [*source.exclude_tables, *hidden]),
        tag_prefix=source.tag_message_prefix,
        tags_column=source.tags_column,
        soft_delete_columns=frozenset(source.soft_delete_columns),
        tag_rules=[TagRule(TablePatterns(rule.tables), rule.event_types, rule.tags) for rule in config.tag_rules],
    )


def _accepted_gap(resume: ResumePoint) -> Gap:
    now = datetime.now(UTC)
    first = Position(resume.gap_from or Lsn(0), 0)
    return Gap("", first, Position(resume.lsn, 0), 0, "accepted", now, now)
