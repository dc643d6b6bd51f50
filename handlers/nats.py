"""The `nats` handler: every event a message of a JetStream stream, settled by the stream's acknowledgement.

Owns the connection, the stream's creation and what is sent; which acknowledgements are awaited is
`handlers.nats_acks`. It must not use the library's own reconnect: that sends again what it had buffered, out of
turn, before the retry of what was lost.
"""

from __future__ import annotations

import asyncio
import random
import re
import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import NoServersError
from nats.js.api import DiscardPolicy, Header, StorageType, StreamConfig
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError, ServiceUnavailableError

from cdc import DatabaseEvent, PermanentError
from handlers.messages import Template, message_headers, message_id
from handlers.nats_acks import Acks
from handlers.nats_options import SUBJECT, NatsOptions

__all__ = ["Nats", "NatsOptions"]

_log = structlog.get_logger(__name__)

# A header ends with its line, the library strips blanks, and a value must be readable back.
_HEADER_UNSAFE = re.compile(r"[\x00-\x1f\x7f%]|^\s+|\s+$")
CONNECT_SECONDS = 2  # twice, as the library tries twice; across continents and with TLS it takes one
# Of what waits to be sent. Past its bound the library waits, and swallows the cancellation by our timeout; ours is
# the batch, whose acknowledgements are awaited before the next is sent.
UNBOUNDED = 2**62
PING_SECONDS = 10  # of a connection on which nothing moves: two without an answer, and it is made anew
CLOSE_SECONDS = 2.0  # a server that hangs must not hold up the end of the service


@dataclass(slots=True)
class _Message:
    subject: str
    headers: dict[str, str]
    body: bytes

    def size(self) -> int:
        """Bytes that the server counts against its `max_payload`: the library looks at the body alone."""
        headers = sum(len(name) + len(value.encode()) + 4 for name, value in self.headers.items())
        return len(self.body) + headers + len("NATS/1.0\r\n\r\n")


class Nats:
    """Publish each event to JetStream; settled when the stream has acknowledged it.

    All of a batch is sent, then all acknowledgements are awaited. `Nats-Msg-Id` is the event's position: what
    comes again within the stream's duplicate window is acknowledged and not stored again.

    Errors: `PermanentError` for a message that is too large or whose subject cannot be made; everything else
    (`ConnectionError`, `TimeoutError`, what the stream refuses) may pass and is worth another attempt.
    """

    def __init__(self, options: NatsOptions) -> None:
        self._options = options
        self._subject = Template(options.subject, SUBJECT)
        self._connecting = asyncio.Lock()
        self._link: _Link | None = None

    async def open(self) -> None:
        """Connect, and make the stream when told."""
        async with asyncio.timeout(self._options.timeout_seconds):
            await self._connected()

    async def handle_batch(self, events: Sequence[DatabaseEvent]) -> None:
        """Publish the events in order; returns when the stream has acknowledged all of them."""
        messages = [self._message(event) for event in events]
        try:
            async with asyncio.timeout(self._options.timeout_seconds):
                link = await self._connected()
                self._refuse_large(messages, link.client.max_payload)
                await link.publish(messages)
        except TimeoutError as error:
            raise TimeoutError(
                f"no acknowledgement of {self._target} within {self._options.timeout_seconds:g} s"
            ) from error

    async def close(self) -> None:
        """Close the connection; a second call does nothing."""
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    @property
    def _target(self) -> str:
        stream = self._options.stream
        return f"the stream {stream!r}" if stream else f"a stream for {self._subject.pattern('*')!r}"

    def _message(self, event: DatabaseEvent) -> _Message:
        headers = {name: _header_value(value) for name, value in message_headers(event).items()}
        headers[Header.MSG_ID] = message_id(event)
        if self._options.stream is not None:
            headers[Header.EXPECTED_STREAM] = self._options.stream
        return _Message(self._subject.of(event), headers, event.to_json())

    def _refuse_large(self, messages: Sequence[_Message], limit: int) -> None:
        """Before anything is sent: the others of the batch are then published once."""
        for message in messages:
            if message.size() > limit:
                raise PermanentError(f"{message.size()} bytes of message, and the server's max_payload is {limit}")

    async def _connected(self) -> _Link:
        async with self._connecting:  # lanes share one connection
            link = self._link
            if link is None or not link.is_usable:
                self._link = None
                if link is not None:
                    await link.close()
                link = await self._connect()
                self._link = link
            return link

    async def _connect(self) -> _Link:
        """To the first server that answers; ConnectionError with what the last one said."""
        context = self._options.tls_context()
        servers = list(self._options.servers)
        random.shuffle(servers)
        for server in servers:
            link = _Link(self._options, self._target)
            try:
                await link.connect(server, context)
                if self._options.create_stream:
                    await self._make_stream(link)
                return link
            except (NatsError, OSError) as error:
                await link.close()
                failure = ConnectionError(f"NATS at {server} cannot be used: {_reason(error)}")
                if server is servers[-1]:
                    raise failure from error
            except BaseException:
                await link.close()
                raise
        raise AssertionError("the options name no server")

    async def _make_stream(self, link: _Link) -> None:
        options = self._options
        stream = link.client.jetstream(timeout=options.timeout_seconds)
        try:
            await stream.stream_info(options.stream or "")
        except NotFoundError:
            await stream.add_stream(
                StreamConfig(
                    name=options.stream,
                    subjects=[self._subject.pattern("*")],
                    storage=StorageType.FILE,
                    discard=DiscardPolicy(options.discard),
                    max_age=options.max_age_seconds,
                    max_bytes=options.max_bytes or -1,
                    duplicate_window=options.duplicate_window_seconds,
                    num_replicas=options.replicas,
                )
            )
            _log.info("nats_stream_made", stream=options.stream, subjects=self._subject.pattern("*"))


