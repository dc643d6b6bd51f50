"""Faults of processes beside a kill of ours: backends terminated and killed, a frozen service, a slot that goes."""

from __future__ import annotations

import os
import signal
import urllib.request
from datetime import datetime
from pathlib import Path

from tests.conftest import Database
from tests.faults.conftest import MakeScene
from tests.faults.oracle import Tape
from tests.faults.scene import HANDLERS, Scene
from tests.running import child, server_lsn, slot_info, wait_until

REPLY_BEYOND = """SELECT reply_time FROM pg_stat_replication JOIN pg_replication_slots ON pid = active_pid
    WHERE slot_name = %s AND write_lsn >= %s::text::pg_lsn"""

ATTEMPTS = 5


def test_a_walsender_terminated_at_any_moment_costs_nothing(make_scene: MakeScene) -> None:
    """Case 15: also while it acknowledges, which it does a hundred times a second here; nothing comes twice."""
    scene = make_scene(15, state={"checkpoint_interval_seconds": 0.01})
    scene.start()
    with scene.workload:
        for connections in range(2, 6):
            scene.wait_for_events(60)
            scene.database.execute(f"SELECT pg_terminate_backend({scene.wait_for_walsender()})")
            scene.service.wait_for_log("streaming", connections)
    scene.settle()
    assert scene.ordered.repeated == scene.parallel.repeated == 0
    scene.stop()


def test_a_service_that_stood_still_too_long_connects_again(make_scene: MakeScene) -> None:
    """Case 16: SIGSTOP for longer than wal_sender_timeout; the lost connection is counted, no event is."""
    scene = make_scene(16, options="-c wal_sender_timeout=1s", http={"enabled": True, "port": 0})
    scene.start()
    port = scene.http_port
    with scene.workload:
        scene.wait_for_events(60)
        reconnects = metric(port, "cdc_reconnects_total")
        # With so short a timeout, a machine that stands still costs a connection, too. Once it is frozen that is over.
        old = frozen_while_it_streams(scene)
        streams = len(scene.service.log("streaming"))
        try:
            wait_until(lambda: scene.walsender() != old)
        finally:
            scene.service.thaw()
        wait_until(lambda: metric(port, "cdc_reconnects_total") > reconnects)
        scene.service.wait_for_log("streaming", streams + 1)
        scene.wait_for_events(60)
    scene.settle()
    assert scene.ordered.repeated == 0
    scene.stop()


def frozen_while_it_streams(scene: Scene) -> int:
    """Freeze the service at a moment when it has a walsender: the process id of that."""
    for _ in range(ATTEMPTS):
        scene.wait_for_walsender()
        scene.service.freeze()
        if (pid := scene.walsender()) is not None:
            return pid
        scene.service.thaw()
    raise AssertionError(f"it does not stream:\n{scene.service.tail()}")


def metric(port: int, name: str) -> float:
    """The sum of all series of that name."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))


def test_a_server_killed_as_by_a_power_cut_costs_nothing(make_scene: MakeScene) -> None:
    """Case 11: SIGKILL to the postmaster and all its children, under load; after its recovery all goes on."""
    scene = make_scene(11)
    scene.start()
    with scene.workload:
        for connections in (2, 3):
            scene.wait_for_events(100)
            scene.database.cluster.kill()
            scene.database.cluster.start()
            scene.service.wait_for_log("streaming", connections)
        scene.wait_for_events(1)
    scene.settle()
    assert scene.ordered.repeated == 0
    scene.stop()


def test_a_killed_backend_of_the_server_costs_nothing(make_scene: MakeScene) -> None:
    """Case 11: SIGKILL to the walsender alone: the server restarts all its processes by itself."""
    scene = make_scene(11)
    scene.start()
    with scene.workload:
        scene.wait_for_events(60)
        os.kill(scene.wait_for_walsender(), signal.SIGKILL)
        scene.service.wait_for_log("streaming", 2)
        scene.wait_for_events(60)
    scene.settle()
    scene.stop()


def test_a_slot_dropped_under_a_running_service_ends_it(make_scene: MakeScene) -> None:
    """Case 19: exit 1 with the remedy, and no slot is made in its place, then or at the next start."""
    scene = make_scene(19)
    cluster, slot = scene.database.cluster, scene.service.slot
    scene.start()
    scene.wait_for_events(1)
    # The service comes back at once: whoever drops the slot must be quicker, or try again.
    scene.database.execute(
        "DO $$ BEGIN LOOP"
        f" PERFORM pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{slot}';"
        f" BEGIN PERFORM pg_drop_replication_slot('{slot}'); EXIT;"
        " EXCEPTION WHEN object_in_use THEN NULL; END;"
        " END LOOP; END $$"
    )
    assert scene.service.wait() == 1
    assert "--accept-gap" in scene.service.tail()
    code, said = scene.service.run()
    assert code == 1
    assert "is gone" in said
    assert slot_info(cluster, slot) is None


def test_a_transaction_that_only_a_keepalive_passed_is_delivered_after_a_crash(
    faulty_database: Database, tmp_path: Path
) -> None:
    """Case 35: other databases' WAL carries the server past an event in work; killed there, the event comes again."""
    faulty_database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    handlers = {"ordered": {**HANDLERS["ordered"], "options": {"seconds": 600.0}}}
    dsn = f"{faulty_database.dsn} options='-c wal_sender_timeout=1s'"
    with child(tmp_path, dsn, handlers, state={"checkpoint_interval_seconds": 0.02}) as service:
        service.start()
        faulty_database.execute("INSERT INTO t VALUES (1)")
        commit = server_lsn(faulty_database)
        with faulty_database.cluster.connect() as elsewhere:
            # In a transaction, whose commit writes it out: otherwise it may lie in a buffer, and nothing has moved.
            elsewhere.execute("SELECT pg_logical_emit_message(true, 'x', repeat('y', 100000))")
            beyond = server_lsn(faulty_database)
            assert beyond > commit
            replies: set[datetime] = set()  # to such a keepalive; a checkpoint has been due between two of them

            def replied_twice() -> bool:
                replies.update(time for (time,) in elsewhere.execute(REPLY_BEYOND, [service.slot, str(beyond)]))
                return len(replies) > 2

            wait_until(replied_twice)
        assert service.flushed() < commit
        service.kill()
        handlers["ordered"]["options"]["seconds"] = 0.0
        service.write()
        service.start()
        tape = Tape(service.path("ordered"))
        wait_until(lambda: [entry["key"] for entry in tape.read()] == ["1"])
        service.stop()
