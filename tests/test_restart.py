"""Kills, stops and restarts, of the service and of the server: nothing is lost, and what comes again is the same."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cdc.demo.cluster import Cluster
from cdc.lsn import Lsn
from tests.conftest import FAST, Database, drop_database
from tests.running import (
    Child,
    assert_at_least_once_in_order,
    assert_once_in_order,
    child,
    confirmed,
    server_lsn,
    slot_info,
    wait_until,
    walsender,
)

ITEMS = "CREATE TABLE items (id bigint PRIMARY KEY, note text)"
ROWS = 2000
"""Of a transaction that slow callbacks are in the midst of: they would need twenty seconds at least for all of it."""


@pytest.fixture(scope="module")
def restartable() -> Iterator[Cluster]:
    """A server that the tests of this module stop and start."""
    with Cluster(settings={**FAST, "wal_sender_timeout": "10s"}) as server:
        yield server


@pytest.fixture
def own_database(restartable: Cluster) -> Iterator[Database]:
    """A database with a table `items` on the restartable server."""
    name = f"restart_{random.randrange(1 << 40):x}"
    restartable.create_database(name)
    database = Database(restartable, name)
    database.execute(ITEMS)
    try:
        yield database
    finally:
        if not restartable.is_running():
            restartable.start()
        drop_database(restartable, name)


@pytest.fixture
def service(own_database: Database, tmp_path: Path) -> Iterator[Child]:
    """A child on that database, not started yet."""
    with child(tmp_path, own_database.dsn) as made:
        yield made


@pytest.fixture
def items(database: Database) -> Database:
    """A database on the shared server with a table `items`."""
    database.execute(ITEMS)
    return database


class Workload:
    """Transactions of 1 to 50 rows from two connections, until the end of the block."""

    def __init__(self, database: Database, seed: int) -> None:
        self._database = database
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(seed, number)) for number in range(2)]

    def _write(self, seed: int, number: int) -> None:
        chance = random.Random(seed * 10 + number)
        first = number * 10**9
        while not self._end.is_set():
            try:
                with self._database.connect() as connection:
                    while not self._end.is_set():
                        last = first + chance.randint(0, 49)
                        connection.execute(
                            "INSERT INTO items SELECT i, 'n' FROM generate_series(%s::bigint, %s) i"
                            " ON CONFLICT DO NOTHING",
                            [first, last],
                        )
                        first = last + 1
                        self._end.wait(0.005)
            except psycopg.OperationalError:
                # The server went: whether the last transaction was committed, the table will tell.
                self._end.wait(0.1)

    def __enter__(self) -> Workload:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()


def assert_all_arrived(database: Database, service: Child, handler: str = "audit") -> None:
    """Every row of the table has arrived, in order, at least once."""
    rows = {str(row[0]) for row in database.execute("SELECT id FROM items")}
    wait_until(lambda: rows <= service.record_ids(handler), 40)
    lines = service.lines(handler)
    assert_at_least_once_in_order(lines)
    assert len({line.id for line in lines}) == len(rows)


# The service dies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_moments_nothing_is_lost(items: Database, tmp_path: Path, seed: int) -> None:
    """kill -9 again and again under load: every row arrives, in order, and the same again when it comes again."""
    chance = random.Random(seed)
    handlers = {"audit": {"callback": "records:Record"}, "thread": {"callback": "records:InThread"}}
    with child(tmp_path, items.dsn, handlers) as service:
        service.start()
        with Workload(items, seed):
            for _ in range(4):
                service.wait_for_lines(len(service.record_ids()) + chance.randint(1, 1000))
                service.kill()
                service.begin()
            service.wait_for_lines(len(service.record_ids()) + 1)
        assert_all_arrived(items, service)
        assert_all_arrived(items, service, "thread")
        service.stop()
        assert_all_arrived(items, service)


def test_nothing_is_acknowledged_once_the_state_file_is_gone(items: Database, tmp_path: Path) -> None:
    """Somebody tidies up: what is written to a file without a name ends with the process, dead letters as well."""
    handlers = {"audit": {"callback": "records:Record"}, "fails": {"callback": "records:Fails", "max_attempts": 1}}
    with child(tmp_path, items.dsn, handlers) as service:
        service.start()
        items.execute("INSERT INTO items VALUES (1)")
        service.wait_for_lines(1)
        wait_until(lambda: confirmed(items.cluster, service.slot) >= service.lines()[0].position.commit_lsn)
        for file in tmp_path.glob("state.db*"):
            file.unlink()
        items.execute("INSERT INTO items SELECT generate_series(2, 10)")
        before = service.wait_for_lines(10)[0].position.commit_lsn
        assert service.wait_for_log("checkpoint_failed")["code"] == "state_missing"
        service.wait_for_log("dead_letters_not_written")
        service.terminate()
        assert service.wait() == 1
        assert before <= confirmed(items.cluster, service.slot) < service.lines()[-1].position.commit_lsn
        service.start()
        again = service.wait_for_lines(19)[10:]
        assert [line.record_id for line in again] == [str(number) for number in range(2, 11)]


def test_a_clean_stop_under_load_delivers_nothing_twice(items: Database, tmp_path: Path) -> None:
    """SIGTERM and start, three times: each event exactly once."""
    with child(tmp_path, items.dsn) as service:
        service.start()
        with Workload(items, 3):
            for _ in range(3):
                service.wait_for_lines(len(service.lines()) + 500)
                service.stop()
                service.start()
        assert_all_arrived(items, service)
        service.stop()
        assert_once_in_order(service.lines())


def test_a_stop_inside_a_large_transaction_resumes_at_the_event(items: Database, tmp_path: Path) -> None:
    """Two slow callbacks at different positions, a drain deadline that passes: neither gets an event twice."""
    handlers: dict[str, dict[str, Any]] = {
        "slow": {"callback": "records:Record", "options": {"seconds": 0.01}},
        "slower": {"callback": "records:Record", "options": {"seconds": 0.025}},
        "quick": {"callback": "records:Record"},
    }
    with child(tmp_path, items.dsn, handlers, signal={"drain_timeout_seconds": 0.5}) as service:
        service.start()
        items.execute(f"INSERT INTO items SELECT i, 'n' FROM generate_series(1, {ROWS}) i")
        wait_until(lambda: len(service.lines("slow")) > len(service.lines("slower")) >= 10)
        service.stop()
        assert len(service.lines("slower")) < len(service.lines("slow")) < ROWS
        commit = service.lines("quick")[0].position.commit_lsn
        assert confirmed(items.cluster, service.slot) < commit
        for name in ("slow", "slower"):
            service._handlers[name]["options"]["seconds"] = 0
        service.write()
        service.start()
        for name in handlers:
            lines = service.wait_for_lines(ROWS, name)
            assert_once_in_order(lines)
            assert [line.record_id for line in lines] == [str(number) for number in range(1, ROWS + 1)]
        wait_until(lambda: confirmed(items.cluster, service.slot) >= commit)
        service.stop()
        assert {len(service.lines(name)) for name in handlers} == {ROWS}


def test_a_stop_with_the_reader_held_back_loses_nothing(items: Database, tmp_path: Path) -> None:
    """The rest of the transaction is still at the server; it comes with the right ids and ordinals."""
    handlers = {"audit": {"callback": "records:Record", "options": {"seconds": 0.01}}}
    signal = {"drain_timeout_seconds": 0.2, "max_queued_events": 20}
    with child(tmp_path, items.dsn, handlers, signal=signal) as service:
        service.start()
        items.execute("INSERT INTO items SELECT i, 'n' FROM generate_series(1, 1000) i")
        service.wait_for_lines(5)
        service.stop()
        assert len(service.lines()) < 1000
        service.write(signal={"max_queued_events": 10_000})
        service._handlers["audit"]["options"]["seconds"] = 0
        service.write()
        service.start()
        lines = service.wait_for_lines(1000)
        assert_once_in_order(lines)
        assert [line.position.ordinal for line in lines] == list(range(1, 1001))


def test_killed_inside_a_transaction_all_of_it_arrives(items: Database, tmp_path: Path) -> None:
    """Also the rows of one COPY, which share an LSN."""
    handlers = {"audit": {"callback": "records:Record", "options": {"seconds": 0.01}}}
    with child(tmp_path, items.dsn, handlers) as service:
        service.start()
        with items.connect() as connection, connection.cursor().copy("COPY items FROM STDIN") as copy:
            for number in range(ROWS):
                copy.write_row((number, "n"))
        wait_until(lambda: on_record(service) >= 50)
        service.kill()
        recorded = on_record(service)
        assert recorded < ROWS
        service._handlers["audit"]["options"]["seconds"] = 0
        service.write()
        service.start()
        assert_all_arrived(items, service)
        again = Counter(line.position.ordinal for line in service.lines())
        assert {again[ordinal] for ordinal in range(1, recorded + 1)} == {1}, "its own position was on record"


def on_record(service: Child, handler: str = "audit") -> int:
    """How far the handler has come in the transaction that it is in, as its state has it."""
    state = service.state()
    try:
        checkpoint = state.load()
    finally:
        state.close()
    return checkpoint.callbacks[handler].ordinal if checkpoint is not None else 0


def test_an_old_transaction_open_across_a_restart_arrives(items: Database, tmp_path: Path) -> None:
    """Begun before what was flushed, committed after the restart."""
    with child(tmp_path, items.dsn) as service, items.connect() as old:
        old.autocommit = False
        service.start()
        old.execute("INSERT INTO items SELECT i, 'old' FROM generate_series(1, 10) i")
        items.execute("INSERT INTO items VALUES (11, 'new')")
        end = service.wait_for_lines(1)[0].position.commit_lsn
        wait_until(lambda: confirmed(items.cluster, service.slot) >= end)
        service.stop()
        items.execute("INSERT INTO items VALUES (12, 'new')")
        service.start()
        service.wait_for_lines(2)
        old.commit()
        lines = service.wait_for_lines(12)
        assert [line.record_id for line in lines] == ["11", "12", *map(str, range(1, 11))]
        assert_once_in_order(lines)


def test_a_non_transactional_message_before_a_restart_changes_nothing(items: Database, tmp_path: Path) -> None:
    """It is no commit: the stream goes on behind what was settled."""
    with child(tmp_path, items.dsn) as service:
        service.start()
        items.execute("INSERT INTO items VALUES (1)")
        service.wait_for_lines(1)
        items.execute("SELECT pg_logical_emit_message(false, 'cdc.tags', 'a'), pg_switch_wal()")
        service.stop()
        items.execute("SELECT pg_logical_emit_message(false, 'cdc.tags', 'b')")
        service.start()
        items.execute("INSERT INTO items VALUES (2)")
        service.wait_for_lines(2)
        items.execute("SELECT pg_logical_emit_message(false, 'cdc.tags', 'c')")
        service.kill()
        service.start()
        items.execute("INSERT INTO items VALUES (3)")
        wait_until(lambda: service.lines()[-1].record_id == "3")
        assert_at_least_once_in_order(service.lines())


def test_a_stop_while_the_slot_is_being_made_leaves_none(items: Database, tmp_path: Path) -> None:
    """The server waits for an old transaction before it has a consistent point; we need not wait with it."""
    with child(tmp_path, items.dsn) as service, items.connect() as old:
        old.autocommit = False
        old.execute("INSERT INTO items VALUES (1)")
        service.begin()
        wait_until(lambda: walsender(items.cluster, service.slot) is not None)
        service.stop()
        wait_until(lambda: slot_info(items.cluster, service.slot) is None)
        old.commit()
        service.start()
        items.execute("INSERT INTO items VALUES (2)")
        assert [line.record_id for line in service.wait_for_lines(1)] == ["2"]


# SIGTERM ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handler", ["Hang", "InThread", "BlocksLoop"])
def test_a_hanging_callback_is_left_behind_at_the_drain_deadline(items: Database, tmp_path: Path, handler: str) -> None:
    """A coroutine, a thread, or the event loop itself hangs: the process ends, and acknowledges nothing of it."""
    handlers = {"audit": {"callback": f"records:{handler}", "options": {"seconds": 60.0}}}
    with child(tmp_path, items.dsn, handlers, signal={"drain_timeout_seconds": 0.5}) as service:
        service.start()
        items.execute("INSERT INTO items VALUES (1)")
        end = Lsn.parse(items.execute("SELECT pg_current_wal_lsn()::text")[0][0])
        wait_until(lambda: service.lines() or handler != "Hang")
        wait_until(lambda: reached(items, service, end))
        service.terminate()
        code = service.wait(40)  # sooner than the callback, which takes a minute or for ever
        assert code == (1 if handler == "BlocksLoop" else 0)
        assert confirmed(items.cluster, service.slot) < end


def reached(database: Database, service: Child, lsn: Lsn) -> bool:
    """Whether the server has sent everything up to there."""
    rows = database.execute(
        f"SELECT r.sent_lsn >= '{lsn}' FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid"
        f" WHERE s.slot_name = '{service.slot}'"
    )
    return bool(rows and rows[0][0])


@pytest.mark.parametrize("handler", ["Hang", "BlocksLoop"])
def test_a_second_sigterm_ends_it_at_once(items: Database, tmp_path: Path, handler: str) -> None:
    """Exit 1, long before the drain deadline, also with a blocked event loop; nothing more is acknowledged."""
    handlers = {"audit": {"callback": f"records:{handler}", "options": {"seconds": 60.0}}}
    with child(tmp_path, items.dsn, handlers, signal={"drain_timeout_seconds": 60}) as service:
        service.start()
        items.execute("INSERT INTO items VALUES (1)")
        end = Lsn.parse(items.execute("SELECT pg_current_wal_lsn()::text")[0][0])
        wait_until(lambda: reached(items, service, end))
        wait_until(lambda: service.lines() or handler != "Hang")
        service.terminate()
        if handler == "Hang":
            service.wait_for_log("stopping")
        else:
            wait_until(lambda: pending_signals(service.pid) == 0)
        service.terminate()
        assert service.wait() == 1
        assert confirmed(items.cluster, service.slot) < end


def pending_signals(pid: int) -> int:
    """Signals that the process has not taken yet, as the kernel's bit mask."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return int(fields["ShdPnd"], 16) | int(fields["SigPnd"], 16)


