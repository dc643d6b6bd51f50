"""`cdc status --watch` beside a real service: in place on a terminal, one picture after the other elsewhere."""

from __future__ import annotations

import codecs
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from cdc.cli.picture import of_service, rendered
from tests.conftest import Database
from tests.running import Child, child, wait_until
from tests.test_cli import PATIENT, SECONDS

ROOT = Path(__file__).resolve().parent.parent
HANDLERS = {"audit": {"callback": "records:Record"}, "mail": {"callback": "records:Record"}}
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def command(folder: Path, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """What runs `cdc`, and its environment, in which nobody says how wide the terminal is."""
    ours = ("CDC_", "PG", "NO_COLOR", "COLUMNS", "LINES")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment = {**kept, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    return [sys.executable, *PATIENT, *arguments, "--config", str(folder / "cdc.toml")], environment


class Terminal:
    """`cdc status --watch` on a terminal of 160 columns."""

    def __init__(self, folder: Path) -> None:
        arguments, environment = command(folder, "status", "--watch", "0.2")
        self._ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (40, 160))
        self.process = subprocess.Popen(
            arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)
        self.written = ""
        self.is_over = False  # nobody has it open any more
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def read(self, seconds: float) -> None:
        """Take what is there, or comes within that time."""
        if select.select([self._ours], [], [], seconds)[0]:
            try:
                self.written += self._decoder.decode(os.read(self._ours, 65536))
            except OSError:  # its end
                self.is_over = True

    def wait_for(self, shown: Callable[[str], object]) -> str:
        """Until a picture that is drawn from now on shows it; that picture, whole."""
        self.written, deadline = "", time.monotonic() + SECONDS
        while True:
            self.read(0.1)
            # Each begins by erasing the one before, line by line: the first may lack its begin, the last its end.
            pictures = [ESCAPE.sub("", one) for one in self.written.split("\x1b[2K")[1:-1]]
            for text in pictures:
                if shown(text):
                    return text
            assert time.monotonic() < deadline, self.written[-3000:]
            assert not self.is_over, self.written[-3000:]

    def end(self) -> int:
        """Its exit code, once it has ended; what it writes until then is taken."""
        deadline = time.monotonic() + SECONDS
        while not self.is_over:
            assert time.monotonic() < deadline
            self.read(0.05)
        return self.process.wait(SECONDS)

    def close(self) -> None:
        """End it, if it runs."""
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@contextmanager
def serving(folder: Path, database: Database) -> Iterator[Child]:
    """A service with two handlers, whose endpoints answer."""
    database.execute("CREATE TABLE items (id int PRIMARY KEY)")
    with child(folder, database.dsn, handlers=HANDLERS, http={"enabled": True, "port": 0}) as service:
        service.start()
        service.write(http={"port": service.log("http_listening")[-1]["port"]})  # what the command reads
        yield service


def cells(text: str, name: str) -> list[str]:
    """The row of a callback."""
    rows = [re.split(" {3,}", line.strip()) for line in text.splitlines() if line.split()[:1] == [name]]
    return rows[-1] if rows else []


def test_terminal_shows_rates_slot_and_who_is_in_trouble(database: Database, tmp_path: Path) -> None:
    """What was delivered is seen, a removed handler comes first with what is parked, and so is its end."""
    with serving(tmp_path, database) as service:
        terminal = Terminal(tmp_path)
        try:
            text = terminal.wait_for(lambda text: "streaming, ready" in text and "note" in text)
            assert service.slot in text
            database.execute("INSERT INTO items VALUES (1), (2), (3)")
            service.wait_for_lines(3)
            text = terminal.wait_for(lambda text: cells(text, "audit")[5:6] == ["3"] and "held by" in text)
            for figure in ("throughput", "lag", "slot", "until it is lost", "held by", "queue", "checkpoint"):
                assert figure in text.replace("no limit", "until it is lost")

            arguments, environment = command(tmp_path, "handlers", "remove", "mail")
            subprocess.run(arguments, env=environment, check=True, capture_output=True, timeout=SECONDS)
            service.wait_for_log("callback_removed")
            database.execute("INSERT INTO items VALUES (4), (5)")
            text = terminal.wait_for(lambda text: cells(text, "mail")[8:9] == ["2"])
            assert "not ready" in text
            assert "handler 'mail' is removed" in text
            assert text.index("\nmail") < text.index("\naudit")
            assert cells(text, "mail")[1] == "removed", text

            service.stop()
            text = terminal.wait_for(
                lambda text: "no service answers" in text and cells(text, "mail") and "not in use" in text
            )
            assert cells(text, "mail")[8] == "2"
            terminal.process.send_signal(signal.SIGINT)
            assert terminal.end() == 0
            assert "\x1b[?25h" in terminal.written  # the cursor is back
        finally:
            terminal.close()


def test_single_look_tells_the_troubles_of_the_service_with_their_codes(database: Database, tmp_path: Path) -> None:
    """Exit 1 with a removed handler, 0 without; what answers for another slot is not taken for ours."""

    def look(folder: Path, *options: str) -> tuple[int, str]:
        arguments, environment = command(folder, "status", *options)
        done = subprocess.run(arguments, env=environment, check=False, capture_output=True, text=True, timeout=SECONDS)
        return done.returncode, done.stdout

    with serving(tmp_path, database) as service:
        code, text = look(tmp_path)
        assert (code, "problem" in text) == (0, False)
        assert re.search(r"\nready +yes", text)
        assert re.search(r"\nqueue +0 events, 0 B", text)

        arguments, environment = command(tmp_path, "handlers", "remove", "mail")
        subprocess.run(arguments, env=environment, check=True, capture_output=True, timeout=SECONDS)
        service.wait_for_log("callback_removed")
        code, text = look(tmp_path)
        assert code == 1
        assert "problem[callback_removed]: handler 'mail' is removed" in text
        code, text = look(tmp_path, "--json")
        told = json.loads(text)
        assert (code, told["problem_codes"]) == (1, ["callback_removed"])
        assert told["problems"] == told["live"]["not_ready"]

        # Until it has looked at its slot for the first time, it does not say which one is its own.
        wait_until(lambda: json.loads(look(tmp_path, "--json")[1])["live"]["slot"])
        (tmp_path / "cdc.toml").write_text((tmp_path / "cdc.toml").read_text().replace(service.slot, "another"))
        code, text = look(tmp_path, "--json")
        told = json.loads(text)
        assert (code, told["live"]) == (1, None)
        assert told["problem_codes"][0] == "http_port_unavailable"


def test_pipe_gets_one_picture_after_the_other_and_json_lines(database: Database, tmp_path: Path) -> None:
    """Without colours; Ctrl-C is exit 0, and so is a reader that has seen enough."""
    with serving(tmp_path, database):
        database.execute("INSERT INTO items VALUES (1)")
        for options in ([], ["--json"]):
            arguments, environment = command(tmp_path, "status", "--watch", "0.2", *options)
            with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True) as process:
                try:
                    assert process.stdout is not None
                    if options:
                        looks = map(json.loads, process.stdout)
                        one, other = next(looks), next(looks)
                        assert (one["live"]["phase"], one["time"] < other["time"]) == ("streaming", True)
                        process.stdout.close()
                    else:
                        text = ""
                        for line in process.stdout:
                            text += line
                            if text.count("streaming, ready") == 2:
                                break
                        assert text.count("streaming, ready") == 2
                        assert "\x1b" not in text
                        process.send_signal(signal.SIGINT)
                    assert process.wait(SECONDS) == 0
                finally:
                    process.kill()


