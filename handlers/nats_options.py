"""The options of the `nats` handler, and what a subject may be.

Owns what can be checked before there is a connection; must not know one.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, ByteSize, Field, SecretStr, model_validator

from handlers.messages import Alphabet
from handlers.option_checks import matching, template
from handlers.tls import TlsOptions

__all__ = ["SUBJECT", "NatsOptions"]

SUBJECT = Alphabet(
    noun="subject",
    refused=re.compile(r"[\x00-\x20\x7f-\xa0.*>%\u2028\u2029]"),
    refused_literal=re.compile(r"[\x00-\x20\x7f-\xa0*>]|^\.|\.$|\.\."),
    limit=1024,  # a server takes 4,096 bytes for the whole line of a command, reply and sizes included
)
_SERVER = re.compile(r"(?:(?:nats|tls)://)?[^\s/@?#]+/?")
_STREAM = re.compile(r"[^\s.*>/\\]+")


def _without_credentials(value: str) -> str:
    if "@" in value:
        raise ValueError("credentials do not belong into the address: use `user` and `password`, or `token`")
    return value


def _with_a_fixed_beginning(value: str) -> str:
    if value.lstrip().startswith(("{", "$")):
        raise ValueError("must start with a fixed word: the server keeps names that start with $ for itself")
    return value


Server = Annotated[
    str, AfterValidator(_without_credentials), matching(_SERVER, "must be host, host:port or nats://host:port")
]
Subject = Annotated[str, template(SUBJECT), AfterValidator(_with_a_fixed_beginning)]
Stream = Annotated[str, matching(_STREAM, "must be a name without blanks, dots, stars, > and slashes")]


class NatsOptions(TlsOptions):
    """Options of `nats`."""

    servers: tuple[Server, ...] = Field(
        default=("nats://127.0.0.1:4222",),
        min_length=1,
        description="Addresses of the cluster's servers; any one that answers is used.",
    )
    subject: Subject = Field(
        default="walsignal.{schema}.{table}.{event_type}",
        description="Of a message, with `{schema}`, `{table}`, `{event_type}`, `{record_id}`, `{payload.COLUMN}`.",
    )
    stream: Stream | None = Field(
        default=None, description="Name of the stream that must take the messages; another one refuses them."
    )
    create_stream: bool = Field(
        default=False, description="Make the stream when it is missing; one that is there stays as it is."
    )
    max_age_seconds: float = Field(
        default=0.0, ge=0, description="Of a stream that is made: messages older than this go; 0: none."
    )
    max_bytes: ByteSize | None = Field(
        default=None, gt=0, description="Of a stream that is made: its size; default: no bound."
    )
    discard: Literal["old", "new"] = Field(
        default="old",
        description="Of a stream that is made: when full it drops the oldest messages, or refuses new ones.",
    )
    duplicate_window_seconds: float = Field(
        default=120.0, gt=0, description="Of a stream that is made: for how long a message that comes again is known."
    )
    replicas: int = Field(
        default=1, ge=1, le=5, description="Of a stream that is made: on how many servers each message is kept."
    )
    user: str | None = Field(default=None, description="Name to log in with.")
    password: SecretStr | None = Field(default=None, description="Its password.")
    token: SecretStr | None = Field(default=None, description="Token to log in with, instead of a name.")
    timeout_seconds: float = Field(
        default=10.0,
        gt=0,
        description="For the connection and all acknowledgements of a batch; keep it below the handler's timeout.",
    )

    @model_validator(mode="after")
    def _names_the_stream(self) -> NatsOptions:
        if self.create_stream and self.stream is None:
            raise self.wrong_option("stream", "create_stream needs the name: set `stream`")
        wrong = None
        if (self.user is None) != (self.password is None):
            wrong = "user" if self.user is None else "password"
        elif self.user is not None and self.token is not None:
            wrong = "token"
        if wrong is not None:
            raise self.wrong_option(wrong, "give `user` and `password`, or `token`, or none of them")
        return self
