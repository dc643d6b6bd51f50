"""An ordinary connection to the source that is kept open to learn at once that the server is being stopped.

A fast stop ends it with SQLSTATE 57P01, and so does pg_terminate_backend; but a server that stops takes no
new connection. A smart stop ends nothing, it waits until all ordinary connections are gone: so this one is renewed
every now and then, and is given up where no new one is to be had. It must not know what it is used for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from time import monotonic
from typing import Any

import psycopg
from psycopg.errors import Diagnostic

from cdc.replication.connection import source_conninfo

__all__ = ["Lookout"]

RENEW_SECONDS = 30.0
"""What a smart stop waits for us at most; a connection in half a minute costs the server nothing."""
LAST_WORD_SECONDS = 1.0
"""A server that stops fast has signalled its backends before it refuses the first connection."""
TERMINATED = "57P01"
SHUTTING_DOWN = "shutting down"


class Lookout:
    """`connection` to use it, `watch` while it is not used; on one event loop, by one task.

    `stopping` is since when the server is known to be stopping fast, monotonic seconds, None while it is not.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = source_conninfo(dsn)
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._opened = 0.0
        self._watched: int | None = None  # the socket
        self._is_terminated = False
        self._is_turned_away = False  # without having been terminated: a smart stop
        self.stopping: float | None = None
        self.on_stopping: Callable[[], None] | None = None
        self.on_end: Callable[[], None] | None = None  # the connection has ended while it was watched

    async def connection(self) -> psycopg.AsyncConnection[Any]:
        """An open connection, not watched any more; psycopg.Error when the server gives none."""
        self.unwatch()
        if self._connection is None or monotonic() - self._opened >= RENEW_SECONDS:
            await self._renew()
        assert self._connection is not None  # noqa: S101 - `_renew` has made it or raised
        return self._connection

    async def failed(self, error: Exception) -> bool:
        """Give up the connection, on which something was not possible; whether the server has terminated it."""
        if isinstance(error, psycopg.Error) and error.sqlstate == TERMINATED:
            self._is_terminated = True
        await self.close()
        return self._is_terminated

    def watch(self) -> None:
        """Call `on_end` as soon as the server ends the connection."""
        if self._connection is not None and not self._connection.closed:
            self._watched = self._connection.pgconn.socket
            asyncio.get_running_loop().add_reader(self._watched, self._hear)

    def unwatch(self) -> None:
        """No longer; harmless when it was not watched."""
        if self._watched is not None:
            asyncio.get_running_loop().remove_reader(self._watched)
            self._watched = None

    async def close(self) -> None:
        """End the connection."""
        self.unwatch()
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _renew(self) -> None:
        """The new one first: if there is none, the old one tells whether the server stops fast."""
        try:
            connection = await psycopg.AsyncConnection.connect(self._dsn, autocommit=True)
        except psycopg.Error as error:
            await self._refused(str(error))
            raise
        connection.add_notice_handler(self._note)
        await self.close()
        self._connection, self._opened = connection, monotonic()
        self._is_terminated = self._is_turned_away = False
        self.stopping = None

    async def _refused(self, words: str) -> None:
        had_one = self._connection is not None
        await self._last_word()
        await self.close()
        unknown = not had_one and SHUTTING_DOWN in words and not self._is_turned_away
        if self._is_terminated or unknown:  # what cannot be told apart is taken for the stop that waits for us alone
            self._is_terminated = False
            if self.stopping is None:
                self.stopping = monotonic()
                if self.on_stopping is not None:
                    self.on_stopping()
        elif had_one:
            self._is_turned_away = True

    async def _last_word(self) -> None:
        """Wait until the server ends the old connection, but not for long."""
        ended = asyncio.Event()
        told, self.on_end = self.on_end, ended.set
        self.watch()
        try:
            async with asyncio.timeout(LAST_WORD_SECONDS):
                while self._watched is not None:
                    await ended.wait()
        except TimeoutError:
            pass
        finally:
            self.unwatch()
            self.on_end = told

    def _hear(self) -> None:
        """Something has come on a connection that asked nothing: a notice, or its end."""
        if self._connection is None:
            return
        pgconn, is_over = self._connection.pgconn, False
        try:
            pgconn.consume_input()
        except psycopg.Error:
            is_over = True
        with contextlib.suppress(psycopg.Error):
            pgconn.is_busy()  # libpq reads what has arrived, and hands the server's last word to `_note`
        if is_over or self._is_terminated:
            self.unwatch()
            if self.on_end is not None:
                self.on_end()

    def _note(self, diagnostic: Diagnostic) -> None:
        if diagnostic.sqlstate == TERMINATED:
            self._is_terminated = True
