"""Wire messages, against the bytes that the chapter "Streaming Replication Protocol" lays out."""

from __future__ import annotations

import pytest

from cdc.lsn import Lsn
from cdc.protocol import XLOG_DATA, XLOG_DATA_HEADER, PrimaryKeepalive, StandbyStatusUpdate, data_start

WAL_END = bytes.fromhex("00000016B374D848")
SENT = bytes.fromhex("0002C6D4A1B3F000")


def test_a_keepalive_is_read_byte_by_byte() -> None:
    """`k`, walEnd, sendTime, and whether an answer is wanted."""
    keepalive = PrimaryKeepalive.parse(b"k" + WAL_END + SENT + b"\x01")

    assert keepalive == PrimaryKeepalive(Lsn.parse("16/B374D848"), reply_requested=True)
    assert not PrimaryKeepalive.parse(b"k" + WAL_END + SENT + b"\x00").reply_requested


def test_a_keepalive_may_come_as_memoryview() -> None:
    """As libpq hands it over."""
    assert PrimaryKeepalive.parse(memoryview(b"k" + WAL_END + SENT + b"\x00")).wal_end == Lsn.parse("16/B374D848")


@pytest.mark.parametrize("message", [b"", b"k", b"w" + WAL_END + SENT + b"\x00", b"k" + WAL_END + SENT + b"\x00\x00"])
def test_what_is_no_keepalive_is_refused(message: bytes) -> None:
    """A message of another kind or length is an error, never a position."""
    with pytest.raises(ValueError, match="not a primary keepalive"):
        PrimaryKeepalive.parse(message)


def test_the_payload_of_xlogdata_begins_behind_its_header() -> None:
    """`w`, dataStart, walEnd, sendTime, and then what the plugin wrote."""
    message = memoryview(b"w" + WAL_END + WAL_END + SENT + b'{"action":"B"}')

    assert message[0] == XLOG_DATA
    assert bytes(message[XLOG_DATA_HEADER:]) == b'{"action":"B"}'
    assert data_start(message) == Lsn.parse("16/B374D848")


def test_a_status_update_has_34_bytes() -> None:
    """`r`, write, flush, apply, the client's clock since 2000, and whether an answer is wanted."""
    update = StandbyStatusUpdate(Lsn.parse("0/20"), Lsn.parse("0/10"), reply_requested=True)
    message = update.encode(unix_time=946_684_800.5)  # half a second into the year 2000

    numbers = (0x20, 0x10, 0x10, 500_000)
    assert message == b"r" + b"".join(number.to_bytes(8, "big") for number in numbers) + b"\x01"
    assert len(message) == 34


def test_write_is_never_reported_below_flush() -> None:
    """What is flushed was received; the server must not see it otherwise."""
    message = StandbyStatusUpdate(received=0, flushed=0x30).encode(946_684_800)

    assert message[1:9] == message[9:17] == (0x30).to_bytes(8, "big")


def test_positions_of_64_bits_fit() -> None:
    """The highest LSN there is, in both directions."""
    highest = (1 << 64) - 1
    message = StandbyStatusUpdate(highest, highest).encode(0)  # a clock before 2000 is negative, and fits as well

    assert message[1:9] == b"\xff" * 8


def test_wire_objects_print_for_the_log() -> None:
    """Positions as PostgreSQL prints them."""
    assert str(PrimaryKeepalive(Lsn(0x16_0000_0001), reply_requested=True)) == (
        "PrimaryKeepalive(wal_end=16/1, reply requested)"
    )
    assert str(StandbyStatusUpdate(0x20, 0x10)) == "StandbyStatusUpdate(received=0/20, flushed=0/10)"
