"""The `webhook` handler against a real endpoint, a process that checks signatures with the standard's own library."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import ValidationError

from cdc import DatabaseEvent, Lsn, PermanentError, Position, RetryLater
from handlers.webhook import REMEMBERED, Webhook, WebhookOptions
from handlers.webhook_verdict import Unanswered, check, seconds_until
from tests.handlers.endpoint import SECRETS, Endpoint
from tests.handlers.servers import Servers

COMMITTED = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def made_event(number: int, **values: Any) -> DatabaseEvent:
    """The event with this ordinal in a transaction at 0/100."""
    return DatabaseEvent.of(
        "create",
        "orders",
        {"id": number, **values},
        id=number,
        record_id=str(number),
        timestamp=COMMITTED,
        position=Position(Lsn(0x100), number),
    )


def made_events(count: int) -> list[DatabaseEvent]:
    """Events 1 to `count` of one transaction."""
    return [made_event(number) for number in range(1, count + 1)]


@pytest.fixture
def server(servers: Servers) -> Endpoint:
    """A running endpoint that has had no requests."""
    shared = servers.of(Endpoint)
    shared.forget()
    return shared


@asynccontextmanager
async def webhook(server: Endpoint, path: str = "/", **options: Any) -> AsyncIterator[Webhook]:
    """An open handler that sends to a path of the server."""
    settings = {"url": server.url(path), "allow_http": True, "allow_internal": True, "timeout_seconds": 30}
    handler = Webhook(WebhookOptions.model_validate(settings | options))
    await handler.open()
    try:
        yield handler
    finally:
        await handler.close()


async def test_event_is_posted_as_its_json(server: Endpoint) -> None:
    """The body is `event.to_json()`: exact values, a numeric's digits among them."""
    event = made_event(1, total=Decimal("12345678901234567890.10"))
    async with webhook(server, headers={"Authorization": "Bearer abc"}) as handler:
        await handler.handle_batch([event])

    (request,) = server.requests()
    assert request.body.encode() == event.to_json()
    assert request.events[0]["payload"]["total"] == "12345678901234567890.10"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["authorization"] == "Bearer abc"


async def test_trace_goes_on_in_a_header(server: Endpoint) -> None:
    """Where all events of the request belong to it; a request of several traces has none."""
    one, other = (f"traceparent:00-{digit * 32}-{'c' * 16}-01" for digit in "ab")
    async with webhook(server, batch=2) as handler:
        for first, tags in ((1, [one, one]), (11, [one, other]), (21, [one]), (31, [])):
            events = [
                msgspec.structs.replace(made_event(number), tags=(tag,)) for number, tag in enumerate(tags, first)
            ]
            await handler.handle_batch(events or [made_event(31)])

    traces = [request.headers.get("traceparent") for request in server.requests()]
    assert traces == [one.removeprefix("traceparent:"), None, one.removeprefix("traceparent:"), None]


async def test_signature_is_good_for_each_of_several_secrets(server: Endpoint) -> None:
    """While keys are rotated, a receiver with the old key and one with the new accept the same request."""
    async with webhook(server, secrets=SECRETS) as handler:
        await handler.handle_batch(made_events(1))

    (request,) = server.requests()
    assert request.verified == [True, True]
    assert len(request.headers["webhook-signature"].split(" ")) == 2


async def test_signature_is_good_for_the_configured_secret_only(server: Endpoint) -> None:
    """A receiver with another key refuses the request; text beyond ASCII is signed as it is sent."""
    async with webhook(server, secrets=SECRETS[:1]) as handler:
        await handler.handle_batch([made_event(1, name="Zoë 𝄞")])

    assert server.requests()[0].verified == [True, False]


async def test_without_secrets_requests_carry_no_signature(server: Endpoint) -> None:
    """Id and time are there all the same."""
    async with webhook(server) as handler:
        await handler.handle_batch(made_events(1))

    headers = server.requests()[0].headers
    assert "webhook-signature" not in headers
    assert abs(int(headers["webhook-timestamp"]) - datetime.now(UTC).timestamp()) < 60


