"""The `file_wal` handler: what it reports as settled is in the log, once, whatever happens to the process."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from structlog.testing import capture_logs

from cdc.config import HandlerConfig
from cdc.errors import ConfigError
from cdc.events import DatabaseEvent, Position
from cdc.exact import load_event
from cdc.failures import PermanentError
from cdc.loading import load_callback
from cdc.lsn import Lsn
from handlers.file_wal import DamagedLog, FileWal, FileWalOptions, LogReader, read

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)

WRITER = """
import random, sys
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from cdc import DatabaseEvent, Lsn, Position
from handlers.file_wal import FileWal, FileWalOptions

def event(number):
    position, time = Position(Lsn(1000 + number // 3), number % 3 + 1), datetime(2026, 1, 2, tzinfo=UTC)
    return DatabaseEvent.of("create", "t", {"n": number}, id=number, position=position, timestamp=time)

log = FileWal(FileWalOptions(directory=sys.argv[1], segment_bytes="32KiB", compression=sys.argv[3]))
log.open()
number = int(sys.argv[2])
while True:
    batch = [event(number + i) for i in range(random.randint(1, 100))]
    log.handle_batch(batch)
    number += len(batch)
    print(number - 1, flush=True)
"""


def event(number: int, *, cluster: int = 0, **payload: Any) -> DatabaseEvent:
    """The number-th event: three to a transaction, and a transaction every second."""
    time = NOON + timedelta(days=cluster, seconds=number // 3)
    position = Position(Lsn(0x1_0000_0000 + 8 * (number // 3)), number % 3 + 1)
    return DatabaseEvent.of("create", "users", {"n": number, **payload}, id=number, position=position, timestamp=time)


def events(*numbers: int) -> list[DatabaseEvent]:
    """The events of these numbers."""
    return [event(number) for number in numbers]


def numbers(directory: Path) -> list[int]:
    """The numbers of the events in the log, as they stand."""
    return [record["id"] for record in read(directory)]


def files(directory: Path) -> list[Path]:
    """The segments in the order of their names."""
    return sorted(directory.iterdir())


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where the log will be; there is nothing yet."""
    return tmp_path / "wal"


def file_wal(directory: Path, **options: Any) -> FileWal:
    """The handler, not open."""
    return FileWal(FileWalOptions(directory=directory, **options))


Opened = Callable[..., FileWal]


@pytest.fixture
def opened(directory: Path) -> Iterator[Opened]:
    """Opens the log in `directory`; what the test leaves open is closed."""
    logs: list[FileWal] = []

    def open_(**options: Any) -> FileWal:
        log = file_wal(directory, **options)
        log.open()
        logs.append(log)
        return log

    yield open_
    for log in logs:
        log.close()


def write(directory: Path, *batches: Sequence[DatabaseEvent], **options: Any) -> FileWal:
    """A whole run of the handler: open, the batches, close."""
    log = file_wal(directory, **options)
    log.open()
    with closing(log):
        for batch in batches:
            log.handle_batch(batch)
    return log


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size`: writing fails as on a full disk, also half-way."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# --- what is written


def test_events_come_back_as_they_were_written(directory: Path) -> None:
    """All fields, exact numbers included, in order."""
    written = [event(1, amount=Decimal("1.10"), big=2**70, text="a\nb\u2028"), event(2), event(4)]
    write(directory, written[:2], written[2:])

    records = list(read(directory))

    assert records == [json.loads(one.to_json()) for one in written]
    assert records[0]["payload"] == {"n": 1, "amount": "1.10", "big": 2**70, "text": "a\nb\u2028"}


def test_line_is_json_with_its_checksum(directory: Path) -> None:
    """As jq reads it; the checksum is of what follows its comma."""
    write(directory, events(1))

    (line,) = files(directory)[0].read_bytes().splitlines()

    assert line.startswith(b'{"crc32":"')
    assert json.loads(line)["crc32"] == f"{crc32(line[20:]):08x}"
    assert b"{" + line[20:] == event(1).to_json()[:-1] + b',"types":{}}'


def test_values_come_back_in_their_types(directory: Path) -> None:
    """By `load_event`, which knows the line as it is."""
    written = event(1, amount=Decimal("1.10"), at=NOON, data=b"\\x00", many=[Decimal("NaN"), None])
    write(directory, [written])

    got = load_event(files(directory)[0].read_bytes())

    assert repr(got.to_dict()) == repr(written.to_dict())


def test_log_of_an_older_version_is_read_and_continued(directory: Path) -> None:
    """Its lines have no types: values are those of JSON, and events count as written."""
    directory.mkdir()
    old = [event(1, amount=Decimal("1.10")), event(2)]
    lines = [one.to_json()[1:] for one in old]
    (directory / "0000000001-0000000100000000-0000000002.jsonl").write_bytes(
        b"".join(b'{"crc32":"%08x",%b\n' % (crc32(line), line) for line in lines)
    )

    log = write(directory, [*old, event(3)])

    assert numbers(directory) == [1, 2, 3]
    assert log.duplicates == 2
    assert [one.payload for one in LogReader([directory])] == [{"n": 1, "amount": "1.10"}, {"n": 2}, {"n": 3}]


def test_segment_is_named_after_its_first_event(directory: Path) -> None:
    """Names sort in the order of writing; files and folder are for their owner only."""
    write(directory, events(1, 2))
    write(directory, events(3))

    assert [path.name for path in files(directory)] == [
        "0000000001-0000000100000000-0000000002.jsonl",
        "0000000002-0000000100000008-0000000001.jsonl",
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files(directory)} == {0o600}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_segments_end_at_their_size(directory: Path) -> None:
    """None is longer, unless it is one event alone; none is without one."""
    many = [event(number, text="x" * (100 if number % 10 else 5000)) for number in range(200)]
    write(directory, many[:77], many[77:], segment_bytes="4KiB")

    lines = [path.read_bytes().count(b"\n") for path in files(directory)]

    assert len(lines) > 30
    assert min(lines) == 1
    assert all(path.stat().st_size <= 4096 for path, lines_ in zip(files(directory), lines, strict=True) if lines_ > 1)
    assert numbers(directory) == list(range(200))


def test_segments_end_at_their_age(opened: Opened, directory: Path) -> None:
    """The next batch after it begins another."""
    log = opened(segment_seconds=1e-9)
    for number in range(3):
        log.handle_batch(events(number))

    assert len(files(directory)) == 3
    assert numbers(directory) == [0, 1, 2]


def test_batch_is_on_the_disk_when_it_is_settled(
    opened: Opened, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file before `handle_batch` returns, and its name when it is new."""
    synced: list[Path] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    log = opened()
    monkeypatch.setattr(os, "fsync", watched)
    log.handle_batch(events(1, 2))
    log.handle_batch(events(3))

    (file,) = files(directory)
    assert synced == [directory, file, file]


def test_fsync_can_be_left_to_the_kernel(opened: Opened, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For logs that need not outlive the machine."""
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("fsync was called"))
    opened(fsync=False).handle_batch(events(1))

    assert numbers(directory) == [1]


def test_empty_batch_makes_no_segment(opened: Opened, directory: Path) -> None:
    """Nothing to say leaves no file."""
    opened().handle_batch([])

    assert files(directory) == []


# --- once


def test_delivered_twice_is_written_once(opened: Opened, directory: Path) -> None:
    """The same batch again, and one that overlaps it."""
    log = opened()
    log.handle_batch(events(1, 2, 3))
    log.handle_batch(events(1, 2, 3))
    log.handle_batch(events(2, 3, 4))

    assert numbers(directory) == [1, 2, 3, 4]
    assert (log.duplicates, log.late) == (5, 0)


def test_next_run_knows_what_is_written(directory: Path) -> None:
    """Also when it lies some segments back."""
    write(directory, events(*range(100)), segment_bytes="2KiB")
    log = write(directory, events(*range(10, 50)), events(*range(50, 120)))

    assert numbers(directory) == list(range(120))
    assert (log.duplicates, log.late) == (90, 0)


def test_same_event_twice_in_a_batch_is_written_once(directory: Path) -> None:
    """Even before anything of the batch is on the disk."""
    write(directory, events(1, 2, 2, 1, 3))

    assert numbers(directory) == [1, 2, 3]


def test_retried_dead_letter_is_written_late(directory: Path) -> None:
    """It stands before the end of the log but is not in it: nobody may take it for written."""
    with capture_logs() as logged:
        log = write(directory, events(1, 2, 7, 8), events(4, 5), events(9), events(5, 4, 9, 1))

    assert numbers(directory) == [1, 2, 7, 8, 4, 5, 9]
    assert (log.late, log.duplicates) == (2, 4)
    assert [(entry["event"], entry["log_level"]) for entry in logged] == [("event_written_late", "warning")]
    assert write(directory, events(1, 2, 4, 5, 7, 8, 9)).duplicates == 7


def test_events_of_another_cluster_are_not_taken_for_written(directory: Path) -> None:
    """Its positions may be lower, or the same; its commit times are not."""
    write(directory, events(1, 2, 3))
    other = [event(number, cluster=1) for number in (1, 2, 3, 4)]
    write(directory, other)
    write(directory, other)

    assert numbers(directory) == [1, 2, 3, 1, 2, 3, 4]


def test_event_without_a_position_is_refused(opened: Opened) -> None:
    """Made by hand: it could not be told from the next one."""
    with pytest.raises(PermanentError, match="event 5 has no position"):
        opened().handle_batch([DatabaseEvent.of("create", "t", {}, id=5)])


def test_attempts_at_once_are_written_once(opened: Opened, directory: Path) -> None:
    """An attempt that was given up may still be at it when its retry comes."""
    log = opened(segment_bytes="4KiB")
    batches = [events(*range(number, number + 50)) for number in range(0, 500, 50)]
    with ThreadPoolExecutor(4) as pool:
        for batch in batches:
            list(pool.map(log.handle_batch, [batch] * 4))

    assert numbers(directory) == list(range(500))


def test_segments_of_others_may_go(directory: Path) -> None:
    """Closed segments are deleted or compressed by whoever likes; other files are left alone."""
    write(directory, events(*range(100)), segment_bytes="2KiB")
    for path in files(directory)[:-2]:
        path.rename(path.with_name(f"{path.name}.gz"))
    (directory / "notes.txt").write_text("by hand")

    write(directory, events(*range(95, 103)))

    assert numbers(directory)[-5:] == [98, 99, 100, 101, 102]


def test_segment_that_goes_while_open_is_no_error(opened: Opened, directory: Path) -> None:
    """What was in it counts as not written."""
    log = opened(segment_bytes="2KiB")
    log.handle_batch(events(*range(50)))
    files(directory)[0].unlink()

    log.handle_batch(events(0))

    assert numbers(directory)[-1] == 0


# --- after a crash


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_kill_loses_nothing_settled_and_writes_nothing_twice(directory: Path, compression: str) -> None:
    """SIGKILL in a loop of batches, and events delivered again from before what was settled."""
    settled, start = 0, 1
    for round_ in range(8):
        command = [sys.executable, "-c", WRITER, str(directory), str(start), compression]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(3 + 10 * round_):
                settled = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            settled = int((writer.stdout.read().splitlines() or [str(settled)])[-1])
        start = max(settled - 150, 1)

    write(directory)
    found = numbers(directory)

    assert found[:settled] == list(range(1, settled + 1))
    assert found == list(range(1, len(found) + 1))
    assert len(files(directory)) > 8


def test_torn_tail_is_cut_off(directory: Path) -> None:
    """Wherever the last line ends, the lines before it stay, and the event comes again."""
    write(directory, events(1, 2, 3))
    (file,) = files(directory)
    whole = file.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for torn in range(1, last):
        file.write_bytes(whole[:-torn])
        assert numbers(directory) == [1, 2]  # a reader takes it for one that is being written

        with capture_logs() as logged:
            log = write(directory)

        assert numbers(directory) == [1, 2]
        assert log.torn_bytes == last - torn
        assert [(entry["event"], entry["bytes"]) for entry in logged] == [("torn_tail_cut_off", last - torn)]

    write(directory, events(2, 3, 4))
    assert numbers(directory) == [1, 2, 3, 4]


@pytest.mark.parametrize("tail", [bytes(4096), b"\n\n\n", b"\x00\n" * 9, b'{"id":1}\n'], ids=repr)
def test_rubbish_at_the_end_is_cut_off(directory: Path, tail: bytes) -> None:
    """As a power cut leaves it: of several lines, but none of them whole."""
    write(directory, events(1, 2, 3))
    with files(directory)[0].open("ab") as file:
        file.write(tail)

    log = write(directory, events(4))

    assert numbers(directory) == [1, 2, 3, 4]
    assert log.torn_bytes == len(tail)


def test_segment_without_a_whole_line_goes(directory: Path) -> None:
    """A process killed between making a segment and writing to it; what is before is checked in its place."""
    write(directory, events(1, 2, 3))
    (directory / "0000000002-0000000100000008-0000000002.jsonl").touch()
    (directory / "0000000003-0000000100000010-0000000001.jsonl").write_bytes(b'{"crc32":')

    log = write(directory, events(3, 4))

    assert numbers(directory) == [1, 2, 3, 4]
    assert len(files(directory)) == 2
    assert log.torn_bytes == 9


def damage(path: Path, line: int) -> None:
    """Turn one bit in a line."""
    lines = path.read_bytes().splitlines(keepends=True)
    middle = len(lines[line]) // 2
    lines[line] = lines[line][:middle] + bytes([lines[line][middle] ^ 1]) + lines[line][middle + 1 :]
    path.write_bytes(b"".join(lines))


def test_damaged_line_is_told_to_the_reader(directory: Path) -> None:
    """File, line and byte; what stands before it is given first."""
    write(directory, events(1, 2, 3))
    (file,) = files(directory)
    offset = len(file.read_bytes().splitlines(keepends=True)[0])
    damage(file, 1)

    records = read(directory)
    assert next(records)["id"] == 1
    with pytest.raises(DamagedLog, match=rf"{file} is damaged in line 2, at byte {offset}") as caught:
        next(records)

    assert (caught.value.path, caught.value.line, caught.value.offset) == (file, 2, offset)


def test_damage_inside_the_last_segment_is_not_cut_off(directory: Path) -> None:
    """Whole lines follow, and they were settled: an operator decides."""
    write(directory, events(1, 2, 3))
    damage(files(directory)[0], 1)
    before = files(directory)[0].read_bytes()

    with pytest.raises(DamagedLog, match="line 2"):
        write(directory)

    assert files(directory)[0].read_bytes() == before


@pytest.mark.parametrize("rotten", [True, False])
def test_torn_end_of_an_earlier_segment_is_damage(directory: Path, rotten: bool) -> None:
    """It was whole when the next one began."""
    write(directory, events(1, 2))
    write(directory, events(3))
    first, _ = files(directory)
    first.write_bytes(first.read_bytes()[:-5] if rotten else b"")

    with pytest.raises(DamagedLog, match=f"{first} is damaged in line {2 if rotten else 1}"):
        write(directory)


def test_last_line_longer_than_a_look_is_found(directory: Path) -> None:
    """The end of a segment is looked for backwards, as far as needed."""
    write(directory, [event(1), event(2, text="x" * 1_000_000)])
    write(directory, [event(3, text="x" * 300_000)])

    log = write(directory, events(3, 2, 1, 4))

    assert (log.duplicates, log.late) == (3, 0)


def test_read_takes_files_in_the_order_given(directory: Path) -> None:
    """A single one, or several."""
    write(directory, events(1, 2))
    write(directory, events(3))
    first, second = files(directory)

    assert [record["id"] for record in read(second)] == [3]
    assert [record["id"] for record in read([second, first])] == [3, 1, 2]


# --- when the disk fails


def test_full_disk_leaves_nothing_of_the_batch(opened: Opened, directory: Path) -> None:
    """It raises, the batch is not in the log, also not in half; with room again its retry is written whole."""
    log = opened()
    log.handle_batch(events(1, 2))
    size = files(directory)[0].stat().st_size
    with largest_file(size + 500):
        for _ in range(2):
            with pytest.raises(OSError, match="File too large"):
                log.handle_batch(events(*range(3, 50)))
            assert numbers(directory) == [1, 2]

    log.handle_batch(events(*range(3, 50)))
    assert numbers(directory) == list(range(1, 50))
    assert log.late == 0


def test_part_of_a_failed_batch_in_a_closed_segment_stays_once(opened: Opened, directory: Path) -> None:
    """A batch that fails after a segment was full: its retry writes the rest."""
    log = opened(segment_bytes=2000)
    with largest_file(2100), pytest.raises(OSError, match="File too large"):
        log.handle_batch([*events(*range(30)), event(30, text="x" * 5000)])

    log.handle_batch([*events(*range(30)), event(30, text="x" * 5000)])

    assert numbers(directory) == list(range(31))
    assert log.duplicates > 0


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_failed_fsync_is_not_trusted_the_second_time(
    opened: Opened, directory: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    """The kernel reports it once and forgets: the retry writes the batch anew instead of syncing again.

    Taking back what was written may fail as well, and is tried again before anything else.
    """
    log = opened()
    log.handle_batch(events(1))
    fsync, calls = os.fsync, count(1)

    def failing(descriptor: int) -> None:
        if next(calls) <= failures:
            raise OSError(5, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    for _ in range(2 if failures == 3 else 1):
        with pytest.raises(OSError, match="Input/output"):
            log.handle_batch(events(2, 3))
    assert numbers(directory) == [1]

    log.handle_batch(events(2, 3))

    assert numbers(directory) == [1, 2, 3]
    assert [path.read_bytes().count(b"\n") for path in files(directory)] == [1, 2]


def test_close_after_a_failure_leaves_only_what_is_settled(opened: Opened, directory: Path) -> None:
    """The failed batch is somebody else's to give again."""
    log = opened()
    log.handle_batch(events(1))
    with largest_file(1000), pytest.raises(OSError, match="File too large"):
        log.handle_batch(events(*range(2, 50)))
    log.close()

    assert numbers(directory) == [1]


def test_event_that_cannot_be_written_fails_its_batch(opened: Opened, directory: Path) -> None:
    """A value without a JSON form: nothing of the batch is written, and the next batch is."""
    log = opened()
    with pytest.raises(PermanentError, match="event 1/0:3 has no JSON form: TypeError"):
        log.handle_batch([event(1), event(2, value=object())])
    log.handle_batch(events(1))

    assert numbers(directory) == [1]
    assert len(files(directory)) == 1


# --- who may write, and with which options


def test_second_writer_is_refused(opened: Opened, directory: Path) -> None:
    """Two would each write what the other has; after the first has closed, the second may open."""
    first = opened()
    second = file_wal(directory)
    with pytest.raises(RuntimeError, match="another handler writes to"):
        second.open()

    first.close()
    second.open()
    second.close()


def test_open_can_be_tried_again(opened: Opened, directory: Path) -> None:
    """After a failure, and also when it is open already."""
    write(directory, events(1, 2, 3))
    damage(files(directory)[0], 0)
    log = file_wal(directory)
    with closing(log):
        for _ in range(2):
            with pytest.raises(DamagedLog):
                log.open()
        files(directory)[0].unlink()
        log.open()
        log.open()
        log.handle_batch(events(4))

    assert numbers(directory) == [4]


def test_closed_log_takes_nothing(opened: Opened) -> None:
    """Closing twice is harmless; handling before `open` or after `close` is an error."""
    log = opened()
    log.close()
    log.close()

    with pytest.raises(RuntimeError, match="is not open"):
        log.handle_batch(events(1))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "options.directory: is missing"),
        ({"directory": "w", "segment_bytes": "lots"}, "options.segment_bytes: not a size such as 64MiB"),
        ({"directory": "w", "segment_bytes": -1}, "options.segment_bytes: not a size"),
        ({"directory": "w", "segment_seconds": 0}, "options.segment_seconds: must be more than 0"),
        ({"directory": "w", "fsync": "perhaps"}, "options.fsync: "),
        ({"directory": "w", "compression": "gzip"}, "options.compression: .*'zstd'"),
        ({"directory": "w", "compression_level": 20}, "options.compression_level: .*19"),
        ({"directory": "w", "compress": True}, "options.compress: .* has no such option"),
    ],
)
def test_bad_option_names_the_key(options: dict[str, Any], problem: str, tmp_path: Path) -> None:
    """In the configuration, before anything runs."""
    handler = HandlerConfig(name="wal", callback="handlers.file_wal:FileWal", options=options)

    with pytest.raises(ConfigError) as caught:
        load_callback(handler, tmp_path)

    assert re.search(problem, "\n".join(caught.value.problems))


@pytest.mark.parametrize("size", [4096, "4096", "4KiB", "4 kib"])
def test_sizes_are_numbers_or_text(size: int | str, directory: Path) -> None:
    """As everywhere in the configuration."""
    write(directory, events(*range(30)), segment_bytes=size)

    assert max(path.stat().st_size for path in files(directory)) in range(3500, 4097)
