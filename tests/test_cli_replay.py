"""`cdc replay` as it is typed: a log's events once more through the handlers, with their conditions and limits."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from cdc import DatabaseEvent, EventType, Lsn, Position
from handlers.file_wal import FileWal, FileWalOptions
from tests.conftest import Database
from tests.running import Child, child, confirmed, server_lsn, wait_until
from tests.test_cli import Cdc
from tests.test_file_wal import files

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
COUNT = 900

HANDLERS = '''
import asyncio, os
from pathlib import Path
from cdc import PermanentError


class Record:
    """A line per event, with its values as Python has them."""

    def __init__(self, *, path: Path):
        self.path = path

    def open(self):
        self.file = self.path.open("a")

    def handle_batch(self, events):
        for event in events:
            print(event.position, event.id, dict(event.payload), file=self.file, flush=True)

    def close(self):
        self.file.close()


class Flaky(Record):
    """Fails the first time of each, and for good where it is told to."""

    def __init__(self, *, path: Path, bad: list[int] = [], always: bool = False):
        super().__init__(path=path)
        self.tried, self.bad, self.always = set(), bad, always

    def handle(self, event):
        if self.always or event.id in self.bad:
            raise PermanentError("secret-value")
        if event.id not in self.tried:
            self.tried.add(event.id)
            raise ConnectionError("secret-value")
        super().handle_batch([event])

    handle_batch = None


class Slow(Record):
    """Writes, and does not come to its end."""

    async def handle(self, event):
        super().handle_batch([event])
        await asyncio.Event().wait()

    handle_batch = None
'''

CONFIG = """
python_path = ["."]
[source]
dsn = "postgresql://nobody@127.0.0.1:1/nowhere"
[signal]
drain_timeout_seconds = 1
max_consecutive_failures = 3
[[handlers]]
name = "all"
callback = "recorders:Record"
event_types = ["create", "update", "delete", "truncate"]
[handlers.options]
path = "all.lines"
[[handlers]]
name = "users"
callback = "recorders:Record"
tables = ["public.users"]
tags = ["audit:*"]
event_types = ["update"]
columns = { exclude = ["secret"], mask = ["email"] }
[handlers.options]
path = "users.lines"
[[handlers]]
name = "flaky"
callback = "recorders:Flaky"
max_attempts = 2
tables = ["public.orders"]
[handlers.options]
path = "flaky.lines"
"""


SLOW = """
[[handlers]]
name = "slow"
callback = "recorders:Slow"
options = { path = "slow.lines" }
"""


def event(number: int) -> DatabaseEvent:
    """The number-th of a log: users and orders in turn, one a second."""
    is_user = number % 2 == 0
    return DatabaseEvent.of(
        EventType.UPDATE if is_user else EventType.CREATE,
        "users" if is_user else "orders",
        {"n": number, "secret": "s", "email": "e", "total": Decimal("1.10")},
        id=number,
        record_id=str(number % 7),
        tags=["audit:yes"] if number % 4 == 0 else [],
        position=Position(Lsn(0x1000 + number), 1),
        timestamp=NOON + timedelta(seconds=number),
    )


@pytest.fixture
def cdc(tmp_path: Path) -> Cdc:
    """The command in a folder with a configuration, handlers and a log; no database anywhere."""
    (tmp_path / "recorders.py").write_text(HANDLERS)
    configure(tmp_path)
    write(tmp_path / "wal", range(COUNT // 2), segment_bytes="16KiB", compression="zstd")
    write(tmp_path / "wal", range(COUNT // 2, COUNT), segment_bytes="16KiB")
    return Cdc(tmp_path)


def configure(folder: Path, rest: str = "") -> None:
    """Write cdc.toml; `rest` is more of the last handler's options, or more handlers."""
    (folder / "cdc.toml").write_text(CONFIG + rest)
    (folder / "cdc.toml").chmod(0o600)


def write(directory: Path, numbers: range, **options: Any) -> None:
    """A log of these events."""
    log = FileWal(FileWalOptions(directory=directory, **options))
    log.open()
    log.handle_batch([event(number) for number in numbers])
    log.close()


def ids(folder: Path, name: str) -> list[int]:
    """The events that a handler got."""
    return [int(line.split()[1]) for line in (folder / f"{name}.lines").read_text().splitlines()]


def test_every_event_comes_once_in_order_with_its_values(cdc: Cdc) -> None:
    """Through plain and compressed segments, ids, positions and types as they were."""
    done = cdc("replay", "wal", "--handler", "all")

    assert (done.returncode, done.stderr) == (0, "")
    assert "900 events read, 900 selected" in done.stdout
    lines = (cdc.folder / "all.lines").read_text().splitlines()
    assert lines == [f"{one.position} {one.id} {one.payload}" for one in map(event, range(COUNT))]
    assert "Decimal('1.10')" in lines[0]
    assert not list(cdc.folder.glob("*.db"))