async def test_webhook_id_is_the_same_at_every_attempt(server: Endpoint) -> None:
    """Also of another process, after a refusal; it begins with the prefix and holds the position."""
    for path in ("/answer/503", "/"):
        async with webhook(server, path, id_prefix="shop_") as handler:
            try:
                await handler.handle_batch(made_events(1))
            except Unanswered:
                assert path == "/answer/503"

    one, other = server.requests()
    assert one.id == other.id == "shop_0/100:1@1767323045678901"


async def test_events_emitted_by_hand_have_ids_of_their_own(server: Endpoint) -> None:
    """They have no position; their content tells them apart, and is the same at every attempt."""
    events = [DatabaseEvent.of("create", "notes", {"id": number}, timestamp=COMMITTED) for number in (1, 2)]
    async with webhook(server) as handler:
        await handler.handle_batch(events)
    async with webhook(server) as handler:
        await handler.handle_batch(events[:1])

    first, second, again = (request.id for request in server.requests())
    assert first == again != second


async def test_batch_is_an_array_in_order(server: Endpoint) -> None:
    """Ten events, at most four a request: three requests, each an array, in the order of the stream."""
    async with webhook(server, batch=4) as handler:
        await handler.handle_batch(made_events(10))
        await handler.handle_batch([made_event(11)])

    bodies = [json.loads(request.body) for request in server.requests()]
    assert [len(body) for body in bodies] == [4, 4, 2, 1]
    assert [event["payload"]["id"] for body in bodies for event in body] == list(range(1, 12))
    assert len({request.id for request in server.requests()}) == 4


async def test_ndjson_is_a_line_per_event(server: Endpoint) -> None:
    """The other content type."""
    async with webhook(server, batch=10, content_type="application/x-ndjson") as handler:
        await handler.handle_batch(made_events(3))

    (request,) = server.requests()
    assert request.body.count("\n") == 3
    assert [event["payload"]["id"] for event in request.events] == [1, 2, 3]


async def test_body_is_bounded_in_bytes(server: Endpoint) -> None:
    """A request takes no event that would make it longer than the bound, and one that is longer goes alone."""
    events = [made_event(1), made_event(2, text="x" * 5000), made_event(3), made_event(4)]
    async with webhook(server, batch=100, max_body_bytes="1kB") as handler:
        await handler.handle_batch(events)

    assert [[event["id"] for event in request.events] for request in server.requests()] == [[1], [2], [3, 4]]


async def test_requests_use_one_connection(server: Endpoint) -> None:
    """Twenty requests, one port of the client's."""
    async with webhook(server) as handler:
        await handler.handle_batch(made_events(20))

    assert len(server.requests()) == 20
    assert len({request.connection for request in server.requests()}) == 1


async def test_batch_given_again_goes_on_where_it_failed(server: Endpoint) -> None:
    """The third of five requests is refused once: the first two are not sent again, and order is kept."""
    async with webhook(server, "/once/500/3") as handler:
        with pytest.raises(Unanswered, match="500"):
            await handler.handle_batch(made_events(5))
        await handler.handle_batch(made_events(5))

    assert [request.events[0]["id"] for request in server.requests()] == [1, 2, 3, 3, 4, 5]


async def test_memory_of_taken_requests_is_bounded(server: Endpoint) -> None:
    """It holds the last few thousand ids, not all."""
    async with webhook(server) as handler:
        for number in range(REMEMBERED + 10):
            handler._remember(str(number))

        assert len(handler._taken) == REMEMBERED
        assert "0" not in handler._taken


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_2xx_settles(server: Endpoint, status: int) -> None:
    """Any of them."""
    async with webhook(server, f"/answer/{status}") as handler:
        await handler.handle_batch(made_events(1))

    assert len(server.requests()) == 1


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_failures_of_the_moment_are_tried_again(server: Endpoint, status: int) -> None:
    """They are neither final nor bound to a time."""
    async with webhook(server, f"/answer/{status}") as handler:
        with pytest.raises(Unanswered, match=str(status)):
            await handler.handle_batch(made_events(1))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 413, 422])
async def test_refusals_are_final(server: Endpoint, status: int) -> None:
    """The same request would be refused again."""
    async with webhook(server, f"/answer/{status}") as handler:
        with pytest.raises(PermanentError, match=str(status)):
            await handler.handle_batch(made_events(1))


