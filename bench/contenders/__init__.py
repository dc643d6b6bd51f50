"""Who is measured: each in a module of its own, all behind `Contender`. Here is the list, and nothing else."""

from __future__ import annotations

from bench.backlog import TAG_PREFIX
from bench.contenders.contender import Contender, Job, Outcome, outcome, plugin_options
from bench.contenders.debezium import Debezium
from bench.contenders.file_wal import FileWalRun
from bench.contenders.pipe import Pipe
from bench.contenders.psycopg2_loop import Psycopg2Loop
from bench.contenders.recvlogical import RecvLogical
from bench.contenders.service import CdcRun

__all__ = [
    "CONTENDERS",
    "REFERENCE",
    "CdcRun",
    "Contender",
    "Debezium",
    "Job",
    "Outcome",
    "Pipe",
    "Psycopg2Loop",
    "RecvLogical",
    "outcome",
    "plugin_options",
]

REFERENCE = "recvlogical"
CONTENDERS: tuple[Contender, ...] = (
    RecvLogical(REFERENCE, "pg_recvlogical to a file"),
    CdcRun("noop", "cdc run, 1 no-op callback"),
    CdcRun("values", "cdc run, 1 callback reads every value", callback="ReadsEveryValue"),
    CdcRun("noop3", "cdc run, 3 no-op callbacks", callbacks=3),
    CdcRun("noop10", "cdc run, 10 no-op callbacks", callbacks=10),
    CdcRun(
        "tags",
        "cdc run, tags and masks, reads every value",
        callback="ReadsEveryValue",
        source={"tag_message_prefix": TAG_PREFIX},
        tag_rules=({"tables": ["public.orders"], "event_types": ["create"], "tags": ["bench:new"]},),
        handler={"tags": ["bench:*"], "columns": {"exclude": ["note"], "mask": ["customer"]}},
    ),
    FileWalRun("filewal", "cdc run, the file_wal handler"),
    Psycopg2Loop("psycopg2", "psycopg2 loop with wait_for"),
    Debezium("debezium", "Debezium's engine, warm"),
)
"""`tags`: each transaction of the backlog has a message with a tag, inserts get a second one by rule, the callback
wants one of them, and sees rows without one column and with another masked. It reads every value: masks cost
nothing where nobody reads."""
