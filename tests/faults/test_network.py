"""A proxy between the service and the server that delays, throttles, slices, resets and swallows."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.faults.conftest import MakeScene
from tests.faults.scene import Scene
from tests.running import confirmed, wait_until

PATIENCE = "-c wal_sender_timeout=2s"
PATIENT_SECONDS = 6
"""Of a server that must not give us up: three status updates, and a machine that stands still for some seconds."""
ATTEMPTS = 3


def slow(scene: Scene) -> None:
    """30 ms each way."""
    scene.proxy.delay = 0.03
    scene.wait_for_events(100)


def throttled(scene: Scene) -> None:
    """1 kB/s: a message takes many seconds, and the server hears from us for longer than it waits for a word."""
    scene.proxy.bytes_per_second = 1000
    heard = f"SELECT reply_time FROM pg_stat_replication WHERE pid = {scene.wait_for_walsender()}"
    wait_until(lambda: scene.database.execute(heard)[0][0], what="the first reply")
    first = scene.database.execute(heard)[0][0]
    patience = timedelta(seconds=PATIENT_SECONDS)
    wait_until(lambda: scene.database.execute(heard)[0][0] > first + patience, what="a reply after that time")
    assert len(scene.service.log("stream_lost")) == 0


def sliced(scene: Scene) -> None:
    """1 to 7 bytes at once."""
    scene.proxy.slices = (1, 7)
    scene.wait_for_events(50)


def reset(scene: Scene) -> None:
    """RST to both ends, in the middle of whatever is on its way; then none may connect for a while."""
    for number in range(1, 4):
        scene.wait_for_events(50)
        streams, losses = len(scene.service.log("streaming")), len(reasons(scene))
        scene.proxy.refuses = number == 3
        scene.proxy.reset()
        if scene.proxy.refuses:
            wait_until(lambda known=losses: "connect" in reasons(scene)[known:])  # type: ignore[misc]
            scene.proxy.refuses = False
        scene.service.wait_for_log("streaming", streams + 1)


def swallowed(scene: Scene) -> None:
    """Nothing goes through, until the server has given up; what we then send is answered by RST."""
    old = scene.wait_for_walsender()
    scene.proxy.blacken()
    wait_until(lambda: scene.walsender() != old)
    scene.proxy.reset()
    scene.service.wait_for_log("streaming", 2)


@pytest.mark.parametrize("fault", [slow, throttled, sliced, reset, swallowed])
def test_a_bad_network_costs_no_event(make_scene: MakeScene, fault: object) -> None:
    """Case 27: nothing is misread, the service connects again by itself, nothing is lost, nothing doubled."""
    options = f"-c wal_sender_timeout={PATIENT_SECONDS}s" if fault is throttled else PATIENCE
    scene = make_scene(27, through_proxy=True, options=options, writers=2)
    scene.start()
    with scene.workload:
        scene.wait_for_events(50)
        assert callable(fault)
        fault(scene)
        scene.proxy.heal()
        scene.wait_for_events(50)
    scene.settle()
    assert scene.service.log("undecodable_message") == []
    scene.stop()


def test_a_walsender_that_outlived_our_connection_is_ended_and_the_slot_goes_on(make_scene: MakeScene) -> None:
    """Case 17: only our end is lost; the server would hold the slot for a minute. It is not made anew."""
    scene = make_scene(17, through_proxy=True, options="-c wal_sender_timeout=60s")
    scene.start()
    with scene.workload:
        scene.wait_for_events(50)
        old = scene.wait_for_walsender()
        before = confirmed(scene.database.cluster, scene.service.slot)
        scene.proxy.abandon_client()
        assert scene.service.wait_for_log("leftover_ended")["pid"] == old
        scene.service.wait_for_log("streaming", 2)
        scene.wait_for_events(50)
    scene.settle()
    # What is settled is confirmed once it is in a checkpoint: after the last event has arrived, but not with it.
    wait_until(lambda: confirmed(scene.database.cluster, scene.service.slot) > before)
    assert scene.walsender() != old
    assert scene.ordered.repeated == 0
    scene.stop()


def reasons(scene: Scene) -> list[str]:
    """Why streams were lost, so far."""
    return [str(entry["reason"]) for entry in scene.service.log("stream_lost")]


def test_a_connection_into_a_black_hole_is_given_up(make_scene: MakeScene) -> None:
    """Case 27: nothing comes, nothing goes, nobody closes. The service notices by itself, and connects anew."""
    scene = make_scene(27, through_proxy=True, options=PATIENCE)
    scene.start()
    with scene.workload:
        scene.wait_for_events(50)
        for _ in range(ATTEMPTS):  # where the machine stands still, the server may give us up first: then once more
            streams = len(scene.service.log("streaming"))
            scene.proxy.blacken()
            scene.service.wait_for_log("streaming", streams + 1)
            if "silent" in reasons(scene):
                break
        assert "silent" in reasons(scene)
        scene.wait_for_events(50)
    scene.settle()
    scene.stop()
