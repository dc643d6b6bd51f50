"""The command line as it is typed: real processes, their output and their exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cdc.events import Position
from cdc.lsn import Lsn
from cdc.state import Checkpoint, Source, open_state
from tests.conftest import Database

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 60  # a command takes one; the machine may be busy
# `cdc` for tests of what a service answers, however late: people would be told after 2 seconds that none does.
PATIENT = ["-c", f"from cdc import endpoint; endpoint.ANSWER_SECONDS = {SECONDS}.0; from cdc.cli import main; main()"]


class Cdc:
    """Runs `cdc` in a folder."""

    def __init__(self, folder: Path, seconds: float = SECONDS) -> None:
        self.program = ["-m", "cdc.cli"]
        self.folder = folder
        self.seconds = seconds  # that a command may take
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(("CDC_", "PG"))}
        self.environment |= {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"}

    def __call__(self, *arguments: str, answer: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run to the end; no terminal anywhere."""
        return subprocess.run(
            [sys.executable, *self.program, *arguments],
            cwd=self.folder,
            env=self.environment,
            input=answer or "",
            capture_output=True,
            text=True,
            timeout=self.seconds,
            check=False,
        )

    def configure(self, dsn: str, rest: str = "") -> None:
        """cdc.toml with a handler that can be loaded."""
        self.environment["CDC_DSN"] = dsn
        slot = f"cli_{os.getpid()}"
        (self.folder / "mine.py").write_text("print('noise')\ndef callback(event): ...\n")
        path = self.folder / "cdc.toml"
        path.write_text(
            f'python_path = ["."]\n[source]\ndsn = "${{CDC_DSN}}"\nslot = "{slot}"\n[http]\nport = 0\n'
            f'[[handlers]]\nname = "mine"\ncallback = "mine:callback"\n{rest}'
        )
        path.chmod(0o600)
        self.slot = slot


@pytest.fixture
def cdc(tmp_path: Path) -> Cdc:
    """The command in an empty folder."""
    return Cdc(tmp_path)


def test_version_and_help_are_told(cdc: Cdc) -> None:
    """What everybody types first."""
    version = cdc("--version")
    assert (version.returncode, version.stdout.split()[0]) == (0, "cdc")

    text = cdc("--help")
    assert text.returncode == 0
    for command in ("init", "check", "run", "demo", "status", "tail", "slot", "handlers", "dead-letters"):
        assert command in text.stdout


def test_wrong_usage_is_exit_2(cdc: Cdc) -> None:
    """An unknown command, an unknown option."""
    for arguments in (["bogus"], ["check", "--bogus"], ["slot", "bogus"], ["dead-letters", "show", "x"]):
        result = cdc(*arguments)
        assert result.returncode == 2
        assert "Traceback" not in result.stderr


def test_init_writes_a_private_file_and_says_what_comes_next(cdc: Cdc) -> None:
    """The file is for its owner alone; nothing is overwritten without --force."""
    result = cdc("init")
    path = cdc.folder / "cdc.toml"
    assert result.returncode == 0
    assert "cdc check" in result.stdout
    assert path.stat().st_mode & 0o777 == 0o600

    path.write_text("precious")
    refused = cdc("init")
    assert refused.returncode == 2
    assert "error[config_exists]: cdc.toml is there already" in refused.stderr
    assert "fix: " in refused.stderr
    assert path.read_text() == "precious"

    assert cdc("init", "--force").returncode == 0
    assert "[source]" in path.read_text()
    assert cdc("init", "--config", "other.toml").returncode == 0
    assert (cdc.folder / "other.toml").exists()


