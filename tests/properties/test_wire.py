"""The wire: any bytes are a message or a ValueError, and positions of 64 bits go there and back."""

from __future__ import annotations

import struct
from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from cdc.events import Position
from cdc.lsn import Lsn
from cdc.protocol import XLOG_DATA, XLOG_DATA_HEADER, PrimaryKeepalive, StandbyStatusUpdate, data_start

positions = st.integers(0, (1 << 64) - 1)
clocks = st.integers(-(1 << 63), (1 << 63) - 1)


@given(positions, clocks, st.integers(0, 255))
def test_every_keepalive_is_read(wal_end: int, clock: int, reply: int) -> None:
    """Over all of the 64 bits, whatever the server's clock says."""
    message = struct.pack("!cQqB", b"k", wal_end, clock, reply)

    assert PrimaryKeepalive.parse(message) == PrimaryKeepalive(Lsn(wal_end), reply_requested=reply != 0)
    assert PrimaryKeepalive.parse(memoryview(message)).wal_end == wal_end


@given(positions, positions, clocks, st.binary(max_size=50))
def test_every_xlogdata_has_its_start_and_its_payload(start: int, end: int, clock: int, payload: bytes) -> None:
    """The header has a fixed length, the payload any."""
    message = memoryview(struct.pack("!cQQq", b"w", start, end, clock) + payload)

    assert message[0] == XLOG_DATA
    assert data_start(message) == start
    assert message[XLOG_DATA_HEADER:] == payload


@given(st.binary(max_size=60) | st.binary(min_size=18, max_size=18) | st.binary(max_size=40).map(b"w".__add__))
def test_other_bytes_are_refused(message: bytes) -> None:
    """A position is never made of what is no message."""
    for read in (PrimaryKeepalive.parse, data_start):
        with suppress(ValueError):
            read(memoryview(message))
            assert (message[:1], len(message)) == (b"k", 18) or (message[:1] == b"w" and len(message) >= 25)


@given(positions, positions, st.booleans(), st.floats(-1e11, 1e11))
def test_every_status_update_can_be_sent(received: int, flushed: int, reply: bool, unix_time: float) -> None:
    """Any two positions: what the server reads is what was flushed, and never less received than that."""
    message = StandbyStatusUpdate(received, flushed, reply).encode(unix_time)
    kind, write, flush, apply, clock, asks = struct.unpack("!cQQQqB", message)

    assert (kind, write, flush, apply, asks) == (b"r", max(received, flushed), flushed, flushed, reply)
    assert abs(clock / 1e6 + 946_684_800 - unix_time) < 0.001


@given(positions, st.integers(0, 1 << 40))
def test_positions_print_and_parse(lsn: int, ordinal: int) -> None:
    """Text and back, as idempotency keys do."""
    position = Position(Lsn(lsn), ordinal)

    assert Lsn.parse(str(Lsn(lsn))) == lsn
    assert Position.parse(str(position)) == position


@given(st.text(max_size=20) | st.from_regex(r"[0-9A-Fa-f]{0,9}/[0-9A-Fa-f]{0,9}(:[0-9]{0,4})?"))
def test_other_text_is_no_position(text: str) -> None:
    """What is read prints the same again, but for case and leading zeros; all else is a ValueError."""
    with suppress(ValueError):
        assert int(Lsn.parse(text)) == int.from_bytes(
            b"".join(int(half, 16).to_bytes(4, "big") for half in text.split("/"))
        )
    with suppress(ValueError):
        parsed = Position.parse(text)
        assert Position.parse(str(parsed)) == parsed
