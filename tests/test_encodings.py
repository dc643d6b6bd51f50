"""Encodings of a database: what is not decoded exactly as PostgreSQL converts it is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest

from cdc.encodings import CODECS
from tests.conftest import Database

# Its own conversion to UTF-8, NULL of what it cannot convert.
CONVERT = """
CREATE FUNCTION as_text(bytes bytea, encoding text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    RETURN convert_from(bytes, encoding);
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END $$
"""


def characters(encoding: str) -> Iterator[bytes]:
    """All that may be one character: a byte, or in the encodings called EUC two with their highest bits set."""
    if not encoding.startswith("EUC_"):
        yield from (bytes([byte]) for byte in range(1, 256))
        return
    yield from (bytes([byte]) for byte in range(1, 128))
    yield from (bytes([lead, trail]) for lead in range(0x80, 0x100) for trail in range(0x80, 0x100))


@pytest.mark.parametrize("encoding", CODECS)
def test_every_character_is_decoded_as_postgresql_converts_it(database: Database, encoding: str) -> None:
    """And none that it can convert is missing: one such would stop the service."""
    database.execute(CONVERT)
    with database.connect() as connection:
        converted = connection.execute(
            "SELECT bytes, as_text(bytes, %s) FROM unnest(%s::bytea[]) bytes", [encoding, list(characters(encoding))]
        ).fetchall()
    different = {}
    for data, text in converted:
        decoded = None
        with suppress(UnicodeDecodeError):
            decoded = data.decode(CODECS[encoding])
        if text not in (None, decoded):
            different[data] = (text, decoded)

    assert different == {}
    assert sum(text is not None for _, text in converted) > 200


@pytest.mark.parametrize(
    ("encoding", "data"), [("EUC_JP", b"\xa1\xc1"), ("EUC_KR", b"\xa4\xd4\xa4\xa1\xa4\xbf\xa4\xd4")]
)
def test_encoding_that_python_reads_otherwise_is_refused(database: Database, encoding: str, data: bytes) -> None:
    """A wave dash for a full-width tilde; one syllable for four jamo."""
    ((text,),) = database.execute(f"SELECT convert_from('\\x{data.hex()}', '{encoding}')")

    assert data.decode(encoding) != text
    assert encoding not in CODECS
