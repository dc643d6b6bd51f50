"""Reloads under load, and kill -9 in the middle of one: nothing is lost, and only what had no record comes again."""

from __future__ import annotations

from typing import Any

from tests.faults.conftest import MakeScene
from tests.faults.failpoints import RELOAD_POINTS
from tests.faults.scene import HANDLERS, Scene


def change(scene: Scene, number: int, *, extra: bool = False) -> None:
    """Write a file in which both handlers are others than before, and perhaps there is a third."""
    lanes = (4, 1, 6)[number % 3]
    handlers: dict[str, Any] = {
        "ordered": {**HANDLERS["ordered"], "max_attempts": number + 1},
        "parallel": {**HANDLERS["parallel"], "concurrency": lanes, "max_attempts": number + 1},
    }
    if extra:
        handlers["extra"] = dict(HANDLERS["ordered"])
    scene.service._handlers = handlers
    scene.service.write()


def test_reloads_under_load_cost_and_double_nothing(make_scene: MakeScene) -> None:
    """Again and again, with more lanes and with fewer, while a third handler comes and goes: each event once."""
    scene = make_scene("reloads")
    scene.start()
    with scene.workload:
        for number in range(8):
            scene.wait_for_events(40)
            change(scene, number, extra=number % 2 == 0)
            assert scene.service.reload()["event"] == "reload_applied"
    scene.settle()
    assert len(scene.service.log("streaming")) == 1
    assert scene.ordered.repeated == scene.parallel.repeated == 0
    scene.stop()


def test_killed_in_the_middle_of_a_reload_nothing_is_lost(make_scene: MakeScene) -> None:
    """At each of its steps; started again with the new file, each handler goes on where its record says."""
    scene = make_scene("killed reloads")
    scene.start()
    scene.kill()
    with scene.workload:
        for number, point in enumerate(RELOAD_POINTS):
            change(scene, 2 * number, extra=True)
            scene.begin(point)
            scene.wait_for_events(40)
            change(scene, 2 * number + 1)
            scene.service.hang_up()
            scene.wait_for_kill()
        scene.begin()
        scene.wait_for_events(100)
    scene.settle()
    scene.stop()
