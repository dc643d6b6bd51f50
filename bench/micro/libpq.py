"""In the place of libpq: a connection whose messages have all arrived. The rest of the stream is the real one."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Any

__all__ = ["Connection"]

_HEADER = struct.Struct("!cQQQ")


class Connection:
    """Has the few methods of psycopg's connection, and of its `pgconn`, that the stream calls."""

    def __init__(self, payloads: Sequence[bytes]) -> None:
        self._end, self._other_end = socket.socketpair()
        self.socket = self._end.fileno()
        self.pgconn = self
        self._messages = [_HEADER.pack(b"w", 1, 1, 1) + payload for payload in payloads]
        self._next = iter(self._messages)
        self._nothing = (0, memoryview(b""))

    def rewind(self) -> None:
        """All has arrived once more."""
        self._next = iter(self._messages)

    def get_copy_data(self, _asynchronous: int) -> tuple[int, memoryview]:
        """As libpq's: its own copy of the next message."""
        message = next(self._next, None)
        return self._nothing if message is None else (len(message), memoryview(message))

    def consume_input(self) -> None:
        """Nothing more arrives."""

    def put_copy_data(self, _data: bytes) -> None:
        """Nobody listens."""

    def put_copy_end(self) -> None:
        """The server ends the stream, too."""
        self._nothing = (-1, memoryview(b""))
        self._next = iter(())

    def flush(self) -> int:
        """All is sent."""
        return 0

    async def close(self) -> None:
        """The end."""
        self._end.close()
        self._other_end.close()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the stream now asks libpq for {name}: give it to {__name__}")
