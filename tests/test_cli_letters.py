"""Dead letters and handlers at the command line, on real states and beside a real service.

Where a process of its own shows nothing more, `main` runs in this one: a start takes longer than a command.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cdc.cli import main
from cdc.codec import pack
from cdc.events import DatabaseEvent, Position
from cdc.lsn import Lsn
from cdc.state import (
    CallbackState,
    Checkpoint,
    DeadLetter,
    Gap,
    LetterFilter,
    LetterState,
    Source,
    StateStore,
    open_state,
)
from tests.conftest import Database
from tests.running import Child, child, wait_until
from tests.test_cli import SECONDS, Cdc
from tests.test_state_postgres import state_url

NOW = datetime.now(UTC)
SOURCE = Source("1", 1, "shop", "cdc", "wal2json", "")
LONG_SECONDS = 300  # what takes a hundred thousand letters ten may take minutes on a busy machine
SECRET = "hunter2"  # of the connection string


def position(number: int) -> Position:
    """The n-th event's."""
    return Position(Lsn(0x100 + number), 1)


def letter(number: int, callback: str = "mine", state: LetterState = LetterState.FAILED, **rest: Any) -> DeadLetter:
    """A dead letter of the n-th event, tried (or parked) n hours ago."""
    values: dict[str, Any] = {"id": number, "name": "Ada", "price": "1.10"}
    event = DatabaseEvent.of("update", "orders", values, id=number, record_id=str(number), position=position(number))
    failed = state is LetterState.FAILED
    facts: dict[str, Any] = {
        "callback": callback, "position": event.position, "state": state, "table": event.kind.table,
        "event_type": "update", "event": pack(event), "first_time": NOW - timedelta(hours=number, minutes=1),
        "last_time": NOW - timedelta(hours=number, minutes=1), "error": "ValueError" if failed else "",
        "error_text": "it broke" if failed else "", "attempts": 3 if failed else 0,
    }  # fmt: skip
    return DeadLetter(**facts | rest)


