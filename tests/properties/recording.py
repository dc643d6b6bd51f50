"""Real messages for the fuzzer: what a PostgreSQL sends of `recorded.sql`, kept in `recorded.jsonl`.

``python -m tests.properties.recording`` records them anew.
"""

from __future__ import annotations

import psycopg

from cdc.demo.cluster import Cluster
from cdc.wal2json import OPTIONS
from tests.properties.targets import RECORDED

SLOT = "recording"
SCRIPT = RECORDED.with_suffix(".sql")


def record(dsn: str) -> list[bytes]:
    """Run the script in an empty database, each of its parts as one transaction; what a slot has of it."""
    options = [word for option in OPTIONS.items() for word in option]
    begin, *parts = SCRIPT.read_bytes().split(b"-- next\n")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(begin)
        connection.execute("SELECT pg_create_logical_replication_slot(%s, 'wal2json')", [SLOT])
        for part in parts:
            connection.execute(part)
        rows = connection.execute(
            "SELECT data FROM pg_logical_slot_get_binary_changes(%s, NULL, NULL, VARIADIC %s::text[])", [SLOT, options]
        ).fetchall()
        connection.execute("SELECT pg_drop_replication_slot(%s)", [SLOT])
    return [data for (data,) in rows]


if __name__ == "__main__":
    with Cluster() as cluster:
        cluster.create_database("recording")
        RECORDED.write_bytes(b"".join(message + b"\n" for message in record(cluster.dsn("recording"))))
