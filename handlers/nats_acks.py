"""Acknowledgements of JetStream: which messages of a batch still wait for one, and what each answer means.

Owns the reply subjects and the table of refusals. It must not know the connection: it is given answers, and told
when none will come any more. (The library's own `publish_async` never resolves a message that the stream refuses.)
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from itertools import count
from typing import Any

from nats.aio.msg import Msg
from nats.js.api import Header

from cdc import PermanentError

__all__ = ["Acks", "Batch", "NotStored"]

NO_RESPONDERS = "503"

# https://github.com/nats-io/nats-server, server/errors.json: `error_code`. Everything else may pass.
_PERMANENT: Mapping[int, str] = {
    10054: "the message is larger than the stream's max_msg_size",
    10097: "the message's headers are larger than the stream allows",
}
_HINTS: Mapping[int, str] = {
    10060: "another stream takes this subject: correct `stream` or `subject`",
    10077: "the stream is full or cannot write: raise its limits, or make room",
    10047: "the server's storage is exhausted: make room",
}


class NotStored(Exception):
    """The stream has not taken a message; another attempt may succeed."""


class Batch:
    """The messages of one batch: `replies` are their reply subjects, in order."""

    def __init__(self, replies: list[str], owner: Acks) -> None:
        self.replies = replies
        self._owner = owner
        self._waiting = len(replies)
        self._errors: dict[str, Exception] = {}
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def answer(self, reply: str, error: Exception | None) -> None:
        """One message has got its answer."""
        if error is not None:
            self._errors[reply] = error
        self._waiting -= 1
        if self._waiting == 0 and not self._done.done():
            self._done.set_result(None)

    def fail(self, error: Exception) -> None:
        """No more answers will come."""
        self._errors.setdefault(self.replies[-1], error)
        if not self._done.done():
            self._done.set_result(None)

    async def wait(self) -> None:
        """Return when every message is stored; raises what the first one that is not was told."""
        await self._done
        for reply in self.replies:
            if reply in self._errors:
                raise self._errors[reply]

    def forget(self) -> None:
        """Whoever waited has given up, or has had all answers."""
        self._owner.forget(self)


class Acks:
    """All batches that wait; `inbox` is a subject of this connection alone, `target` names the stream in errors."""

    def __init__(self, inbox: str, target: str) -> None:
        self._inbox = inbox
        self._target = target
        self._numbers = count()
        self._waiting: dict[str, Batch] = {}

    def expect(self, messages: int) -> Batch:
        """A batch of so many messages."""
        batch = Batch([f"{self._inbox}.{next(self._numbers)}" for _ in range(messages)], self)
        self._waiting.update(dict.fromkeys(batch.replies, batch))
        return batch

    def forget(self, batch: Batch) -> None:
        """Answers to it are ignored from now on."""
        for reply in batch.replies:
            self._waiting.pop(reply, None)

    async def receive(self, message: Msg) -> None:
        """An answer of the server, to one message."""
        batch = self._waiting.pop(message.subject, None)
        if batch is not None:
            batch.answer(message.subject, self._error_in(message))

    def fail(self, error: Exception) -> None:
        """The connection is gone: whoever waits is told."""
        waiting = set(self._waiting.values())
        self._waiting.clear()
        for batch in waiting:
            batch.fail(error)

    def _error_in(self, message: Msg) -> Exception | None:
        if (message.headers or {}).get(Header.STATUS) == NO_RESPONDERS:
            return NotStored(
                f"{self._target} is not there: make it, or set `stream` and `create_stream = true`; and check that"
                " the server runs with JetStream (a stream that elects a leader is back in a moment)"
            )
        try:
            answer: dict[str, Any] = json.loads(message.data)
            error = answer.get("error")
            is_stored = error is None and "stream" in answer
        except (ValueError, AttributeError):
            return NotStored("the subject is answered by something that is no stream: use another `subject`")
        if is_stored:
            return None
        if error is None:
            return NotStored("the subject is answered by something that is no stream: use another `subject`")
        return self._refusal(int(error.get("err_code", 0)), str(error.get("description", "")))

    def _refusal(self, code: int, description: str) -> Exception:
        if code in _PERMANENT:
            return PermanentError(f"{self._target}: {_PERMANENT[code]} (code {code})")
        hint = _HINTS.get(code)
        return NotStored(f"{self._target} refuses: {description} (code {code})" + (f"; {hint}" if hint else ""))
