"""Limits of the server that leave no room for us."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Database, OwnCluster
from tests.running import child, wait_until


@pytest.mark.parametrize("setting", ["max_replication_slots", "max_wal_senders"])
def test_a_limit_of_the_server_is_told_with_its_remedy(own_cluster: OwnCluster, tmp_path: Path, setting: str) -> None:
    """Case 24: no slot, or no walsender, is left; what is said names the setting."""
    cluster = own_cluster({setting: "0"})
    with child(tmp_path, Database(cluster, "postgres").dsn) as service:
        service.begin()
        wait_until(lambda: setting in service.tail())
        assert service.log("streaming") == []