def test_configuration_errors_are_exit_2_with_every_problem(cdc: Cdc) -> None:
    """No file, an unset variable, several mistakes: readable, on stderr, no traceback."""
    for command in (["check"], ["run"], ["slot", "show"]):
        missing = cdc(*command)
        assert (missing.returncode, missing.stdout) == (2, "")
        assert missing.stderr.startswith("error[config_missing]: no configuration file cdc.toml")
        assert "cdc init" in missing.stderr

    (cdc.folder / "cdc.toml").write_text('[source]\ndsn = "${CDC_NOT_SET}"\nslot = "A B"\n')
    wrong = cdc("check")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error[config_invalid]: ")
    assert "environment variable CDC_NOT_SET is not set" in wrong.stderr
    assert "source.slot" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_a_command_that_was_asked_for_json_also_fails_in_json(cdc: Cdc) -> None:
    """Code, message, hint and problems on stdout; people find the same on stderr. The next command is asked anew."""
    (cdc.folder / "cdc.toml").write_text('[source]\ndsn = "${CDC_NOT_SET}"\nslot = "A B"\n')

    failed = cdc("status", "--json")

    assert failed.returncode == 2
    error = json.loads(failed.stdout)["error"]
    assert (error["code"], len(error["problems"])) == ("config_invalid", 2)
    assert error["message"] in failed.stderr
    assert cdc("status").stdout == ""


def test_a_hostile_name_of_a_table_cannot_draw_on_the_terminal(cdc: Cdc, database: Database) -> None:
    """Newlines, escape codes and markup are shown, not obeyed, and the statement to copy is one line."""
    database.execute('CREATE TABLE "x\n[red]error\x1b[2J" (a int)')
    cdc.configure(database.dsn)

    people, programs = cdc("check"), cdc("check", "--json")

    assert not set(people.stdout + programs.stdout) & {"\x1b", "\r"}
    (line,) = [line for line in people.stdout.splitlines() if "fix: ALTER TABLE" in line and "REPLICA" in line]
    assert "x\\n[red]error\\x1b[2J" in line
    found = [one for one in json.loads(programs.stdout)["findings"] if one["code"] == "replica_identity"]
    assert "x\n[red]error\x1b[2J" in found[0]["message"], "a program gets it as it is, escaped by JSON alone"


