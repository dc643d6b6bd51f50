"""`cdc tail`: live events on a slot of its own, which nothing else notices and nothing is left of."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

import cdc.tail
from cdc.cli.filters import Filter
from cdc.cli.shown import Shown
from cdc.config import Config, SourceConfig
from cdc.events import DatabaseEvent
from cdc.testing import EventStream
from tests.conftest import Database, OwnCluster
from tests.running import POLL_SECONDS, child, slot_info, wait_until

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 60
TABLES = """
CREATE TABLE users (id int PRIMARY KEY, email text, vip boolean, __is_active__ boolean DEFAULT true);
CREATE TABLE orders (id int PRIMARY KEY, email text, total numeric(12,2));
"""


class Tail:
    """A running `cdc tail`, its output in pipes."""

    def __init__(self, folder: Path, *arguments: str, stdout: int = subprocess.PIPE, **environment: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CDC_", "PG", "NO_COLOR"))}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cdc.cli", "tail", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={**kept, "PYTHONPATH": str(ROOT), **environment},
            start_new_session=True,
        )
        self.errors = ""

    def say(self) -> str:
        """The next line on standard error."""
        assert self.process.stderr is not None
        line = read_line(self.process.stderr.fileno())
        self.errors += line
        return line

    def begin(self) -> str:
        """Wait until it listens; its slot. A transaction of others that it had to wait for is no part of `errors`."""
        line = self.say()
        while "waiting for their end" in line:
            line = self.errors = self.say()
        assert "from" in line, self.errors + self.rest()
        return line.rpartition("slot ")[2].partition(";")[0]

    @property
    def output(self) -> IO[bytes]:
        """Its standard output."""
        assert self.process.stdout is not None
        return self.process.stdout

    def line(self) -> str:
        """The next line on standard output."""
        return read_line(self.output.fileno())

    def events(self, count: int) -> list[dict[str, object]]:
        """The next lines of --json."""
        return [json.loads(self.line()) for _ in range(count)]

    def rest(self) -> str:
        """What else it has said on standard error, once it has ended."""
        assert self.process.stderr is not None
        self.process.wait(SECONDS)
        self.errors += self.process.stderr.read().decode()
        return self.errors

    def end(self, number: int = signal.SIGINT) -> int:
        """Its exit code after that signal."""
        self.process.send_signal(number)
        return self.process.wait(SECONDS)


def read_line(descriptor: int) -> str:
    """A line, byte by byte: what comes after it stays in the pipe."""
    line, deadline = b"", time.monotonic() + SECONDS
    while not line.endswith(b"\n"):
        assert select.select([descriptor], [], [], max(deadline - time.monotonic(), 0))[0], f"no line: {line!r}"
        if not (byte := os.read(descriptor, 1)):
            break
        line += byte
    return line.decode()


@contextmanager
def tailing(folder: Path, *arguments: str, stdout: int = subprocess.PIPE, **environment: str) -> Iterator[Tail]:
    """One that is killed at the end, if it still runs."""
    tail = Tail(folder, *arguments, stdout=stdout, **environment)
    try:
        yield tail
    finally:
        tail.process.kill()
        tail.process.wait()
        for pipe in (tail.process.stdout, tail.process.stderr):
            if pipe is not None:
                pipe.close()


def refused(folder: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and words of one that cannot begin."""
    with tailing(folder, *arguments) as tail:
        return tail.process.wait(SECONDS), tail.rest()


def slots(database: Database) -> Sequence[tuple[object, ...]]:
    """Of this database."""
    return database.execute(f"SELECT slot_name FROM pg_replication_slots WHERE database = '{database.name}'")


