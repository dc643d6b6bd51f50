"""Where the time goes: `cdc run` under py-spy, a flame graph in a file."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from bench.backlog import mixed
from bench.contenders import CdcRun, Job
from bench.server import BenchError, Server
from cdc.demo.processes import children

__all__ = ["record"]

RATE = 400  # samples a second: enough for a run of two seconds


def record(
    server: Server, contender: CdcRun, options: Mapping[str, str], changes: int, transaction_rows: int, output: Path
) -> None:
    """Write the flame graph of one run of `contender` over `changes` changes to `output` (SVG)."""
    program = shutil.which("py-spy", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if program is None:
        raise BenchError("py-spy is not installed: pip install py-spy")
    wrapper: list[str | Path] = [program, "record", "--rate", str(RATE), "--output", output.resolve(), "--"]
    with (
        mixed(server, changes, transaction_rows) as backlog,
        server.copy_of(backlog.slots[contender.plugin]) as slot,
        tempfile.TemporaryDirectory(prefix="walsignal-bench-") as folder,
    ):
        job = Job(server, backlog, slot, Path(folder), options)
        with contender.start(job, wrapper) as process:
            process.wait_until(lambda: contender.is_done(job), job.timeout)
            for pid in children(process.pid):  # the service; py-spy ends with it, and writes its file
                os.kill(pid, signal.SIGTERM)
            process.wait(job.timeout)