def test_sigterm_while_the_server_is_away_ends_it(service: Child, own_database: Database) -> None:
    """Between two attempts to connect: exit 0, at once."""
    service.start()
    own_database.execute("INSERT INTO items VALUES (1)")
    service.wait_for_lines(1)
    own_database.cluster.stop("immediate")
    service.wait_for_log("stream_lost")
    service.terminate()
    assert service.wait() == 0


# The server dies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["immediate", "fast"])
def test_a_stopped_and_started_server_costs_nothing(own_database: Database, service: Child, mode: str) -> None:
    """Under load: the service connects again, nothing is lost, and what is in its memory is not doubled."""
    server = own_database.cluster
    service.start()
    with Workload(own_database, 5):
        for _ in range(2):
            service.wait_for_lines(len(service.lines()) + 1000)
            before = len(service.log("streaming"))
            server.stop(mode, timeout=30)  # type: ignore[arg-type]
            server.start()
            service.wait_for_log("streaming", before + 1)
    assert_all_arrived(own_database, service)
    assert_once_in_order(service.lines())
    service.stop()


def test_acknowledged_transactions_do_not_come_again_after_a_server_restart(
    own_database: Database, service: Child
) -> None:
    """A server of version 16 or older forgets at a clean stop how far the slot was; our checkpoint does not."""
    server = own_database.cluster
    service.start()
    for number in range(3):
        own_database.execute(f"INSERT INTO items VALUES ({number})")
    end = service.wait_for_lines(3)[-1].position.commit_lsn
    wait_until(lambda: confirmed(server, service.slot) >= end)
    service.stop()
    server.restart("immediate")
    service.start()
    own_database.execute("INSERT INTO items VALUES (3)")
    lines = service.wait_for_lines(4)
    server.restart("fast")
    service.wait_for_log("streaming", 3)
    own_database.execute("INSERT INTO items VALUES (4)")
    lines = service.wait_for_lines(5)
    service.stop()
    assert [line.record_id for line in service.lines()] == ["0", "1", "2", "3", "4"]
    assert_once_in_order(lines)


