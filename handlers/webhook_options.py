"""Options of the `webhook` handler, and everything about them that can be wrong before anything is sent."""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, ByteSize, Field, SecretStr, ValidationInfo
from yarl import URL

from cdc import HandlerOptions
from handlers.webhook_address import is_internal, literal

__all__ = ["JSON", "WebhookOptions"]

JSON: Final = "application/json"
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a header's name (RFC 9110, 5.6.2)
_OURS = {"content-type", "content-length", "host", "transfer-encoding", "connection"}


def _secret(value: SecretStr) -> SecretStr:
    """`whsec_` and base64 of 24 to 64 bytes, as the standard wants it."""
    prefix, _, encoded = value.get_secret_value().partition("_")
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except binascii.Error:
        key = b""
    if prefix != "whsec" or not 24 <= len(key) <= 64:
        raise ValueError(
            "must be whsec_ and base64 of 24 to 64 random bytes; make one with:"
            ' echo "whsec_$(head -c 32 /dev/urandom | base64)"'
        )
    return value


def _headers(headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a header")
        if name.lower() in _OURS or name.lower().startswith("webhook-"):
            raise ValueError(f"{name} is set by the handler itself")
        text = value.get_secret_value()
        if not text.isascii() or not text.isprintable():
            raise ValueError(f"the value of {name} holds characters that a header must not have")
    return headers


def _url(value: SecretStr) -> SecretStr:
    try:
        url = URL(value.get_secret_value())
        host = url.host if url.scheme in ("https", "http") and url.port else None
    except ValueError:
        host = None
    if not host:
        raise ValueError("must be a URL such as https://example.com/hooks")
    literal(host)
    return value


def _may_be_internal(allowed: bool, info: ValidationInfo) -> bool:
    if "url" in info.data and not allowed:  # otherwise it is wrong, and told already
        address = literal(URL(info.data["url"].get_secret_value()).host or "")
        if address is not None and is_internal(address):
            raise ValueError("url is an internal address, which needs allow_internal = true")
    return allowed


def _may_be_http(allowed: bool, info: ValidationInfo) -> bool:
    if "url" in info.data and not allowed and URL(info.data["url"].get_secret_value()).scheme == "http":
        raise ValueError("url is http, which sends rows in the clear: use https, or set allow_http = true")
    return allowed


Secret = Annotated[SecretStr, AfterValidator(_secret)]


class WebhookOptions(HandlerOptions):
    """Options of the `webhook` handler."""

    url: Annotated[SecretStr, AfterValidator(_url)] = Field(
        description="Where to send; its path and user are kept out of logs, as they may be secrets."
    )
    secrets: tuple[Secret, ...] = Field(
        (),
        description="Keys of the signature, `whsec_...`; with several, each request is signed with all of them, so that"
        " they can be changed one after the other. None: requests are not signed.",
    )
    batch: int = Field(
        1,
        ge=1,
        le=256,
        description="Events per request. With 1 the body is the event, with more an array of events, also of one.",
    )
    content_type: Literal["application/json", "application/x-ndjson"] = Field(
        JSON, description="Of the body; `application/x-ndjson` is a line per event."
    )
    headers: Annotated[dict[str, SecretStr], AfterValidator(_headers)] = Field(
        {}, description="More headers for each request, for example `authorization`."
    )
    id_prefix: str = Field(
        "",
        max_length=64,
        pattern=r"^[A-Za-z0-9_-]*$",
        description="In front of each `webhook-id`: tells several sources apart that send to one endpoint.",
    )
    timeout_seconds: float = Field(
        20.0, gt=0, le=300, description="For one request, from the name's resolution to the end of the answer."
    )
    max_body_bytes: Annotated[ByteSize, Field(gt=0)] = Field(
        ByteSize(1024 * 1024),
        description="A request gets no further event that would make it longer; one event alone may be longer.",
    )
    ca_file: Path | None = Field(
        None, description="Certificates (PEM) that the endpoint's is checked with, instead of the system's."
    )
    allow_internal: Annotated[bool, AfterValidator(_may_be_internal)] = Field(
        False,
        validate_default=True,
        description="Also send to private, loopback, link-local and other internal addresses.",
    )
    allow_http: Annotated[bool, AfterValidator(_may_be_http)] = Field(
        False, validate_default=True, description="Also send without TLS."
    )

    @property
    def target(self) -> URL:
        """The whole URL, with its secrets."""
        return URL(self.url.get_secret_value())

    @property
    def where(self) -> str:
        """Scheme, host and port: what of the URL may be told."""
        return str(self.target.origin())
