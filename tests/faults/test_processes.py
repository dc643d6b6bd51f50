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
from tests.faults.scene import HANDLERS
from tests.running import child, server_lsn, slot_info, wait_until, walsender

REPLY_TIME = """SELECT reply_time FROM pg_stat_replication JOIN pg_replication_slots ON pid = active_pid
    WHERE slot_name = %s"""


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
        old = scene.wait_for_walsender()
        # With so short a timeout, a machine that stands still costs a connection, too: what counts is one more.
        streams, reconnects = len(scene.service.log("streaming")), metric(port, "cdc_reconnects_total")
        scene.service.freeze()
        try:
            wait_until(lambda: scene.walsender() != old)
        finally:
            scene.service.thaw()
        scene.service.wait_for_log("streaming", streams + 1)
        scene.wait_for_events(60)
        assert metric(port, "cdc_reconnects_total") > reconnects
    scene.settle()
    assert scene.ordered.repeated == 0
    scene.stop()


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
        cluster = faulty_database.cluster
        with cluster.connect() as elsewhere:
            elsewhere.execute("SELECT pg_logical_emit_message(false, 'x', repeat('y', 100000))")
            beyond = server_lsn(faulty_database)
            sent = f"SELECT sent_lsn >= '{beyond}' FROM pg_stat_replication WHERE pid = %s"
            wait_until(lambda: elsewhere.execute(sent, [walsender(cluster, service.slot)]).fetchone() == (True,))
            replies: set[datetime] = set()  # of whichever walsender: a machine that stands still may cost one

            def replied_twice() -> bool:
                row = elsewhere.execute(REPLY_TIME, [service.slot]).fetchone()
                if row and row[0]:
                    replies.add(row[0])
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