def configure(folder: Path, dsn: str, rest: str = "") -> None:
    """cdc.toml with rules, and two handlers that do not see all."""
    (folder / "cdc.toml").write_text(
        f'[source]\ndsn = "{dsn}"\nslot = "never_made"\ntables = ["public.users", "public.orders"]\n'
        '[[tag_rules]]\ntables = ["public.users"]\nevent_types = ["create"]\ntags = ["notify:email"]\n'
        '[[handlers]]\nname = "mail"\ncallback = "absent:module"\ntables = ["public.users"]\n'
        'event_types = ["create"]\ncolumns = { mask = ["email"] }\n'
        '[[handlers]]\nname = "sums"\ncallback = "absent:module"\ntables = ["public.orders"]\n'
        f'columns = {{ exclude = ["total"] }}\n{rest}'
    )


def test_events_are_shown_without_configuration_and_nothing_is_left(database: Database, tmp_path: Path) -> None:
    """A line per event, a count at Ctrl-C, exit 0; no file, no slot, no permission but REPLICATION is needed."""
    role = f"reader_{secrets.token_hex(4)}"
    database.execute(f"CREATE ROLE {role} LOGIN REPLICATION")
    try:
        with tailing(tmp_path, "--dsn", database.cluster.dsn(database.name, user=role)) as tail:
            slot = tail.begin()
            assert slots(database) == [(slot,)]
            database.execute(TABLES + "INSERT INTO users VALUES (7, 'a@b.c', true)")
            database.execute("SELECT pg_logical_emit_message(true, 'cdc.tags', 'user:42'); DELETE FROM users")
            lines = [tail.line(), tail.line()]
            code, said = tail.end(), tail.rest()
        assert [re.sub(r"^[0-9:.]+Z ", "", line) for line in lines] == [
            "create   public.users 7  id=7 email='a@b.c' vip=true __is_active__=true\n",
            "delete   public.users 7  id=7  [user:42]\n",
        ]
        assert (code, said.splitlines()[1:]) == (0, ["2 events"])
        wait_until(lambda: slots(database) == [], what="its slot is gone")
        assert list(tmp_path.iterdir()) == []
    finally:
        database.execute(f"DROP ROLE {role}")


async def test_event_whose_line_is_out_is_counted_though_control_c_comes_first() -> None:
    """Whoever reads a line can press Ctrl-C before the tail's event loop has heard that it is written."""
    lines: list[DatabaseEvent] = []
    written = threading.Event()

    class Screen:
        def handle_batch(self, events: Sequence[DatabaseEvent]) -> None:
            lines.extend(events)
            written.set()

    shown = Shown(Screen(), Filter(), limit=0)
    task = asyncio.create_task(shown.receive([EventStream().create("users", {"id": 1})]))
    await asyncio.sleep(0)
    assert written.wait(SECONDS)  # the event loop stands still meanwhile
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await shown.end()
    assert (task.cancelled(), shown.count) == (True, len(lines))


def test_rules_soft_deletes_and_masks_of_the_configuration_apply(database: Database, tmp_path: Path) -> None:
    """What any handler may not see is masked; --handler shows what that one gets. No handler is loaded for it."""
    configure(tmp_path, database.dsn)
    database.execute(TABLES + "CREATE TABLE others (id int PRIMARY KEY)")
    with tailing(tmp_path, "--json", "-n", "3") as every, tailing(tmp_path, "--json", "--handler", "sums") as sums:
        every.begin()
        sums.begin()
        database.execute("INSERT INTO users VALUES (1, 'a@b.c', true); INSERT INTO others VALUES (1)")
        database.execute("UPDATE users SET __is_active__ = false")
        database.execute("INSERT INTO orders VALUES (5, 'd@e.f', 12.50)")
        created, deleted, order = every.events(3)
        assert every.process.wait(SECONDS) == 0
        assert every.rest().endswith("3 events\n")
        (seen,) = sums.events(1)
        assert sums.end(signal.SIGTERM) == 0

    assert (created["event_type"], created["tags"]) == ("create", ["notify:email"])
    assert created["payload"] == {"id": 1, "email": "***", "vip": True, "__is_active__": True}
    assert (deleted["event_type"], deleted["record_id"]) == ("delete", "1")
    assert order["payload"] == {"id": 5, "email": "***", "total": "***"}
    assert seen["payload"] == {"id": 5, "email": "d@e.f"}


