"""`pg_recvlogical` through a pipe: ``python -m bench.pipe_reader TASK``, where TASK is JSON.

Starts the `command`, whose standard output it reads, and notes of each of `changes` rows when its line was there:
the least that any consumer in Python does. Runs as a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from bench.reporting import Report

READ_BYTES = 1 << 16
ROW = b'{"action":"I"'


def main() -> None:
    """Read until the last row has come."""
    task = json.loads(sys.argv[1])
    report = Report(Path(task["report"]))
    rows: list[tuple[float, bytes]] = []
    with subprocess.Popen(task["command"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pipe, rest = process.stdout.fileno(), b""
        while len(rows) < task["changes"] and (data := os.read(pipe, READ_BYTES)):
            now = time.time()
            *lines, rest = (rest + data).split(b"\n")
            rows += [(now, line) for line in lines if line.startswith(ROW)]
        process.terminate()
    report.done(samples=[(json.loads(line)["timestamp"], received) for received, line in rows])


if __name__ == "__main__":
    main()
