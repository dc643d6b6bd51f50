"""SIGHUP on a real service and stream: handlers come, go and change, and no event is lost, doubled or overtaken."""

from __future__ import annotations

import copy
import json
import os
import pty
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from cdc.events import Position
from cdc.state import CallbackState, Gap
from tests.conftest import Database
from tests.running import ROOT, Child, assert_once_in_order, confirmed, server_lsn, wait_until, walsender

Handlers = dict[str, dict[str, Any]]

RECORD: Mapping[str, Any] = {"callback": "records:Record"}


@pytest.fixture
def items(database: Database) -> Database:
    """A database with two tables."""
    database.execute(
        "CREATE TABLE items (id bigint PRIMARY KEY, note text); CREATE TABLE others (id bigint PRIMARY KEY)"
    )
    return database


class Service(Child):
    """A child whose handlers a test changes; `handlers` is what the file will say."""

    @property
    def handlers(self) -> Handlers:
        """To change, before `reload`."""
        return self._handlers  # type: ignore[return-value]


@contextmanager
def serving(
    folder: Path, database: Database, handlers: Mapping[str, Mapping[str, Any]], **kwargs: Any
) -> Iterator[Service]:
    """Started, on a slot of its own."""
    folder.mkdir(exist_ok=True)
    service = Service(folder, database.dsn, copy.deepcopy(dict(handlers)), **kwargs)
    try:
        service.start()
        yield service
    finally:
        service.kill()


class Writing:
    """Rows 1, 2, 3 and so on into `items`, each committed by itself, until the end of the block."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self.last = 0

    def _write(self) -> None:
        with self._database.connect() as connection:
            while not self._end.wait(0.001):
                connection.execute("INSERT INTO items VALUES (%s, 'x')", [self.last + 1])
                self.last += 1

    def __enter__(self) -> Writing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def settled(service: Child) -> dict[str, Position]:
    """What the state has on record."""
    state = service.state()
    try:
        return {record.name: record.settled for record in state.callbacks()}
    finally:
        state.close()


def wait_for_state(service: Child, name: str, state: CallbackState) -> None:
    """Until it is on record, which commands go by: the log tells of it before."""

    def is_on_record() -> bool:
        store = service.state()
        try:
            return {record.name: record.state for record in store.callbacks()}.get(name) is state
        finally:
            store.close()

    wait_until(is_on_record, what=f"{name} is {state}")


def gaps(service: Child) -> list[Gap]:
    """What the state has on record as missed."""
    state = service.state()
    try:
        return state.gaps()
    finally:
        state.close()


# Changed handlers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("callback", ["Record", "InThread", "Batches"])
def test_a_changed_handler_goes_on_where_it_was(items: Database, tmp_path: Path, callback: str) -> None:
    """Under load, again and again: one instance after the other, every event once, in order; others see nothing of it,
    and the connection to the server stays."""
    handlers = {"changing": {"callback": f"records:{callback}", "options": {"seconds": 0.0}}, "staying": RECORD}
    with serving(tmp_path, items, handlers) as service:
        pid = walsender(items.cluster, service.slot)
        with Writing(items) as writing:
            for number in range(1, 6):
                service.wait_for_lines(len(service.lines("changing")) + 50, "changing")
                service.handlers["changing"]["options"]["seconds"] = 0.0001 * number
                service.handlers["changing"]["max_attempts"] = number
                entry = service.reload()
                assert entry["event"] == "reload_applied"
                assert set(entry["changed"]["changing"]) <= {"options.seconds", "max_attempts"}
        for name in handlers:
            lines = service.wait_for_lines(writing.last, name)
            assert [line.record_id for line in lines] == [str(number) for number in range(1, writing.last + 1)]
            assert_once_in_order(lines)
        assert walsender(items.cluster, service.slot) == pid
        assert (len(service.log("streaming")), service.log("stream_lost")) == (1, [])
        service.stop()
        service.start()
        items.execute("INSERT INTO items VALUES (0)")
        assert service.wait_for_lines(writing.last + 1, "changing")[-1].record_id == "0"
        assert_once_in_order(service.lines("changing"))


def test_new_conditions_hold_from_the_next_event_on(items: Database, tmp_path: Path) -> None:
    """Tables, columns and a new kind of callback."""
    with serving(tmp_path, items, {"audit": {**RECORD, "tables": ["public.items"]}}) as service:
        items.execute("INSERT INTO others VALUES (1)")
        items.execute("INSERT INTO items VALUES (1, 'seen')")  # behind it: once it is there, so was the other one
        service.wait_for_lines(1)
        service.handlers["audit"] |= {
            "callback": "records:InThread",
            "tables": ["public.*"],
            "columns": {"mask": ["note"]},
        }
        # The file of a child has no inline tables.
        service.handlers["audit"].pop("columns")
        assert sorted(service.reload()["changed"]["audit"]) == ["callback", "tables"]
        items.execute("INSERT INTO others VALUES (2)")
        items.execute("INSERT INTO items VALUES (2, 'seen')")
        lines = service.wait_for_lines(3)
        assert [(line.table, line.record_id) for line in lines] == [("items", "1"), ("others", "2"), ("items", "2")]


def test_a_handler_that_hangs_is_mended_by_a_reload(items: Database, tmp_path: Path) -> None:
    """It is given the drain's time; the event that it hung in is the first of the new instance."""
    gate = tmp_path / "gate"
    handlers = {"audit": {"callback": "records:Gated", "options": {"gate": str(gate)}}, "staying": RECORD}
    with serving(tmp_path, items, handlers, signal={"drain_timeout_seconds": 0.3}) as service:
        items.execute("INSERT INTO items SELECT generate_series(1, 20)")
        service.wait_for_lines(20, "staying")
        assert service.lines() == []
        service.handlers["audit"] = dict(RECORD)
        assert service.reload()["event"] == "reload_applied"
        lines = service.wait_for_lines(20)
        assert_once_in_order(lines)
        end = server_lsn(items)
        wait_until(lambda: confirmed(items.cluster, service.slot) >= end)