def test_filters_choose_by_table_type_and_tag(database: Database, tmp_path: Path) -> None:
    """All that was typed must hold; values can be left out."""
    database.execute(TABLES)
    database.execute("CREATE TABLE other (id int PRIMARY KEY, __tags__ text[])")
    arguments = ["--table", "public.o*", "--type", "create", "--type", "truncate", "--tag", "a:*", "-n", "2"]
    with tailing(tmp_path, "--dsn", database.dsn, "--no-values", *arguments) as tail:
        tail.begin()
        database.execute("INSERT INTO users VALUES (1); INSERT INTO other VALUES (1, '{b:1}'), (2, '{a:1}')")
        database.execute("UPDATE other SET id = 3 WHERE id = 2")
        database.execute("SELECT pg_logical_emit_message(true, 'cdc.tags', 'a:2'); TRUNCATE orders")
        lines = [tail.line(), tail.line()]
        assert tail.process.wait(SECONDS) == 0
    assert lines[0].endswith("create   public.other 2  id __tags__  [a:1]\n")
    assert lines[1].endswith("truncate public.orders  [a:2]\n")


def test_table_that_nobody_has_is_remarked_upon(database: Database, tmp_path: Path) -> None:
    """Each pattern without a table is told once, with what it may have meant; a table that comes later is shown."""
    configure(tmp_path, database.dsn)
    database.execute("CREATE TABLE users (id int PRIMARY KEY); CREATE TABLE notes (id int PRIMARY KEY)")
    arguments = ["-t", "public.user*", "-t", "public.usres", "-t", "public.orders", "-t", "public.notes", "-n", "1"]
    with tailing(tmp_path, *arguments) as tail:
        tail.begin()
        remarks = [tail.say() for _ in range(3)]
        database.execute("CREATE TABLE orders (id int PRIMARY KEY); INSERT INTO orders VALUES (5)")
        assert " public.orders 5 " in tail.line()
        assert tail.process.wait(SECONDS) == 0
        assert len(tail.rest().splitlines()) == 5, "the begin, three remarks, the count"
    assert remarks == [
        "warning: no table matches --table public.usres, so far; did you mean public.users?\n",
        "warning: no table matches --table public.orders, so far\n",
        "warning: --table public.notes matches only what the configuration leaves out\n",
    ]


def test_running_service_does_not_notice_it(database: Database, tmp_path: Path) -> None:
    """Both get the same events at the same positions, and the service's slot goes on; a kill leaves no slot."""
    database.execute(TABLES)
    with child(tmp_path, database.dsn) as service, tailing(tmp_path, "--json") as tail:
        service.start()
        own = tail.begin()
        database.execute("INSERT INTO users VALUES (1, 'x', true), (2, 'y', true)")
        shown = tail.events(2)
        delivered = service.wait_for_lines(2)
        tail.process.kill()
        tail.process.wait()
        wait_until(lambda: slots(database) == [(service.slot,)], what=f"{own} is gone")
        database.execute("INSERT INTO users VALUES (3, 'z', true)")
        assert [line.record_id for line in service.wait_for_lines(3)] == ["1", "2", "3"]
        assert len(service.log("streaming")) == 1
        service.stop()
    assert [event["position"] for event in shown] == [str(line.position) for line in delivered]


def test_closed_pipe_ends_it_quietly_while_nothing_happens(database: Database, tmp_path: Path) -> None:
    """As with `| head -1`: exit 0, not a word, and not only at the next event."""
    database.execute(TABLES)
    with tailing(tmp_path, "--dsn", database.dsn) as tail:
        tail.begin()
        database.execute("INSERT INTO users VALUES (1)")
        tail.line()
        tail.output.close()
        assert tail.process.wait(SECONDS) == 0
        assert len(tail.rest().splitlines()) == 1


def memory(tail: Tail) -> int:
    """The most that was resident, bytes; 0 once it has ended."""
    status = Path(f"/proc/{tail.process.pid}/status").read_text()
    words = status.partition("VmHWM:")[2].split()
    return int(words[0]) * 1024 if words else 0


