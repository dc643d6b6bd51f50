"""From the stream to the pool: read what has arrived, decode it, make events, queue them; hold back when full.

Runs on the event loop as a reader callback; a batch is what one burst of reading gave, so that low
traffic waits for nothing. It must not know how the connection came about or what is written when.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cdc.errors import StreamLost
from cdc.messages import Decoder
from cdc.progress import Batch, Ledger
from cdc.replication import ReplicationStream
from cdc.signals import SignalManager
from cdc.transactions import Assembler

__all__ = ["Pump"]

BATCH_MESSAGES = 256
"""Messages per burst: enough to share out the cost of a batch, and a fraction of a millisecond of work."""
BATCH_BYTES = 1 << 20
"""Bytes per burst, so that wide rows do not pile up before the bounds of the queue are asked."""
EVENT_MEMORY = 2300
"""What an event takes in memory beside twice its text. Measured with a row of 8 columns (640 bytes) in the queue:
1.6 kB as text; 2.9 kB parsed with its head, or read; 3.6 kB where both, as it waits for a slower callback."""


class Pump:
    """Feeds one stream after the other into the manager; what was fed is remembered by assembler and ledger."""

    def __init__(self, assembler: Assembler, ledger: Ledger, manager: SignalManager) -> None:
        self._decoder: Decoder | None = None
        self._assembler = assembler
        self._ledger = ledger
        self._manager = manager
        self._stream: ReplicationStream | None = None
        self._failed: asyncio.Future[None] | None = None
        self._reading = False
        self._stopped = False
        self.on_reply_requested: Callable[[], None] | None = None
        self.idle_lsn = 0  # of the last keepalive outside a transaction
        self.frontier = assembler.frontier  # everything up to here is in the manager's hands

    @property
    def is_held_back(self) -> bool:
        """Whether reading waits for room in the queue."""
        return self._stream is not None and not self._reading

    async def run(self, stream: ReplicationStream, decoder: Decoder) -> None:
        """Read until the stream fails (StreamLost, DecodeError) or `stop` is called, or was before."""
        if self._stopped:
            return
        loop = asyncio.get_running_loop()
        self._assembler.reconnect()
        self._decoder, self._stream, self._failed = decoder, stream, loop.create_future()
        self._manager.on_room = self._resume
        stream.on_broken = self.give_up
        self._resume()
        try:
            await self._failed
        finally:
            self._manager.on_room = stream.on_broken = None
            self._pause()
            self._stream = None

    def stop(self) -> None:
        """Take nothing more, of no stream; the one that is open stays so for status updates."""
        self._stopped = True
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(None)

    def _resume(self) -> None:
        if self._stream is not None and not self._reading:
            self._reading = True
            loop = asyncio.get_running_loop()
            loop.add_reader(self._stream.socket, self._read)
            loop.call_soon(self._read)  # libpq may hold messages that have left the socket

    def give_up(self, error: StreamLost) -> None:
        """Leave the stream that is open now, as if it had been lost with this error."""
        if self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)

    def _pause(self) -> None:
        if self._stream is not None and self._reading:
            self._reading = False
            asyncio.get_running_loop().remove_reader(self._stream.socket)

    def _read(self) -> None:
        stream = self._stream
        if stream is None or not self._reading or self._failed is None or self._failed.done():
            return
        if self._hold_back():
            return
        try:
            if payloads := stream.read(BATCH_MESSAGES, BATCH_BYTES):
                self._take(payloads)
            self._hear(stream)
        except Exception as error:  # noqa: BLE001 - whatever it is ends this stream, and is raised by `run`
            self._failed.set_exception(error)
            self._pause()
            return
        if not self._hold_back() and stream.has_more:  # in libpq's memory: the selector knows nothing of it
            asyncio.get_running_loop().call_soon(self._read)

    def _hold_back(self) -> bool:
        """Stop reading while the queue is full; the server keeps the rest."""
        if not self._manager.has_room:
            self._pause()
        return not self._reading

    def _take(self, payloads: list[memoryview]) -> None:
        if self._decoder is None:
            return
        messages, error = self._decoder.decode_all(payloads)  # what came before an error is delivered still
        assembled = self._assembler.feed(messages, is_last=error is not None)
        if assembled.events or assembled.commits:
            memory = 2 * sum(map(len, payloads)) + EVENT_MEMORY * len(assembled.events)
            batch = Batch(assembled.events, assembled.commits, memory)
            self._manager.submit(batch)
            self._ledger.add(batch)
            self.frontier = self._assembler.frontier
        if error is not None:
            raise error

    def _hear(self, stream: ReplicationStream) -> None:
        """The last keepalive: everything it speaks of was taken before."""
        if (keepalive := stream.keepalive) is None:
            return
        stream.keepalive = None
        if not self._assembler.is_open:
            self.idle_lsn = max(self.idle_lsn, keepalive.wal_end)
        stream.note_received(max(self._assembler.commit_lsn, self.idle_lsn))
        if keepalive.reply_requested:
            stream.send_status()
            if self.on_reply_requested is not None:
                self.on_reply_requested()
