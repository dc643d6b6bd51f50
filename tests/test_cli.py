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


class Cdc:
    """Runs `cdc` in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(("CDC_", "PG"))}
        self.environment |= {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"}

    def __call__(self, *arguments: str, answer: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run to the end; no terminal anywhere."""
        return subprocess.run(
            [sys.executable, "-m", "cdc.cli", *arguments],
            cwd=self.folder,
            env=self.environment,
            input=answer or "",
            capture_output=True,
            text=True,
            timeout=SECONDS,
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
    for command in ("init", "check", "run", "demo", "status", "slot", "handlers", "dead-letters"):
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
    assert "error: cdc.toml is there already" in refused.stderr
    assert "fix: " in refused.stderr
    assert path.read_text() == "precious"

    assert cdc("init", "--force").returncode == 0
    assert "[source]" in path.read_text()
    assert cdc("init", "--config", "other.toml").returncode == 0
    assert (cdc.folder / "other.toml").exists()


def test_configuration_errors_are_exit_2_with_every_problem(cdc: Cdc) -> None:
    """No file, an unset variable, several mistakes: readable, on stderr, no traceback."""
    for command in (["check"], ["run"], ["status", "--json"], ["slot", "show"]):
        missing = cdc(*command)
        assert (missing.returncode, missing.stdout) == (2, "")
        assert missing.stderr.startswith("error: no configuration file cdc.toml")
        assert "cdc init" in missing.stderr

    (cdc.folder / "cdc.toml").write_text('[source]\ndsn = "${CDC_NOT_SET}"\nslot = "A B"\n')
    wrong = cdc("check", "--json")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "environment variable CDC_NOT_SET is not set" in wrong.stderr
    assert "source.slot" in wrong.stderr
    assert "Traceback" not in wrong.stderr


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
        assert result.stderr.startswith("error: ")
        assert "Traceback" not in result.stderr
        assert "s3cret" not in result.stderr
    status = cdc("status", "--json")
    assert status.returncode == 1
    assert "cannot be asked" in json.loads(status.stdout)["problems"][0]
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
    """What is on disk and in the database can be read at any time."""
    cdc.configure(database.dsn)
    database.execute(f"SELECT pg_create_logical_replication_slot('{cdc.slot}', 'wal2json')")
    state = open_state(f"sqlite:///{cdc.folder}/cdc-state.db")
    source = Source("1", 1, database.name, cdc.slot, "wal2json", "")
    state.save(Checkpoint(source, Lsn(0x10), 7, {"mine": Position(Lsn(0x10), 3)}))
    state.mark_removed("mine", Position(Lsn(0x10), 3), "too many failures")
    state.close()

    result = cdc("status", "--json")
    people = cdc("status")

    assert (result.returncode, people.returncode) == (0, 0)
    status = json.loads(result.stdout)
    assert status["slot"]["name"] == cdc.slot
    assert (status["checkpoint"]["flushed_lsn"], status["checkpoint"]["last_event_id"]) == ("0/10", 7)
    (callback,) = status["callbacks"]
    assert (callback["name"], callback["state"], callback["settled"]) == ("mine", "removed", "0/10:3")
    assert (status["live"], status["problems"]) == (None, [])
    for text in (cdc.slot, "0/10:3", "too many failures", "cdc run"):
        assert text in people.stdout


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
