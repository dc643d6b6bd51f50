"""`notify` under the contract: a message per event, to an endpoint that keeps each before it answers.

By Apprise's JSON channel: to send a mail, the library reads all certificates of the system, 300 times here. Mail is in
`test_notify.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from tests.handlers.contract import Subject
from tests.handlers.endpoint import Endpoint

PATIENT = "cto=60&rto=60"
"""Apprise's own 4 s give up what a frozen endpoint has in hand already: sent again, it is there twice."""


class NotifySubject(Subject[Endpoint]):
    """Effects are the messages that were taken; nobody drops any."""

    name = "notify"
    wrong_options: ClassVar = {"channels": {"ops": "nonsense"}, "rules": []}

    def make_server(self) -> Endpoint:
        server = Endpoint(self.folder / "endpoint")
        server.start()
        return server

    def options(self) -> dict[str, Any]:
        # One window, longer than any test; a bench soon reaches its limit, and then measures events held for a digest.
        rule = {"name": "all", "channels": ["ops"], "title": "{position}", "limit": 1000, "window_seconds": 3600}
        return {"channels": {"ops": f"json://{self.server.address}/?{PATIENT}"}, "rules": [rule]}

    async def effects(self) -> Sequence[str]:
        return [message["title"] for request in self.server.requests() for message in request.events]

    async def clean_up(self) -> None:
        self.server.kill()
