"""The demonstration, as people see it: the real command, its screen, and that nothing is left of it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from cdc.demo.latency import measurements
from cdc.demo.processes import is_alive, wait_until_gone
from cdc.demo.summary import quantile
from tests.running import wait_until

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_SECONDS = 60
POLL_SECONDS = 0.005
INTERRUPTED = 130
EVENTS = (
    r"create +public\.users \d+ .* profile=\{.*\[audit:required source:web notify:email\]",
    r"create +public\.orders \[\d+,1\] .*\[user:\d+\]",
    r"create +public\.products .*\[new home\]",
    r"update +public\.products \d+ +price=[\d.]+→[\d.]+",
    r"update +public\.articles post-\w+ +slug='draft-(\w+)'→'post-\1'",
    r"delete +public\.orders \[\d+,\d+\]",
    r"delete +public\.products .*__is_active__=false",
    r"truncate +public\.visits",
)


class Demonstration:
    """`cdc demo` in a session of its own, as `make demo` starts it, with a temporary folder of its own."""

    def __init__(self, temporary: Path, *arguments: str) -> None:
        self.temporary = temporary
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cdc.cli", "demo", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(temporary)},
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()

    def wait_for_line(self, pattern: str) -> None:
        """Wait until a line of the screen matches."""
        with self._changed:
            seen = self._changed.wait_for(
                lambda: any(re.search(pattern, line) for line in self.lines), PATIENCE_SECONDS
            )
        assert seen, self.screen

    def wait_for_file(self, pattern: str) -> None:
        """Wait until a file of the temporary folder matches."""
        self.wait_until(lambda: bool(list(self.temporary.glob(pattern))))

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Look again and again, as long as it runs."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.screen
            assert self.process.poll() is None, self.screen
            time.sleep(POLL_SECONDS)

    def interrupt(self) -> None:
        """Ctrl-C: SIGINT to all of the terminal's foreground process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def exit_code(self) -> int:
        """Wait for its end, and for the end of its screen."""
        code = self.process.wait(PATIENCE_SECONDS)
        self._reader.join(PATIENCE_SECONDS)  # the pipe closes with the last process that holds it
        assert not self._reader.is_alive()
        return code

    def close(self) -> None:
        """Let the pipe go."""
        assert self.process.stdout is not None
        self.process.stdout.close()

    @property
    def screen(self) -> str:
        """All that was printed so far."""
        return "".join(self.lines)

    def processes(self) -> list[int]:
        """Living processes that have to do with the temporary folder: by arguments, environment or place."""
        return [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if self._is_ours(entry)]

    def _is_ours(self, entry: Path) -> bool:
        name = str(self.temporary)
        try:
            if int(entry.name) == os.getpid() or not is_alive(int(entry.name)):
                return False
            known = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            return name.encode() in known or str((entry / "cwd").readlink()).startswith(name)
        except OSError:  # ended while we looked, or somebody else's
            return False

    def leaves_nothing(self) -> bool:
        """No process (one that was killed may need a moment), no file, no socket."""
        assert wait_until_gone(self.processes(), PATIENCE_SECONDS) == []
        return list(self.temporary.iterdir()) == []


