"""Random transactions, random faults: whatever happens, what was delivered is what was committed."""

from __future__ import annotations

import random

import pytest

from tests.faults import schedule
from tests.faults.conftest import MakeScene

EVERYTHING = schedule.OF_THE_PROCESS | schedule.OF_THE_SERVER | schedule.AROUND | schedule.OF_THE_NETWORK
FAULTS = 6


@pytest.mark.parametrize("seed", [59])
def test_a_shadow_of_the_events_equals_the_source_whatever_happens(make_scene: MakeScene, seed: int) -> None:
    """Cases 59 and 61: whole transactions, in order, each of which keeps the accounts' sum; at rest, every value."""
    chance = random.Random(seed)
    scene = make_scene(seed, through_proxy=True, options="-c wal_sender_timeout=3s")
    scene.start()
    for fault in chance.sample(list(EVERYTHING), FAULTS):
        scene.workload.start()
        scene.wait_for_events(chance.randint(1, 300))
        EVERYTHING[fault](scene, chance)
        scene.wait_for_events(1)
        scene.workload.stop()
        scene.settle()
    assert scene.ordered.transactions > FAULTS
    assert len(scene.ordered.shadow.tables["accounts"]) > 0
    scene.stop()
