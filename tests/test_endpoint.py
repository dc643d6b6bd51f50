"""What `cdc status` makes of whoever answers on the port of the service."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cdc import endpoint
from cdc.config import HttpConfig
from tests.conftest import OwnCluster
from tests.test_cli import PATIENT, SECONDS, Cdc

STATUS: dict[str, Any] = {
    "phase": "streaming", "slot": None, "not_ready": [], "not_ready_codes": [], "not_alive": [], "not_alive_codes": [],
}  # fmt: skip


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may answer late, and nobody is taken for silent."""
    monkeypatch.setattr(endpoint, "ANSWER_SECONDS", float(SECONDS))


@contextmanager
def answering(answer: Any) -> Iterator[int]:
    """A server on loopback that has this JSON for everybody; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002 - its name there

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        {"phase": "full moon"},
        STATUS | {"slot": "machine"},
        STATUS | {"not_ready_codes": None},
        {name: value for name, value in STATUS.items() if name != "not_ready_codes"},
        ["phase"],
    ],
)
async def test_answer_of_another_program_is_none(answer: Any) -> None:
    """Also when it has a phase, as our service has."""
    with answering(answer) as port:
        assert await endpoint.ask(HttpConfig(port=port)) is None


async def test_answer_of_a_service_is_taken_whole() -> None:
    """With a slot, or none yet."""
    for status in (STATUS, STATUS | {"slot": {"name": "cdc"}}):
        with answering(status) as port:
            assert await endpoint.ask(HttpConfig(port=port)) == status


def test_invalidated_slot_that_the_service_tells_of_is_told_once(own_cluster: OwnCluster, tmp_path: Path) -> None:
    """The server says the same; without a service, it alone does."""
    cluster = own_cluster({"max_slot_wal_keep_size": "1MB", "wal_keep_size": "0"})
    cdc = Cdc(tmp_path)
    cdc.program = PATIENT
    cdc.configure(cluster.dsn())
    with cluster.connect() as connection:
        connection.execute("SELECT pg_create_logical_replication_slot(%s, 'wal2json')", [cdc.slot])
        for _ in range(3):
            connection.execute("SELECT pg_logical_emit_message(false, '', ''); SELECT pg_switch_wal()")
        connection.execute("CHECKPOINT")
    file = tmp_path / "cdc.toml"
    without = json.loads(cdc("status", "--json").stdout)
    told = {"not_ready": ["the slot is invalidated"], "not_ready_codes": ["slot_invalidated"]}
    with answering(STATUS | told | {"slot": {"name": cdc.slot}}) as port:
        file.write_text(file.read_text().replace("port = 0", f"port = {port}"))
        beside = json.loads(cdc("status", "--json").stdout)

    assert without["problem_codes"] == ["slot_invalidated"]
    assert (beside["problem_codes"], beside["problems"]) == (["slot_invalidated"], ["the slot is invalidated"])
    assert beside["slot"]["invalidation"]