def test_gone_tells_what_to_do() -> None:
    """410 is an endpoint's farewell."""
    with pytest.raises(PermanentError, match="wants no more webhooks"):
        check(410, None, "https://example.com")


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_honoured(server: Endpoint, status: int) -> None:
    """The endpoint says when."""
    async with webhook(server, f"/answer/{status}?retry-after=7") as handler:
        with pytest.raises(RetryLater) as caught:
            await handler.handle_batch(made_events(2))

    assert caught.value.retry_after == 7
    assert len(server.requests()) == 1


def test_retry_after_may_be_a_date() -> None:
    """In HTTP's form; a date in the past is now, and nonsense says nothing."""
    now = datetime(2026, 1, 1, tzinfo=UTC)

    assert seconds_until(format_datetime(now + timedelta(seconds=90), usegmt=True), now) == 90
    assert seconds_until(format_datetime(now - timedelta(seconds=90), usegmt=True), now) == 0
    assert seconds_until(" 12 ") == 12
    assert [seconds_until(text) for text in ("", "soon", "-1", "1.5")] == [None] * 4


async def test_redirects_are_not_followed(server: Endpoint) -> None:
    """They would lead a signed body, and our reach into the network, to wherever the endpoint likes."""
    async with webhook(server, "/moved") as handler:
        with pytest.raises(PermanentError, match="302"):
            await handler.handle_batch(made_events(1))

    assert [request.path for request in server.requests()] == ["/moved"]


async def test_endless_answer_is_cut_off(server: Endpoint) -> None:
    """The status has been said; what follows is not read for ever, and the next request has another connection."""
    async with webhook(server, "/long", timeout_seconds=100) as handler:
        async with asyncio.timeout(60):
            await handler.handle_batch(made_events(2))

    assert len({request.connection for request in server.requests()}) == 2


async def test_slow_endpoint_runs_into_the_timeout(server: Endpoint) -> None:
    """Its own, shorter than the callback's; then the handler goes on."""
    async with webhook(server, "/slow/60", timeout_seconds=0.2) as handler:
        with pytest.raises(Unanswered, match="in time"):
            await handler.handle_batch(made_events(1))