class Desk(Cdc):
    """`cdc` with a configuration of two handlers, `mine` and `other`, and a state; nothing needs a server."""

    def __init__(self, folder: Path, url: str = "") -> None:
        super().__init__(folder)
        self.url = url or f"sqlite:///{folder}/cdc-state.db"
        self.configure(
            f"host=/nowhere user=x password={SECRET} dbname=y",
            f'[[handlers]]\nname = "other"\ncallback = "mine:callback"\n[state]\nurl = "{self.url}"\n',
        )
        with self.state() as state:
            settled = {"mine": position(1), "other": position(2), "gone": position(3)}
            state.save(Checkpoint(SOURCE, Lsn(0x100), 7, settled))

    def __call__(self, *arguments: str, answer: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run `main`; no terminal anywhere."""
        out, err = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            patch.setattr(os, "environ", dict(self.environment))
            patch.setattr(sys, "argv", ["cdc", *arguments])
            patch.setattr(sys, "stdin", io.StringIO(answer or ""))
            with pytest.raises(SystemExit) as end:
                main()
        return subprocess.CompletedProcess(arguments, int(end.value.code or 0), out.getvalue(), err.getvalue())

    @contextmanager
    def state(self, *, owner: bool = False) -> Iterator[StateStore]:
        """As a test looks at it; as `owner` it is the running service's."""
        store = open_state(self.url, owner=owner)
        try:
            yield store
        finally:
            store.close()

    def keep(self, *letters: DeadLetter) -> list[int]:
        """Put dead letters in; their ids."""
        with self.state() as state:
            state.add_letters(letters)
            ids = {(one.callback, one.position): one.id for one in state.letters(LetterFilter(), limit=100_000)}
        return [ids[one.callback, one.position] for one in letters]

    def kept(self, wanted: LetterFilter = LetterFilter()) -> list[DeadLetter]:  # noqa: B008 - it is frozen
        """What is there."""
        with self.state() as state:
            return state.letters(wanted)

    def record(self, name: str) -> CallbackState:
        """The handler's state on record."""
        with self.state() as state:
            return {one.name: one.state for one in state.callbacks()}[name]

    def gaps(self) -> list[Gap]:
        """What was not delivered."""
        with self.state() as state:
            return state.gaps()

    def done(self, *arguments: str) -> str:
        """The output of a command that succeeds."""
        result = self(*arguments)
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout

    def answer(self, *arguments: str) -> Any:
        """The same as JSON."""
        return json.loads(self.done(*arguments, "--json"))

    def refused(self, *arguments: str, code: int = 1) -> str:
        """What a command says that fails: an error and its remedy, nothing on stdout, no secret."""
        result = self(*arguments)
        assert (result.returncode, result.stdout) == (code, "")
        assert result.stderr.startswith("error[")
        assert "fix: " in result.stderr
        assert "Traceback" not in result.stderr
        assert SECRET not in result.stderr
        return result.stderr


@pytest.fixture(autouse=True)
def long_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that stands for the service pings nothing: the server lets it keep the state while a command starts."""
    monkeypatch.setattr("cdc.state.server._LEASE", "120000")


@pytest.fixture
def file_desk(tmp_path: Path) -> Desk:
    """A state without dead letters, in a file."""
    return Desk(tmp_path)


@pytest.fixture(params=["sqlite", "postgresql"])
def desk(request: pytest.FixtureRequest, tmp_path: Path) -> Desk:
    """A state without dead letters, in a file or on a server."""
    if request.param == "sqlite":
        return Desk(tmp_path)
    database: Database = request.getfixturevalue("database")
    return Desk(tmp_path, state_url(database.cluster, database.name))


# --- dead-letters list and show ----------------------------------------------------------------------


def test_list_shows_letters_and_sums(desk: Desk) -> None:
    """For people a line each; for programs the same as one object."""
    ids = desk.keep(letter(1), letter(2, "other"), letter(3, "other", LetterState.PARKED))

    people = desk.done("dead-letters", "list")
    for text in ("mine", "other", "failed", "parked", "public.orders", "update", "0/101:1", "ValueError"):
        assert text in people
    programs = desk.answer("dead-letters", "list")
    assert [one["id"] for one in programs["letters"]] == ids
    assert programs["letters"][0] | {"id": 0, "bytes": 0, "first_time": "", "last_time": ""} == {
        "id": 0, "handler": "mine", "state": "failed", "retry": False, "table": "public.orders",
        "event_type": "update", "position": "0/101:1", "attempts": 3, "error": "ValueError", "bytes": 0,
        "first_time": "", "last_time": "",
    }  # fmt: skip
    assert datetime.fromisoformat(programs["letters"][0]["last_time"]) == NOW - timedelta(hours=1, minutes=1)
    assert [(one["handler"], one["state"], one["letters"], one["retry"]) for one in programs["totals"]] == [
        ("mine", "failed", 1, 0),
        ("other", "failed", 1, 0),
        ("other", "parked", 1, 0),
    ]


def test_list_of_none_says_so(desk: Desk) -> None:
    """An empty table would leave a doubt."""
    assert "there are no dead letters" in desk.done("dead-letters", "list")
    assert desk.answer("dead-letters", "list") == {"letters": [], "more": 0, "exact": True, "totals": []}


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        (["--handler", "other"], [2, 3, 5]),
        (["--table", "public.users"], [4]),
        (["--state", "parked"], [3]),
        (["--older-than", "3h"], [4, 3, 5]),
        (["--older-than", "2h30m", "--handler", "mine"], [4]),
        (["--older-than", "1w"], []),
        (["--handler", "other", "--state", "failed"], [2, 5]),
    ],
)
def test_letters_are_selected_by_all_conditions(desk: Desk, options: list[str], numbers: list[int]) -> None:
    """Handler, table, state and age, in the order of handlers and positions."""
    desk.keep(
        letter(1), letter(2, "other"), letter(3, "other", LetterState.PARKED), letter(4, table="public.users"),
        letter(5, "other"),
    )  # fmt: skip
    found = desk.answer("dead-letters", "list", *options)["letters"]

    assert [Position.parse(one["position"]) for one in found] == [position(number) for number in numbers]


def test_list_ends_at_its_limit_and_says_how_many_more(desk: Desk) -> None:
    """100 by default, all with 0; never more than a page in memory."""
    desk.keep(*(letter(number) for number in range(1, 131)))

    assert len(desk.answer("dead-letters", "list")["letters"]) == 100
    assert "and 30 more" in desk.done("dead-letters", "list")
    assert "and 120 more" in desk.done("dead-letters", "list", "--limit", "10")
    three = desk.answer("dead-letters", "list", "--limit", "3", "--table", "public.orders")
    assert (len(three["letters"]), three["more"]) == (3, 127)
    everything = desk.answer("dead-letters", "list", "--limit", "0")
    assert (len(everything["letters"]), everything["more"]) == (130, 0)


def test_show_tells_everything(desk: Desk) -> None:
    """The error's own words and the event as the handler sees it."""
    (number,) = desk.keep(letter(1))

    people = desk.done("dead-letters", "show", str(number))
    for text in ("it broke", "ValueError", "0/101:1", "Ada", "price", "1.10", f"cdc dead-letters retry {number}"):
        assert text in people
    programs = desk.answer("dead-letters", "show", str(number))
    assert programs["event"]["payload"] == {"id": 1, "name": "Ada", "price": "1.10"}
    assert (programs["error_text"], programs["event"]["record_id"]) == ("it broke", "1")
    assert "cdc handlers resume other" in desk.done(
        "dead-letters", "show", str(desk.keep(letter(2, "other", LetterState.PARKED))[0])
    )


@pytest.mark.parametrize("event", [b"", b"{", b'{"format":2}'])
def test_show_tells_of_an_event_that_cannot_be_read(desk: Desk, event: bytes) -> None:
    """The rest is shown all the same."""
    (number,) = desk.keep(letter(1, event=event))

    assert "problem: " in desk.done("dead-letters", "show", str(number))
    programs = desk.answer("dead-letters", "show", str(number))
    assert programs["event"] is None
    assert programs["problem"]


def test_what_is_not_there_is_told(desk: Desk) -> None:
    """An id, a handler; each with the way to see what is there."""
    for command in (["show", "77"], ["retry", "77"], ["discard", "77", "--yes"]):
        assert "no dead letter has the id 77" in desk.refused("dead-letters", *command)
    told = desk.refused("dead-letters", "list", "--handler", "mien")
    assert "no handler is named 'mien'" in told
    assert "gone, mine, other" in told


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--older-than", "soon"], "2h"),
        (["--older-than", "3"], "2h"),
        (["--older-than", "-3h"], "2h"),
        (["--older-than", "99999999999999w"], "2h"),
        (["--state", "lost"], "failed or parked"),
        (["--table", "orders"], "public.orders"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(desk: Desk, options: list[str], words: str) -> None:
    """Each says what would."""
    for command in ("list", "retry", "discard"):
        assert words in desk.refused("dead-letters", command, *options, code=2)


def test_nothing_is_changed_without_a_selection(desk: Desk) -> None:
    """All letters are meant only by --all, and --all means all."""
    desk.keep(letter(1))
    for command in ("retry", "discard"):
        assert "--all" in desk.refused("dead-letters", command, code=2)
        assert "contradict" in desk.refused("dead-letters", command, "--all", "--handler", "mine", code=2)
    assert [one.retry for one in desk.kept()] == [False]


def test_no_state_yet_is_an_error_and_makes_none(desk: Desk) -> None:
    """A mistyped state.url must not look like one without dead letters."""
    path = desk.folder / "cdc.toml"
    elsewhere = re.sub(r"/test_\w+\?", "/postgres?", desk.url.replace("cdc-state.db", "mistyped.db"))
    assert elsewhere != desk.url
    path.write_text(path.read_text().replace(desk.url, elsewhere))
    for command in (
        ["dead-letters", "list"], ["dead-letters", "retry", "--all"], ["dead-letters", "discard", "--all", "--yes"],
        ["handlers", "list"], ["handlers", "remove", "mine"], ["handlers", "forget", "gone"],
    ):  # fmt: skip
        assert "cdc run makes it" in desk.refused(*command)
    assert not (desk.folder / "mistyped.db").exists()


# --- dead-letters retry and discard, without a service -----------------------------------------------


def test_retry_without_the_service_happens_at_its_next_start(desk: Desk) -> None:
    """The request is on record, for the letters that are meant."""
    first, _, third = desk.keep(letter(1), letter(2), letter(3, "other"))

    text = desk.done("dead-letters", "retry", str(first), str(third))
    assert "2 dead letters tried again when the service is started" in text
    assert [one.retry for one in desk.kept()] == [True, False, True]
    assert desk.answer("dead-letters", "retry", "--all") == {
        "requested": 3, "running": False, "waited": False, "delivered": 0, "failed": 0, "waiting": 3, "held": {},
    }  # fmt: skip
    assert "to be retried" in desk.done("dead-letters", "list")


def test_parked_letters_are_not_retried_one_by_one(desk: Desk) -> None:
    """That would overtake those before them: the handler is resumed instead."""
    failed, parked = desk.keep(letter(1), letter(2, state=LetterState.PARKED))

    assert "cdc handlers resume mine" in desk.refused("dead-letters", "retry", str(failed), str(parked))
    assert "cdc handlers resume" in desk.refused("dead-letters", "retry", "--state", "parked", code=2)
    assert [one.retry for one in desk.kept()] == [False, False]
    text = desk.done("dead-letters", "retry", "--handler", "mine")
    assert "1 dead letter tried again" in text
    assert "cdc handlers resume mine" in text
    assert [one.retry for one in desk.kept()] == [True, False]


def test_retry_says_which_handlers_get_nothing_as_things_are(desk: Desk) -> None:
    """A removed one, and one that is not in the configuration any more."""
    desk.keep(letter(1), letter(2, "gone"), letter(3, "other"))
    with desk.state() as state:
        state.mark_removed("mine", position(1), "failures")

    held = desk.answer("dead-letters", "retry", "--all")["held"]
    assert held.keys() == {"mine", "gone"}
    assert "cdc handlers resume mine" in held["mine"]
    assert "cdc dead-letters discard --handler gone" in held["gone"]
    assert "but not those of gone" in desk.done("dead-letters", "retry", "--all")


def test_retry_for_a_removed_handler_promises_nothing(desk: Desk) -> None:
    """Beside a service as without one: what waits, for whom, and what to do first."""
    desk.keep(letter(1), letter(2))
    with desk.state() as state:
        state.mark_removed("mine", position(1), "failures")
    with desk.state(owner=True):
        beside = desk.done("dead-letters", "retry", "--all")
    for text in (beside, desk.done("dead-letters", "retry", "--handler", "mine")):
        assert text == "2 dead letters wait\nfor mine: it is removed; first: cdc handlers resume mine\n"


def test_retry_of_nothing_says_so(desk: Desk) -> None:
    """And is no failure."""
    assert "no failed dead letters match" in desk.done("dead-letters", "retry", "--older-than", "1d")


def test_retry_waits_only_as_long_as_a_service_runs(desk: Desk) -> None:
    """An owner that goes away without having done anything leaves the request for the next."""
    desk.keep(letter(1))
    service = open_state(desk.url, owner=True)
    with subprocess.Popen(
        [sys.executable, "-m", "cdc.cli", "dead-letters", "retry", "--all", "--json"],
        cwd=desk.folder, env=desk.environment, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            wait_until(lambda: service.letter_totals()[0].retry == 1)
            service.close()
            output, _ = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
            service.close()
    assert process.returncode == 0
    assert json.loads(output) == {
        "requested": 1, "running": False, "waited": True, "delivered": 0, "failed": 0, "waiting": 1, "held": {},
    }  # fmt: skip


def test_retry_reports_what_a_service_does(desk: Desk) -> None:
    """Delivered letters are gone, failed ones were tried later than we asked; both are counted apart."""
    letters = [letter(number) for number in range(1, 6)]
    desk.keep(*letters)
    with desk.state(owner=True) as service, subprocess.Popen(
        [sys.executable, "-m", "cdc.cli", "dead-letters", "retry", "--handler", "mine", "--json"],
        cwd=desk.folder, env=desk.environment, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            waiting = LetterFilter(retry=True)
            wait_until(lambda: len(service.letters(waiting)) == 5)
            asked = service.letters(waiting)
            service.remove_letters([one.id for one in asked[:3]])
            again = [letter(one.position.commit_lsn - 0x100, last_time=datetime.now(UTC)) for one in asked[3:]]
            service.add_letters([*again, letter(9, first_time=datetime.now(UTC), last_time=datetime.now(UTC))])
            assert process.wait(timeout=SECONDS) == 1
            assert process.stdout is not None
            outcome = json.loads(process.stdout.read())
        finally:
            process.kill()
    assert outcome == {
        "requested": 5, "running": True, "waited": True, "delivered": 3, "failed": 2, "waiting": 0, "held": {},
    }  # fmt: skip


def test_retry_need_not_wait(desk: Desk) -> None:
    """--no-wait returns at once, though a service runs."""
    desk.keep(letter(1))
    with desk.state(owner=True):
        assert "tried again within a second" in desk.done("dead-letters", "retry", "--all", "--no-wait")


@pytest.mark.parametrize("wait", [[], ["--no-wait"]])
def test_retry_beside_a_service_that_is_quicker_holds_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, wait: list[str]
) -> None:
    """The service may have delivered all of them before the command looks: nothing is told as held."""
    ids = desk.keep(letter(1), letter(2), letter(3))
    with desk.state(owner=True) as service:
        request = type(service).request_retry

        def request_and_deliver(store: StateStore, wanted: LetterFilter) -> int:
            requested = request(store, wanted)
            store.remove_letters(ids)
            return requested

        monkeypatch.setattr(type(service), "request_retry", request_and_deliver)
        text = desk.done("dead-letters", "retry", "--all", *wait)
    assert text == (
        "3 dead letters tried again within a second\n" if wait else "3 dead letters delivered, 0 failed again\n"
    )


def test_discard_needs_a_yes_and_leaves_a_record(desk: Desk) -> None:
    """What was given up is a gap of its handler."""
    desk.keep(letter(1), letter(2), letter(3, "other"))

    assert "--yes" in desk.refused("dead-letters", "discard", "--handler", "mine")
    assert len(desk.kept()) == 3
    assert "discarded 2 dead letters" in desk.done("dead-letters", "discard", "--handler", "mine", "--yes")
    assert [one.callback for one in desk.kept()] == ["other"]
    (gap,) = desk.gaps()
    assert (gap.callback, gap.reason, gap.events, gap.first, gap.last) == (
        "mine", "discarded", 2, position(1), position(2)
    )  # fmt: skip
    assert desk.answer("dead-letters", "discard", "--older-than", "1d", "--yes") == {"discarded": 0}
    assert desk.answer("dead-letters", "discard", "--all", "--yes") == {"discarded": 1}


def test_discard_beside_a_running_service(desk: Desk) -> None:
    """The state is written though another process owns it."""
    (number,) = desk.keep(letter(1))
    with desk.state(owner=True):
        assert desk.answer("dead-letters", "discard", str(number), "--yes") == {"discarded": 1}


@contextmanager
def on_terminal(desk: Desk, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A command with a terminal for stdin and stderr, and the other end of it."""
    ours, theirs = pty.openpty()
    # A shell that starts us in the background lets us, and so the command, ignore what Ctrl-C sends.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        [sys.executable, "-m", "cdc.cli", *arguments],
        cwd=desk.folder, env=desk.environment | {"TERM": "xterm", "COLUMNS": "100"},
        stdin=theirs, stdout=subprocess.PIPE, stderr=theirs,
    ) as process:  # fmt: skip
        signal.signal(signal.SIGINT, before)
        os.close(theirs)
        try:
            yield process, ours
        finally:
            process.kill()
            os.close(ours)


def read_until(terminal: int, text: str) -> str:
    """What a terminal shows, up to and with `text`."""
    shown = b""
    while text.encode() not in shown:
        readable, _, _ = select.select([terminal], [], [], SECONDS)
        assert readable, f"no {text!r} in {shown!r}"
        try:
            shown += os.read(terminal, 4096)
        except OSError:  # the process has ended
            raise AssertionError(f"no {text!r} in {shown!r}") from None
    return shown.decode(errors="replace")  # what follows may have come in part


def test_retry_shows_its_progress_on_a_terminal(desk: Desk) -> None:
    """How many of how many have been tried."""
    desk.keep(*(letter(number) for number in range(1, 6)))
    with desk.state(owner=True) as service, on_terminal(desk, "dead-letters", "retry", "--all") as (process, terminal):
        read_until(terminal, "0/5")
        first, second, *rest = service.letters(LetterFilter(retry=True))
        service.remove_letters([first.id, second.id])
        assert "retrying" in read_until(terminal, "2/5")
        service.remove_letters([one.id for one in rest])
        assert process.stdout is not None
        assert process.stdout.read() == b"5 dead letters delivered, 0 failed again\n"
        assert process.wait(timeout=SECONDS) == 0


def test_retry_that_is_interrupted_says_that_the_service_goes_on(desk: Desk) -> None:
    """Ctrl-C ends the waiting, not the retrying."""
    desk.keep(letter(1))
    with desk.state(owner=True) as service, on_terminal(desk, "dead-letters", "retry", "--all") as (process, terminal):
        read_until(terminal, "0/1")
        process.send_signal(signal.SIGINT)
        assert "the service goes on with it" in read_until(terminal, "cdc dead-letters list")
        assert process.wait(timeout=SECONDS) == 1
        assert service.letter_totals()[0].retry == 1


def test_discard_asks_on_a_terminal(desk: Desk) -> None:
    """A no leaves everything as it was."""
    desk.keep(letter(1), letter(2))
    for answer, code, left in ((b"n\n", 1, 2), (b"y\n", 0, 0)):
        with on_terminal(desk, "dead-letters", "discard", "--all") as (process, terminal):
            read_until(terminal, "Discard 2 dead letters?")
            os.write(terminal, answer)
            assert process.wait(timeout=SECONDS) == code
        assert len(desk.kept()) == left


@pytest.mark.timeout(LONG_SECONDS)
def test_many_letters_are_marked_listed_and_discarded_within_bounds(file_desk: Desk) -> None:
    """100,000 dead letters: one statement marks them, and no command holds them in memory."""
    desk = file_desk
    with desk.state() as state:
        for start in range(0, 100_000, 10_000):
            state.add_letters(
                [letter(number, first_time=NOW, last_time=NOW) for number in range(start, start + 10_000)]
            )

    begun = time.monotonic()
    assert desk.answer("dead-letters", "retry", "--all")["requested"] == 100_000
    print(f"100,000 letters marked in {time.monotonic() - begun:.1f} s")
    few = peak_memory(desk, "handlers", "list")
    many = peak_memory(desk, "dead-letters", "list", "--limit", "0", "--json")
    print(f"listing handlers took {few / 1e6:.0f} MB at most, listing 100,000 {many / 1e6:.0f} MB")
    assert many - few < 40e6
    listed = desk("dead-letters", "list")
    assert "99,900 more" in listed.stdout
    assert desk.answer("dead-letters", "discard", "--table", "public.orders", "--yes") == {"discarded": 100_000}


def peak_memory(desk: Desk, *arguments: str) -> int:
    """The most that a command had resident, bytes."""
    measure = "import sys; from cdc.cli import app; app(standalone_mode=False); "
    measure += "sys.stderr.write(open('/proc/self/status').read())"
    result = subprocess.run(
        [sys.executable, "-c", measure, *arguments], cwd=desk.folder, env=desk.environment, check=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=LONG_SECONDS,
    )  # fmt: skip
    return int(re.findall(r"VmHWM:\s+(\d+) kB", result.stderr)[0]) * 1024


# --- handlers ----------------------------------------------------------------------------------------


def test_handlers_are_listed_with_all_that_is_known(desk: Desk) -> None:
    """Configured or not, removed or not, with their dead letters and what they missed."""
    desk.keep(letter(1), letter(2, state=LetterState.PARKED), letter(3, "lost"))
    with desk.state() as state:
        state.mark_removed("mine", position(1), "3 failures")
        state.save(
            Checkpoint(SOURCE, Lsn(0x100), 7, {"mine": position(1)}),
            [Gap("mine", position(5), position(9), 4, "removed", NOW, NOW)],
        )
    listed = desk.answer("handlers", "list")
    people = desk.done("handlers", "list")

    (mine, other, gone, lost) = listed["handlers"]
    assert (mine["state"], mine["removed_at"], mine["reason"]) == ("removed", "0/101:1", "3 failures")
    assert (mine["failed"], mine["parked"], mine["configured"]) == (1, 1, True)
    assert (other["name"], other["state"], other["configured"]) == ("other", "active", True)
    assert (gone["name"], gone["configured"]) == ("gone", False)
    assert (lost["name"], lost["configured"], lost["failed"]) == ("lost", False, 1)
    assert [(gap["callback"], gap["events"]) for gap in listed["gaps"]] == [("mine", 4)]
    for text in ("removed", "active", "not configured", "0/101:1", "3 failures", "0/109:1"):
        assert text in people


def test_handler_without_a_record_is_new(desk: Desk) -> None:
    """It begins with the next start of the service."""
    path = desk.folder / "cdc.toml"
    path.write_text(path.read_text() + '[[handlers]]\nname = "fresh"\ncallback = "mine:callback"\n')

    assert [one["state"] for one in desk.answer("handlers", "list")["handlers"]] == [
        "active",
        "active",
        "new",
        "active",
    ]
    assert re.search(r"fresh\s+new", desk.done("handlers", "list"))
    assert "has not run yet" in desk.refused("handlers", "remove", "fresh")
    assert "is not removed or paused" in desk.refused("handlers", "resume", "fresh")


def test_handler_is_removed_where_it_stands_and_resumed(desk: Desk) -> None:
    """On record at once; the next start acts on it."""
    text = desk.done("handlers", "remove", "mine")
    assert "when the service is started" in text
    assert "cdc handlers resume mine" in text
    with desk.state() as state:
        record = next(one for one in state.callbacks() if one.name == "mine")
    assert (record.state, record.removed_at, record.reason) == (CallbackState.REMOVED, position(1), "operator")
    assert "removed already" in desk.refused("handlers", "remove", "mine")

    desk.keep(letter(4, state=LetterState.PARKED), letter(5))
    text = desk.done("handlers", "resume", "mine")
    assert "mine gets 1 parked event first, then the live stream when the service is started: cdc run" in text
    assert "cdc dead-letters retry --handler mine" in text
    assert desk.record("mine") is CallbackState.RESUMING
    again = desk.answer("handlers", "resume", "mine")
    assert (again["state"], again["parked"], again["failed"], again["running"]) == ("resuming", 1, 1, False)
    assert desk.answer("handlers", "remove", "mine") == {"name": "mine", "state": "removed", "running": False}
    assert desk.record("mine") is CallbackState.REMOVED


def test_handler_is_paused_where_it_stands_and_resumed(desk: Desk) -> None:
    """As a removal, on record at once; its letters wait until it is resumed, and it can be removed then, too."""
    assert "back with: cdc handlers resume mine" in desk.done("handlers", "pause", "mine")
    assert desk.record("mine") is CallbackState.PAUSED
    assert "paused already" in desk.refused("handlers", "pause", "mine")
    assert [one["state"] for one in desk.answer("handlers", "list")["handlers"] if one["name"] == "mine"] == ["paused"]
    desk.keep(letter(5))
    assert "it is paused; first: cdc handlers resume mine" in desk.done("dead-letters", "retry", "--handler", "mine")
    assert desk.answer("handlers", "resume", "mine")["state"] == "resuming"
    desk.done("handlers", "pause", "mine")
    assert desk.answer("handlers", "remove", "mine")["state"] == "removed"
    assert "removed already" in desk.refused("handlers", "pause", "mine")


def test_handler_that_cannot_be_removed_or_resumed_is_refused(desk: Desk) -> None:
    """It is not removed, nobody knows it, or it is not in the configuration any more."""
    assert "removed or paused: none" in desk.refused("handlers", "resume", "mine")
    for command in ("remove", "resume", "forget"):
        assert "gone, mine, other" in desk.refused("handlers", command, "mien")
    assert "cdc handlers forget gone" in desk.refused("handlers", "remove", "gone")
    assert "cdc.toml" in desk.refused("handlers", "resume", "gone")


PATIENT = "from cdc.cli import handlers, main; handlers.RESUME_SECONDS = 60; main()"


def test_resume_waits_a_moment_for_a_running_service(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says what it sees: back in the live stream, or not yet."""
    with desk.state() as state:
        state.mark_removed("mine", position(1), "3 failures")
    with desk.state(owner=True) as service, subprocess.Popen(
        [sys.executable, "-c", PATIENT, "handlers", "resume", "mine"],
        cwd=desk.folder, env=desk.environment, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            wait_until(lambda: service.callbacks()[1].state is CallbackState.RESUMING)
            service.mark_active("mine")
            output, _ = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
        assert output == "mine is back in the live stream\n"
        service.mark_removed("mine", position(1), "3 failures")
        assert "how far it is: cdc handlers list" in desk.done("handlers", "resume", "mine", "--no-wait")
        monkeypatch.setattr("cdc.cli.handlers.RESUME_SECONDS", 0.5)
        assert "how far it is: cdc handlers list" in desk.done("handlers", "resume", "mine")


def test_only_what_is_not_configured_is_forgotten(desk: Desk) -> None:
    """And with dead letters only when that is typed."""
    desk.keep(letter(1, "gone"), letter(2))
    assert "take it out of cdc.toml" in desk.refused("handlers", "forget", "mine")
    assert "--discard" in desk.refused("handlers", "forget", "gone")
    assert len(desk.kept()) == 2

    assert "gone is forgotten, with 1 dead letter" in desk.done("handlers", "forget", "gone", "--discard")
    assert [one.callback for one in desk.kept()] == ["mine"]
    assert [one["name"] for one in desk.answer("handlers", "list")["handlers"]] == ["mine", "other"]
    assert "no handler is named 'gone'" in desk.refused("handlers", "forget", "gone")


# --- with the service --------------------------------------------------------------------------------

FAILING = '''
import os
from pathlib import Path
from records import Recorder


class Fails(Recorder):
    """Fails for rows whose number is even, until the file `mended` is there."""

    def __init__(self, path, mended):
        super().__init__(path)
        self.mended = Path(mended)

    async def handle(self, event):
        if event.payload["id"] % 2 == 0 and not self.mended.exists():
            raise ValueError("even")
        self.write(event)
'''


@contextmanager
def failing(folder: Path, database: Database, **signal: Any) -> Iterator[tuple[Child, Cdc, Path]]:
    """A service whose handler fails, the command line beside it, and the file that mends the handler."""
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    mended = folder / "mended"
    handlers = {"audit": {"callback": "failing:Fails", "max_attempts": 1, "options": {"mended": str(mended)}}}
    with child(folder, database.dsn, handlers, signal=signal) as service:
        (folder / "failing.py").write_text(FAILING)
        (folder / "cdc.toml").chmod(0o600)
        service.start()
        yield service, Cdc(folder), mended


def totals(cdc: Cdc) -> dict[str, int]:
    """Dead letters by state."""
    result = cdc("dead-letters", "list", "--json")
    assert result.returncode == 0, result.stderr
    return {one["state"]: one["letters"] for one in json.loads(result.stdout)["totals"]}


def test_running_service_retries_dead_letters(tmp_path: Path, database: Database) -> None:
    """Those that fail again stay, the others are delivered; the command says how many of each."""
    with failing(tmp_path, database, max_consecutive_failures=1000) as (service, cdc, mended):
        database.execute("INSERT INTO t SELECT generate_series(1, 20)")
        service.wait_for_lines(10)
        wait_until(lambda: totals(cdc) == {"failed": 10})

        again = cdc("dead-letters", "retry", "--all", "--json")
        assert again.returncode == 1, again.stderr
        outcome = json.loads(again.stdout)
        assert (outcome["requested"], outcome["delivered"], outcome["failed"]) == (10, 0, 10)
        mended.touch()
        begun = time.monotonic()
        well = cdc("dead-letters", "retry", "--handler", "audit")
        print(f"retried by the running service in {time.monotonic() - begun:.1f} s, start of the command included")
        assert well.returncode == 0, well.stderr
        assert "10 dead letters delivered, 0 failed again" in well.stdout
        assert totals(cdc) == {}
        assert sorted(int(line.record_id) for line in service.lines()) == list(range(1, 21))


def test_running_service_delivers_what_was_parked(tmp_path: Path, database: Database) -> None:
    """A removed handler gets everything, in order, once it is resumed."""
    with failing(tmp_path, database, max_consecutive_failures=2) as (service, cdc, mended):
        database.execute("INSERT INTO t SELECT generate_series(2, 8, 2)")  # 2 and 4 fail, it is removed
        wait_until(lambda: totals(cdc) == {"failed": 2, "parked": 2})
        mended.touch()
        resumed = cdc("handlers", "resume", "audit")
        assert resumed.returncode == 0, resumed.stderr
        service.wait_for_log("handler_resumed")
        database.execute("INSERT INTO t VALUES (9)")
        assert [line.record_id for line in service.wait_for_lines(3)] == ["6", "8", "9"]
        assert totals(cdc) == {"failed": 2}
        assert "audit is not removed or paused" in cdc("handlers", "resume", "audit").stderr


def test_running_service_removes_a_handler_that_an_operator_removes(tmp_path: Path, database: Database) -> None:
    """Within a second its events are parked, and it gets them when it is resumed."""
    with failing(tmp_path, database) as (service, cdc, _):
        database.execute("INSERT INTO t VALUES (1)")
        service.wait_for_lines(1)
        removed = cdc("handlers", "remove", "audit")
        assert "within a second" in removed.stdout
        service.wait_for_log("callback_removed")
        database.execute("INSERT INTO t VALUES (3), (5)")
        wait_until(lambda: totals(cdc) == {"parked": 2})
        assert cdc("handlers", "resume", "audit").returncode == 0
        assert [line.record_id for line in service.wait_for_lines(3)] == ["1", "3", "5"]


@pytest.mark.timeout(LONG_SECONDS)
def test_running_service_retries_a_hundred_thousand_within_its_memory_bound(tmp_path: Path, database: Database) -> None:
    """A page at a time: what is in memory does not grow with what is asked for; order is kept."""
    count = 100_000
    with failing(tmp_path, database, max_parked_events=count) as (service, cdc, mended):
        mended.touch()
        service.stop()
        store = open_state(f"sqlite:///{service.state_path}")
        for start in range(0, count, 10_000):
            numbers = range(start, start + 10_000)
            store.add_letters([letter(number, "audit", first_time=NOW, last_time=NOW) for number in numbers])
        store.close()
        service.start()
        before = service.peak_memory()
        begun = time.monotonic()
        cdc.seconds = LONG_SECONDS
        retried = cdc("dead-letters", "retry", "--all")
        seconds, after = time.monotonic() - begun, service.peak_memory()
        print(f"{count:,} retried in {seconds:.1f} s, at most {before / 1e6:.0f} MB before, {after / 1e6:.0f} after")
        assert retried.stdout == "100,000 dead letters delivered, 0 failed again\n"
        assert after - before < 64e6  # a page is 1 MiB packed; the letters are 40 MB
        assert [line.id for line in service.lines()] == list(range(count))
        assert totals(cdc) == {}


def test_a_hostile_error_text_cannot_draw_on_the_terminal(file_desk: Desk) -> None:
    """The text of a callback's error, a table's name and a value: shown escaped, in list and show."""
    nasty = "x\n[bold]y\x1b[2J\x9b31m\u202e"
    (number,) = file_desk.keep(
        letter(1, table=f"public.{nasty}", error_text=nasty, event=pack(DatabaseEvent.of("update", "t", {"v": nasty})))
    )

    for arguments in (("list",), ("show", str(number))):
        shown = file_desk.done("dead-letters", *arguments)
        assert not set(shown) & {"\x1b", "\x9b", "\u202e"}
        assert "[bold]y\\x1b[2J" in shown