def test_a_fast_stop_of_an_idle_server_takes_seconds(own_database: Database, service: Child) -> None:
    """It waits until its consumers have confirmed all it wrote; we do at once."""
    server = own_database.cluster
    service.start()
    own_database.execute("INSERT INTO items VALUES (1)")
    service.wait_for_lines(1)
    server.stop("fast", timeout=20)  # it takes a tenth of a second where nobody else wants the machine
    server.start()
    service.wait_for_log("streaming", 2)


def test_a_fast_stop_waits_for_the_callback_in_work(own_database: Database, tmp_path: Path) -> None:
    """The server wants all it wrote confirmed; it ends as soon as the callback has, with all of it on record."""
    server = own_database.cluster
    gate = tmp_path / "gate"
    handlers = {"audit": {"callback": "records:Gated", "options": {"gate": str(gate)}}}
    with child(tmp_path, own_database.dsn, handlers, signal={"drain_timeout_seconds": 60}) as service:
        service.start()
        own_database.execute("INSERT INTO items VALUES (1)")
        end = server_lsn(own_database)
        wait_until(lambda: reached(own_database, service, end))
        requests = server.log_file.read_text().count("received fast shutdown request")
        server.stop("fast", wait=False)
        wait_until(lambda: server.log_file.read_text().count("received fast shutdown request") > requests)
        assert server.is_running()
        gate.touch()
        wait_until(lambda: not server.is_running())
        server.start()
        service.wait_for_log("streaming", 2)
        own_database.execute("INSERT INTO items VALUES (2)")
        assert_once_in_order(service.wait_for_lines(2))
        service.stop()