async def test_cancelled_call_leaves_the_handler_usable(server: Endpoint) -> None:
    """The pool cancels a call that takes too long, and makes another."""
    async with webhook(server) as handler:
        server.freeze()
        call = asyncio.create_task(handler.handle_batch(made_events(1)))
        await asyncio.wait([call], timeout=0.1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        server.thaw()

        await handler.handle_batch([made_event(2)])

        assert 2 in [request.events[0]["id"] for request in server.requests()]


async def test_killed_endpoint_is_tried_again_and_found_when_it_is_back(server: Endpoint) -> None:
    """No restart of ours; what it has taken before the kill is there."""
    async with webhook(server) as handler:
        await handler.handle_batch([made_event(1)])
        server.kill()
        with pytest.raises(Unanswered):
            await handler.handle_batch([made_event(2)])
        server.start()
        await handler.handle_batch([made_event(2)])

    assert [request.events[0]["id"] for request in server.requests()] == [1, 2]


async def test_close_is_harmless_twice_and_without_open(server: Endpoint) -> None:
    """And a closed handler can be opened again."""
    async with webhook(server) as handler:
        await handler.handle_batch(made_events(1))
        await handler.close()
        with pytest.raises(RuntimeError):
            await handler.handle_batch([made_event(2)])
        await handler.open()
        await handler.handle_batch([made_event(2)])
    await handler.close()
    await Webhook(WebhookOptions.model_validate({"url": "https://example.com/"})).close()

    assert len(server.requests()) == 2


async def test_certificate_is_checked_with_the_given_authority(tmp_path: Path) -> None:
    """HTTPS with a certificate of an authority of one's own; without it, the request never goes out."""
    with Endpoint(tmp_path, tls=True) as server:
        url = server.url("/", "localhost")
        async with webhook(server, url=url, allow_http=False, ca_file=server.ca_file, secrets=SECRETS) as handler:
            await handler.handle_batch(made_events(1))
        async with webhook(server, url=url) as handler:
            with pytest.raises(Unanswered, match="certificate"):
                await handler.handle_batch(made_events(1))
        async with webhook(server, ca_file=server.ca_file) as handler:  # 127.0.0.1 is not its name
            with pytest.raises(Unanswered, match="certificate"):
                await handler.handle_batch(made_events(1))

        assert [request.verified for request in server.requests()] == [[True, True]]


async def test_missing_ca_file_fails_at_open(tmp_path: Path) -> None:
    """Not at the first event."""
    handler = Webhook(WebhookOptions.model_validate({"url": "https://example.com/", "ca_file": tmp_path / "none.pem"}))

    with pytest.raises(FileNotFoundError):
        await handler.open()
    await handler.close()


async def test_name_of_an_internal_address_is_refused(server: Endpoint) -> None:
    """A name is only known to be internal when it is resolved: nothing reaches the endpoint, for good."""
    async with webhook(server, url=server.url("/", "localhost"), allow_internal=False) as handler:
        with pytest.raises(PermanentError, match="internal"):
            await handler.handle_batch(made_events(1))

    assert server.requests() == []


async def test_name_that_does_not_resolve_is_tried_again(server: Endpoint) -> None:
    """A resolver may be away for a moment."""
    async with webhook(server, url="https://nowhere.invalid/", allow_internal=False) as handler:
        with pytest.raises(Unanswered, match="cannot be reached"):
            await handler.handle_batch(made_events(1))


@pytest.mark.parametrize("path", ["/answer/500", "/answer/400", "/slow/60"])
async def test_errors_show_no_secret(server: Endpoint, path: str) -> None:
    """Neither path, user, password, header nor value: an error ends in logs and dead letters."""
    url = server.url(f"{path}?token=secret-token").replace("//", "//ann:secret-word@")
    settings = {"url": url, "secrets": SECRETS, "headers": {"x-key": "secret-key"}, "timeout_seconds": 0.5}
    handler = Webhook(WebhookOptions.model_validate(settings | {"allow_http": True, "allow_internal": True}))
    await handler.open()
    try:
        with pytest.raises((Unanswered, PermanentError)) as caught:
            await handler.handle_batch([made_event(1, name="secret-value")])
    finally:
        await handler.close()

    assert "secret-" not in f"{caught.value} {caught.value!r} {caught.value.__cause__!r} {handler._options!r}"
    sent = [request.headers["authorization"] for request in server.requests()]
    assert all(text.startswith("Basic ") for text in sent)
    assert sent or path == "/slow/60"  # where the machine is slower than the timeout, nothing has been sent yet


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({}, "url"),
        ({"url": "example.com/hook"}, "url"),
        ({"url": "ftp://example.com/"}, "url"),
        ({"url": "https://2130706433/"}, "url"),
        ({"url": "https://0x7f.0.0.1/"}, "url"),
        ({"url": "http://example.com/"}, "allow_http"),
        ({"url": "https://127.0.0.1/"}, "allow_internal"),
        ({"url": "https://[::ffff:169.254.169.254]/"}, "allow_internal"),
        ({"secrets": ["abc"]}, "secrets"),
        ({"secrets": ["whsec_c2hvcnQ="]}, "secrets"),
        ({"secrets": ["whsec_" + "A" * 90]}, "secrets"),
        ({"secrets": ["whsec_not base64 at all, though it is long enough"]}, "secrets"),
        ({"batch": 0}, "batch"),
        ({"batch": 257}, "batch"),
        ({"headers": {"webhook-id": "x"}}, "headers"),
        ({"headers": {"Content-Type": "x"}}, "headers"),
        ({"headers": {"bad name": "x"}}, "headers"),
        ({"headers": {"x-a": "secret\r\nx-b: 1"}}, "headers"),
        ({"id_prefix": "a.b"}, "id_prefix"),
        ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"max_body_bytes": "0"}, "max_body_bytes"),
        ({"content_type": "text/plain"}, "content_type"),
        ({"retries": 3}, "retries"),
    ],
)
def test_wrong_option_is_named(options: dict[str, Any], key: str) -> None:
    """At the start, and without the value, which may be a secret."""
    base = {} if not options or "url" in options else {"url": "https://example.com/"}
    with pytest.raises(ValidationError) as caught:
        WebhookOptions.model_validate(base | options)

    (problem,) = caught.value.errors(include_input=False)
    assert problem["loc"][0] == key
    assert "secret\r\n" not in str(caught.value)


async def test_open_sends_nothing(server: Endpoint) -> None:
    """Only events go out."""
    async with webhook(server):
        pass

    assert server.requests() == []
