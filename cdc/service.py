"""The service: one slot, one state, one pool of callbacks, from start to a clean stop.

Connects, resumes where the checkpoint says, reconnects when the stream is lost, stops when going on
would lose events, and drains before it ends. What the parts do is theirs; here is who lives how long.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum
from time import monotonic

import structlog

from cdc.checkpoints import Checkpointer
from cdc.codes import Code
from cdc.config import Config
from cdc.consumer import Consumer
from cdc.enrolment import enrol
from cdc.errors import CdcError, ConfigError, DecodeError, StateBusy, StateError, StreamLost, is_retryable
from cdc.events import Position
from cdc.fence import Fence
from cdc.heartbeat import Heartbeat
from cdc.letters import DeadLetters
from cdc.lsn import Lsn
from cdc.monitor import Monitor
from cdc.orders import Order, obey
from cdc.progress import Ledger
from cdc.pump import Pump
from cdc.redelivery import Redelivery
from cdc.reload import Reloads
from cdc.replication import ReplicationConnection, ReplicationStream
from cdc.resume import ResumePoint
from cdc.session import Session, selection_of
from cdc.side_tasks import SideTasks
from cdc.signals import SignalManager
from cdc.state import CallbackState, Checkpoint, Gap, StateStore, StateThread, open_state
from cdc.transactions import Assembler, CommitMark
from cdc.unchanged import Unchanged

__all__ = ["Phase", "Service"]

log = structlog.get_logger("cdc.service")

BACKOFF_SECONDS = (0.1, 5.0)
"""First and longest wait between attempts to connect: a restarted server is back within seconds, and one
attempt in five seconds is no load on one that is not."""
STANDBY_SECONDS = 0.5
"""Between two attempts to become the state's owner: what a takeover may lose by it is no part of its 5 s."""
SHUTDOWN_SECONDS = 2.0
"""Once all is settled and reported, a server that is being stopped ends the stream itself, at once; where it does
not, the state lay in it and could not be written: then we leave."""
RECORD_SECONDS = 2.0
"""After the drain, for a removal that is not on record yet: the state takes it within milliseconds, or is away."""
LOOK_SECONDS = 0.25
"""How often is looked whether that server has all it waits for."""


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
        self.manager = SignalManager(config.signal)
        self.reloads = Reloads(config, self.manager)
        self.monitor = Monitor(config.source.dsn, config.source.slot, config.slot_guard)
        self.phase = Phase.STARTING
        self.started = monotonic()
        self.reconnects: Counter[str] = Counter()
        self.heartbeat = Heartbeat(config.source.dsn, config.signal.drain_timeout_seconds, self._cut)
        self.last_error = self.last_error_code = ""
        self.session: Session | None = None
        self.stream: ReplicationStream | None = None
        self.assembler: Assembler | None = None
        self.ledger: Ledger | None = None
        self.pump: Pump | None = None
        self.checkpointer: Checkpointer | None = None
        self.letters: DeadLetters | None = None
        self.missing_identity: Counter[str] = Counter()
        self.unchanged = Unchanged()
        self.undecodable = 0
        self._last_message: float | None = None
        self._received_bytes = 0  # over the streams that have ended
        self._accept_gap = accept_gap
        self._stopping = asyncio.Event()
        self._state = StateThread()
        self._fence = Fence(self._state)
        self._side = SideTasks()
        self._selection = selection_of(config)
        self._redelivery: Redelivery | None = None
        self._gaps: list[Gap] = []
        self._consumer = Consumer()
        self._patience = 1
        self._shares_wal: bool | None = None  # whether the state lies in the source's cluster; None: not known

    @property
    def config(self) -> Config:
        """What it runs with; a reload changes the handlers of it."""
        return self.reloads.config

    @property
    def is_connected(self) -> bool:
        """Whether there is a stream."""
        return self.stream is not None and self.phase is not Phase.STOPPED

    @property
    def received_bytes(self) -> int:
        """Bytes of the stream's messages, over all connections."""
        return self._received_bytes + (self.stream.received_bytes if self.stream is not None else 0)

    @property
    def last_message(self) -> float | None:
        """When the wire last brought something, monotonic seconds; None before the first connection."""
        return self.stream.last_message if self.stream is not None else self._last_message

    async def order(self, name: str, order: Order) -> CallbackState:
        """Do with a handler what an operator asks for: the state that it shall have, within a moment.

        CallbackError when the order means nothing, StateError while the state is not ours or cannot be written.
        """
        store = self._state.store
        if store is None or self._redelivery is None or self.phase in (Phase.DRAINING, Phase.STOPPED):
            raise StateError(f"this service is {self.phase.value}", hint="ask again once it streams")
        wanted = await self._state.run(obey, store, self.config, name, order)
        self._redelivery.look_soon()
        return wanted

    def stop(self) -> None:
        """Ask for a clean stop: drain, checkpoint, last status update."""
        self._stopping.set()

    def reload(self) -> None:
        """Ask for the file to be read again; what of it applies, and what comes of it, see `cdc.reload`."""
        self.reloads.request()

    async def run(self) -> None:
        """Until `stop`, or until a CdcError that ends the service; what was settled is saved in either case."""
        if not self.config.handlers:
            raise ConfigError(
                "the configuration has no handlers",
                hint='add a [[handlers]] section, e.g. callback = "console"',
                code=Code.HANDLERS_MISSING,
            )
        try:
            if (store := await self._own_state()) is not None:
                await self._run(store)
        finally:
            self.phase = Phase.STOPPED
            self._state.close()

    async def _own_state(self) -> StateStore | None:
        """Open the state, which waits as long as another service has it; None after `stop`."""
        while not self._stopping.is_set():
            if self.phase is Phase.STANDBY:
                await self.reloads.reload_if_wanted()
            try:
                return await self._state.run(open_state, self.config.state.url, owner=True)
            except StateBusy as busy:
                self._fence.owner_lives(busy)
                if self.phase is not Phase.STANDBY:
                    log.info("standby", held_by=busy.holder, hint="taking over when it ends")
                self.phase = Phase.STANDBY
            except StateError as error:
                if self.phase is not Phase.STANDBY:
                    raise
                log.debug("standby_waits", code=error.code, error=str(error))  # its server is away: for the owner, too
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
                self._fence.taken_over()
            self.manager.may_deliver = self._fence.is_open
            self.manager.on_broken = self._side.fail
            self.manager.on_batch = self.unchanged.take
            checkpoint = await self._state.run(store.load)
            await self._prepare(store, checkpoint)
            self._side.start("heartbeat", self.heartbeat.run())
            self._side.start("monitor", self.monitor.run())
            self._side.start("stream", self._stream_for_ever(store, checkpoint))
            await self._side.run_until(self._stopping)
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
        self._side.start("letters", self.letters.run())
        await self.letters.refresh()
        records = {record.name: record for record in await self._state.run(store.callbacks)}
        self._gaps += enrol(self.config, self.manager, records, checkpoint)
        await self.manager.open()
        self._redelivery = Redelivery(store, self._state, self.letters, self.manager)
        self._side.start("redelivery", self._redelivery.run())
        await self.reloads.begin(store, self._state, checkpoint, self._gaps)
        self._side.start("reload", self.reloads.run())
        self.monitor.on_server_stopping = lambda: self._side.start("server-stop", self._let_server_stop())

    async def _stream_for_ever(self, store: StateStore, checkpoint: Checkpoint | None) -> None:
        """Connect, stream, and again; ends by `stop`, or with an error that is not worth another attempt."""
        wait, longest = BACKOFF_SECONDS
        while not self._stopping.is_set():
            began = monotonic()
            try:
                await self._stream_once(store, checkpoint)
            except CdcError as error:
                if isinstance(error, DecodeError):
                    self.undecodable += 1
                    log.error("undecodable_message", code=error.code, lsn=str(Lsn(error.lsn)), structure=error.excerpt)  # noqa: TRY400
                if not is_retryable(error):
                    raise
                reason = getattr(error, "reason", "connection_lost")
                self.reconnects[reason] += 1
                if reason == "silent":  # was it only slow, it may need longer than that
                    self._patience *= 2
                self.monitor.look_soon()  # whether the slot is still worth an attempt
                if self.last_error != str(error):
                    log.warning("stream_lost", code=error.code, reason=reason, error=str(error))
                self.last_error, self.last_error_code = str(error), error.code
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
            self.phase, self.last_error, self.last_error_code = Phase.STREAMING, "", ""
            self._accept_gap = False
            log.info("streaming", slot=self.config.source.slot, start=str(session.resume.lsn))
            await self.pump.run(stream, self.unchanged.of(session.decoder, session.catalog))
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
            self._selection = selection_of(self.config, without=store.schema)

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
        self.reloads.pump, self.reloads.checkpointer = self.pump, self.checkpointer
        self.checkpointer.shares_wal = bool(self._shares_wal)
        self._check_positions(checkpoint, session)
        if resume.gap_from is not None:
            self._gaps.append(_accepted_gap(resume))
        for gap in self._gaps:
            self.checkpointer.note_gap(gap)
        self.pump.on_reply_requested = self.checkpointer.request
        await self.checkpointer.save()
        self._side.start("checkpoints", self.checkpointer.run())

    def _check_positions(self, checkpoint: Checkpoint | None, session: Session) -> None:
        """Positions inside a transaction count what the server sends: another selection, other ordinals."""
        if checkpoint is None or checkpoint.source.selection == session.source.selection:
            return
        log.warning("selection_changed", note="transactions after the checkpoint are delivered again, whole")
        for registration in self.manager.registry:
            registration.settled = None

    def _cut(self) -> None:
        if (stream := self.stream) is not None:
            stream.cut()

    async def _let_server_stop(self) -> None:
        """A server in its fast stop waits until we have confirmed all: at most as long as we would drain ourselves."""
        deadline = monotonic() + self.config.signal.drain_timeout_seconds
        while self.monitor.server_stopping is not None and self.stream is not None:
            if self.ledger is not None and self.ledger.is_settled:
                deadline = min(deadline, monotonic() + SHUTDOWN_SECONDS)
            if monotonic() >= deadline and self.pump is not None:
                self.pump.give_up(StreamLost("the server is being stopped", reason="server_shutdown"))
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def _drain(self, timeout: float | None = None) -> None:
        """Stop reading, let the callbacks finish what is queued, save, report, close."""
        self.phase = Phase.DRAINING
        self._stopping.set()  # whatever it was that ended us: no new connection
        if self.pump is not None:
            self.pump.stop()
        patience = self.config.signal.drain_timeout_seconds if timeout is None else timeout
        deadline = monotonic() + patience
        await self.reloads.finish(patience)
        drained = await self.manager.shutdown(max(deadline - monotonic(), 0))
        if self._redelivery is not None:
            await self._redelivery.close()
        if self.letters is not None and timeout is None:  # else the state is another's
            await self.letters.finish(RECORD_SECONDS)
        await self._side.close()
        await self.monitor.close()
        try:
            if self.checkpointer is not None:
                await self.checkpointer.save()
        finally:
            if self.stream is not None:
                await self.stream.close()
        log.info("stopped", drained=drained, queued=self.manager.pool.queued_events)


def _accepted_gap(resume: ResumePoint) -> Gap:
    now = datetime.now(UTC)
    first = Position(resume.gap_from or Lsn(0), 0)
    return Gap("", first, Position(resume.lsn, 0), 0, "accepted", now, now)
