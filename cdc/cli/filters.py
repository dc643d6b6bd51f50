"""What was typed to narrow a tail: tables, types and tags, and what of it can match nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from difflib import get_close_matches

from cdc.cli.output import refuse_usage
from cdc.errors import ConfigError
from cdc.events import DatabaseEvent, EventType
from cdc.patterns import TablePatterns, TagPatterns

__all__ = ["Filter"]

_ALIKE = 0.75  # "creat" is taken for create, and "insert" for nothing


class Filter:
    """An event passes when it is of one of the tables and one of the types and has one of the tags; nothing: any."""

    def __init__(
        self, tables: Sequence[str] = (), event_types: Collection[EventType] = (), tags: Sequence[str] = ()
    ) -> None:
        self._patterns = tables
        self._tables = TablePatterns(tables)
        self._event_types = frozenset(event_types or EventType)
        self._tags = TagPatterns(tags)

    @classmethod
    def typed(cls, tables: Sequence[str], event_types: Sequence[str], tags: Sequence[str]) -> Filter:
        """As it was typed; what makes no sense ends the command with exit code 2."""
        try:
            return cls(tables, [_event_type(text) for text in event_types], tags)
        except ConfigError as error:
            refuse_usage(f"--table: {error.message}", error.hint)

    def __call__(self, event: DatabaseEvent) -> bool:
        """Whether the event is wanted."""
        return (
            event.event_type in self._event_types
            and self._tables.matches(event.schema, event.table_name)
            and self._tags.matches(event.tags)
        )

    def remarks(self, tables: Collection[tuple[str, str]], is_delivered: Callable[[str, str], bool]) -> Iterator[str]:
        """Of each pattern that gets nothing now: `tables` are there, and events come of those that are delivered."""
        for text in dict.fromkeys(self._patterns):
            patterns = TablePatterns([text])
            matched = [table for table in tables if patterns.matches(*table)]
            if not matched:
                yield f"no table matches --table {text}, so far{_likely(text, tables)}"
            elif not any(is_delivered(*table) for table in matched):
                yield f"--table {text} matches only what the configuration leaves out"


def _event_type(text: str) -> EventType:
    try:
        return EventType(text)
    except ValueError:
        *others, last = (str(one.value) for one in EventType)
        near = get_close_matches(text.lower(), [*others, last], n=1, cutoff=_ALIKE)
        meant = f"did you mean {near[0]}? " if near else ""
        refuse_usage(f"--type {text} is none", f"{meant}it is {', '.join(others)} or {last}")


def _likely(pattern: str, tables: Collection[tuple[str, str]]) -> str:
    """Asks for the table that may have been meant. The names alone are compared: nearly all schemas are `public`."""
    schema, _, name = pattern.replace('"', "").partition(".")
    near = get_close_matches(name, {table for _, table in tables}, n=1, cutoff=_ALIKE)
    found = sorted((one for one in tables if one[1] in near), key=lambda one: one[0] != schema)
    return f"; did you mean {'.'.join(found[0])}?" if found else ""
