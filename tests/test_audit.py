"""`make audit`: the real pip-audit against a vulnerability service on the loopback, and against none."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest

ROOT = Path(__file__).resolve().parent.parent
LOCK = "".join(
    f"{name}=={version} --hash=sha256:{'0' * 64}\n" for name, version in {"alpha": "1.0", "Be_ta": "2.0"}.items()
)


class _Answers(BaseHTTPRequestHandler):
    """As https://google.github.io/osv.dev/post-v1-query/ answers; `known` is package → id of a vulnerability."""

    known: ClassVar[dict[str, str]] = {}

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = asked["package"]["name"]
        found: list[dict[str, Any]] = [
            {
                "id": self.known.get(name, ""),
                "summary": "bad",
                "affected": [
                    {
                        "package": {"name": name, "ecosystem": "PyPI"},
                        "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "9.9"}]}],
                    }
                ],
            }
        ]
        body = json.dumps({"vulns": found} if name in self.known else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class calls it so
        pass


@contextmanager
def service(**known: str) -> Iterator[str]:
    """The URL of a service that knows these vulnerabilities."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (_Answers,), {"known": known}))
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def nobody() -> Iterator[str]:
    """The URL of a service that does not answer: its port is taken, and nobody listens."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{silent.getsockname()[1]}/v1/query"


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """A file of two locked distributions."""
    path = tmp_path / "lock.txt"
    path.write_text(LOCK)
    return path


def audit(lock: Path, url: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What `make audit` runs."""
    return subprocess.run(
        [
            sys.executable,
            ROOT / "scripts" / "audit.py",
            "--lock",
            lock,
            "--vulnerability-service=osv",
            "--osv-url",
            url,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=100,
        check=False,
    )


def test_locks_without_known_vulnerabilities_pass(lock: Path) -> None:
    """Every locked distribution was asked about."""
    with service() as url:
        done = audit(lock, url)

    assert (done.returncode, done.stdout) == (
        0,
        "audit: 2 locked distributions looked at, none has a known vulnerability\n",
    )


def test_known_vulnerability_fails_and_is_named(lock: Path) -> None:
    """With the release that mends it."""
    with service(**{"be-ta": "GHSA-none"}) as url:
        done = audit(lock, url)

    assert done.returncode == 1
    assert "be-ta 2.0: GHSA-none, mended in 9.9" in done.stdout.lower().replace("be_ta", "be-ta").replace(
        "ghsa-none", "GHSA-none"
    )


def test_service_that_does_not_answer_is_no_pass(lock: Path) -> None:
    """pip-audit alone would say nothing is known, or leave out what it could not ask about."""
    with nobody() as url:
        done = audit(lock, url)

    assert done.returncode == 3
    assert "audit: NOT DONE: the vulnerability service did not answer for 2 of 2" in done.stderr
    assert "AUDIT=skip" in done.stderr


def test_audit_that_is_left_out_says_so(lock: Path) -> None:
    """Knowingly, and aloud."""
    with nobody() as url:
        done = audit(lock, url, AUDIT="skip")

    assert (done.returncode, done.stdout) == (
        0,
        "audit: SKIPPED (AUDIT=skip): 2 locked distributions were not looked at\n",
    )
