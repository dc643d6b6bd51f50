"""Servers that the handlers' tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.handlers.servers import Servers


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """One server of each kind, started when a test first asks for it: ``servers.of(RedisServer)``."""
    with Servers(tmp_path_factory.mktemp("servers")) as all_of_them:
        yield all_of_them
