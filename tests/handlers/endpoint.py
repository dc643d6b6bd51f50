"""A webhook endpoint as a process of its own: keeps every request in a file, and answers as the path says.

``/`` answers 200 · ``/answer/STATUS?retry-after=TEXT`` that · ``/once/STATUS/N`` that to its N-th request, else 200 ·
``/slow/SECONDS`` later · ``/long`` with an endless body · ``/moved`` with a redirect to ``/`` · ``/forget`` with an
empty file. What a request wrote survives `kill -9`: it is in the file before it is answered.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from standardwebhooks import Webhook as Verifier

from tests.handlers.servers import ServerProcess
from tests.running import ROOT

MAX_BODY = 64 * 1024 * 1024
SECRETS = tuple("whsec_" + base64.b64encode(key).decode() for key in (b"o" * 24, b"n" * 64))


@dataclass(frozen=True, slots=True)
class Request:
    """One request that came in; `verified` says which of `SECRETS` its signature is good for."""

    path: str
    headers: dict[str, str]
    body: str
    connection: int  # the client's port
    verified: list[bool] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The header `webhook-id`."""
        return self.headers["webhook-id"]

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events of the body, whatever its form."""
        if self.headers["content-type"] == "application/x-ndjson":
            return [json.loads(line) for line in self.body.splitlines()]
        value = json.loads(self.body)
        return value if isinstance(value, list) else [value]


class Endpoint(ServerProcess):
    """The process. With `tls` it speaks HTTPS for ``localhost``; `ca_file` is who says so."""

    program = "endpoint"

    def __init__(self, folder: Path, *, tls: bool = False) -> None:
        super().__init__(folder)
        self.tls = tls
        if tls:
            make_certificate(folder)

    @property
    def ca_file(self) -> Path:
        """The certificate of the authority that has signed the endpoint's."""
        return self.folder / "ca.pem"

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        """Of one of its paths."""
        return f"http{'s' * self.tls}://{host}:{self.port}{path}"

    def command(self) -> list[str]:
        arguments = [str(self.folder), str(self.port), str(int(self.tls))]
        return [sys.executable, "-m", "tests.handlers.endpoint", *arguments]

    def environment(self) -> Mapping[str, str]:
        return {"PYTHONPATH": str(ROOT)}

    def is_ready(self, connection: socket.socket) -> bool:
        if not self.tls:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return connection.recv(64).startswith(b"HTTP/")
        context = ssl.create_default_context(cafile=self.ca_file)
        with context.wrap_socket(connection, server_hostname="localhost") as secured:
            return secured.version() is not None

    def forget(self) -> None:
        """All that came in, and what is on its way: for the next test, as the server itself may serve many."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", "/forget")
        assert connection.getresponse().status == 200
        connection.close()

    def requests(self) -> list[Request]:
        """All that came in, in order."""
        path = self.folder / "requests.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [Request(**json.loads(line)) for line in lines if line.endswith("\n")]


def make_certificate(folder: Path) -> None:
    """An authority of its own, and a certificate for ``localhost`` signed by it."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=Test authority")
    openssl("req", *key, "-keyout", "key.pem", "-out", "request.pem", "-subj", "/CN=localhost")
    (folder / "names").write_text("subjectAltName=DNS:localhost\n")
    authority = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
    openssl("x509", "-req", "-in", "request.pem", *authority, "-out", "cert.pem")


class _Server(web.Server):
    """Keeps requests; not what comes over a connection that is older than the last `forget`.

    A client that has given up, as one that waited for a frozen server, has sent its request all the same.
    """

    def __init__(self, folder: Path) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(
            self._answer,
            request_factory=lambda message, payload, protocol, writer, task: web.BaseRequest(
                message, payload, protocol, writer, task, loop, client_max_size=MAX_BODY
            ),
            access_log=None,
        )
        self._file = os.open(folder / "requests.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._seen: Counter[str] = Counter()
        self._forgot = 0  # how often
        self._since: dict[object, int] = {}  # of each connection: how often it had forgotten when that was accepted

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:
        """Of aiohttp's connection: it is open. They come in the order in which the clients have connected."""
        self._since[handler] = self._forgot
        super().connection_made(handler, transport)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Keep the request, and answer."""
        if request.method != "POST":
            return web.Response(status=405)
        if request.path == "/forget":
            return self._forget()
        await self._keep(request)
        self._seen[request.path] += 1
        return await self._as_the_path_says(request)

    async def _as_the_path_says(self, request: web.BaseRequest) -> web.StreamResponse:
        match request.path.strip("/").split("/"):
            case ["answer", status]:
                after = request.query.get("retry-after")
                return web.Response(status=int(status), headers={} if after is None else {"Retry-After": after})
            case ["once", status, number] if self._seen[request.path] == int(number):
                return web.Response(status=int(status))
            case ["slow", seconds]:
                await asyncio.sleep(float(seconds))
            case ["long"]:
                return await self._endless(request)
            case ["moved"]:
                return web.Response(status=302, headers={"Location": "/"})
        return web.Response(text="taken")

    def _forget(self) -> web.Response:
        self._forgot += 1
        self._seen.clear()
        os.ftruncate(self._file, 0)
        return web.Response(text="forgotten")

    async def _endless(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65536)

    async def _keep(self, request: web.BaseRequest) -> None:
        body = await request.text()
        if self._since[request.protocol] < self._forgot:
            return
        headers = {name.lower(): value for name, value in request.headers.items()}
        peer = request.transport.get_extra_info("peername") if request.transport else ("", 0)
        kept = {
            "path": request.path,
            "headers": headers,
            "body": body,
            "connection": peer[1],
            "verified": [_is_good(secret, body, headers) for secret in SECRETS],
        }
        os.write(self._file, json.dumps(kept).encode() + b"\n")


def _is_good(secret: str, body: str, headers: dict[str, str]) -> bool:
    try:
        Verifier(secret).verify(body, headers, json_parse=False)
    except Exception:  # noqa: BLE001 - of many kinds, for many faults
        return False
    return True


async def _serve(folder: Path, port: int, *, tls: bool) -> None:
    context = None
    if tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    runner = web.ServerRunner(_Server(folder))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context, reuse_address=True).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), int(sys.argv[2]), tls=sys.argv[3] == "1"))
