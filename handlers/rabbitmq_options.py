"""The options of the `rabbitmq` handler, and what a routing key may be.

Owns what can be checked before there is a connection; must not know one.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from handlers.messages import Alphabet
from handlers.option_checks import matching, template
from handlers.tls import TlsOptions

__all__ = ["ROUTING_KEY", "RabbitMQOptions"]

ROUTING_KEY = Alphabet(
    noun="routing key",
    refused=re.compile(r"[\x00-\x20\x7f-\xa0.*#%\u2028\u2029]"),
    refused_literal=re.compile(r"[\x00-\x20\x7f-\xa0*#]"),
    limit=255,  # a short string of AMQP 0-9-1
)
_SERVER = re.compile(r"(?:\[[0-9a-fA-F:.]+\]|[^\s/@?#:]+)(?::\d{1,5})?")


Server = Annotated[
    str, matching(_SERVER, "must be host or host:port; user, password and virtual host have options of their own")
]


class RabbitMQOptions(TlsOptions):
    """Options of `rabbitmq`."""

    servers: tuple[Server, ...] = Field(
        default=("127.0.0.1",),
        min_length=1,
        description="Brokers of the cluster, host or host:port; any one that answers is used.",
    )
    virtual_host: str = Field(default="/", description="Virtual host.")
    user: str = Field(default="guest", description="Name to log in with.")
    password: SecretStr = Field(default=SecretStr("guest"), description="Its password.")
    exchange: str = Field(default="walsignal", min_length=1, max_length=255, description="Exchange to publish to.")
    create_exchange: bool = Field(
        default=False, description="Declare it, durable; one that is there must be durable and of that type."
    )
    exchange_type: Literal["topic", "direct", "fanout", "headers", "x-consistent-hash", "x-message-deduplication"] = (
        Field(default="topic", description="Type of the exchange that is declared; the last two are plugins' own.")
    )
    routing_key: Annotated[str, template(ROUTING_KEY)] = Field(
        default="{schema}.{table}.{event_type}",
        description="Of a message, with `{schema}`, `{table}`, `{event_type}`, `{record_id}`, `{payload.COLUMN}`.",
    )
    mandatory: bool = Field(
        default=True,
        description="A message that no queue takes is an error; otherwise the broker drops it and confirms.",
    )
    deduplication_header: bool = Field(
        default=False,
        description="Add `x-deduplication-header`, the position, for the broker's message deduplication plugin.",
    )
    timeout_seconds: float = Field(
        default=10.0,
        gt=0,
        description="For the connection and all confirms of a batch; keep it below the handler's timeout.",
    )
