"""What a callback is registered with: which events it wants, how it is called, and what becomes of what fails.

Whoever makes terms learns here what makes no sense. They know nothing of how the callback fares.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from cdc.codes import Code
from cdc.errors import CallbackError
from cdc.events import EventType
from cdc.invocation import Invocation
from cdc.patterns import TablePatterns, TagPatterns

__all__ = ["Terms", "parse_event_types", "several"]

T = TypeVar("T", bound=Iterable[object])


@dataclass(frozen=True, slots=True)
class Terms:
    """See the module; a callback's may be exchanged while it stays the same callback. CallbackError for a figure that
    means nothing."""

    invocation: Invocation
    tables: TablePatterns
    event_types: frozenset[EventType]
    tags: TagPatterns
    excluded: frozenset[str]
    masked: frozenset[str]
    concurrency: int
    timeout_seconds: float
    max_attempts: int
    blocks: bool
    parks: bool

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise CallbackError(
                f"concurrency is {self.concurrency}",
                hint="1 keeps commit order, N > 1 order per record",
                code=Code.CALLBACK_WRONG,
            )
        if not self.timeout_seconds > 0:
            raise CallbackError(
                f"timeout_seconds is {self.timeout_seconds}",
                hint="it is more than 0, or None: the default",
                code=Code.CALLBACK_WRONG,
            )
        if self.max_attempts < 1:
            raise CallbackError(
                f"max_attempts is {self.max_attempts}",
                hint="1 is one attempt, without retries",
                code=Code.CALLBACK_WRONG,
            )

    def by_name(self) -> dict[str, Any]:
        """Name → value, as fields of a registration."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


def parse_event_types(words: Collection[EventType | str]) -> frozenset[EventType]:
    """The types a callback asks for; CallbackError for an unknown word, and for none at all."""
    try:
        wanted = frozenset(map(EventType, words))
    except ValueError as error:
        raise CallbackError(
            str(error), hint=f"event types are {', '.join(map(str, EventType))}", code=Code.CALLBACK_WRONG
        ) from None
    if not wanted:
        raise CallbackError(
            "no event type is asked for", hint="leave event_types out: all but truncate", code=Code.CALLBACK_WRONG
        )
    return wanted


def several(words: T) -> T:
    """The same words; CallbackError for a single one, which would be taken apart into letters, and mask nothing."""
    if isinstance(words, str):
        raise CallbackError(f"{words!r} is one word, not several", hint=f"write [{words!r}]", code=Code.CALLBACK_WRONG)
    return words
