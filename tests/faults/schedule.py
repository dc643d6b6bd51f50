"""Faults to be drawn from at random, each over when its function returns: service and server run again."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable

from tests.faults.scene import Scene

Fault = Callable[[Scene, random.Random], None]


def kill(scene: Scene, chance: random.Random) -> None:
    """kill -9, and a start."""
    scene.kill()
    _pause(chance, 0.5)
    scene.begin()


def stop(scene: Scene, chance: random.Random) -> None:
    """SIGTERM, and a start; a process that has not begun yet just ends."""
    scene.service.terminate()
    code = scene.service.wait()
    assert code in {0, -signal.SIGTERM}, f"exit {code}:\n{scene.service.tail()}"
    scene.note_state()
    _pause(chance, 0.5)
    scene.begin()


def kill_twice(scene: Scene, chance: random.Random) -> None:
    """Again while it starts."""
    scene.kill()
    scene.begin()
    _pause(chance, 1.0)
    kill(scene, chance)


def freeze(scene: Scene, chance: random.Random) -> None:
    """SIGSTOP for a while."""
    scene.service.freeze()
    try:
        _pause(chance, 2.0)
    finally:
        scene.service.thaw()


def terminate(scene: Scene, chance: random.Random) -> None:
    """pg_terminate_backend of the walsender."""
    del chance
    if pid := scene.walsender():
        scene.database.execute(f"SELECT pg_terminate_backend({pid})")


def restart_server(scene: Scene, chance: random.Random) -> None:
    """pg_ctl stop, at once or in order, and start."""
    scene.database.cluster.restart(chance.choice(["fast", "immediate"]))


def kill_server(scene: Scene, chance: random.Random) -> None:
    """SIGKILL to all its processes, and start."""
    del chance
    scene.database.cluster.kill()
    scene.database.cluster.start()


def reset(scene: Scene, chance: random.Random) -> None:
    """RST to both ends."""
    del chance
    scene.proxy.reset()


def abandon(scene: Scene, chance: random.Random) -> None:
    """RST to our end only."""
    del chance
    scene.proxy.abandon_client()


def swallow(scene: Scene, chance: random.Random) -> None:
    """Nothing goes through for a while; then RST."""
    scene.proxy.blacken()
    _pause(chance, 2.0)
    scene.proxy.reset()


def slow_down(scene: Scene, chance: random.Random) -> None:
    """Late, narrow, or in slices, for a while."""
    choice = chance.randrange(3)
    if choice == 0:
        scene.proxy.delay = 0.05
    elif choice == 1:
        scene.proxy.bytes_per_second = 20_000
    else:
        scene.proxy.slices = (1, 700)
    _pause(chance, 2.0)
    scene.proxy.heal()


OF_THE_PROCESS: dict[str, Fault] = {"kill": kill, "stop": stop, "kill_twice": kill_twice}
"""After these the process is another one."""
OF_THE_SERVER: dict[str, Fault] = {"restart_server": restart_server, "kill_server": kill_server}
AROUND: dict[str, Fault] = {"freeze": freeze, "terminate": terminate}
OF_THE_NETWORK: dict[str, Fault] = {"reset": reset, "abandon": abandon, "swallow": swallow, "slow_down": slow_down}


def _pause(chance: random.Random, most: float) -> None:
    """The fault lasts: the one place where time itself is what is wanted."""
    time.sleep(chance.random() * most)
