"""The servers of the handlers' tests: started, killed and frozen for real."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.handlers.endpoint import Endpoint
from tests.handlers.servers import NatsServer, RabbitServer, RedisServer, ServerError, ServerProcess
from tests.running import wait_until

PATIENCE_SECONDS = 30
KINDS: list[Callable[[Path], ServerProcess]] = [RedisServer, NatsServer, RabbitServer]


def answers(server: ServerProcess, timeout: float) -> bool:
    """Whether the server speaks on a new connection within `timeout` seconds."""
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=timeout) as connection:
            return server.is_ready(connection)
    except OSError:
        return False


@pytest.mark.parametrize("kind", KINDS)
def test_server_is_stopped_killed_and_frozen_and_comes_back_on_its_port(
    kind: Callable[[Path], ServerProcess], tmp_path: Path
) -> None:
    """After a stop and after a kill nobody answers; a frozen one keeps silent until it is thawed."""
    with kind(tmp_path) as server:
        port = server.port
        assert answers(server, PATIENCE_SECONDS)
        server.freeze()
        assert not answers(server, 0.2)
        server.thaw()
        assert answers(server, PATIENCE_SECONDS)
        server.kill()
        assert not answers(server, 0.2)
        server.start()
        assert (server.port, answers(server, PATIENCE_SECONDS)) == (port, True)
        server.stop()
        assert not answers(server, 0.2)
    assert not server.is_running


def test_server_that_cannot_start_tells_what_its_log_says(tmp_path: Path) -> None:
    """Not only that it is not there."""
    with pytest.raises(ServerError, match=r"Unknown directive|Bad directive|FATAL CONFIG"):
        RedisServer(tmp_path, nonsense="1").start()


def of_folder(folder: Path) -> set[int]:
    """Processes that were given this folder, by an argument or a variable, or work in it."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            told += os.fsencode((process / "cwd").readlink())
        except OSError:  # ended meanwhile, or is another user's
            continue
        if os.fsencode(folder) in told:
            found.add(int(process.name))
    return found


@pytest.mark.parametrize("kind", [RedisServer, RabbitServer])
def test_server_ends_with_the_python_that_started_it(kind: type[ServerProcess], tmp_path: Path) -> None:
    """Also when that one is killed and can clean up nothing: no process is left, RabbitMQ's port mapper included."""
    code = (
        f"import sys; from pathlib import Path; from tests.handlers.servers import {kind.__name__}\n"
        f"server = {kind.__name__}(Path(sys.argv[1])); server.start()\n"
        "print('up', flush=True); sys.stdin.read()"
    )
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=root,
        env={**os.environ, "OF": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as python:
        assert python.stdout is not None
        assert python.stdout.readline() == "up\n"
        assert len(of_folder(tmp_path)) >= 2
        python.send_signal(signal.SIGKILL)

    wait_until(lambda: not of_folder(tmp_path), what=f"the end of {of_folder(tmp_path)}")


def test_endpoint_forgets_what_is_on_its_way_too(tmp_path: Path) -> None:
    """A request that a test has left behind is none of the next test's."""
    with Endpoint(tmp_path) as endpoint, socket.create_connection(("127.0.0.1", endpoint.port)) as left_behind:
        left_behind.sendall(b"POST /left HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n")
        endpoint.forget()
        left_behind.sendall(b"{}")
        assert left_behind.recv(64).startswith(b"HTTP/1.1 200")
        assert endpoint.requests() == []
        with socket.create_connection(("127.0.0.1", endpoint.port)) as new:
            new.sendall(b"POST /new HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
            assert new.recv(64).startswith(b"HTTP/1.1 200")
        assert [request.path for request in endpoint.requests()] == ["/new"]