def test_a_removed_handler_that_is_changed_stays_removed_until_it_is_resumed(items: Database, tmp_path: Path) -> None:
    """What was parked reaches the new instance, in order, and then the stream."""
    handlers = {"audit": {"callback": "records:Fails", "max_attempts": 1}, "staying": RECORD}
    with serving(tmp_path, items, handlers, signal={"max_consecutive_failures": 1}) as service:
        items.execute("INSERT INTO items SELECT generate_series(1, 5)")
        wait_for_state(service, "audit", CallbackState.REMOVED)
        service.handlers["audit"] = dict(RECORD)
        assert service.reload()["event"] == "reload_applied"
        items.execute("INSERT INTO items VALUES (6)")
        service.wait_for_lines(6, "staying")
        assert service.lines() == []
        assert cdc(service, "handlers", "resume", "audit")[0] == 0
        items.execute("INSERT INTO items VALUES (7)")
        assert [line.record_id for line in service.wait_for_lines(6)] == ["2", "3", "4", "5", "6", "7"]


# Handlers that come and go ----------------------------------------------------------------------------


def test_a_new_handler_begins_with_the_first_event_after_the_reload(items: Database, tmp_path: Path) -> None:
    """Where it begins is on record, and holds after a kill."""
    with serving(tmp_path, items, {"audit": RECORD}, state={"checkpoint_interval_seconds": 60}) as service:
        items.execute("INSERT INTO items SELECT generate_series(1, 3)")
        last = service.wait_for_lines(3)[-1].position
        service.handlers["second"] = dict(RECORD)
        assert service.reload()["added"] == ["second"]
        # At the last event, or behind it where the server has told of more WAL meanwhile.
        start = Position.parse(service.log("handler_new")[-1]["start"])
        assert last <= start <= settled(service)["second"]
        items.execute("INSERT INTO items VALUES (4)")
        assert [line.record_id for line in service.wait_for_lines(1, "second")] == ["4"]
        service.kill()
        service.start()
        items.execute("INSERT INTO items VALUES (5)")
        wait_until(lambda: service.lines("second")[-1].record_id == "5")
        assert {line.record_id for line in service.lines("second")} == {"4", "5"}