class _Link:
    """One connection, to one server, until it is lost."""

    def __init__(self, options: NatsOptions, target: str) -> None:
        self.client = Client()
        self._options = options
        self._target = target
        self._inbox = self.client.new_inbox()
        self._acks = Acks(self._inbox, target)
        self._last_error: Exception | None = None

    @property
    def is_usable(self) -> bool:
        return self.client.is_connected

    async def connect(self, server: str, context: ssl.SSLContext | None) -> None:
        """Connect and be ready for acknowledgements; NatsError, OSError."""
        try:
            await self._log_in(server, context)
        except NoServersError as error:  # says that it has given up, not why
            raise self._last_error or error from None
        self._told_only_to_tls("")
        await self.client.subscribe(f"{self._inbox}.*", cb=self._acks.receive)

    async def _log_in(self, server: str, context: ssl.SSLContext | None) -> None:
        options = self._options
        secret = options.password or options.token
        login = None if secret is None else lambda: self._told_only_to_tls(secret.get_secret_value())
        await self.client.connect(
            server,
            name="walsignal",
            allow_reconnect=False,
            pending_size=UNBOUNDED,
            max_reconnect_attempts=1,  # of its attempts at the first connection: the fewest that it can count
            reconnect_time_wait=0,  # between them; the pool waits before our next one
            connect_timeout=CONNECT_SECONDS,
            ping_interval=PING_SECONDS,
            max_outstanding_pings=2,
            tls=context,
            user=options.user,
            password=login if options.password else None,
            token=login if options.token else None,
            error_cb=self._on_error,
            closed_cb=self._on_closed,
        )

    def _told_only_to_tls(self, secret: str) -> str:
        """The library goes on in plain text with a server that does not offer TLS, or whom somebody made say so."""
        if self._options.tls and not self.client._server_info.get("tls_required"):
            raise NatsError("the server does not offer TLS")
        return secret

    async def publish(self, messages: Sequence[_Message]) -> None:
        """Send all, then wait for all."""
        batch = self._acks.expect(len(messages))
        try:
            for message, reply in zip(messages, batch.replies, strict=True):
                await self.client.publish(message.subject, message.body, reply, message.headers)
            await batch.wait()
        finally:
            batch.forget()

    async def close(self) -> None:
        """Whatever state it is in; a second call does nothing."""
        with suppress(NatsError, OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.client.close()

    async def _on_closed(self) -> None:
        self._acks.fail(ConnectionError("the connection to NATS was lost"))

    async def _on_error(self, error: Exception) -> None:
        if "permissions violation" in str(error).lower():
            kind = "subscribe to the inbox" if "subscription" in str(error).lower() else f"publish to {self._target}"
            self._acks.fail(PermissionError(f"the NATS user may not {kind}: grant it in the server's configuration"))
        else:
            self._last_error = error
            _log.debug("nats_error", error=type(error).__name__)


def _header_value(value: str) -> str:
    """In one line, and such that `urllib.parse.unquote` gives the value back."""
    return _HEADER_UNSAFE.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), value)


def _reason(error: Exception) -> str:
    """What the operator needs of it; the library's texts hold no addresses with credentials."""
    if isinstance(error, (NoStreamResponseError, ServiceUnavailableError)):
        return "it runs without JetStream (or has no leader yet): start it with JetStream"
    if isinstance(error, APIError):
        return f"the stream cannot be made: {error.description} (code {error.err_code})"
    return str(error) or type(error).__name__
