"""Rows that are too much: tens of megabytes, JSON nested or numbered beyond reason. Each has a defined outcome."""

from __future__ import annotations

import json
import re
from pathlib import Path

from cdc.codec import unpack
from cdc.state import LetterFilter
from tests.conftest import Database
from tests.running import Child, child, wait_until

MIB = 1024**2
HANDLERS = {"reads": "readers:Reader", "keeps": "file_wal"}
RECORD = re.compile(rb'"record_id":"(\d+)"')
READERS = '''
import json
import os


class Reader:
    """Reads every value, and writes down what it was, in few letters."""

    def __init__(self, *, path):
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def handle(self, event):
        value = event.payload["value"]
        depth = 0
        while isinstance(value, list) and value:
            value, depth = value[0], depth + 1
        size = len(value) if isinstance(value, str) else value.bit_length() if isinstance(value, int) else 0
        fields = [event.record_id, type(event.payload["value"]).__name__, depth, size]
        os.write(self.fd, (json.dumps(fields) + "\\n").encode())
'''


ROWS = {  # record id → what is inserted; each in a transaction of its own
    1: "INSERT INTO texts VALUES (1, repeat('x', 40 * 1024 * 1024))",
    2: "INSERT INTO texts VALUES (2, repeat(E'\\n\\\\\"', 4 * 1024 * 1024))",  # each letter is escaped, by two layers
    3: "INSERT INTO documents VALUES (3, (repeat('[', 500) || repeat(']', 500))::jsonb)",
    4: "INSERT INTO documents VALUES (4, (repeat('[', 5000) || repeat(']', 5000))::jsonb)",
    5: "INSERT INTO documents VALUES (5, repeat('9', 5000)::jsonb)",
    6: "INSERT INTO numbers VALUES (6, repeat('9', 5000)::numeric)",
    7: "INSERT INTO documents SELECT 7, jsonb_agg(n) FROM generate_series(1, 300000) AS n",
    99: "INSERT INTO texts VALUES (99, 'the end')",
}


def read(path: Path) -> bytes:
    """The file, empty when it is not there."""
    return path.read_bytes() if path.exists() else b""


def kept(folder: Path) -> set[int]:
    """Record ids of what `file_wal` has written."""
    return {int(found) for path in (folder / "events").glob("*.jsonl") for found in RECORD.findall(path.read_bytes())}


def failed(service: Child) -> dict[str, dict[int, str]]:
    """Handler → record id → class of the error, of all dead letters."""
    state = service.state()
    try:
        letters = state.letters(LetterFilter())
    finally:
        state.close()
    found: dict[str, dict[int, str]] = {}
    for letter in letters:
        found.setdefault(letter.callback, {})[int((unpack(letter.event).record_id) or 0)] = letter.error
    return found


def test_rows_beyond_reason_are_delivered_whole(database: Database, tmp_path: Path) -> None:
    """A row larger than the bound of the queues goes through alone; JSON that Python cannot read comes as text."""
    database.execute(
        "CREATE TABLE texts (id int PRIMARY KEY, value text); CREATE TABLE numbers (id int PRIMARY KEY, value numeric);"
        "CREATE TABLE documents (id int PRIMARY KEY, value jsonb)"
    )
    (tmp_path / "readers.py").write_text(READERS)
    handlers = {name: {"callback": callback, "max_attempts": 1} for name, callback in HANDLERS.items()}
    signal = {"max_queued_bytes": "8MiB", "remove_failing_callbacks": False}
    with child(tmp_path, database.dsn, handlers, signal=signal) as service:
        file = tmp_path / "cdc.toml"
        file.write_text(file.read_text().replace(f'path = "{service.path("keeps")}"', 'directory = "events"'))
        service.start()
        for statement in ROWS.values():
            database.execute(statement)
        wait_until(lambda: b'["99"' in read(service.path("reads")) and 99 in kept(tmp_path), 90, service.tail())
        peak = service.peak_memory()
        service.stop()
        letters = failed(service)
    lines = [json.loads(line) for line in read(service.path("reads")).splitlines()]
    outcome = {int(record_id): tuple(rest) for record_id, *rest in lines}

    assert outcome == {
        1: ("str", 0, 40 * MIB),
        2: ("str", 0, 12 * MIB),
        3: ("list", 499, 0),
        4: ("str", 0, 10_000),  # deeper than Python reads: as text, whole
        5: ("str", 0, 5_000),  # a longer whole number than Python reads
        6: ("Decimal", 0, 0),
        7: ("list", 1, 1),
        99: ("str", 0, 7),
    }
    assert kept(tmp_path) == set(ROWS)
    assert letters == {}
    assert peak < 20 * 40 * MIB, f"{peak / MIB:.0f} MiB"