def test_a_handler_that_is_taken_out_works_off_its_queue_and_leaves_its_record(items: Database, tmp_path: Path) -> None:
    """It holds the slot no more; when it returns, what it has missed is on record, as at a restart."""
    slow = {**RECORD, "options": {"seconds": 0.01}}
    patient = {"drain_timeout_seconds": 60}  # how long it may take is not what is tried here
    with serving(tmp_path, items, {"audit": RECORD, "leaving": slow}, signal=patient) as service:
        items.execute("INSERT INTO items SELECT generate_series(1, 50)")
        last = service.wait_for_lines(50)[-1].position
        leaving = service.handlers.pop("leaving")
        assert service.reload()["removed"] == ["leaving"]
        assert [line.record_id for line in service.lines("leaving")] == [str(number) for number in range(1, 51)]
        left = settled(service)["leaving"]
        assert left >= last  # behind it where the server has told of more WAL meanwhile
        assert service.log("handler_left")[-1]["undelivered"] == 0
        items.execute("INSERT INTO items VALUES (51)")
        missed = service.wait_for_lines(51)[-1].position
        end = server_lsn(items)
        wait_until(lambda: confirmed(items.cluster, service.slot) >= end)
        assert settled(service)["leaving"] == left, "a record that does not move"
        service.handlers["leaving"] = leaving
        assert service.reload()["added"] == ["leaving"]
        (gap,) = gaps(service)
        assert (gap.callback, gap.reason, gap.first) == ("leaving", "not_configured", left)
        assert gap.last >= missed
        items.execute("INSERT INTO items VALUES (52)")
        assert service.wait_for_lines(51, "leaving")[-1].record_id == "52"


def test_a_handler_that_leaves_and_returns_at_once_misses_nothing(items: Database, tmp_path: Path) -> None:
    """No event in between: no gap."""
    with serving(tmp_path, items, {"audit": RECORD, "leaving": RECORD}) as service:
        items.execute("INSERT INTO items VALUES (1)")
        service.wait_for_lines(1, "leaving")
        leaving = service.handlers.pop("leaving")
        service.reload()
        service.handlers["leaving"] = leaving
        service.reload()
        items.execute("INSERT INTO items VALUES (2)")
        assert [line.record_id for line in service.wait_for_lines(2, "leaving")] == ["1", "2"]
        assert gaps(service) == []


def test_wal_of_others_is_nothing_that_a_handler_has_missed(items: Database, tmp_path: Path) -> None:
    """Between its leaving and its return the slot moves on past what other databases write; no event, no gap."""
    attempts = count(1)
    with serving(tmp_path, items, {"audit": RECORD, "leaving": RECORD}) as service:
        items.execute("INSERT INTO items VALUES (1)")
        service.wait_for_lines(1, "leaving")
        leaving = service.handlers.pop("leaving")
        service.reload()
        with items.cluster.connect() as elsewhere:
            elsewhere.execute("SELECT pg_logical_emit_message(true, 'x', 'y')")
        end = server_lsn(items)

        def is_past_it() -> bool:
            """A reload puts on record how far all is settled; an idle service does so by itself, every now and then."""
            service.handlers["audit"]["max_attempts"] = next(attempts)
            service.reload()
            return service.flushed() >= end

        wait_until(is_past_it)
        service.handlers["leaving"] = leaving
        assert service.reload()["added"] == ["leaving"]
        items.execute("INSERT INTO items VALUES (2)")
        assert [line.record_id for line in service.wait_for_lines(2, "leaving")] == ["1", "2"]
        assert gaps(service) == []