def test_reader_that_stops_costs_neither_memory_nor_the_disk(database: Database, tmp_path: Path) -> None:
    """The server keeps what is not taken, and the tail ends when that is more than it may be: exit 1, with the way out.

    200,000 rows of 300 bytes are 60 MB as text: a tail that read them all would hold more than these.
    """
    database.execute("CREATE TABLE wide (id int PRIMARY KEY, body text)")
    with tailing(tmp_path, "--dsn", database.dsn, "--max-wal", "30MiB") as tail:
        tail.begin()
        before = memory(tail)
        for part in range(4):
            rows = f"generate_series({part * 50_000}, {part * 50_000 + 49_999}) g"
            database.execute(f"INSERT INTO wide SELECT g, repeat('x', 300) FROM {rows}")
        grown = 0
        while tail.process.poll() is None:
            grown = max(grown, memory(tail) - before)
            time.sleep(POLL_SECONDS)
        text = tail.rest()
    assert tail.process.returncode == 1
    assert re.search(r"error\[tail_ended\]: the server keeps [0-9,]+ MiB of WAL that is not shown yet: ended", text)
    assert "--max-wal" in text
    assert grown < 40 << 20
    wait_until(lambda: slots(database) == [])


def test_control_c_ends_one_whose_terminal_is_stopped(database: Database, tmp_path: Path) -> None:
    """A write that does not come back keeps neither the process nor the slot."""
    database.execute("CREATE TABLE wide (id int PRIMARY KEY, body text)")
    with tailing(tmp_path, "--dsn", database.dsn) as tail:
        tail.begin()
        database.execute("INSERT INTO wide SELECT g, repeat('x', 300) FROM generate_series(1, 5000) g")
        wait_until(lambda: is_stuck(tail), what="the pipe is full")
        assert tail.end() == 0
        wait_until(lambda: slots(database) == [])


def is_stuck(tail: Tail) -> bool:
    """Whether its standard output, a pipe, takes no more."""
    pipe = os.open(f"/proc/{tail.process.pid}/fd/1", os.O_WRONLY | os.O_NONBLOCK)
    try:
        return not select.select([], [pipe], [], 0)[1]
    finally:
        os.close(pipe)


def test_server_that_stops_is_let_go_and_told(own_cluster: OwnCluster, tmp_path: Path) -> None:
    """Also while nobody reads: a fast stop would wait for ever for the confirmation of what was not shown."""
    cluster = own_cluster()
    database = Database(cluster, "postgres")
    database.execute("CREATE TABLE wide (id int PRIMARY KEY, body text)")
    with tailing(tmp_path, "--dsn", cluster.dsn()) as tail:
        tail.begin()
        database.execute("INSERT INTO wide SELECT g, repeat('x', 300) FROM generate_series(1, 20000) g")
        wait_until(lambda: is_stuck(tail), what="the pipe is full")
        cluster.stop(timeout=SECONDS)
        assert tail.process.wait(SECONDS) == 1
        assert re.search(r"error\[\w+\]: the server is being stopped", tail.rest())
        assert "fix: its slot went with the connection" in tail.errors


def test_running_transaction_is_waited_for_and_named(database: Database, tmp_path: Path) -> None:
    """A slot cannot begin inside of one: whom it waits for is told, Ctrl-C ends the waiting, its end does too."""
    database.execute(TABLES)
    with database.connect() as other:
        other.execute("BEGIN; INSERT INTO users VALUES (1)")
        with tailing(tmp_path, "--dsn", database.dsn) as tail:
            assert f"process {other.info.backend_pid} of the server" in tail.say()
            assert tail.end() == 0
        wait_until(lambda: slots(database) == [])
        with tailing(tmp_path, "--dsn", database.dsn, "-n", "1") as tail:
            tail.say()
            other.execute("COMMIT")
            tail.begin()
            database.execute("INSERT INTO users VALUES (2)")
            assert " public.users 2 " in tail.line()