def test_handlers_get_what_their_conditions_select(cdc: Cdc) -> None:
    """Tables, types and tags; columns are hidden as in the service."""
    done = cdc("replay", "wal", "--handler", "users", "--handler", "all", "--json")

    summary = json.loads(done.stdout)
    assert done.returncode == 0
    assert {item["name"]: item["delivered"] for item in summary["handlers"]} == {"users": 225, "all": 900}
    assert ids(cdc.folder, "users") == list(range(0, COUNT, 4))
    text = (cdc.folder / "users.lines").read_text()
    assert "secret" not in text
    assert "'email': 'e'" not in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--since", "2026-01-02T12:00:10Z", "--until", "2026-01-02T12:00:13Z"], [10, 11, 12]),
        (["--until", "2026-01-02T13:00:02+01:00"], [0, 1]),
        (["--until", "2026-01-02T12:00:05Z", "--table", "*.ord*"], [1, 3]),
        (["--until", "2026-01-02T12:00:09Z", "--tag", "audit:*", "--type", "update"], [0, 4, 8]),
        (["--since", "2026-01-04"], []),
    ],
)
def test_only_what_is_asked_for_is_replayed(cdc: Cdc, arguments: list[str], expected: list[int]) -> None:
    """By commit time, the first included and the last not; by table, type and tag."""
    assert cdc("replay", "wal", "--handler", "all", *arguments).returncode == 0

    assert ids(cdc.folder, "all") == expected


def test_single_segments_come_in_their_order(cdc: Cdc) -> None:
    """Whatever the order on the command line."""
    chosen = [str(path) for path in files(cdc.folder / "wal")[2:5]]

    assert cdc("replay", *reversed(chosen), "--handler", "all").returncode == 0

    found = ids(cdc.folder, "all")
    assert found == list(range(found[0], found[-1] + 1))
    assert 0 < len(found) < COUNT


def test_dry_run_counts_and_calls_nobody(cdc: Cdc) -> None:
    """What each would get."""
    done = cdc("replay", "wal", "--handler", "users", "--handler", "flaky", "--dry-run", "--json")

    summary = json.loads(done.stdout)
    assert done.returncode == 0
    assert (summary["dry_run"], summary["read"]) == (True, COUNT)
    assert {item["name"]: item["matched"] for item in summary["handlers"]} == {"users": 225, "flaky": 450}
    assert not list(cdc.folder.glob("*.lines"))
    assert "users" in cdc("replay", "wal", "--handler", "users", "--dry-run").stdout


def test_failed_events_are_told_and_retried_as_configured(cdc: Cdc) -> None:
    """One that fails for good does not stop the others; exit 1, with positions and without values."""
    configure(cdc.folder, "bad = [11, 21]\n")
    log, until = str(cdc.folder / "wal"), "2026-01-02T12:00:31Z"

    done = cdc("replay", log, "--handler", "flaky", "--until", until)
    assert done.returncode == 1
    assert ids(cdc.folder, "flaky") == [number for number in range(1, 31, 2) if number not in (11, 21)]
    assert "flaky failed: PermanentError 2; at 0/100B:1, 0/1015:1" in done.stdout
    assert "secret-value" not in done.stdout + done.stderr

    (account,) = json.loads(cdc("replay", log, "--handler", "flaky", "--until", until, "--json").stdout)["handlers"]
    assert (account["delivered"], account["failed"], account["not_called"]) == (13, 2, 0)
    assert account["failures"][0] == {"position": "0/100B:1", "table": "public.orders", "error": "PermanentError"}


