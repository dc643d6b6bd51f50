"""The reload that SIGHUP asks for: the file is read again, and its handlers take the place of those that run.

All of it is validated before anything is touched (`cdc.exchange`), and what can still fail then, an `open`, is undone:
either every change of the handlers applies, or none. Owns what the running configuration is. It must not know signals,
and the stream only by how far it is.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum

import structlog

from cdc import logs
from cdc.callbacks import CallbackState, Registration
from cdc.checkpoints import Checkpointer
from cdc.config import Changes, Config, Fingerprint
from cdc.enrolment import absence, register
from cdc.errors import CdcError, ConfigError, StateBusy, StateError
from cdc.events import Position
from cdc.exchange import Exchange
from cdc.loading import code_of
from cdc.lsn import Lsn
from cdc.pump import Pump
from cdc.signals import GRACE_SECONDS, SignalManager
from cdc.state import CallbackRecord, Checkpoint, Gap, StateStore, StateThread
from cdc.terms import Terms

__all__ = ["Outcome", "Reloads", "Report"]

log = structlog.get_logger("cdc.reload")

BEGINNING = Position(Lsn(0), 0)


class Outcome(Enum):
    """How a reload ended; `value` is the word in logs, metrics and `/status`."""

    APPLIED = "applied"
    UNCHANGED = "unchanged"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Report:
    """One reload that is over. `waits`: keys of the file that only a restart applies."""

    time: datetime  # aware
    outcome: Outcome
    problems: Sequence[str] = ()
    waits: Sequence[str] = ()


class Reloads:
    """See the module. One reload at a time; what is asked for meanwhile is one more. `run` for ever, after `begin`."""

    def __init__(self, config: Config, manager: SignalManager) -> None:
        self.config = config
        self.last: Report | None = None
        self.counts: Counter[Outcome] = Counter()
        self.pump: Pump | None = None  # None: never connected so far
        self.checkpointer: Checkpointer | None = None
        self._manager = manager
        self._store: StateStore | None = None
        self._thread: StateThread | None = None
        self._checkpoint: Checkpoint | None = None
        self._gaps: list[Gap] = []
        self._imported: dict[str, str] = {}
        self._running = Fingerprint.of(config)
        self._wanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    def request(self) -> None:
        """Ask for a reload; returns at once."""
        if self._closing:
            self._refuse(["the service is being stopped"])
        else:
            self._wanted.set()

    async def begin(
        self, store: StateStore, thread: StateThread, checkpoint: Checkpoint | None, gaps: list[Gap]
    ) -> None:
        """The handlers are registered. `gaps`: what has been missed, put on record by whoever connects first."""
        self._store, self._thread, self._checkpoint, self._gaps = store, thread, checkpoint, gaps
        await self._note_configuration()

    async def run(self) -> None:
        """Reload whenever it is asked for."""
        self._task = asyncio.current_task()
        while True:
            await self._wanted.wait()
            await self.reload()

    async def reload_if_wanted(self) -> None:
        """Of a standby, which has no handlers yet."""
        if self._wanted.is_set():
            await self.reload()

    async def finish(self, seconds: float) -> None:
        """Begin no other; let the one in work come to its end, at most for so long."""
        self._closing = True
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        if self._task is not None and not self._idle.is_set():
            self._task.cancel()
            await asyncio.wait([self._task])

    async def reload(self) -> None:
        """Read the file and apply it, or say why not: `last` is the report."""
        self._wanted.clear()
        self._idle.clear()
        try:
            exchange = await Exchange.read(self.config.file, self._running, self._manager.config)
            if self._store is None:
                self.config = self._merged(exchange.config)
            elif not exchange.changes.is_empty:
                await self._apply(exchange)
        except StateBusy:
            raise
        except ConfigError as error:
            self._refuse(error.problems or [str(error)])
        except CdcError as error:
            self._refuse([str(error)])
        else:
            self._applied(exchange.changes)
        finally:
            self._idle.set()

    # Applying -----------------------------------------------------------------------------------------

    async def _apply(self, exchange: Exchange) -> None:
        """All of it or, with a CdcError, nothing."""
        by_name = {item.name: item for item in self._manager.registry if item.configured}
        added = {name: terms for name, terms in exchange.terms.items() if name in exchange.changes.added}
        records = await self._records() if added else {}
        async with self._manager.pool.exchanging:
            fresh = await self._open_added(added, records)
            changed = {by_name[name]: exchange.terms[name] for name in exchange.changes.changed}
            try:
                await self._exchange(changed)
            except CdcError:
                await self._give_up(fresh)
                raise
            leaving = [by_name[name] for name in exchange.changes.removed]
            self._route(fresh, records, leaving)
            self.config = self._merged(exchange.config)
            for registration in changed:
                await self._manager.pool.release(registration)
        await asyncio.gather(*map(self._part, leaving))
        await self._put_on_record()

    async def _records(self) -> dict[str, CallbackRecord]:
        assert self._thread is not None  # noqa: S101 - since `begin`
        assert self._store is not None  # noqa: S101
        return {record.name: record for record in await self._thread.run(self._store.callbacks)}

    async def _open_added(
        self, added: Mapping[str, Terms], records: Mapping[str, CallbackRecord]
    ) -> list[Registration]:
        """Register and open the new ones; nothing comes to them yet."""
        fresh: list[Registration] = []
        try:
            for name, terms in added.items():
                handle = register(self._manager, name, terms, records.get(name), routed=False)
                fresh += [item for item in self._manager.registry if item.id == handle.id]
                await self._open(fresh[-1])
        except CdcError:
            await self._give_up(fresh)
            raise
        return fresh

    async def _give_up(self, fresh: Sequence[Registration]) -> None:
        await self._manager.pool.close(fresh, GRACE_SECONDS)
        for registration in fresh:
            self._manager.pool.drop(registration)

    async def _open(self, registration: Registration) -> None:
        if registration.is_called:  # otherwise, whoever resumes it opens it
            await self._manager.open_one(registration)

    async def _exchange(self, changed: Mapping[Registration, Terms]) -> None:
        """Bring them to rest, and open them with new terms; they wait for `release`. If one fails, all go back."""
        pool, seconds = self._manager.pool, self._manager.config.drain_timeout_seconds
        before = {registration: registration.terms for registration in changed}
        await asyncio.gather(*(pool.hold(registration, seconds, GRACE_SECONDS) for registration in changed))
        opened = await self._reopen(changed)
        if failed := [error for error in opened if isinstance(error, CdcError)]:
            await pool.close(changed, GRACE_SECONDS)
            for registration, error in zip(changed, await self._reopen(before), strict=True):
                if error is not None:  # its next event tries again, and fails if need be
                    log.error("handler_not_reopened", callback=registration.name, error=str(error))
                await pool.release(registration)
            raise ConfigError("handlers cannot be opened", problems=[str(error) for error in failed])
        for registration in changed:
            if registration.state is CallbackState.ACTIVE:
                registration.consecutive_failures = 0

    async def _reopen(self, terms: Mapping[Registration, Terms]) -> list[BaseException | None]:
        for registration, its in terms.items():
            registration.adopt(its)
            self._manager.pool.add(registration)
        results = await asyncio.gather(*map(self._open, terms), return_exceptions=True)
        for result in results:
            if result is not None and not isinstance(result, CdcError):
                raise result
        return results

    def _route(
        self,
        fresh: Sequence[Registration],
        records: Mapping[str, CallbackRecord],
        leaving: Sequence[Registration],
    ) -> None:
        """From the next event on, what the stream brings goes to the new ones, and not to those that leave."""
        start = self._start()
        for registration in fresh:
            for gap in self._absence(registration.name, records.get(registration.name), start):
                self._note_gap(gap)
            registration.is_routed = True
        for registration in leaving:
            registration.is_routed = False
            registration.leaves_at = start or BEGINNING

    def _absence(self, name: str, record: CallbackRecord | None, start: Position | None) -> list[Gap]:
        """What it has missed: nothing where nothing was routed since it left, however far the slot has moved on."""
        is_up_to_date = record is not None and self.pump is not None and record.settled >= self.pump.frontier
        return [] if start is None or is_up_to_date else absence(name, record, start)

    def _start(self) -> Position | None:
        """Everything up to here was routed; None where nothing was ever."""
        if self.pump is None or self.checkpointer is None:
            return Position(self._checkpoint.flushed_lsn, 0) if self._checkpoint is not None else None
        saved = self.checkpointer.saved
        return max(self.pump.frontier, Position(saved.flushed_lsn, 0)) if saved is not None else self.pump.frontier

    def _note_gap(self, gap: Gap) -> None:
        if self.checkpointer is None:
            self._gaps.append(gap)
        else:
            self.checkpointer.note_gap(gap)

    async def _part(self, registration: Registration) -> None:
        """Let one that has left work off what it has, and put on record how far it has come."""
        name, seconds = registration.name, self._manager.config.drain_timeout_seconds
        parted = await self._manager.pool.part(registration, seconds, GRACE_SECONDS)
        if self.checkpointer is not None:
            self.checkpointer.note_left(name, parted.settled)
        if left := parted.undelivered:
            times = left[0].timestamp, left[-1].timestamp
            # Begins where the record ends, so that it grows if the handler returns.
            self._note_gap(Gap(name, parted.settled, left[-1].position, len(left), "not_configured", *times))
        log.info("handler_left", callback=name, settled=str(parted.settled), undelivered=len(left))

    async def _put_on_record(self) -> None:
        """Where everybody is now; if the state cannot be written, the next checkpoint tries again."""
        if self.checkpointer is not None:
            try:
                await self.checkpointer.save()
            except StateBusy:
                raise
            except StateError as error:
                log.warning("reload_not_on_record", error=str(error))
        await self._note_configuration()

    # What is known ------------------------------------------------------------------------------------

    async def _note_configuration(self) -> None:
        """For `cdc check --diff`, which asks the state."""
        for module, digest in map(code_of, self.config.handlers):
            self._imported.setdefault(module, digest)
        self._running = Fingerprint.of(self.config, self._imported)
        if self._store is None or self._thread is None:
            return
        try:
            await self._thread.run(self._store.note_configuration, self._running.to_json())
        except StateBusy:
            raise
        except StateError as error:
            log.warning("configuration_not_on_record", error=str(error))

    def _merged(self, new: Config) -> Config:
        """What runs from now on: of the file only what a reload applies."""
        level = self.config.log.model_copy(update={"level": new.log.level})
        if level != self.config.log:
            logs.set_level(new.log.level)
        kept = {name: getattr(new, name) for name in ("handlers", "python_path", "allowed_callbacks")}
        return self.config.model_copy(update={**kept, "log": level})

    def _applied(self, changes: Changes) -> None:
        outcome = Outcome.UNCHANGED if changes.is_empty else Outcome.APPLIED
        self._report(Report(datetime.now(UTC), outcome, waits=changes.restart))
        if changes.restart:
            log.warning("reload_waits_for_restart", keys=list(changes.restart))
        told = {key: value for key, value in changes.to_dict().items() if value and key != "restart"}
        log.info("reload_unchanged" if changes.is_empty else "reload_applied", **told)

    def _refuse(self, problems: Sequence[str]) -> None:
        self._report(Report(datetime.now(UTC), Outcome.REFUSED, tuple(problems)))
        log.error("reload_refused", problems=list(problems), hint="nothing was changed; cdc check --diff")

    def _report(self, report: Report) -> None:
        self.last = report
        self.counts[report.outcome] += 1
