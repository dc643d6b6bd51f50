"""The `console` handler: a line per event, readable, and harmless to the terminal whatever the values are."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import termios
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from cdc.config import HandlerConfig
from cdc.errors import ConfigError
from cdc.events import DatabaseEvent, EventType, Position
from cdc.loading import load_callback
from cdc.lsn import Lsn
from handlers.console import Console, ConsoleOptions

NOON = datetime(2026, 1, 2, 12, 0, 0, 123456, UTC)

PROGRAM = """
import sys
from datetime import UTC, datetime
from cdc import DatabaseEvent
from handlers.console import Console, ConsoleOptions

midnight = datetime(2026, 1, 2, tzinfo=UTC)
event = DatabaseEvent.of("create", "users", {"name": "Zoë"}, record_id="1", timestamp=midnight)
console = Console(ConsoleOptions())
"""


def event(event_type: str = "create", payload: dict[str, Any] | None = None, **fields: Any) -> DatabaseEvent:
    """A change of public.users at noon."""
    fields = {"record_id": "7", "timestamp": NOON, **fields}
    return DatabaseEvent.of(event_type, "users", {"id": 7, "name": "Ann"} if payload is None else payload, **fields)


def text(*events: DatabaseEvent, capsys: pytest.CaptureFixture[str], **options: Any) -> str:
    """What a console in text format writes for the events."""
    Console(ConsoleOptions(format="text", **options)).handle_batch(events)
    return capsys.readouterr().out


def in_terminal(program: str, columns: int = 80, environment: Mapping[str, str] | None = None) -> str:
    """What Python writes when standard output is a terminal of so many columns."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    kept = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=theirs, env=kept | {"TERM": "xterm"} | dict(environment or {})
    ) as child:
        os.close(theirs)
        data = b""
        try:
            while part := os.read(ours, 4096):
                data += part
        except OSError:  # a terminal that nobody has open any more
            pass
        os.close(ours)
    assert child.returncode == 0
    return data.decode()


def test_create_shows_time_type_table_key_values_and_tags(capsys: pytest.CaptureFixture[str]) -> None:
    """All that tells one event from another, on one line."""
    created = event(payload={"id": 7, "name": "Ann", "vip": True}, tags=("audit:required", "user:42"))

    line = text(created, capsys=capsys)

    assert line == "12:00:00.123Z create   public.users 7  id=7 name='Ann' vip=true  [audit:required user:42]\n"


def test_update_shows_what_has_changed(capsys: pytest.CaptureFixture[str]) -> None:
    """Columns of which the old value is known and the same are left out; NULL is a value."""
    updated = event(
        "update",
        {"id": 7, "name": "Ann", "email": None, "seen": 3},
        before={"id": 7, "name": "Anna", "email": "a@b.c"},
    )

    line = text(updated, capsys=capsys)

    assert line == "12:00:00.123Z update   public.users 7  name='Anna'→'Ann' email='a@b.c'→NULL seen=3\n"


def test_update_without_the_old_row_shows_the_new_one(capsys: pytest.CaptureFixture[str]) -> None:
    """And names the columns that the server did not send."""
    updated = event("update", {"id": 7}, unchanged=["bio"])

    assert text(updated, capsys=capsys) == "12:00:00.123Z update   public.users 7  id=7 bio unchanged\n"