def command_of(pid: int) -> bytes:
    """Its command line; nothing of a process that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


Demo = Callable[..., Demonstration]


@pytest.fixture
def demo() -> Iterator[Demo]:
    """Starts demonstrations; whatever a failed test leaves of them goes."""
    # Short, for the socket's path, and open, for the unprivileged user that the server runs as under root.
    temporary = Path(tempfile.mkdtemp(prefix="wd-", dir="/tmp"))
    temporary.chmod(0o755)
    started: list[Demonstration] = []

    def start(*arguments: str) -> Demonstration:
        started.append(Demonstration(temporary, *arguments))
        return started[-1]

    try:
        yield start
    finally:
        for one in started:
            for pid in one.processes():
                with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                    os.kill(pid, signal.SIGKILL)
            one.exit_code()
            one.close()
        shutil.rmtree(temporary, ignore_errors=True)


def test_demo_shows_every_kind_of_change(demo: Demo) -> None:
    """Creates, updates, deletes, a soft delete, truncates, tags of three origins; then figures; then nothing."""
    shown = demo("--seconds", "0")
    for event in EVENTS:
        shown.wait_for_line(event)
    shown.interrupt()

    assert shown.exit_code() == 0, shown.screen
    assert "@example.org" not in shown.screen  # masked in cdc.toml
    for figure in (
        r"\d+ changes in \d+ transactions",
        "every change once",
        r"rolled back +[1-9]",
        r"[\d.]+ events/s",
        r"p50 [\d.]+ ms, p99 [\d.]+ ms",
        r"lag of the slot +\d+ bytes",
        r"cdc init",
        r"cdc check",
    ):
        assert re.search(figure, shown.screen), figure
    assert shown.leaves_nothing()


def test_figures_are_those_of_the_screen(demo: Demo) -> None:
    """The table of the summary counts the very lines above it."""
    shown = demo("--seconds", "0")
    shown.wait_for_line(r"create +public\.articles")
    shown.wait_for_line(r"update +public\.articles")
    shown.interrupt()

    assert shown.exit_code() == 0, shown.screen
    printed = Counter(
        (match[2], match[1])
        for match in re.finditer(r"^\S+Z (create|update|delete|truncate) +public\.(\w+)", shown.screen, re.MULTILINE)
    )
    articles = re.search(r"^articles +(\d+) +(\d+)", shown.screen, re.MULTILINE)
    assert articles is not None
    assert (int(articles[1]), int(articles[2])) == (printed["articles", "create"], printed["articles", "update"])
    assert re.search(rf"events received +{printed.total()},", shown.screen)


def test_ctrl_c_while_events_stream_ends_the_demo_with_its_summary(demo: Demo) -> None:
    """The ordinary end of `--seconds 0`: the service drains, exit 0."""
    shown = demo("--seconds", "0")
    shown.wait_for_line(r"create +public\.users")

    shown.interrupt()

    assert shown.exit_code() == 0, shown.screen
    assert "every change once" in shown.screen
    assert shown.leaves_nothing()


@pytest.mark.parametrize(
    "moment",
    ["walsignal-demo-*", "walsignal-demo-*/cluster/data", "walsignal-demo-*/cluster/data/postmaster.pid",
     "walsignal-demo-*/service.log", "walsignal-demo-*/cdc-state.db"],
)  # fmt: skip
def test_ctrl_c_before_the_first_event_leaves_nothing(demo: Demo, moment: str) -> None:
    """While the folder is made, in initdb, as the server starts, as the service starts and connects."""
    shown = demo()
    shown.wait_for_file(moment)

    shown.interrupt()

    assert shown.exit_code() in (0, INTERRUPTED), shown.screen  # 0: the first event was faster than we are
    assert "Traceback" not in shown.screen
    assert shown.leaves_nothing()


def test_ctrl_c_before_anything_is_there_leaves_nothing(demo: Demo) -> None:
    """Python itself is still starting."""
    shown = demo()

    shown.interrupt()

    assert shown.exit_code() != 0 or re.search(EVENTS[0], shown.screen)  # the first event was faster than we are
    assert shown.leaves_nothing()


def test_second_ctrl_c_kills_and_still_leaves_nothing(demo: Demo) -> None:
    """Who is in a hurry gets no summary, but a clean machine; the service is stopped, so that it cannot drain."""
    shown = demo("--seconds", "0")
    shown.wait_for_line(r"create +public\.users")
    (service,) = [pid for pid in shown.processes() if b"\0run\0" in command_of(pid)]
    os.kill(service, signal.SIGSTOP)

    shown.interrupt()
    shown.wait_until(lambda: len(list(Path(f"/proc/{shown.process.pid}/task").iterdir())) == 1)  # no traffic
    shown.interrupt()

    assert shown.exit_code() == INTERRUPTED, shown.screen
    assert shown.leaves_nothing()


def test_sigkill_leaves_nothing(demo: Demo) -> None:
    """Not even then: the guards end service and server and delete the folder."""
    shown = demo("--seconds", "0")
    shown.wait_for_line(r"create +public\.users")

    shown.process.kill()
    shown.exit_code()

    assert shown.leaves_nothing()


def test_keep_leaves_a_server_and_says_how_to_use_and_end_it(demo: Demo) -> None:
    """It ends by itself, and the commands that it prints work."""
    shown = demo("--seconds", "2", "--keep")

    assert shown.exit_code() == 0, shown.screen
    (folder,) = shown.temporary.iterdir()
    assert "it stays, and the server runs on" in shown.screen
    names = {"cdc.toml", "cdc-state.db", "events", "latency.tsv", "service.log", "cluster"}
    assert names <= {path.name for path in folder.iterdir()}
    assert list((folder / "events").iterdir())
    dsn = re.search(r"psql '([^']+)'", shown.screen)
    stop = re.search(r"^kill -INT.*", shown.screen, re.MULTILINE)
    assert dsn is not None
    assert stop is not None
    with psycopg.connect(dsn[1], autocommit=True) as connection:
        query = "SELECT slot_name, active FROM pg_replication_slots"
        wait_until(lambda: connection.execute(query).fetchall() == [("cdc_demo", False)])

    of_a_stranger = stop[0].replace("kill -INT", "false", 1)
    assert subprocess.run(["/bin/sh", "-c", of_a_stranger], check=False, timeout=PATIENCE_SECONDS).returncode == 1
    assert names <= {path.name for path in folder.iterdir()}  # nothing is removed under a server that runs

    subprocess.run(["/bin/sh", "-c", stop[0]], check=True, timeout=PATIENCE_SECONDS)

    assert shown.leaves_nothing()


def test_demo_fails_with_the_reason_when_it_cannot_start(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    """No PostgreSQL: one line, what to do, exit 1, and nothing left."""
    monkeypatch.setenv("PG_BINDIR", "/nowhere")

    shown = demo()

    assert shown.exit_code() == 1, shown.screen
    assert "error[demo_failed]: no PostgreSQL server programs" in shown.screen
    assert "fix: " in shown.screen
    assert shown.leaves_nothing()


def test_readme_shows_the_example_the_demo_runs_with() -> None:
    """One example, and it is the one that is tried at every run of these tests."""
    example = (ROOT / "cdc" / "demo" / "cdc.toml").read_text()

    assert f"```toml\n{example}```" in (ROOT / "README.md").read_text()
    assert tomllib.loads(example)["handlers"]


def test_quantile_is_the_nearest_rank() -> None:
    """A value that was measured, never one in between."""
    assert quantile([4, 1, 3, 2], 0.5) == 2
    assert quantile([4, 1, 3, 2], 0.99) == 4
    assert quantile([7], 0.01) == 7


def test_torn_last_measurement_is_left_out(tmp_path: Path) -> None:
    """The service may have been killed while it wrote."""
    file = tmp_path / "latency.tsv"
    file.write_text("users\tcreate\t0.001000\nusers\tupd")

    assert [one.table for one in measurements(file)] == ["users"]
