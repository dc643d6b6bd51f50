"""Servers of the fault suite, which its tests stop and kill, and scenes on them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cdc.demo.cluster import Cluster
from tests.conftest import FAST, Database, drop_database
from tests.faults.scene import Scene, scene

SETTINGS = {
    **FAST,
    "wal_sender_timeout": "10s",
    "logical_decoding_work_mem": "64kB",  # transactions of some size are decoded by way of the disk
    "max_prepared_transactions": "5",
}

MakeScene = Callable[..., Scene]


@pytest.fixture(scope="session")
def faulty_cluster() -> Iterator[Cluster]:
    """One server for all faults; each test leaves it running."""
    with Cluster(settings=SETTINGS) as server:
        yield server


@pytest.fixture
def faulty_database(faulty_cluster: Cluster) -> Iterator[Database]:
    """A database of the test's own on it."""
    name = f"faults_{random.randrange(1 << 40):x}"
    faulty_cluster.create_database(name)
    try:
        yield Database(faulty_cluster, name)
    finally:
        if not faulty_cluster.is_running():
            faulty_cluster.start()
        drop_database(faulty_cluster, name)


@pytest.fixture
def make_scene(faulty_database: Database, tmp_path: Path) -> Iterator[MakeScene]:
    """Makes a scene, see `tests.faults.scene.scene`; it is gone, and the workload at rest, after the test."""
    with ExitStack() as stack:

        def make(seed: object = 0, **kwargs: Any) -> Scene:
            made = stack.enter_context(scene(faulty_database, tmp_path / "service", seed, **kwargs))
            stack.callback(made.workload.stop)
            return made

        yield make