def test_handler_that_fails_too_often_is_called_no_more(cdc: Cdc) -> None:
    """As in the service; what it did not get is counted, and the replay ends when nobody is left."""
    configure(cdc.folder, "always = true\n")

    done = cdc("replay", "wal", "--handler", "flaky", "--json")

    (account,) = json.loads(done.stdout)["handlers"]
    assert done.returncode == 1
    assert account["removed"]
    assert (account["delivered"], account["failed"]) == (0, 3)
    assert account["not_called"] == account["matched"] - 3
    assert "called no more" in cdc("replay", "wal", "--handler", "flaky").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["wal"], 2, "no handler is named"),
        (["wal", "--handler", "nobody"], 1, "known: all, users, flaky"),
        (["wal", "--handler", "all", "--since", "yesterday"], 2, "--since yesterday is no time"),
        (["wal", "--handler", "all", "--table", "users"], 2, "public.users"),
        (["wal", "--handler", "all", "--type", "insert"], 2, "insert"),
        (["nowhere", "--handler", "all"], 1, "nowhere is not there"),
        (["cdc.toml", "--handler", "all"], 1, "holds no event"),
        ([".", "--handler", "all"], 1, "holds no segment"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_makes_no_sense_is_said_with_its_fix(cdc: Cdc, arguments: list[str], code: int, text: str) -> None:
    """Usage is exit 2, all else 1; never a traceback."""
    done = cdc("replay", *arguments)

    assert done.returncode == code
    assert text in done.stderr
    assert "fix:" in done.stderr
    assert "Traceback" not in done.stderr


def test_damaged_log_is_told_after_what_stands_before_it(cdc: Cdc) -> None:
    """The file, the line and the byte; what was whole is delivered."""
    path = files(cdc.folder / "wal")[-2]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

    done = cdc("replay", "wal", "--handler", "all")

    assert done.returncode == 1
    assert f"{path} is damaged in line" in done.stderr
    assert ids(cdc.folder, "all")[:600] == list(range(600))


def test_interrupt_ends_it_after_what_is_in_work(cdc: Cdc) -> None:
    """It says where to go on; exit 1."""
    configure(cdc.folder, SLOW)
    with replaying(cdc, "wal", "--handler", "slow") as process:
        wait_until(lambda: (cdc.folder / "slow.lines").exists() and ids(cdc.folder, "slow"))
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)

    assert process.returncode == 1, error
    assert "go on with: --since 2026-01-02T12:" in out
    assert ids(cdc.folder, "slow") == [0]
    assert "Traceback" not in error


@contextmanager
def replaying(cdc: Cdc, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command while it runs."""
    command = [sys.executable, "-m", "cdc.cli", "replay", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=cdc.folder, env=cdc.environment, stdout=pipe, stderr=pipe, stdin=subprocess.DEVNULL, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_terminal_shows_how_far_it_is(cdc: Cdc) -> None:
    """A bar on standard error, and nothing of it in the result."""
    main, side = pty.openpty()
    command = [sys.executable, "-m", "cdc.cli", "replay", "wal", "--handler", "all", "--json"]
    environment = cdc.environment | {"TERM": "xterm-256color"}
    with subprocess.Popen(
        command, cwd=cdc.folder, env=environment, stdout=subprocess.PIPE, stderr=side, stdin=subprocess.DEVNULL
    ) as process:
        os.close(side)
        shown = b""
        try:
            while chunk := os.read(main, 4096):
                shown += chunk
        except OSError:  # the other side is closed: the process has ended
            pass
        assert process.stdout is not None
        out = process.stdout.read()
    os.close(main)

    assert json.loads(out)["selected"] == COUNT
    assert b"900 events" in shown
    assert process.returncode == 0


# --- with the service and its database


SERVED = {
    "log": {"callback": "file_wal", "options": {"directory": "wal", "compression": "zstd", "segment_bytes": "4KiB"}},
    "live": {"callback": "recorders:Record", "options": {"path": "live.lines"}},
}


def test_replay_beside_the_service_gives_what_it_gave(database: Database, tmp_path: Path) -> None:
    """Exact values of a real stream, also of the segment in work; what the state holds stays as it is."""
    (tmp_path / "recorders.py").write_text(HANDLERS)
    database.execute(
        "CREATE TABLE t (id int PRIMARY KEY, n numeric, at timestamptz, u uuid, b bytea, a numeric[], r int4range)"
    )
    with served(tmp_path, database) as service:
        service.start()
        for start in range(0, 300, 10):
            database.execute(
                f"INSERT INTO t SELECT i, i / 3.0, now(), gen_random_uuid(), '\\x00ff', '{{1.10,NULL}}', '[1,5)'"
                f" FROM generate_series({start}, {start + 9}) i"
            )
        database.execute("UPDATE t SET id = -1 WHERE id = 0; DELETE FROM t WHERE id = 1; TRUNCATE t")
        end = server_lsn(database)
        wait_until(lambda: confirmed(database.cluster, service.slot) >= end)  # past both handlers
        live = tmp_path / "live.lines"
        before = live.read_text()
        assert before.count("\n") == 302
        live.rename(tmp_path / "before.lines")

        done = Cdc(tmp_path)("replay", "wal", "--handler", "live")

        assert done.returncode == 0, done.stderr
        assert live.read_text() == before
        assert UUID(before.split("UUID('")[1][:36]).version == 4
        assert "Range(1, 5, '[)')" in before
        assert service.is_running
        wait_until(lambda: ".zst" in {path.suffix for path in files(tmp_path / "wal")})
        service.stop()
        state = service.state_path.read_bytes()
        live.unlink()

        assert Cdc(tmp_path)("replay", "wal", "--handler", "live").returncode == 0

        assert live.read_text() == before
        assert service.state_path.read_bytes() == state


@contextmanager
def served(folder: Path, database: Database) -> Iterator[Child]:
    """A child whose handlers have the options given here only."""
    with child(folder, database.dsn, SERVED) as made:
        path = folder / "cdc.toml"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if not line.startswith('path = "/')))
        path.chmod(0o600)
        yield made
