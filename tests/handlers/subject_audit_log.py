"""`audit_log` under the contract: a database of its own in a PostgreSQL that may be killed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from tests.handlers.contract import Subject
from tests.handlers.servers import PostgresServer


class AuditLogSubject(Subject[PostgresServer]):
    """Effects are the rows of the table."""

    name = "audit_log"
    wrong_options: ClassVar = {"dsn": "no such thing", "table": "a.b.c", "max_connections": 0}

    def make_server(self) -> PostgresServer:
        return self.servers.of(PostgresServer)

    @property
    def database(self) -> str:
        return f"audit_{self.token}"

    def options(self) -> dict[str, Any]:
        return {"dsn": self.server.dsn(self.database), "create_table": True, "connect_seconds": 3}

    async def prepare(self) -> None:
        self.server.cluster.create_database(self.database)

    async def effects(self) -> Sequence[str]:
        with self.server.cluster.connect(self.database) as connection:
            return [position for (position,) in connection.execute("SELECT position FROM audit_log")]