def test_delete_and_truncate_have_lines_too(capsys: pytest.CaptureFixture[str]) -> None:
    """What is known of the old row, or the table alone."""
    deleted = event("delete", {"id": 7})
    truncated = event("truncate", {}, record_id=None)

    lines = text(deleted, truncated, capsys=capsys)

    assert lines == "12:00:00.123Z delete   public.users 7  id=7\n12:00:00.123Z truncate public.users\n"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Decimal("12.30"), "12.30"),
        (1.5, "1.5"),
        (b"\x00\xff", r"\x00ff"),
        (bytes(1000), "\\x" + "00" * 16 + "… 1000 bytes"),
        ("x" * 1000, "'" + "x" * 59 + "…'"),
        ({"a": [1, None]}, '{"a":[1,null]}'),
        ([Decimal(1), 2**70], "[Decimal('1'), 1180591620717411303424]"),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00+00:00"),
        (False, "false"),
    ],
)
def test_values_are_short_and_readable(value: Any, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each kind as one piece of a line; a document does not fill the screen."""
    assert text(event(payload={"v": value}), capsys=capsys).endswith(f" v={shown}\n")


@pytest.mark.parametrize(
    ("evil", "harmless"),
    [
        ("a\nb", r"a\nb"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\x9b31m", r"\x9b31m"),
        ("\x07\x00\x7f", r"\x07\x00\x7f"),
        ("\u202eevil", r"\u202eevil"),
        ("\u2028", r"\u2028"),
        ("\ud800", r"\ud800"),
    ],
)
def test_nothing_commands_the_terminal(evil: str, harmless: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Values, names, keys and tags are data: control characters and escapes are written out."""
    everywhere = DatabaseEvent.of(
        "update",
        f"t{evil}",
        {f"c{evil}": evil, "doc": {"k": evil}},
        schema=f"s{evil}",
        record_id=f"r{evil}",
        tags=(f"g{evil}",),
        before={f"c{evil}": f"{evil}{evil}"},
        timestamp=NOON,
    )

    line = text(everywhere, capsys=capsys)

    assert f"s{harmless}.t{harmless} r{harmless}  c{harmless}='{harmless}{harmless}'→'{harmless}'" in line
    assert f"[g{harmless}]" in line
    assert line.endswith("\n")
    assert not set(evil) - set(harmless) & set(line[:-1])


def test_joined_emoji_stay_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """What only shapes letters is no control character."""
    family = "👩\u200d👩\u200d👧"

    assert f"name='{family}'" in text(event(payload={"name": family}), capsys=capsys)


def test_values_false_shows_no_value(capsys: pytest.CaptureFixture[str]) -> None:
    """Names of columns only, where the screen is no place for the data."""
    updated = event("update", {"id": 7, "name": "Ann"}, before={"id": 7, "name": "secret"})

    assert text(event(), updated, capsys=capsys, values=False) == (
        "12:00:00.123Z create   public.users 7  id name\n12:00:00.123Z update   public.users 7  name\n"
    )


def test_max_width_cuts_the_details(capsys: pytest.CaptureFixture[str]) -> None:
    """To columns of the terminal, of which a wide letter takes two; the tags stay."""
    wide = event(payload={"name": "漢字" * 20}, tags=("t",))

    line = text(wide, capsys=capsys, max_width=60)

    assert line == "12:00:00.123Z create   public.users 7  name='漢字漢字 …  [t]\n"
    assert len(line[:-1]) + sum(map(line.count, "漢字")) == 60


def test_max_width_smaller_than_anything_keeps_the_head(capsys: pytest.CaptureFixture[str]) -> None:
    """Time, type, table and key are never cut."""
    assert text(event(tags=("t",)), capsys=capsys, max_width=1) == "12:00:00.123Z create   public.users 7\n"


def test_json_is_the_whole_event(capsys: pytest.CaptureFixture[str]) -> None:
    """A line per event, what `to_json` gives."""
    events = [event(), event("delete", {"id": 7}, position=Position(Lsn(9), 1))]
    Console(ConsoleOptions(format="json")).handle_batch(events)

    lines = capsys.readouterr().out.splitlines()

    assert [line.encode() for line in lines] == [one.to_json() for one in events]


def test_json_does_not_command_the_terminal_either(capsys: pytest.CaptureFixture[str]) -> None:
    """What JSON may leave as it is, is escaped all the same, and means the same."""
    evil = "\x7f\x9b31m\u202e\u2028\u2066é漢\u0080\u009f"
    Console(ConsoleOptions(format="json")).handle_batch([event(payload={evil: evil})])

    line = capsys.readouterr().out

    assert line[:-1].isprintable()
    assert json.loads(line)["payload"] == {evil: evil}


def test_batch_is_written_through_the_descriptor(capfd: pytest.CaptureFixture[str]) -> None:
    """After what the program has printed before, and at once."""
    print("before")
    Console(ConsoleOptions(format="text")).handle_batch([event()] * 3)

    first, *others = capfd.readouterr().out.splitlines()

    assert (first, len(others)) == ("before", 3)


def test_auto_is_json_when_nobody_watches() -> None:
    """Into a pipe or a file, `format = "auto"` writes for programs."""
    done = subprocess.run(
        [sys.executable, "-c", f"{PROGRAM}console.handle_batch([event])"], stdout=subprocess.PIPE, check=True
    )

    assert json.loads(done.stdout)["payload"] == {"name": "Zoë"}


def test_terminal_gets_colored_text_of_its_width() -> None:
    """On a terminal "auto" is text in colour, cut to the window."""
    written = in_terminal(f"{PROGRAM}console.handle_batch([event])", columns=45)

    assert written == ("\x1b[2m00:00:00.000Z\x1b[0m \x1b[32mcreate  \x1b[0m \x1b[1mpublic.users\x1b[0m 1  name=…\r\n")


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colors_can_be_declined(environment: dict[str, str]) -> None:
    """By the convention of NO_COLOR, and by terminals that have none."""
    written = in_terminal(f"{PROGRAM}console.handle_batch([event])", environment=environment)

    assert written == "00:00:00.000Z create   public.users 1  name='Zoë'\r\n"


@pytest.mark.parametrize("event_type", list(EventType))
def test_color_can_be_forced(event_type: EventType, capsys: pytest.CaptureFixture[str]) -> None:
    """Each type has its own, for `cdc demo` and for logs that keep colours."""
    colored = text(event(event_type.value, tags=("t",)), capsys=capsys, color=True)

    assert f"m{event_type.value:8}\x1b[0m" in colored
    assert colored.count("\x1b[0m") == 4


def test_stdout_of_another_encoding_loses_nothing() -> None:
    """What the encoding does not have is written as an escape."""
    done = subprocess.run(
        [sys.executable, "-c", f"{PROGRAM}Console(ConsoleOptions(format='text')).handle_batch([event])"],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=True,
    )

    assert done.stdout.endswith(b"  name='Zo\\xeb'\n")


def test_closed_pipe_raises_and_the_process_lives_on() -> None:
    """Every batch raises, none is taken as written, and the exit code stays the program's own."""
    program = f"""{PROGRAM}
for _ in range(2):
    try:
        console.handle_batch([event])
    except BrokenPipeError as error:
        print(error, file=sys.stderr)
"""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as stdout:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=stdout, stderr=subprocess.PIPE, text=True, check=False
        )

    assert done.stderr.count("standard output is closed: nobody reads what the console handler writes") == 2
    assert done.stderr.count("\n") == 2
    assert done.returncode == 0


def test_missing_stdout_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that was started without one."""
    monkeypatch.setattr(sys, "stdout", None)

    with pytest.raises(OSError, match="nowhere to write"):
        Console(ConsoleOptions()).handle_batch([event()])


@pytest.mark.parametrize("options", [{"format": "xml"}, {"max_width": -1}, {"max_width": "wide"}, {"colour": True}])
def test_bad_option_names_the_key(options: dict[str, Any], tmp_path: Path) -> None:
    """In the configuration, before anything runs."""
    (key,) = options
    handler = HandlerConfig(name="screen", callback="handlers.console:Console", options=options)

    with pytest.raises(ConfigError) as caught:
        load_callback(handler, tmp_path)

    assert key in caught.value.problems[0]
