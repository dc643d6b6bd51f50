"""The double of an OpenSearch server, as a process of the tests: see `tests/handlers/opensearch_double.py`."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from tests.handlers.servers import ServerProcess

__all__ = ["OpenSearchDouble"]


class OpenSearchDouble(ServerProcess):
    """Keeps its documents in SQLite, on the disk before it answers."""

    program = "opensearch-double"  # the name of its log

    @property
    def url(self) -> str:
        """http://host:port."""
        return f"http://{self.address}"

    def command(self) -> list[str]:
        script = Path(__file__).with_name("opensearch_double.py")
        return [sys.executable, str(script), str(self.port), str(self.folder / "documents.db")]

    def is_ready(self, connection: socket.socket) -> bool:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return connection.recv(64).startswith((b"HTTP/1.0 200", b"HTTP/1.1 200"))
