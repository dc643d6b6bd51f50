"""kill -9 of the service at each step of an event's way: nothing is lost, and only what had no record comes again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Database
from tests.faults.conftest import MakeScene
from tests.faults.failpoints import POINTS
from tests.faults.oracle import Tape
from tests.faults.scene import HANDLERS
from tests.running import child, wait_until

STEPS = {
    "reading": ("after_receive", "before_dispatch", "after_dispatch"),
    "handling": ("before_handler", "after_handler_ok", "after_settled"),
    "recording": (
        "before_checkpoint_write",
        "inside_checkpoint_write",
        "after_checkpoint_write",
        "before_status_send",
        "after_status_send",
    ),
}
HITS = {"before_handler": 300, "after_handler_ok": 300, "after_settled": 30}
"""Others happen once a burst or once a checkpoint: the fifth is in the middle of the load."""


def test_every_failpoint_is_tried() -> None:
    """None is forgotten in the table above."""
    assert sorted(point for points in STEPS.values() for point in points) == sorted(POINTS)


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_nothing_is_lost(make_scene: MakeScene, step: str) -> None:
    """Case 1: D ⊇ S, and what comes again lies behind the last durable checkpoint, with the same id and position."""
    scene = make_scene(step)
    scene.start()
    scene.kill()
    with scene.workload:
        for point in STEPS[step]:
            scene.begin(f"{point}:{HITS.get(point, 5)}")
            scene.wait_for_kill()
        scene.begin()
        scene.wait_for_events(100)
    scene.settle()
    scene.stop()


def test_killed_before_its_checkpoint_a_transaction_comes_again_once(faulty_database: Database, tmp_path: Path) -> None:
    """Case 2: the callback had it all, the state knows nothing of it: the same ids, positions and values, in order."""
    faulty_database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    handlers = {"ordered": HANDLERS["ordered"]}
    state = {"checkpoint_interval_seconds": 60}
    with child(tmp_path, faulty_database.dsn, handlers, state=state) as service:
        service.program, service.environment = "tests.faults.failpoints", {"CDC_FAILPOINT": "after_handler_ok:5"}
        service.start()
        faulty_database.execute("INSERT INTO t SELECT generate_series(1, 5)")
        assert service.wait() == -9
        service.program = "cdc.cli"
        service.start()
        faulty_database.execute("INSERT INTO t VALUES (6)")
        tape = Tape(service.path("ordered"))
        events: list[dict[str, Any]] = []

        def has_the_last() -> bool:
            events.extend({**entry, "run": 0} for entry in tape.read())
            return bool(events) and events[-1]["key"] == "6"

        wait_until(has_the_last)
        service.stop()
    assert [event["key"] for event in events] == ["1", "2", "3", "4", "5"] * 2 + ["6"]
    assert events[:5] == events[5:10]
    assert [event["id"] for event in events[5:]] == [1, 2, 3, 4, 5, 6]
