"""Processes and ports of this machine: who lives, whose child it is, which port is free.

Owns what /proc is read for. It must not know which program a process runs.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["EXIT_SECONDS", "children", "free_port", "is_alive", "wait_until_gone"]

EXIT_SECONDS = 10  # a killed process is gone at once, unless the disk holds it
POLL_SECONDS = 0.01  # nobody can wait for a process that is not his child
PORTS = range(20_000, 32_000)  # below the ephemeral ports: no outgoing connection takes ours in a restart
_given: set[int] = set()


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now; another process may still be faster than you.

    None is given twice: somebody here may be about to listen on it, or to come back to it. Until all were given.
    """
    while True:
        if not (left := [port for port in PORTS if port not in _given]):
            _given.clear()
        port = random.choice(left or PORTS)
        _given.add(port)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as PostgreSQL does
            probe.bind(("127.0.0.1", port))
            return port


def is_alive(pid: int) -> bool:
    """Does the process run? The dead that nobody reaps (a container without init) do not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        return _stat_fields(Path(f"/proc/{pid}/stat"))[0] != "Z"
    except OSError:
        return not Path("/proc/self").exists()  # gone in this instant, or a system without /proc


def children(pid: int) -> list[int]:
    """Direct children. None on a system without /proc."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended while we looked
            if int(_stat_fields(file)[1]) == pid:
                found.append(int(file.parent.name))
    return found


def wait_until_gone(pids: Sequence[int], timeout: float = EXIT_SECONDS) -> list[int]:
    """Wait until none of them lives; those that still do after `timeout` seconds are returned."""
    deadline = time.monotonic() + timeout
    while left := [pid for pid in pids if is_alive(pid)]:
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    return left


def _stat_fields(file: Path) -> list[str]:
    """The fields of /proc/PID/stat after the program's name, which may hold spaces: state, parent, ..."""
    return file.read_text().rpartition(")")[2].split()
