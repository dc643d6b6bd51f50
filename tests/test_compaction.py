"""Compressed segments of the event log: closed ones, in the background, and nothing is lost on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import zstandard
from structlog.testing import capture_logs

from cdc import DatabaseEvent
from cdc.config import HandlerConfig
from cdc.errors import CdcError, ConfigError
from cdc.loading import load_callback
from handlers import compaction
from handlers.compaction import compress
from handlers.file_wal import DamagedLog, FileWal, LogReader, read
from handlers.segments import range_of
from tests.running import wait_until
from tests.test_file_wal import event, events, file_wal, files, numbers, write

MANY = list(range(400))  # some dozen segments of 2 KiB
HIDDEN = 'import sys; sys.modules["zstandard"] = None; '  # as if it were not installed


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where the log will be; there is nothing yet."""
    return tmp_path / "wal"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that is closed compresses all that it has, however slow the machine is."""
    monkeypatch.setattr(compaction.Compactor.close, "__defaults__", (60.0,))


def zstd(directory: Path, *batches: Sequence[DatabaseEvent], **options: Any) -> FileWal:
    """A whole run of the handler with compression."""
    return write(directory, *batches, compression="zstd", segment_bytes=2048, **options)


def suffixes(directory: Path) -> set[str]:
    """Of what lies in the folder."""
    return {path.suffix for path in files(directory)}


def test_closed_segments_are_compressed_and_read_as_before(directory: Path) -> None:
    """The file is what `zstdcat` reads, for its owner only; its name tells its last position, too."""
    zstd(directory, events(*MANY))

    first = files(directory)[0]
    text = zstandard.ZstdDecompressor().stream_reader(first.read_bytes()).read()
    assert suffixes(directory) == {".zst"}
    assert first.stat().st_mode & 0o777 == 0o600
    assert text.startswith(b'{"crc32":"')
    assert len(text) > 2 * first.stat().st_size
    assert numbers(directory) == MANY
    last = json.loads(text.splitlines()[-1])["position"]
    assert str(range_of(first).last) == last
    assert str(range_of(first).first) == str(event(0).position)


def test_segment_in_work_is_plain(directory: Path) -> None:
    """What is settled lies there for `tail -f`, on the disk, before it is settled."""
    log = file_wal(directory, compression="zstd")
    log.open()
    with closing(log):
        log.handle_batch(events(1, 2))
        assert suffixes(directory) == {".jsonl"}
        assert numbers(directory) == [1, 2]

    assert suffixes(directory) == {".zst"}


def test_what_is_compressed_counts_as_written(directory: Path) -> None:
    """In the same run and in the next: neither again nor late."""
    log = file_wal(directory, compression="zstd", segment_bytes=2048)
    log.open()
    with closing(log):
        log.handle_batch(events(*MANY))
        wait_until(lambda: sum(path.suffix == ".zst" for path in files(directory)) > 10)
        log.handle_batch(events(*MANY))
        assert (log.duplicates, log.late) == (len(MANY), 0)
    again = zstd(directory, events(*range(100, 500)))

    assert numbers(directory) == list(range(500))
    assert (again.duplicates, again.late) == (300, 0)


def test_plain_segments_of_before_are_compressed(directory: Path) -> None:
    """When the option is turned on; turned off again, what is compressed stays and is read."""
    write(directory, events(*range(100)), segment_bytes=2048)
    zstd(directory, events(*range(100, 200)))
    assert suffixes(directory) == {".zst"}

    log = write(directory, events(*range(50, 250)), segment_bytes=2048)

    assert suffixes(directory) == {".zst", ".jsonl"}
    assert numbers(directory) == list(range(250))
    assert log.duplicates == 150


def test_kill_between_both_files_leaves_one(directory: Path) -> None:
    """The next start finds the plain one, the compressed one and half of another; each event counts once."""
    write(directory, events(1, 2), events(3))
    (plain,) = files(directory)
    content = plain.read_bytes()
    compressed = compress(range_of(plain), 3)
    assert compressed is not None
    (directory / f"{compressed.path.name}.part").write_bytes(b"half")
    assert numbers(directory) == [1, 2, 3]

    write(directory, events(3, 4))

    assert not plain.exists()
    assert numbers(directory) == [1, 2, 3, 4]
    assert suffixes(directory) == {".zst", ".jsonl"}

    plain.write_bytes(content.splitlines(keepends=True)[0])  # somebody's own: another content is not thrown away
    write(directory)
    assert plain.exists()
    assert numbers(directory) == [1, 2, 3, 4]


def test_file_that_is_not_read_back_whole_replaces_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that writes something else: the plain segment stays, and no half file."""
    write(directory, events(1, 2))
    (plain,) = files(directory)
    monkeypatch.setattr(os, "fsync", lambda descriptor: os.ftruncate(descriptor, 30))

    with pytest.raises(OSError, match="not read back"):
        compress(range_of(plain), 3)

    assert files(directory) == [plain]


