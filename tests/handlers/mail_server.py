"""A mail server as a process of its own (aiosmtpd): keeps what it takes in a file, and answers as the recipient says.

``refused@`` is answered 550 for good · ``later@`` 451 for now · anybody else's mail is in the file before the 250.
"""

from __future__ import annotations

import asyncio
import email
import email.policy
import json
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP

from tests.handlers.servers import ServerProcess
from tests.running import ROOT


@dataclass(frozen=True, slots=True)
class Mail:
    """One that was taken."""

    to: list[str]
    subject: str
    text: str


class MailServer(ServerProcess):
    """The process."""

    program = "mail-server"

    def url(self, to: str = "ops@example.com") -> str:
        """An Apprise URL of a channel to one recipient."""
        return f"mailto://127.0.0.1:{self.port}?from=cdc@example.com&to={to}&mode=insecure"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "tests.handlers.mail_server", str(self.folder), str(self.port)]

    def environment(self) -> Mapping[str, str]:
        return {"PYTHONPATH": str(ROOT)}

    def is_ready(self, connection: socket.socket) -> bool:
        return connection.recv(64).startswith(b"220")

    def forget(self) -> None:
        """All that were taken: for the next test, as the server itself may serve many."""
        if (path := self.folder / "mails.jsonl").exists():
            os.truncate(path, 0)

    def mails(self) -> list[Mail]:
        """All that were taken, in order."""
        path = self.folder / "mails.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [Mail(**json.loads(line)) for line in lines if line.endswith("\n")]

    def subjects(self) -> list[str]:
        """Of all that were taken."""
        return [mail.subject for mail in self.mails()]


class _Taker:
    """What aiosmtpd asks."""

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / "mails.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    async def handle_RCPT(  # noqa: N802 - the library's name
        self, _server: SMTP, _session: Any, envelope: Any, address: str, _options: list[str]
    ) -> str:
        """Refuse some, take the others."""
        if address.startswith("refused@"):
            return "550 no such user secret-answer"
        if address.startswith("later@"):
            return "451 try again later"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: SMTP, _session: Any, envelope: Any) -> str:  # noqa: N802 - the library's name
        """Keep it, then take it."""
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        text = message.get_content().rstrip("\r\n").replace("\r\n", "\n")
        kept = {"to": envelope.rcpt_tos, "subject": str(message["subject"]), "text": text}
        os.write(self._file, json.dumps(kept).encode() + b"\n")
        return "250 taken"


async def _serve(folder: Path, port: int) -> None:
    taker = _Taker(folder)
    server = await asyncio.get_running_loop().create_server(lambda: SMTP(taker), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), int(sys.argv[2])))
