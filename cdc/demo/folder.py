"""The demonstration's folder, and the promise that it goes, with the service, however we end.

Owns the folder's life and the guard that outlives us. It must not know what is in the folder, beside the
cluster's own, whose guard stops the server.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from cdc.demo.processes import EXIT_SECONDS

__all__ = ["CLUSTER", "DemoFolder"]

CLUSTER = "cluster"
POLL_SECONDS = 0.05  # between attempts to delete a folder in which somebody ends

# Waits until its pipe from us is closed. If we said `leave` before, all is well. If we died without a word
# (SIGKILL), it ends the service, waits until the cluster's own guard has stopped the server, and cleans up.
GUARD = """
service=
while read -r word pid; do
  case $word in
    leave) exit 0 ;;
    service) service=$pid ;;
  esac
done
if [ -n "$service" ]; then kill -s KILL -- "-$service"; fi
tries=0
while [ -e "$1/cluster/data/postmaster.pid" ] && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
rm -rf -- "$1"
"""


class DemoFolder:
    """A new folder among the temporary ones; `remove` deletes it, and so does its guard if we cannot."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="walsignal-demo-"))
        if os.geteuid() == 0:
            self.path.chmod(0o711)  # the server runs as another user and must get through to its own folder
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "walsignal-guard", self.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def guard_service(self, pid: int | None) -> None:
        """The process group to end with us; None when it is gone."""
        assert self._guard.stdin is not None  # noqa: S101 - a pipe
        self._guard.stdin.write(f"service {pid or ''}\n".encode())
        self._guard.stdin.flush()

    def leave(self) -> None:
        """Let the folder stay."""
        if self._guard.poll() is None:
            self._guard.communicate(b"leave\n")

    def remove(self) -> None:
        """Delete the folder; a process that was killed in it may need a moment to stop writing."""
        deadline = time.monotonic() + EXIT_SECONDS
        while self.path.exists() and time.monotonic() < deadline:
            shutil.rmtree(self.path, ignore_errors=True)
            if self.path.exists():
                time.sleep(POLL_SECONDS)
        self.leave()
