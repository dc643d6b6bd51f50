"""The `webhook` handler: each event, or a batch, POSTed to an endpoint and signed by the Standard Webhooks rules.

Owns the request: its body, its id, its signature, its way there. What an answer means is `handlers.webhook_verdict`,
which addresses may be reached is `handlers.webhook_address`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING

import aiohttp
from standardwebhooks import Webhook as Signer

from cdc import DatabaseEvent, PermanentError, traceparent
from handlers.webhook_address import InternalAddress, PublicResolver
from handlers.webhook_options import JSON, WebhookOptions
from handlers.webhook_verdict import Unanswered, check

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Webhook", "WebhookOptions"]

MAX_ANSWER_BYTES = 64 * 1024
"""Read of an answer at most. Its text is of no use; but what is read to its end leaves the connection usable."""

REMEMBERED = 4096
"""Ids of requests that were taken, kept for a batch that is given again after some of it was delivered: a batch is
at most 256 events, and a callback has a few lanes."""


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One request: its `webhook-id`, the same at every attempt, its body, and the trace that all of it belongs to."""

    id: str
    body: bytes
    traceparent: str | None = None


class Webhook:
    """POST events to `options.url`; an event is settled when the endpoint has answered 2xx.

    Requests go out one after the other, so that a batch arrives in order. Errors: `cdc.PermanentError`,
    `cdc.RetryLater` and :class:`Unanswered`; none shows more of the URL than scheme, host and port.
    """

    def __init__(self, options: WebhookOptions) -> None:
        self._options = options
        self._signers = [Signer(secret.get_secret_value()) for secret in options.secrets]
        self._headers = {name: value.get_secret_value() for name, value in options.headers.items()}
        self._headers["content-type"] = options.content_type
        self._session: aiohttp.ClientSession | None = None
        self._taken: OrderedDict[str, None] = OrderedDict()

    async def open(self) -> None:
        """Make the session; nothing is sent. OSError or ssl.SSLError if `ca_file` cannot be read."""
        if self._session is not None:
            return
        options = self._options
        tls = await asyncio.to_thread(ssl.create_default_context, cafile=options.ca_file)
        resolver = aiohttp.ThreadedResolver() if options.allow_internal else PublicResolver()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls, resolver=resolver),
            cookie_jar=aiohttp.DummyCookieJar(),  # an endpoint has no session with us
            timeout=aiohttp.ClientTimeout(total=options.timeout_seconds),
            headers={"user-agent": "walsignal"},
            auto_decompress=False,  # the answer is not looked at
        )

    async def handle_batch(self, events: Sequence[DatabaseEvent]) -> None:
        """Send what the endpoint has not taken yet, in order; all of it is taken when this returns."""
        for delivery in self._deliveries(events):
            if delivery.id not in self._taken:
                await self._send(delivery)
                self._remember(delivery.id)

    async def close(self) -> None:
        """Close the connections; a second call does nothing."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _deliveries(self, events: Sequence[DatabaseEvent]) -> Iterator[Delivery]:
        """At most `batch` events and about `max_body_bytes` a request; made one by one, as they are sent."""
        chunk: list[DatabaseEvent] = []
        bodies: list[bytes] = []
        size = 0
        for event in events:
            body = event.to_json()
            if chunk and (len(chunk) == self._options.batch or size + len(body) > self._options.max_body_bytes):
                yield self._delivery(chunk, bodies)
                chunk, bodies, size = [], [], 0
            chunk.append(event)
            bodies.append(body)
            size += len(body) + 1
        if chunk:
            yield self._delivery(chunk, bodies)

    def _delivery(self, events: Sequence[DatabaseEvent], bodies: Sequence[bytes]) -> Delivery:
        if self._options.content_type != JSON:
            body = b"".join(one + b"\n" for one in bodies)
        elif self._options.batch == 1:
            body = bodies[0]
        else:
            body = b"[" + b",".join(bodies) + b"]"
        traces = {traceparent(event) for event in events}
        trace = traces.pop() if len(traces) == 1 else None
        return Delivery(self._options.id_prefix + request_id(events, body), body, trace)

    async def _send(self, delivery: Delivery) -> None:
        if self._session is None:
            raise RuntimeError("the webhook handler is not open")
        async with _Told(self._options.where):
            request = self._session.post(
                self._options.target,
                data=delivery.body,
                headers=self._headers | self._signature(delivery) | _trace(delivery),
                allow_redirects=False,
            )
            async with request as response:
                await _drain(response)
                status, retry_after = response.status, response.headers.get("retry-after")
        check(status, retry_after, self._options.where)

    def _signature(self, delivery: Delivery) -> dict[str, str]:
        """The three headers of the standard; a signature per secret, so that receivers can change theirs one by one."""
        now = datetime.now(UTC)
        headers = {"webhook-id": delivery.id, "webhook-timestamp": str(int(now.timestamp()))}
        if self._signers:
            text = delivery.body.decode()
            headers["webhook-signature"] = " ".join(signer.sign(delivery.id, now, text) for signer in self._signers)
        return headers

    def _remember(self, request: str) -> None:
        self._taken[request] = None
        if len(self._taken) > REMEMBERED:
            self._taken.popitem(last=False)


def _trace(delivery: Delivery) -> dict[str, str]:
    return {} if delivery.traceparent is None else {"traceparent": delivery.traceparent}


def request_id(events: Sequence[DatabaseEvent], body: bytes) -> str:
    """The idempotency key of a request: of one event its position and commit time (microseconds), of several those
    of the first, the last position and their number. Positions alone come again on another cluster.
    """
    first, last = events[0], events[-1]
    if first.position.commit_lsn == 0:  # made by hand: its position tells nothing
        return f"emitted_{sha256(body).hexdigest()[:32]}"
    moment = (first.timestamp - EPOCH) // timedelta(microseconds=1)
    if len(events) == 1:
        return f"{first.position}@{moment}"
    return f"{first.position}@{moment}_{last.position}_{len(events)}"


async def _drain(response: aiohttp.ClientResponse) -> None:
    """Read the answer to its end, so that the connection can be used again; drop it if it is long or breaks."""
    left = MAX_ANSWER_BYTES
    with suppress(aiohttp.ClientError, TimeoutError):  # the status has been said, and that decides
        while left > 0:
            data = await response.content.read(left)
            if not data:
                return
            left -= len(data)
    response.close()


class _Told:
    """Turns the client's errors into ours: their texts may hold the URL, with its path and password."""

    def __init__(self, where: str) -> None:
        self._where = where

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, InternalAddress) or isinstance(getattr(error, "os_error", None), InternalAddress):
            raise PermanentError(
                f"{self._where} is an internal address", hint="set allow_internal = true if that is meant"
            ) from None
        if isinstance(error, aiohttp.InvalidURL):
            raise PermanentError(f"{self._where} cannot be asked: {type(error).__name__}") from None
        if isinstance(error, TimeoutError):
            raise Unanswered(f"{self._where} has not answered in time") from None
        if isinstance(error, aiohttp.ClientError | OSError):
            raise Unanswered(f"{self._where} cannot be reached: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    """The system's words, or else the name of the error."""
    inner = getattr(error, "os_error", None) or error
    if isinstance(inner, ssl.SSLCertVerificationError):
        return f"its certificate is not good: {inner.verify_message}"
    return getattr(inner, "strerror", None) or type(error).__name__