async def test_whom_it_waits_for_is_told_once_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is slow to begin waits for nobody yet: it is asked again."""
    monkeypatch.setattr("cdc.tail.PATIENCE_SECONDS", 0.01)
    told: list[str] = []
    tail = cdc.tail.Tail(Config(source=SourceConfig(dsn="dbname=none")), tell=told.append)
    answers = iter([[], [], [7]])

    async def blocking(_: int) -> list[int]:
        return next(answers)

    monkeypatch.setattr(tail, "_blocking", blocking)
    await tail._tell_whom_it_waits_for(asyncio.get_running_loop().create_future(), 1)
    assert [text.rpartition(": ")[2] for text in told] == ["waiting for their end (process 7 of the server)"]


def test_terminal_gets_colours_and_lines_of_its_width(database: Database, tmp_path: Path) -> None:
    """As the handler `console` writes them; without colours where NO_COLOR says so."""
    database.execute(TABLES)
    for environment, coloured in (({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False)):
        ours, theirs = pty.openpty()
        with tailing(tmp_path, "--dsn", database.dsn, "-n", "1", stdout=theirs, **environment) as tail:
            os.close(theirs)
            tail.begin()
            database.execute("INSERT INTO users VALUES (1, 'a@b.c'); DELETE FROM users")
            line = read_line(ours)
            assert tail.process.wait(SECONDS) == 0
        os.close(ours)
        assert ("\x1b[32mcreate" in line) == coloured
        assert "public.users" in line


def test_what_keeps_it_from_beginning_is_named_with_its_fix(database: Database, tmp_path: Path) -> None:
    """Role, database, handler; usage is exit 2, and no password is told."""
    role = f"plain_{secrets.token_hex(4)}"
    database.execute(f"CREATE ROLE {role} LOGIN")
    try:
        code, text = refused(tmp_path, "--dsn", database.cluster.dsn(database.name, user=role))
    finally:
        database.execute(f"DROP ROLE {role}")
    assert code == 1
    assert "fix: ALTER ROLE" in text
    configure(tmp_path, database.dsn)
    code, text = refused(tmp_path, "--handler", "nobody")
    assert (code, "in the configuration: mail, sums" in text) == (1, True)
    assert "error[handler_unknown]" in text
    for arguments, words in (
        (["--dsn", "postgresql://u:s3cret word@[x"], "neither a libpq URI"),
        (["--dsn", "dbnam=x"], "--dsn: libpq has no parameter dbnam; did you mean dbname?"),
        (["--dsn", "dbname=x", "--max-wal", "much"], "is no size"),
        (
            ["--dsn", "dbname=x", "--table", "users"],
            "error[usage_wrong]: --table: table pattern 'users' names no schema",
        ),
        (["--json", "--no-values"], "leave out"),
        (
            ["--dsn", "dbname=x", "--type", "insert"],
            "error[usage_wrong]: --type insert is none\nfix: it is create, update, delete or truncate\n",
        ),
        (["--dsn", "dbname=x", "--type", "creat"], "fix: did you mean create? it is create, update"),
    ):
        code, text = refused(tmp_path, *arguments)
        assert (code, words in text, "s3cret" in text, "Traceback" in text) == (2, True, False, False), text


def test_password_on_the_command_line_is_warned_of(tmp_path: Path) -> None:
    """It is not repeated; the connection fails here, as nobody listens."""
    code, text = refused(tmp_path, "--dsn", f"host={tmp_path} user=x password=s3cret")

    assert code == 1
    assert "PGPASSFILE" in text
    assert "s3cret" not in text


def test_slot_of_the_configuration_is_not_made(database: Database, tmp_path: Path) -> None:
    """Nor is a state."""
    configure(tmp_path, database.dsn)
    with tailing(tmp_path) as tail:
        tail.begin()
        assert slot_info(database.cluster, "never_made") is None
        tail.end()
    assert [path.name for path in tmp_path.iterdir()] == ["cdc.toml"]