def test_a_handler_that_hangs_leaves_its_events_on_record(items: Database, tmp_path: Path) -> None:
    """After the drain's time it is closed; what it has not had is counted, and holds the slot no longer."""
    handlers = {"audit": RECORD, "leaving": {"callback": "records:Hang"}}
    with serving(tmp_path, items, handlers, signal={"drain_timeout_seconds": 0.3}) as service:
        items.execute("INSERT INTO items SELECT generate_series(1, 5)")
        last = service.wait_for_lines(5)[-1].position
        service.wait_for_lines(1, "leaving")
        service.handlers.pop("leaving")
        service.reload()
        assert service.log("handler_left")[-1]["undelivered"] == 5
        end = server_lsn(items)
        wait_until(lambda: confirmed(items.cluster, service.slot) >= end)
        (gap,) = gaps(service)
        assert (gap.callback, gap.reason, gap.events, gap.last) == ("leaving", "not_configured", 5, last)


# Refused ----------------------------------------------------------------------------------------------


def test_a_bad_file_changes_nothing_and_every_problem_is_told(items: Database, tmp_path: Path) -> None:
    """The file, and handlers that cannot be loaded; the metrics say that it was refused."""
    with serving(tmp_path, items, {"audit": RECORD}, http={"enabled": True, "port": 0}) as service:
        good = (tmp_path / "cdc.toml").read_text()
        other = '[[handlers]]\ncallback = "console"\nconcurrency = "many"\n'
        unknown = '[[handlers]]\ncallback = "records:No"\n[[handlers]]\ncallback = "nothing:At"\n'
        for text, words in (
            (f"no = 1\n{good}{other}", ["no:", "concurrency"]),
            (f"{good}{unknown}", ["'No'", "nothing"]),
            (f'allowed_callbacks = ["console"]\n{good}', ["lets through console"]),
            (good.split("[[handlers]]")[0], ["no handlers"]),
            ("[", ["not TOML"]),
        ):
            (tmp_path / "cdc.toml").write_text(text)
            before = len(service.reloads())
            service.hang_up()
            service.wait_for_log("reload_refused", before + 1)
            entry = service.reloads()[-1]
            assert entry["event"] == "reload_refused"
            assert all(any(word in problem for problem in entry["problems"]) for word in words), entry
        items.execute("INSERT INTO items VALUES (1)")
        service.wait_for_lines(1)
        port = service.log("http_listening")[-1]["port"]
        metrics, status = get(port, "/metrics"), json.loads(get(port, "/status"))
        assert 'cdc_reloads_total{outcome="refused"} 5\n' in metrics
        assert "cdc_reload_successful 0\n" in metrics
        assert (status["reload"]["outcome"], status["reload"]["problems"]) == ("refused", 1)
        assert service.reload()["event"] == "reload_unchanged"
        assert "cdc_reload_successful 1\n" in get(port, "/metrics")


def test_a_handler_that_cannot_be_opened_changes_nothing(items: Database, tmp_path: Path) -> None:
    """Neither the one that would be changed, nor others that were to come, go and change with it."""
    handlers = {"audit": {**RECORD, "options": {"seconds": 0.0}}, "changing": RECORD, "leaving": RECORD}
    with serving(tmp_path, items, handlers) as service:
        before = copy.deepcopy(service.handlers)
        for change in ({"fresh": {"callback": "records:Unopenable"}}, {"changing": {"callback": "records:Unopenable"}}):
            service.handlers["audit"]["options"]["seconds"] = 0.001
            service.handlers.pop("leaving")
            service.handlers["other"] = dict(RECORD)
            service.handlers.update(change)
            entry = service.reload()
            assert entry["event"] == "reload_refused"
            assert "its server is away" in str(entry["problems"])
            service.handlers.clear()
            service.handlers.update(copy.deepcopy(before))
        assert service.reload()["event"] == "reload_unchanged"
        items.execute("INSERT INTO items SELECT generate_series(1, 3)")
        for name in before:
            assert_once_in_order(service.wait_for_lines(3, name))
        assert not service.path("fresh").exists() or service.lines("fresh") == []
        assert service.lines("other") == []