def test_a_terminated_walsender_is_replaced_when_idle(items: Database, tmp_path: Path) -> None:
    """pg_terminate_backend: connected again, and what comes next arrives."""
    with child(tmp_path, items.dsn) as service:
        service.start()
        items.execute("INSERT INTO items VALUES (1)")
        service.wait_for_lines(1)
        items.execute(f"SELECT pg_terminate_backend({walsender(items.cluster, service.slot)})")
        service.wait_for_log("streaming", 2)
        items.execute("INSERT INTO items VALUES (2)")
        assert_once_in_order(service.wait_for_lines(2))
        service.stop()


def test_a_terminated_walsender_is_replaced_inside_a_transaction(items: Database, tmp_path: Path) -> None:
    """The server sends the transaction again from its beginning; the callback gets each row once."""
    handlers: dict[str, dict[str, Any]] = {"audit": {"callback": "records:Record", "options": {"seconds": 0.001}}}
    with child(tmp_path, items.dsn, handlers, signal={"max_queued_events": 500}) as service:
        service.start()
        items.execute("INSERT INTO items SELECT i, repeat('x', 300) FROM generate_series(1, 60000) i")
        for connections in (2, 3):
            service.wait_for_lines(len(service.lines()) + 600)  # of a minute's work
            pid = walsender(items.cluster, service.slot)
            items.execute(f"SELECT pg_terminate_backend({pid}, 30000)")
            service.wait_for_log("streaming", connections)
        assert len(service.lines()) < 60_000
        service._handlers["audit"]["options"]["seconds"] = 0.0
        assert service.reload()["event"] == "reload_applied"
        items.execute("INSERT INTO items VALUES (0)")
        lines = service.wait_for_lines(60_001, timeout=60)
        assert_once_in_order(lines)
        assert lines[-1].record_id == "0"