@pytest.mark.parametrize(
    ("log_format", "error", "event", "code"),
    [
        ("json", "ValueError('row-value')", "service_broken", "service_broken"),
        ("console", "ValueError('row-value')", "service_broken", "service_broken"),
        ("json", "SlotMissing('slot x is gone', code='slot_gone', hint='look')", "service_failed", "slot_gone"),
        ("console", "SlotMissing('slot x is gone', code='slot_gone', hint='look')", "", "slot_gone"),
        ("json", "psycopg.OperationalError('no route')", "service_failed", "server_unreachable"),
    ],
)
def test_the_last_line_of_a_service_says_why_it_has_ended(
    cdc: Cdc, log_format: str, error: str, event: str, code: str
) -> None:
    """One line in the format of the log, with the code; of an error that nobody expected, its text is left out."""
    cdc.configure("host=/nowhere", f"[log]\nformat = '{log_format}'\n")
    (cdc.folder / "broken.py").write_text(
        "import sys, psycopg, cdc.runner\nfrom cdc.cli import main\nfrom cdc.errors import SlotMissing\n"
        f"def run(*_, **__):\n    error = {error}\n    raise error\n"
        "cdc.runner.run = run\nsys.argv = ['cdc', 'run']\nmain()\n"
    )
    done = subprocess.run(
        [sys.executable, "broken.py"], cwd=cdc.folder, env=cdc.environment, capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert "row-value" not in done.stdout + done.stderr
    assert f"{event} " in done.stderr or not event or log_format == "json"
    if log_format == "json":
        (entry,) = [json.loads(line) for line in done.stderr.splitlines()]
        assert (entry["event"], entry["code"], entry["level"]) == (event, code, "error")
    else:
        assert f"error[{code}]" in done.stderr or f"code={code}" in done.stderr


def test_configuration_is_found_by_option_and_variable(cdc: Cdc, database: Database) -> None:
    """--config and $CDC_CONFIG, from any folder."""
    cdc.configure(database.dsn)
    path = cdc.folder / "cdc.toml"
    cdc.folder = cdc.folder / "elsewhere"
    cdc.folder.mkdir()

    assert cdc("check", "--config", str(path)).returncode == 0
    cdc.environment["CDC_CONFIG"] = str(path)
    assert cdc("check").returncode == 0


def test_check_of_a_fit_server_is_exit_0_and_json_is_only_json(cdc: Cdc, database: Database) -> None:
    """What a handler prints while it is imported does not spoil the output."""
    cdc.configure(database.dsn)
    people = cdc("check")
    programs = cdc("check", "--json")

    assert (people.returncode, programs.returncode) == (0, 0)
    assert "next: cdc run" in people.stdout
    assert "noise" not in people.stdout + programs.stdout
    answer = json.loads(programs.stdout)
    assert answer["ok"] is True
    assert {"severity", "code", "message", "fix"} == answer["findings"][0].keys()


def test_check_prints_each_fix_unbroken_and_is_exit_1(cdc: Cdc, database: Database) -> None:
    """A statement is one line, to be copied."""
    database.execute(f'CREATE TABLE "{"long " * 12}" (a int)')
    cdc.configure(database.dsn, "options = { x = 1 }\n")

    result = cdc("check")

    assert result.returncode == 1
    assert "error   handlers[mine].options: mine:callback is no class" in result.stdout
    assert any(line.startswith('        fix: ALTER TABLE "public"."long long') for line in result.stdout.splitlines())
    assert "1 error" in result.stdout


def test_unreachable_server_is_one_readable_error(cdc: Cdc) -> None:
    """Of every command that needs it; the password is not in it."""
    cdc.configure(f"host={cdc.folder} user=x password=s3cret dbname=y")

    for command in (["slot", "show"], ["slot", "create"], ["slot", "drop", "--yes"]):
        result = cdc(*command)
        assert result.returncode == 1
        assert result.stderr.startswith("error[")
        assert "Traceback" not in result.stderr
        assert "s3cret" not in result.stderr
    status = cdc("status", "--json")
    assert status.returncode == 1
    told = json.loads(status.stdout)
    assert "cannot be asked" in told["problems"][0]
    assert told["problem_codes"] == ["server_unreachable"]
    assert "s3cret" not in status.stdout


def test_slot_is_created_shown_and_dropped(cdc: Cdc, database: Database) -> None:
    """And each step refuses what makes no sense."""
    cdc.configure(database.dsn)
    absent = cdc("slot", "show")
    assert absent.returncode == 1
    assert "cdc slot create" in absent.stderr
    assert (cdc("slot", "show", "--json").stdout, cdc("slot", "drop", "--yes").returncode) == ("null\n", 1)

    assert cdc("slot", "create").returncode == 0
    again = cdc("slot", "create")
    assert again.returncode == 1
    assert "exists already" in again.stderr

    shown = cdc("slot", "show")
    assert shown.returncode == 0
    assert "wal2json" in shown.stdout
    slot = json.loads(cdc("slot", "show", "--json").stdout)
    assert (slot["name"], slot["plugin"], slot["database"]) == (cdc.slot, "wal2json", database.name)
    assert slot["active"] is False

    unsure = cdc("slot", "drop", answer="y\n")
    assert unsure.returncode == 1
    assert "--yes" in unsure.stderr
    assert cdc("slot", "drop", "--yes").returncode == 0
    assert database.execute(f"SELECT 1 FROM pg_replication_slots WHERE slot_name = '{cdc.slot}'") == []


def test_slot_in_use_is_not_dropped(cdc: Cdc, database: Database) -> None:
    """--yes is for people who know what is lost, not for taking it from a consumer."""
    cdc.configure(database.dsn)
    database.execute(f"SELECT pg_create_logical_replication_slot('{cdc.slot}', 'wal2json')")
    with database.connect(replication="database", application_name="consumer") as walsender:
        walsender.execute(f"START_REPLICATION SLOT {cdc.slot} LOGICAL 0/0".encode())
        result = cdc("slot", "drop", "--yes")
        walsender.pgconn.finish()

    assert result.returncode == 1
    assert "in use by process" in result.stderr
    assert "consumer" in result.stderr


def test_status_shows_slot_checkpoint_and_callbacks_without_the_service(cdc: Cdc, database: Database) -> None:
    """What is on disk and in the database can be read at any time; a removed handler is a trouble."""
    cdc.configure(database.dsn)
    database.execute(f"SELECT pg_create_logical_replication_slot('{cdc.slot}', 'wal2json')")
    state = open_state(f"sqlite:///{cdc.folder}/cdc-state.db")
    source = Source("1", 1, database.name, cdc.slot, "wal2json", "")
    state.save(Checkpoint(source, Lsn(0x10), 7, {"mine": Position(Lsn(0x10), 3)}))
    state.mark_removed("mine", Position(Lsn(0x10), 3), "too many failures")
    state.close()

    result = cdc("status", "--json")
    people = cdc("status")

    assert (result.returncode, people.returncode) == (1, 1)
    status = json.loads(result.stdout)
    assert status["slot"]["name"] == cdc.slot
    assert (status["checkpoint"]["flushed_lsn"], status["checkpoint"]["last_event_id"]) == ("0/10", 7)
    (callback,) = status["callbacks"]
    assert (callback["name"], callback["state"], callback["settled"]) == ("mine", "removed", "0/10:3")
    assert (status["live"], status["problems"]) == (None, ["handler 'mine' is removed"])
    assert status["problem_codes"] == ["callback_removed"]
    for text in (cdc.slot, "0/10:3", "too many failures", "cdc run", "problem[callback_removed]: handler 'mine'"):
        assert text in people.stdout


def test_run_tells_what_is_wrong_with_all_handlers(cdc: Cdc, database: Database) -> None:
    """At once, as of all other mistakes in the file; and where to look again."""
    wrong = '[[handlers]]\nname = "a"\ncallback = "absent:x"\n[[handlers]]\nname = "b"\ncallback = "mine:absent"\n'
    cdc.configure(database.dsn, wrong)

    result = cdc("run")

    assert result.returncode == 2
    failed = json.loads(result.stderr.splitlines()[-1])
    assert [problem.partition(":")[0] for problem in failed["problems"]] == [
        "handlers[a].callback",
        "handlers[b].callback",
    ]
    assert (failed["code"], failed["error"]) == ("handler_not_loaded", "2 handlers are wrong")
    assert "cdc check" in failed["hint"]


def test_handler_that_is_a_generator_is_a_problem_of_run_and_of_check(cdc: Cdc, database: Database) -> None:
    """With its name, and together with what is wrong with the others; its repr may hold options."""
    cdc.configure(
        database.dsn,
        '[[handlers]]\nname = "a"\ncallback = "lazy:Lazy"\n[[handlers]]\nname = "b"\ncallback = "mine:absent"\n',
    )
    (cdc.folder / "lazy.py").write_text(
        "class Lazy:\n    def __repr__(self): return 's3cret'\n    def handle(self, event): yield event\n"
    )

    run, check = cdc("run"), cdc("check", "--json")

    assert (run.returncode, check.returncode) == (2, 1)
    failed = json.loads(run.stderr.splitlines()[-1])
    assert [problem.partition(":")[0] for problem in failed["problems"]] == [
        "handlers[a].callback",
        "handlers[b].callback",
    ]
    assert "leave out the `yield`" in failed["problems"][0]
    assert "s3cret" not in run.stderr + check.stdout
    assert failed["code"] == "callback_wrong"
    assert "handlers[a].callback: " in check.stdout


def test_run_without_handlers_is_a_configuration_error(cdc: Cdc, database: Database) -> None:
    """Nothing would receive the changes."""
    cdc.environment["CDC_DSN"] = database.dsn
    (cdc.folder / "cdc.toml").write_text('[source]\ndsn = "${CDC_DSN}"\n')

    result = cdc("run")

    assert result.returncode == 2
    assert "has no handlers" in result.stderr
    assert "fix: " in result.stderr


def test_run_serves_until_it_is_told_to_stop(cdc: Cdc, database: Database) -> None:
    """A change reaches the user's function; SIGTERM ends the process with 0."""
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    cdc.configure(database.dsn)
    (cdc.folder / "mine.py").write_text(
        "import sys\ndef callback(event):\n    print('got', event.payload['id'], flush=True)\n"
    )
    assert cdc("slot", "create").returncode == 0
    database.execute("INSERT INTO t VALUES (7)")

    with subprocess.Popen(
        [sys.executable, "-m", "cdc.cli", "run"],
        cwd=cdc.folder, env=cdc.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "got 7\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=SECONDS) == 0
        finally:
            process.kill()
