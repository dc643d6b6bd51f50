"""What the service leaves on the disk is for its owner alone, even where nobody set a umask."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cdc.cli import app
from cdc.demo.processes import free_port
from cdc.testing import EventStream, write_events
from tests.conftest import Database
from tests.running import child, wait_until
from tests.toml import toml

OURS = {"child.log", "child.out"}  # written by the test


@pytest.fixture
def no_umask() -> Iterator[None]:
    """Files get the mode that their maker asks for, and not one bit less."""
    before = os.umask(0)
    yield
    os.umask(before)


def readable_by_others(folder: Path) -> set[str]:
    """What group or others could read below `folder`, if they could enter it; a closed folder hides what is in it."""
    found = set()
    for path in folder.iterdir():
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:  # the service that runs has deleted it since
            continue
        if path.is_dir():
            if mode & (stat.S_IXGRP | stat.S_IXOTH):
                found |= {f"{path.name}/{name}" for name in readable_by_others(path)}
        elif mode & (stat.S_IRGRP | stat.S_IROTH):
            found.add(path.name)
    return found


def test_service_writes_nothing_that_others_can_read(database: Database, tmp_path: Path, no_umask: None) -> None:
    """State, dead letters, file WAL, journal of messages and search index hold rows, and are closed to others."""
    database.execute("CREATE TABLE t (id int PRIMARY KEY, name text)")
    options = {
        "log": {"directory": "events", "compression": "zstd", "segment_bytes": 4096},
        "people": {
            "journal": "journal/notify.db",
            "channels": {"ops": f"json://127.0.0.1:{free_port()}/"},
            "rules": [{"name": "all", "channels": ["ops"], "limit": 0}],
        },
        "search": {"folder": "index", "fields": {"name": "text"}},
        "broken": {"url": f"http://127.0.0.1:{free_port()}/", "allow_internal": True, "allow_http": True},
    }
    names = {"log": "file_wal", "people": "notify", "search": "search_index", "broken": "webhook"}
    with child(tmp_path, database.dsn) as service:
        lines = (tmp_path / "cdc.toml").read_text().split("[[handlers]]")[0].splitlines()
        for name, callback in names.items():
            lines += ["[[handlers]]", f'name = "{name}"', f'callback = "{callback}"', "max_attempts = 1"]
            lines += [f"options = {toml(options[name])}"]
        (tmp_path / "cdc.toml").write_text("\n".join(lines) + "\n")
        before = {path.name for path in tmp_path.iterdir()} | OURS
        service.start()
        database.execute("INSERT INTO t SELECT n, repeat('name ', 40) FROM generate_series(1, 50) AS n")

        def all_there() -> bool:
            state = service.state()
            try:
                failed = sum(one.count for one in state.letter_totals())
            finally:
                state.close()
            names = {path.name for path in tmp_path.rglob("*")}
            return failed >= 3 and "notify.db" in names and any(name.endswith(".zst") for name in names)

        wait_until(all_there, what="dead letters, a journal and a compressed segment")
        while_running = readable_by_others(tmp_path) - before
        service.stop()

    assert while_running == set()
    assert readable_by_others(tmp_path) - before == set()
    assert {path.name for path in tmp_path.iterdir()} > {"events", "index", "journal", "state.db", "state.db.lock"}


def test_recorded_stream_is_private(tmp_path: Path, no_umask: None) -> None:
    """It may hold the rows of a real database."""
    path = tmp_path / "events.jsonl"

    write_events(path, EventStream().inserts(1))

    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_configuration_is_private_also_when_it_replaces_one_that_was_not(tmp_path: Path, no_umask: None) -> None:
    """It may come to hold a password."""
    path = tmp_path / "cdc.toml"
    path.write_text("")
    path.chmod(0o666)

    result = CliRunner().invoke(app, ["init", "--config", str(path), "--force"])

    assert result.exit_code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
