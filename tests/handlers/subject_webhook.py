"""`webhook` under the contract: an endpoint that keeps each request before it answers, and drops what it has had."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from tests.handlers.contract import Subject
from tests.handlers.endpoint import SECRETS, Endpoint


class _Webhook(Subject[Endpoint]):
    """Effects are the events that a receiver who follows the page of the handler acts on."""

    name = "webhook"
    wrong_options: ClassVar = {
        "url": "ftp://example.com/",
        "secrets": ["whsec_short"],
        "batch": 0,
        "headers": {"webhook-id": "mine"},
        "timeout_seconds": 0,
    }

    def make_server(self) -> Endpoint:
        server = Endpoint(self.folder / "endpoint")
        server.start()
        return server

    def options(self) -> dict[str, Any]:
        return {"url": self.server.url(), "secrets": SECRETS, "allow_http": True, "allow_internal": True, **self.form()}

    @abstractmethod
    def form(self) -> dict[str, Any]:
        """Options of the request's form."""

    async def clean_up(self) -> None:
        self.server.kill()


class SingleWebhook(_Webhook):
    """One event a request: the receiver drops a `webhook-id` that it has seen."""

    variant = "single"
    slow_because = (
        "a request per event, each after the answer to the one before, so that they come in order; see `batch`"
    )

    def form(self) -> dict[str, Any]:
        return {"batch": 1}

    async def effects(self) -> Sequence[str]:
        requests = {request.id: request for request in self.server.requests() if all(request.verified)}
        return [event["position"] for request in requests.values() for event in request.events]


class BatchWebhook(_Webhook):
    """Many a request: the receiver drops an event whose position and commit time it has seen."""

    variant = "batch"

    def form(self) -> dict[str, Any]:
        return {"batch": 100}

    async def effects(self) -> Sequence[str]:
        requests = [request for request in self.server.requests() if all(request.verified)]
        seen = {(event["position"], event["timestamp"]) for request in requests for event in request.events}
        return [position for position, _ in seen]
