"""The COPY stream: messages in, status updates out, on two threads.

The event loop reads. Status updates are sent by a thread of their own, on their own clock, so that
the server hears from us also while the loop is blocked by a callback or the reader is held back.
libpq connections are not thread-safe: one lock guards every use, and is never held while waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import pq

from cdc.errors import StreamLost
from cdc.protocol import XLOG_DATA, XLOG_DATA_HEADER, PrimaryKeepalive, StandbyStatusUpdate

__all__ = ["NoticeHandler", "ReplicationStream"]

NoticeHandler = Callable[[psycopg.errors.Diagnostic], None]

COPY_DONE_SECONDS = 3.0
"""How long the server may take to answer the end of the stream; closing the socket is safe too."""

SILENT_INTERVALS = 12
"""Status updates without an answer after which a connection that the kernel takes for alive counts as dead: two minutes
by default. A server that decodes a transaction of which nothing is for us may be silent for a while."""

LOOK_AGAIN_MESSAGES = 16
"""A burst of so many may have more behind it in the socket: looked for at once. After fewer it is the selector that
tells of more; a system call that finds nothing would be a part of every transaction's latency."""


class ReplicationStream:
    """An open stream of a slot. `read` on the event loop; status updates run by themselves."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], start: int, status_interval: float) -> None:
        self._connection = connection
        self._pg = connection.pgconn
        # A descriptor of our own: libpq closes its own as soon as it finds the connection dead, in either thread.
        # Then the selector would never say a word of it, and the number would soon be that of another socket.
        self.socket = os.dup(self._pg.socket)
        self.has_more = False  # `read` ended at its bounds, not because there was nothing more
        self._end: StreamLost | None = None  # why the stream has ended, to be raised by the next `read`
        self.on_broken: Callable[[StreamLost], None] | None = None  # called on the event loop
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._received = start
        self._flushed = 0  # 0/0 leaves the slot alone
        self.keepalive: PrimaryKeepalive | None = None
        self.received_bytes = 0
        self.last_message = time.monotonic()
        self.status_interval = status_interval
        self.silence_limit = SILENT_INTERVALS * status_interval
        self._thread = threading.Thread(target=self._send_for_ever, name="cdc-feedback", daemon=True)
        self._thread.start()

    @property
    def backend_pid(self) -> int:
        """The walsender's process id."""
        return self._pg.backend_pid

    @property
    def flushed(self) -> int:
        """The flushed LSN that was reported last; 0 before the first report."""
        return self._flushed

    def read(self, max_messages: int, max_bytes: int) -> list[memoryview]:
        """Payloads that have arrived, in order, as many as there are up to the bounds; never waits.

        `keepalive` is the last keepalive of the burst: all it speaks of is on the wire before it.
        StreamLost when the server has ended the stream.
        """
        with self._lock:
            payloads = [] if self._end is not None else self._gather(max_messages, max_bytes)
        if self._end is not None and not payloads:
            raise self._end
        return payloads

    def _gather(self, max_messages: int, max_bytes: int) -> list[memoryview]:
        """What `read` returns. At the end of the stream `_end` is set, and what arrived before is good."""
        payloads: list[memoryview] = []
        size = 0
        self.has_more = True
        get, may_have_more, lost = self._pg.get_copy_data, True, self._consume()
        try:
            while len(payloads) < max_messages and size < max_bytes:
                length, message = get(1)
                if length > 0:
                    size += length
                    if message[0] == XLOG_DATA:
                        payloads.append(message[XLOG_DATA_HEADER:])  # libpq's own copy: not copied again
                    else:
                        self._hear(PrimaryKeepalive.parse(message))
                    may_have_more = True
                elif length < 0 or lost is not None:
                    self._end = self._ended() if length < 0 else lost
                    break
                elif may_have_more and len(payloads) >= LOOK_AGAIN_MESSAGES:
                    lost = self._consume()
                    may_have_more = False
                else:
                    self.has_more = False
                    break
        except psycopg.Error as error:
            self._end = _lost(error)
        if size:
            self.received_bytes += size
            self.last_message = time.monotonic()
        return payloads

    def _consume(self) -> StreamLost | None:
        """Take what has arrived into libpq's memory; why nothing more will come. What came before lies there still."""
        try:
            self._pg.consume_input()
        except psycopg.Error as error:
            return _lost(error)
        return None

    def report(self, received: int, flushed: int) -> None:
        """Positions for the coming status updates, and one at once. `flushed` must be durable by now."""
        self._received = max(self._received, received)
        self._flushed = max(self._flushed, flushed)
        self.send_status()

    def note_received(self, received: int) -> None:
        """Position for the coming status updates."""
        self._received = max(self._received, received)

    def send_status(self, *, reply_requested: bool = False) -> None:
        """Send a status update now, from any thread. An error is not raised: `on_broken` is called."""
        update = StandbyStatusUpdate(self._received, self._flushed, reply_requested)
        try:
            with self._lock:
                if not self._closed.is_set():
                    self._pg.put_copy_data(update.encode(time.time()))
                    self._pg.flush()
        except psycopg.Error:
            # libpq may have closed the socket here, in this thread: then the selector will never say a word.
            self._break(StreamLost("a status update could not be sent", reason="connection_lost"))

    def _break(self, error: StreamLost) -> None:
        """From the feedback thread: the stream is of no more use."""
        self._closed.set()
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is on its way out
            self._loop.call_soon_threadsafe(self._tell_broken, error)

    def cut(self) -> None:
        """Shut the connection down, from any thread: the server sees its end, and `read` will raise StreamLost."""
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self.socket)) as end:
            end.shutdown(socket.SHUT_RDWR)

    def _tell_broken(self, error: StreamLost) -> None:
        if self.on_broken is not None:
            self.on_broken(error)

    async def close(self) -> None:
        """Send the last status update and the end of the stream; where the server answers, the slot is free then."""
        if not self._closed.is_set():
            self.send_status()
            try:
                async with asyncio.timeout(COPY_DONE_SECONDS):
                    await self._finish()
            except (TimeoutError, psycopg.Error):
                pass  # the server has gone, or is busy: closing the socket says the same
        self._closed.set()
        await self._connection.close()
        if self.socket >= 0:
            os.close(self.socket)
            self.socket = -1

    async def _finish(self) -> None:
        with self._lock:
            self._pg.put_copy_end()
            self._closed.set()
            self._pg.flush()
        await self._until(self._is_copy_over)
        await self._until(self._is_answered)  # the server frees the slot before it says that it is ready again

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Returns when what the server has sent makes `condition` true."""
        loop = asyncio.get_running_loop()
        while True:
            readable = loop.create_future()
            loop.add_reader(self.socket, _set, readable)
            try:
                with self._lock:
                    self._pg.consume_input()
                    if condition():
                        return
                await readable
            finally:
                loop.remove_reader(self.socket)

    def _is_copy_over(self) -> bool:
        length = 1
        while length > 0:
            length, _ = self._pg.get_copy_data(1)
        return length < 0

    def _is_answered(self) -> bool:
        while not self._pg.is_busy():
            if self._pg.get_result() is None:
                return True
        return False

    def _hear(self, keepalive: PrimaryKeepalive) -> None:
        self.keepalive = keepalive

    def _ended(self) -> StreamLost:
        """The server has ended the stream; the reason is in the result, if it gave one."""
        result = self._pg.get_result()
        if result is None or result.status != pq.ExecStatus.FATAL_ERROR:
            return StreamLost("the server has ended the stream", reason="server_shutdown")
        state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
        text = (result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"").decode("utf-8", "replace")
        return StreamLost(text or "the server has ended the stream", reason=state or "connection_lost")

    def _send_for_ever(self) -> None:
        while not self._closed.wait(self.status_interval):
            quiet = time.monotonic() - self.last_message
            self.send_status(reply_requested=quiet > self.status_interval)
            if quiet > self.silence_limit and not self._has_input():
                self._break(StreamLost(f"the server has not answered for {quiet:.0f} s", reason="silent"))

    def _has_input(self) -> bool:
        """Whether something waits to be read: then it is we who are silent, held back or blocked."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return bool(poll.poll(0))


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _lost(error: psycopg.Error) -> StreamLost:
    return StreamLost(" ".join(str(error).split())[:300], reason="connection_lost")