def test_full_disk_leaves_the_segment_plain(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said, nothing fails, and the next start tries again."""

    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, capture_logs() as logged:
        patch.setattr(compaction, "compressor", no_room)
        zstd(directory, events(*range(50)))
    assert suffixes(directory) == {".jsonl"}
    assert {(entry["event"], entry["error"]) for entry in logged} == {
        ("segment_not_compressed", "OSError: [Errno 28] No space left on device")
    }

    zstd(directory, events(*range(60)))

    assert suffixes(directory) == {".zst"}
    assert numbers(directory) == list(range(60))


def test_close_does_not_wait_for_all_that_is_left(directory: Path) -> None:
    """A stop has little time: what is in work is given up, and stays plain."""
    write(directory, events(1, 2))
    (plain,) = files(directory)
    ending = Event()
    ending.set()

    assert compress(range_of(plain), 19, ending) is None

    assert files(directory) == [plain]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_damaged_file_is_told(directory: Path, damage: str) -> None:
    """Also where it is cut off between two blocks, which the library takes for its end."""
    zstd(directory, events(*range(20)))
    first = files(directory)[0]
    data = first.read_bytes()
    wrong = {"cut": data[:-7], "flipped": bytes([*data[:-9], data[-9] ^ 4, *data[-8:]]), "empty": b"", "other": b"{}\n"}
    first.write_bytes(wrong[damage])

    with pytest.raises(DamagedLog, match=f"{first} is damaged") as caught:
        list(LogReader([directory]))

    assert caught.value.path == first


def test_reader_follows_a_segment_that_is_compressed_meanwhile(directory: Path) -> None:
    """The names were known before; the file lies elsewhere now."""
    write(directory, events(1, 2))
    write(directory, events(3))
    reader, records = LogReader([directory]), read(files(directory))
    zstd(directory)

    assert [one.id for one in reader] == [1, 2, 3]
    assert [record["id"] for record in records] == [1, 2, 3]
    assert suffixes(directory) == {".zst"}


def test_compression_without_the_library_is_an_error_of_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the extra; without the option nobody misses it."""
    monkeypatch.setitem(sys.modules, "zstandard", None)
    options = {"directory": "wal", "compression": "zstd"}

    with pytest.raises(ConfigError) as caught:
        load_callback(HandlerConfig(name="log", callback="file_wal", options=options), tmp_path)

    assert "pip install 'walsignal[file_wal]'" in str(caught.value.problems)
    assert load_callback(HandlerConfig(name="log", callback="file_wal", options={"directory": "wal"}), tmp_path)


def test_compressed_log_without_the_library_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the writer at `open`, as it could not look up what is written, and by the reader."""
    zstd(directory, events(*MANY))
    monkeypatch.setitem(sys.modules, "zstandard", None)

    with pytest.raises(ModuleNotFoundError, match=r"walsignal\[file_wal\]"):
        write(directory)
    with pytest.raises(ModuleNotFoundError, match=r"walsignal\[file_wal\]"):
        list(LogReader([directory]))


def test_handler_is_imported_without_the_library() -> None:
    """In an interpreter that never had it."""
    code = HIDDEN + "import handlers.file_wal"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_reader_puts_segments_in_order_and_folders_as_they_are_given(tmp_path: Path) -> None:
    """Whatever the shell made of a wildcard; what is named twice is read once."""
    one, other = tmp_path / "one", tmp_path / "other"
    write(one, events(*range(50)), segment_bytes=2048)
    write(other, events(*range(50, 60)))
    copy = tmp_path / "copy"
    copy.write_bytes(files(other)[0].read_bytes())

    reader = LogReader([*reversed(files(one)), other, files(one)[0], copy])

    assert [one.id for one in reader] == [*range(60), *range(50, 60)]
    assert reader.done_bytes == reader.total_bytes == reader.read_bytes


@pytest.mark.parametrize("content", [b"hello\n", b'{"id":1}\n'])
def test_reader_refuses_what_is_no_log(tmp_path: Path, content: bytes) -> None:
    """A file without one whole line, a folder without a segment, and nothing at all."""
    file = tmp_path / "notes.txt"
    file.write_bytes(content)
    for source, text in ((file, "holds no event"), (tmp_path, "no segment"), (tmp_path / "x", "not there")):
        with pytest.raises(CdcError, match=text):
            list(LogReader([source]))
