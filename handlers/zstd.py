"""Compressed files: the optional library behind a face of our own.

Owns the import of `zstandard`, an extra that only those need who compress, and finds out whether a file is whole. It
must not know what is inside.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import zstandard

__all__ = ["TornFile", "compressor", "require_zstandard", "unpacked"]

UNPACKED_BYTES = 1 << 17  # held at once of what is unpacked: some hundred lines
HEADER_BYTES = 18  # of a frame at most (RFC 8878, 3.1.1.1)


class TornFile(Exception):
    """What is inside is damaged, or does not come to its end."""


def require_zstandard(what: str) -> None:
    """ModuleNotFoundError when there is no library; `what` needs it."""
    try:
        import zstandard  # noqa: F401, PLC0415
    except ModuleNotFoundError:
        text = f"{what}: zstandard is missing: pip install 'walsignal[file_wal]'"
        raise ModuleNotFoundError(text, name="zstandard") from None


def compressor(level: int, size: int) -> zstandard.ZstdCompressionObj:
    """For one frame of `size` bytes, with a checksum; both stand in the file."""
    import zstandard  # noqa: PLC0415

    return zstandard.ZstdCompressor(level=level, write_checksum=True).compressobj(size=size)


@contextmanager
def unpacked(file: BinaryIO) -> Iterator[BinaryIO]:
    """What is inside of a compressed file, from its beginning; reading raises TornFile."""
    import zstandard  # noqa: PLC0415

    try:
        size = zstandard.get_frame_parameters(file.read(HEADER_BYTES)).content_size
    except zstandard.ZstdError:
        raise TornFile from None
    file.seek(0)
    least = 0 if size == zstandard.CONTENTSIZE_UNKNOWN else size
    with zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=False) as stream:
        yield io.BufferedReader(_Whole(stream, least, zstandard.ZstdError), UNPACKED_BYTES)


class _Whole(io.RawIOBase):
    """The stream, with an error where the library takes a cut end for the end."""

    def __init__(self, stream: zstandard.ZstdDecompressionReader, least: int, broken: type[Exception]) -> None:
        self._stream = stream
        self._left = least
        self._broken = broken

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            read = self._stream.readinto(buffer)
        except self._broken:
            raise TornFile from None
        self._left -= read
        if not read and self._left > 0:
            raise TornFile
        return read