def test_answer_of_another_service_is_not_shown(database: Database, tmp_path: Path) -> None:
    """Whoever has the port: server and state are asked, and it is said."""
    with serving(tmp_path, database) as service:
        other = tmp_path / "cdc.toml"
        other.write_text(other.read_text().replace(service.slot, "another_slot"))
        arguments, environment = command(tmp_path, "status", "--watch")
        with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                text = ""
                for line in process.stdout:
                    text += line
                    if f"answers for another slot: {service.slot}" in line:  # not before it has looked at it
                        break
                process.send_signal(signal.SIGTERM)
                assert process.wait(SECONDS) == 0
            finally:
                process.kill()
    assert "no service answers here" in text
    assert f"answers for another slot: {service.slot}" in text


def test_seconds_without_watch_are_wrong_usage(tmp_path: Path) -> None:
    """With what was meant."""
    arguments, environment = command(tmp_path, "status", "5")
    result = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)

    assert result.returncode == 2
    assert "cdc status --watch 5" in result.stderr


CALLBACK = {
    "name": "audit", "state": "active", "ok": 30, "failed": 1, "timeout": 2, "mean_seconds": 0.5,
    "holdback_seconds": 75.0, "held": "", "last_error": "ValueError",
}  # fmt: skip


def test_rates_are_those_of_the_service_or_of_two_looks() -> None:
    """A service that measures says them; else they are what was counted between, over the time between."""
    before = {"callbacks": [CALLBACK | {"ok": 10}], "events": 100, "transactions": 10}
    now = {"callbacks": [CALLBACK], "events": 140, "transactions": 12}

    (row,) = of_service(now, before, 2.0).rows
    assert (row.rate, row.failed, row.latency, row.note) == (10.0, 3, 0.5, "ValueError")
    assert dict(of_service(now, before, 2.0).figures)["throughput"].startswith("20 events/s, 1.0 tx/s")

    measured = {
        "rates": {"events_per_second": 7.0, "transactions_per_second": 1.0, "bytes_per_second": 2048.0},
        "callbacks": [CALLBACK | {"events_per_second": 3.0, "recent_mean_seconds": 0.002, "recent_p99_seconds": 0.005}],
    }
    picture = of_service(measured, before, 2.0)
    assert dict(picture.figures)["throughput"] == "7.0 events/s, 1.0 tx/s, 2.0 KiB/s"
    assert picture.rows[0].cells()[2:5] == ("3.0", "2 ms", "5 ms")


def test_what_a_name_holds_commands_no_terminal() -> None:
    """Neither markup nor escape codes of what the service says."""
    out = io.StringIO()
    Console(width=120, file=out).print(
        rendered(of_service({"phase": "[red]x\x1b[2J", "last_error": "a\nb"}, None, 0), "s", "t")
    )
    text = out.getvalue()

    assert "[red]x\\x1b[2J" in text
    assert "a\\nb" in text
