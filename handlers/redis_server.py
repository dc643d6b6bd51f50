"""The Redis server as the handlers see it: connect, run a script, and be sure of what its answer means.

Owns the options that every handler on Redis shares, and the one table from its errors to retry or permanent.
It must not know events or keys.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha1
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from redis.asyncio import Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from cdc import CallbackError, HandlerOptions, PermanentError

__all__ = ["RedisOptions", "RedisServer", "Script"]

Argument = bytes | str | int
_DATABASE = re.compile(r"/?|/\d+/?")  # the path of a URL

MAX_SCRIPT_BYTES = 4 * 1024 * 1024
"""Of one call's arguments: a script blocks the server for its time, and a client's buffer there ends at 1 GiB."""

# What the server refuses for good, by the beginning of its answer. Everything else may
# pass: server away or loading, out of memory, a replica, wrong password or rights (an operator mends those).
# redis-py takes the word ERR off.
PERMANENT = ("WRONGTYPE", "string exceeds maximum allowed size", "Protocol error: invalid bulk length")


class RedisOptions(HandlerOptions):
    """How to reach the server, and what has to have happened before an event is settled."""

    url: SecretStr = Field(
        default=SecretStr("redis://127.0.0.1:6379/0"),
        description="Where the server is: `redis://USER:PASSWORD@HOST:PORT/DATABASE`, `rediss://` for TLS, `unix://`.",
    )
    durability: Literal["fsync", "memory"] = Field(
        default="fsync",
        description='`"fsync"`: the server must write to its disk before it answers (`appendfsync always`), otherwise'
        ' the handler does not open. `"memory"`: its answer is enough, whatever it does.',
    )
    replicas: int = Field(
        default=0, ge=0, description="So many replicas must have received a batch before it is settled (`WAIT`)."
    )
    replica_seconds: float = Field(
        default=1.0, gt=0, description="How long is waited for the replicas; then the batch failed."
    )
    answer_seconds: float = Field(
        default=10.0,
        gt=0,
        description="After so long without an answer the connection is given up, and the batch tried again.",
    )

    @field_validator("url")
    @classmethod
    def _is_url(cls, value: SecretStr) -> SecretStr:
        url = value.get_secret_value()
        try:
            parse_url(url)
            path = urlsplit(url).path
        except ValueError:
            raise ValueError("is no URL such as redis://127.0.0.1:6379/0") from None
        if not url.startswith("unix:") and not _DATABASE.fullmatch(path):  # the library would take database 0
            raise ValueError("must end in the number of a database, as in redis://127.0.0.1:6379/0")
        return value


class Script:
    """A Lua script by its text and the digest under which servers keep it once they have seen it."""

    __slots__ = ("digest", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.digest = sha1(text.encode(), usedforsecurity=False).hexdigest()


Call = tuple[Script, Sequence[Argument], Sequence[Argument]]
"""A script, its keys and its arguments."""


class RedisServer:
    """A client that connects when it is needed, and again after every outage.

    It tries nothing twice by itself: whoever calls knows whether that is harmless, and waits in between.
    """

    def __init__(self, options: RedisOptions) -> None:
        self._options = options
        self._client: Redis | None = None

    @property
    def client(self) -> Redis:
        """For commands of one's own; CallbackError before `open` and after `close`."""
        if self._client is None:
            raise CallbackError("the connection to Redis is not open")
        return self._client

    async def open(self) -> None:
        """Connect and see whether the server keeps what it acknowledges; the errors of `called`, CallbackError."""
        if self._client is not None:
            return
        client: Redis = Redis.from_url(
            self._options.url.get_secret_value(),
            socket_timeout=self._options.answer_seconds,
            socket_connect_timeout=self._options.answer_seconds,
            retry=Retry(NoBackoff(), 0),
            encoding_errors="surrogateescape",  # a key of others, found by a pattern, may be no UTF-8
        )
        try:
            await client.ping()
            if self._options.durability == "fsync":
                await _check_fsync(client)
        except BaseException:
            with suppress(RedisError, OSError):
                await client.aclose()
            raise
        self._client = client

    async def close(self) -> None:
        """Let the connections go; a second call does nothing."""
        client, self._client = self._client, None
        if client is not None:
            with suppress(RedisError, OSError):  # it may be away
                await client.aclose()

    @staticmethod
    def text(name: bytes | str) -> str:
        """A name that the server gave, as one to give it back: it may be no UTF-8."""
        return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name

    async def run(self, calls: Sequence[Call]) -> list[Any]:
        """The answers of scripts, sent together and run in this order; each is atomic by itself.

        All must bear being run twice: when the server does not know a script yet, all are sent again. Returns when
        the promised durability is reached. PermanentError, or redis-py's errors for what may pass.
        """
        answers = await self._sent(calls)
        if any(isinstance(answer, NoScriptError) for answer in answers):
            for script in {call[0] for call in calls}:
                await self.client.script_load(script.text)
            answers = await self._sent(calls)
        for answer in answers:
            if isinstance(answer, Exception):
                raise mapped(answer)
        return answers

    async def _sent(self, calls: Sequence[Call]) -> list[Any]:
        async with self.client.pipeline(transaction=False) as pipeline:
            for script, keys, arguments in calls:
                pipeline.execute_command("EVALSHA", script.digest, len(keys), *keys, *arguments)
            replicas = self._options.replicas
            if replicas:  # of this very connection's writes, hence in the pipeline
                pipeline.execute_command("WAIT", replicas, int(self._options.replica_seconds * 1000) or 1)
            answers: list[Any] = await pipeline.execute(raise_on_error=False)
        if replicas and not isinstance(reached := answers.pop(), Exception) and reached < replicas:
            raise CallbackError(
                f"{reached} of {replicas} replicas have received the batch within {self._options.replica_seconds:g} s",
                hint="see the replication of the Redis server, or lower the option `replicas`",
            )
        return answers


def mapped(error: Exception) -> Exception:
    """The error to raise for what the server has answered: as it is when it may pass, PermanentError otherwise."""
    text = str(error)
    if isinstance(error, ResponseError) and text.removeprefix("ERR ").startswith(PERMANENT):
        return PermanentError(f"Redis refuses it for good: {_told(text)}")
    return error


def _told(text: str) -> str:
    """The server's words without what a script's error says about its place."""
    return text.partition(" script:")[0][:200]


async def _check_fsync(client: Redis) -> None:
    """CallbackError unless the server answers only after its append-only file is on the disk."""
    try:
        settings = await client.config_get("append*")
    except ResponseError as error:
        raise _not_durable("it does not tell (CONFIG is not allowed)") from error
    if settings.get("appendonly") != "yes" or settings.get("appendfsync") != "always":
        raise _not_durable(
            f"its appendonly is {settings.get('appendonly')}, its appendfsync {settings.get('appendfsync')}"
        )


def _not_durable(reason: str) -> CallbackError:
    return CallbackError(
        f"Redis may lose what it has acknowledged: {reason}",
        hint='set appendonly yes and appendfsync always there, or the option durability = "memory" to accept that',
    )
