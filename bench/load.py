"""Traffic at a steady rate: `pgbench -R`, transactions of one insert of the 8-column row.

Owns the table's script and pgbench's command line. It must not know who listens.
"""

from __future__ import annotations

from pathlib import Path

from bench.backlog import TABLE
from bench.processes import Measured
from bench.server import Server

__all__ = ["CLIENTS", "prepare", "run"]

CLIENTS = 4
"""Connections that share the rate: one alone does not reach 3,000 commits a second on a busy machine."""
GRACE_SECONDS = 60.0
SCRIPT = """\
INSERT INTO orders SELECT i, 'customer number ' || i % 5000, 'left at the door, please ring twice (' || i || ')',
    i % 100, (i % 100000) / 100.0, i % 3 = 0, jsonb_build_object('channel', 'web', 'weight', i % 50), now()
    FROM nextval('order_ids') i;
"""


def prepare(server: Server) -> None:
    """An empty table."""
    server.execute(TABLE)
    server.execute("DROP SEQUENCE IF EXISTS order_ids; CREATE SEQUENCE order_ids CACHE 1000")


def run(server: Server, rate: int, transactions: int, folder: Path) -> None:
    """Write `transactions` transactions (a multiple of CLIENTS), `rate` a second, and return when they are written."""
    script = folder / "load.sql"
    script.write_text(SCRIPT)
    command: list[str | Path] = [
        server.cluster.bindir / "pgbench",
        "--no-vacuum",
        "--protocol=prepared",
        f"--rate={rate}",
        f"--client={CLIENTS}",
        f"--transactions={transactions // CLIENTS}",
        f"--file={script}",
        server.dsn,
    ]
    with Measured(command, {}, folder / "pgbench.log") as process:
        process.wait(GRACE_SECONDS + 3 * transactions / rate)