def test_a_slot_held_by_another_is_waited_for(items: Database, tmp_path: Path) -> None:
    """Two services on one slot: the second takes over when the first is killed; nothing is lost in between."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with child(tmp_path / "one", items.dsn) as one, child(tmp_path / "two", items.dsn, slot=one.slot) as two:
        one.start()
        items.execute("INSERT INTO items SELECT generate_series(1, 100)")
        one.wait_for_lines(100)
        two.begin()
        entry = two.wait_for_log("stream_lost")
        assert entry["reason"] == "slot_busy"
        items.execute("INSERT INTO items SELECT generate_series(101, 200)")
        one.wait_for_lines(200)
        assert two.lines() == []
        one.kill()
        items.execute("INSERT INTO items SELECT generate_series(201, 300)")
        wait_until(lambda: {line.record_id for line in two.lines()} >= {str(number) for number in range(201, 301)})
        two.stop()
        info = slot_info(items.cluster, one.slot)
        assert info is not None
        both = {line.record_id for line in one.lines()} | {line.record_id for line in two.lines()}
        assert both == {str(number) for number in range(1, 301)}


def test_a_server_that_is_not_there_at_first_is_waited_for(own_database: Database, service: Child) -> None:
    """The service may be started before its server."""
    server = own_database.cluster
    server.stop("fast")
    service.begin()
    service.wait_for_log("stream_lost")
    server.start()
    service.wait_for_log("streaming")
    own_database.execute("INSERT INTO items VALUES (1)")
    assert len(service.wait_for_lines(1)) == 1
    service.stop()