def test_what_waits_for_a_restart_is_told_by_name_and_the_rest_applies(items: Database, tmp_path: Path) -> None:
    """Settings, and the code of a handler that is imported already; `cdc check --diff` says the same before."""
    with serving(tmp_path, items, {"audit": RECORD}) as service:
        assert cdc(service, "check", "--diff")[:2] == (0, "nothing has changed\n")
        service.handlers["second"] = dict(RECORD)
        service.write()
        code, told, _ = cdc(service, "check", "--diff", "--json")
        assert (code, json.loads(told)["added"], json.loads(told)["running"]) == (0, ["second"], True)
        (tmp_path / "records.py").write_text((tmp_path / "records.py").read_text() + "\n# changed\n")
        service.write(signal={"max_parked_events": 5}, log={"level": "debug"})
        service.handlers["audit"] = {**RECORD, "max_attempts": 9}
        service.write()
        code, told, _ = cdc(service, "check", "--diff", "--json")
        assert (code, json.loads(told)) == (
            1,
            {
                "running": True,
                "added": ["second"],
                "removed": [],
                "changed": {"audit": ["max_attempts"]},
                "settings": ["log.level"],
                "restart": ["signal.max_parked_events", "module records: its file has changed"],
            },
        )
        assert service.reload()["event"] == "reload_applied"
        assert service.log("reload_waits_for_restart")[-1]["keys"] == json.loads(told)["restart"]
        code, told, _ = cdc(service, "check", "--diff")
        assert code == 1
        assert "! signal.max_parked_events (waits for a restart)" in told
        service.stop()
        service.start()
        assert cdc(service, "check", "--diff")[:2] == (0, "nothing has changed\n")


def test_a_diff_shows_no_secret_and_needs_a_state(items: Database, tmp_path: Path) -> None:
    """Only keys are told; the state holds no value either; without a state there is nothing to compare with."""
    with serving(tmp_path, items, {"audit": RECORD}) as service:
        service._settings["source"]["dsn"] += " application_name=hunter2hunter2"
        service.handlers["audit"]["options"] = {"seconds": 0.5}
        service.write()
        code, told, errors = cdc(service, "check", "--diff")
        assert code == 1
        assert "source.dsn" in told
        assert "options.seconds" in told
        assert "hunter2" not in told + errors
        service.stop()
        service.start()
        assert b"hunter2" not in b"".join(file.read_bytes() for file in tmp_path.glob("state.db*"))
        service.stop()
        for file in tmp_path.glob("state.db*"):
            file.unlink()
        code, _, errors = cdc(service, "check", "--diff")
        assert code == 1
        assert "does not exist" in errors


# Moments ----------------------------------------------------------------------------------------------


def test_a_reload_while_the_server_is_away_applies(items: Database, tmp_path: Path) -> None:
    """Between two connections handlers come and change as ever, and the stream goes on where it was."""
    with serving(tmp_path, items, {"audit": RECORD, "leaving": RECORD}) as service:
        items.execute("INSERT INTO items VALUES (1)")
        service.wait_for_lines(1)
        with items.cluster.connect() as admin:
            admin.execute(f"ALTER DATABASE {items.name} ALLOW_CONNECTIONS false")
            admin.execute(f"SELECT pg_terminate_backend({walsender(items.cluster, service.slot)})")
            service.wait_for_log("stream_lost")
            service.handlers["audit"]["max_attempts"] = 7
            service.handlers["second"] = dict(RECORD)
            service.handlers.pop("leaving")
            entry = service.reload()
            assert (entry["added"], entry["removed"], list(entry["changed"])) == (["second"], ["leaving"], ["audit"])
            admin.execute(f"ALTER DATABASE {items.name} ALLOW_CONNECTIONS true")
        service.wait_for_log("streaming", 2)
        items.execute("INSERT INTO items VALUES (2)")
        assert [line.record_id for line in service.wait_for_lines(2)] == ["1", "2"]
        assert [line.record_id for line in service.wait_for_lines(1, "second")] == ["2"]
        service.stop()


