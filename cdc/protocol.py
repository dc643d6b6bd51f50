"""The wire messages inside CopyData, as the chapter "Streaming Replication Protocol" lays them out.

Bytes to values and back, no I/O. All positions are "last byte + 1", all integers big-endian,
times microseconds since 2000-01-01 UTC.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cdc.lsn import Lsn

__all__ = ["XLOG_DATA", "XLOG_DATA_HEADER", "PrimaryKeepalive", "StandbyStatusUpdate", "data_start"]

XLOG_DATA = ord("w")
XLOG_DATA_HEADER = 25  # 'w', dataStart, walEnd, sendTime; the plugin's payload follows
_KEEPALIVE = struct.Struct("!cQqB")
_STATUS = struct.Struct("!cQQQqB")
_EPOCH_SECONDS = 946_684_800  # 2000-01-01 in Unix time


def data_start(message: memoryview) -> Lsn:
    """The dataStart field of an XLogData message; ValueError for anything else."""
    if len(message) < XLOG_DATA_HEADER or message[0] != XLOG_DATA:
        raise ValueError(f"not an XLogData message: {len(message)} bytes beginning with {bytes(message[:1])!r}")
    return Lsn(int.from_bytes(message[1:9], "big"))


@dataclass(frozen=True, slots=True)
class PrimaryKeepalive:
    """The server's ``k`` message. `wal_end`: everything up to here was decoded and is on the wire before it."""

    wal_end: Lsn
    reply_requested: bool

    @classmethod
    def parse(cls, message: bytes | memoryview) -> PrimaryKeepalive:
        """Read the 18 bytes of a ``k`` message; ValueError for anything else."""
        if len(message) != _KEEPALIVE.size or message[0] != ord("k"):
            raise ValueError(f"not a primary keepalive: {len(message)} bytes beginning with {bytes(message[:1])!r}")
        _, wal_end, _, reply = _KEEPALIVE.unpack(message)
        return cls(Lsn(wal_end), bool(reply))

    def __str__(self) -> str:
        return f"PrimaryKeepalive(wal_end={self.wal_end}{', reply requested' if self.reply_requested else ''})"


@dataclass(frozen=True, slots=True)
class StandbyStatusUpdate:
    """Our ``r`` message: what was received, and what is durably settled (0: nothing yet)."""

    received: int
    flushed: int
    reply_requested: bool = False

    def encode(self, unix_time: float) -> bytes:
        """The 34 bytes of the message; apply is set to flush, write is never below flush."""
        clock = int((unix_time - _EPOCH_SECONDS) * 1_000_000)
        received = max(self.received, self.flushed)
        return _STATUS.pack(b"r", received, self.flushed, self.flushed, clock, self.reply_requested)

    def __str__(self) -> str:
        return f"StandbyStatusUpdate(received={Lsn(self.received)}, flushed={Lsn(self.flushed)})"
