"""What people write today: psycopg2, `json.loads`, and `asyncio.wait_for` around the callback of each change.

Runs as a process of its own, ``python -m bench.psycopg2_loop TASK``. `bench.contenders.psycopg2_loop` writes the task.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2.extras import LogicalReplicationConnection

from bench import handlers

TIMEOUT_SECONDS = 30.0
ROW_ACTIONS = frozenset("IUD")


async def consume(dsn: str, slot: str, options: dict[str, str], callback: Any) -> None:
    """Read the slot for ever."""
    connection = psycopg2.connect(dsn, connection_factory=LogicalReplicationConnection)
    cursor: Any = connection.cursor()
    cursor.start_replication(slot_name=slot, options=options, decode=True)
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(cursor.fileno(), readable.set)
    while True:
        message = cursor.read_message()
        if message is None:
            readable.clear()
            await readable.wait()
            continue
        change = json.loads(message.payload)
        if change["action"] in ROW_ACTIONS:
            await asyncio.wait_for(callback.handle(change), TIMEOUT_SECONDS)
        elif change["action"] == "C":
            cursor.send_feedback(flush_lsn=message.data_start)


def main() -> None:
    """Read the task and consume."""
    task = json.loads(sys.argv[1])
    callback = getattr(handlers, task["callback"])(changes=task["changes"], report=Path(task["report"]))
    asyncio.run(consume(task["dsn"], task["slot"], task["options"], callback))


if __name__ == "__main__":
    main()