def test_a_reload_before_the_first_connection_applies(items: Database, tmp_path: Path) -> None:
    """The handlers are there, the server is not: they come, go and change, and begin as at a start."""
    service = Service(tmp_path, items.dsn, {"audit": dict(RECORD), "leaving": dict(RECORD)})
    try:
        with items.cluster.connect() as admin:
            admin.execute(f"ALTER DATABASE {items.name} ALLOW_CONNECTIONS false")
            service.begin()
            service.wait_for_log("stream_lost")
            service.handlers["audit"]["max_attempts"] = 7
            service.handlers["second"] = dict(RECORD)
            service.handlers.pop("leaving")
            assert service.reload()["event"] == "reload_applied"
            admin.execute(f"ALTER DATABASE {items.name} ALLOW_CONNECTIONS true")
        service.wait_for_log("streaming")
        items.execute("INSERT INTO items VALUES (1)")
        for name in ("audit", "second"):
            assert [line.record_id for line in service.wait_for_lines(1, name)] == ["1"]
        assert service.lines("leaving") == []
        assert settled(service).keys() == {"audit", "second"}
        service.stop()
    finally:
        service.kill()


def test_reloads_that_come_together_leave_what_the_file_says(items: Database, tmp_path: Path) -> None:
    """One at a time; the last signal is never lost."""
    with serving(tmp_path, items, {"audit": RECORD}) as service, Writing(items) as writing:
        for number in range(1, 30):
            service.handlers["audit"]["max_attempts"] = number
            service.write()
            service.hang_up()
        service.handlers["second"] = dict(RECORD)
        service.write()
        service.hang_up()
        service.wait_for_log("handler_new")
        wait_until(lambda: cdc(service, "check", "--diff")[:2] == (0, "nothing has changed\n"), 60)
        writing.__exit__()
        assert_once_in_order(service.wait_for_lines(writing.last))
        service.stop()


def test_a_reload_of_a_service_that_is_stopping_is_refused(items: Database, tmp_path: Path) -> None:
    """It drains as if nothing had come."""
    gate = tmp_path / "gate"
    handlers = {"audit": {"callback": "records:Gated", "options": {"gate": str(gate)}}}
    with serving(tmp_path, items, handlers, signal={"drain_timeout_seconds": 60}) as service:
        items.execute("INSERT INTO items VALUES (1)")
        end = server_lsn(items)
        wait_until(lambda: items.execute(f"SELECT 1 FROM pg_stat_replication WHERE sent_lsn >= '{end}'"))
        service.terminate()
        service.wait_for_log("stopping")
        service.handlers["second"] = dict(RECORD)
        assert service.reload()["problems"] == ["the service is being stopped"]
        gate.touch()
        assert service.wait() == 0
        assert len(service.lines()) == 1


def test_a_stop_in_the_middle_of_a_reload_loses_nothing(items: Database, tmp_path: Path) -> None:
    """The reload comes to its end first; what it held is worked off, by whom it is for."""
    gate = tmp_path / "gate"
    with serving(tmp_path, items, {"audit": {"callback": "records:Gated", "options": {"gate": str(gate)}}}) as service:
        items.execute("INSERT INTO items SELECT generate_series(1, 10)")
        end = server_lsn(items)
        wait_until(lambda: items.execute(f"SELECT 1 FROM pg_stat_replication WHERE sent_lsn >= '{end}'"))
        service.handlers["audit"] = dict(RECORD)
        service.write()
        service.hang_up()
        service.terminate()
        service.wait_for_log("stopping")
        gate.touch()
        assert service.wait() == 0
        service.begin()
        items.execute("INSERT INTO items VALUES (11)")
        lines = service.wait_for_lines(11)
        assert_once_in_order(lines)
        assert len(lines) == 11


