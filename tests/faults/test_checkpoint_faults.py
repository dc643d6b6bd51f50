"""The disk under the state, and the word to the server: neither may fail in a way that loses or doubles an event."""

from __future__ import annotations

import contextlib
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.faults.conftest import MakeScene
from tests.faults.failpoints import EIO_FILE
from tests.faults.scene import Scene
from tests.running import confirmed, wait_until

DISK = "size=1m"
CHECKPOINT_SECONDS = 0.5
"""Each is some pages of SQLite's WAL, which begins anew only at 1 MiB: twice a second, a minute's fit on that disk.
Were it larger, a WAL that has begun anew would have room in itself, and a full disk be no fault."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB; who may not mount one cannot run this test, and sees it fail."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def full(scene: Scene) -> AbstractContextManager[None]:
    """Not a byte is left on the disk of the state."""

    @contextmanager
    def fill() -> Iterator[None]:
        ballast = scene.service.state_path.with_name("ballast")
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        try:
            yield
        finally:
            ballast.unlink()

    return fill()


@contextmanager
def broken(scene: Scene) -> Iterator[None]:
    """The disk answers each commit with an error."""
    file = scene.service.folder / EIO_FILE
    file.touch()
    try:
        yield
    finally:
        file.unlink()


Fault = Callable[[Scene], AbstractContextManager[None]]


@pytest.mark.parametrize(("fault", "failpoint"), [(full, ""), (broken, "checkpoint_eio")])
def test_nothing_is_acknowledged_that_the_disk_did_not_take(
    make_scene: MakeScene, disk: Path, fault: Fault, failpoint: str
) -> None:
    """Case 4: ENOSPC and EIO. Delivery goes on, the slot stays at the last durable checkpoint, and it is not ready."""
    state = {"url": f"sqlite:///{disk}/state.db", "checkpoint_interval_seconds": CHECKPOINT_SECONDS}
    scene = make_scene(4, state=state, http={"enabled": True, "port": 0})
    service, slot = scene.service, scene.service.slot
    service.state_path = disk / "state.db"
    if failpoint:
        service.program, service.environment = "tests.faults.failpoints", {"CDC_FAILPOINT": failpoint}
    scene.start()
    port = scene.http_port
    wait_until(lambda: ready(port))
    with scene.workload:
        scene.wait_for_events(20)
        with fault(scene):
            service.wait_for_log("checkpoint_failed")
            wait_until(lambda: not ready(port))
            durable = service.flushed()
            for _ in range(5):
                scene.wait_for_events(100)
                assert confirmed(scene.database.cluster, slot) <= service.flushed() == durable
            pid = service.pid
        wait_until(lambda: ready(port))
        assert service.pid == pid
        assert service.is_running
        assert len(service.log("checkpoint_failed")) == 1, "said once, not at each attempt"
        with fault(scene):
            service.wait_for_log("checkpoint_failed", 2)
            scene.wait_for_events(100)
            scene.kill()
        scene.begin()
        scene.wait_for_events(100)
    scene.settle()
    end = scene.ordered.latest.commit_lsn
    wait_until(lambda: confirmed(scene.database.cluster, slot) >= end)
    scene.stop()


def ready(port: int) -> bool:
    """What /readyz says."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=30) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        return error.code == 200


def test_without_a_word_to_the_server_the_own_checkpoint_prevents_replays(make_scene: MakeScene) -> None:
    """Case 3: every status update is lost, the slot stands still; after a restart not one event comes twice."""
    scene = make_scene(3)
    scene.service.program = "tests.faults.failpoints"
    scene.service.environment = {"CDC_FAILPOINT": "drop_status_updates"}
    scene.start()
    slot_at = confirmed(scene.database.cluster, scene.service.slot)
    with scene.workload:
        scene.wait_for_events(300)
        scene.stop()
        assert confirmed(scene.database.cluster, scene.service.slot) == slot_at
        assert scene.service.flushed() > slot_at
        scene.begin()
        scene.wait_for_events(100)
    scene.settle()
    assert scene.ordered.repeated == scene.parallel.repeated == 0
    scene.stop()