def test_a_standby_takes_over_with_what_it_has_reloaded(items: Database, tmp_path: Path) -> None:
    """It has no handlers at work, and looks at the file all the same: a bad one is refused, a good one counts."""
    with serving(tmp_path / "one", items, {"audit": RECORD}) as one:
        (tmp_path / "two").mkdir()
        two = Service(tmp_path / "two", items.dsn, {"audit": dict(RECORD)}, slot=one.slot)
        two.write(state={"url": one._settings["state"]["url"]})
        try:
            two.begin()
            two.wait_for_log("standby")
            two.handlers["wrong"] = {"callback": "records:No"}
            assert two.reload()["event"] == "reload_refused"
            two.handlers.pop("wrong")
            two.handlers["second"] = dict(RECORD)
            assert two.reload()["added"] == ["second"]
            one.stop()
            two.wait_for_log("streaming")
            items.execute("INSERT INTO items VALUES (1)")
            assert [line.record_id for line in two.wait_for_lines(1, "second")] == ["1"]
            two.stop()
        finally:
            two.kill()


def test_a_signal_before_there_is_a_service_is_remembered(items: Database, tmp_path: Path) -> None:
    """It neither ends the process nor gets lost."""
    service = Service(tmp_path, items.dsn, {"audit": dict(RECORD)})
    try:
        service.begin()
        wait_until(lambda: catches_hangups(service.pid))
        service.hang_up()
        service.wait_for_log("reload_unchanged")
        service.stop()
    finally:
        service.kill()


def catches_hangups(pid: int) -> bool:
    """Whether SIGHUP does not end the process any more."""
    fields = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    return bool(int(fields["SigCgt"], 16) & 1)


ON_TERMINAL = """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from cdc.cli import main
main()
"""
"""A session of its own, with its standard input as terminal, as a shell in a window has it."""


def test_a_closed_terminal_stops_the_service(items: Database, tmp_path: Path) -> None:
    """Somebody tried it out, and closed the window: it drains and ends, and holds no slot behind their back."""
    service = Service(tmp_path, items.dsn, {"audit": dict(RECORD)})
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", ON_TERMINAL, "run", "--config", "cdc.toml"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    try:
        os.close(theirs)
        seen = b""
        while b"streaming" not in seen:
            seen += os.read(ours, 4096)
        os.close(ours)
        assert process.wait(30) == 0
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()
    assert service.lines() == []


def get(port: int, path: str) -> str:
    """The body of an answer."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        return str(answer.read().decode())


def cdc(service: Child, *arguments: str) -> tuple[int, str, str]:
    """Exit code and outputs of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "cdc.cli", *arguments],
        cwd=service.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_handler_that_is_resuming_may_be_changed(items: Database, tmp_path: Path) -> None:
    """What was parked is on its way: none of it is lost, and the stream comes behind it."""
    handlers = {"audit": {"callback": "records:Fails", "max_attempts": 1}, "staying": RECORD}
    with serving(tmp_path, items, handlers, signal={"max_consecutive_failures": 1}) as service:
        items.execute("INSERT INTO items SELECT generate_series(1, 1001)")
        wait_for_state(service, "audit", CallbackState.REMOVED)
        service.handlers["audit"] = {**RECORD, "options": {"seconds": 0.002}}
        service.reload()
        assert cdc(service, "handlers", "resume", "audit", "--no-wait")[0] == 0
        for number in range(3):
            service.wait_for_lines(len(service.lines()) + 100)
            service.handlers["audit"]["max_attempts"] = 5 + number
            assert service.reload()["event"] == "reload_applied"
            items.execute(f"INSERT INTO items VALUES ({2000 + number})")
        lines = service.wait_for_lines(1003)
        expected = [*range(2, 1002), 2000, 2001, 2002]
        assert [int(line.record_id) for line in lines] == expected
        wait_for_state(service, "audit", CallbackState.ACTIVE)
