"""Which events a rule wants: the conditions on columns, and what is done when they cannot be judged.

Owns comparing a value of the database with one of the configuration; must not know messages or channels.
Nothing is evaluated as code: a condition is a column, an operator of a fixed list, and a value.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time
from decimal import Decimal, InvalidOperation
from operator import eq, ge, gt, le, lt, ne
from typing import Any

import structlog

from cdc import DatabaseEvent, EventType, TablePatterns, TagPatterns
from handlers.notify_options import Condition, Rule

__all__ = ["Matcher"]

_log = structlog.get_logger(__name__)

_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {"=": eq, "!=": ne, "<": lt, "<=": le, ">": gt, ">=": ge}


class _Unjudged(Exception):
    """The condition cannot be judged with this event: why, without values."""


class Matcher:
    """Asks one rule of events. A condition that cannot be judged is not met, and the log says so, once."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._tables = TablePatterns(rule.tables)
        self._tags = TagPatterns(rule.tags)
        self._event_types = frozenset(map(EventType, rule.event_types))
        self._told: set[tuple[str, str, str]] = set()

    def wants(self, event: DatabaseEvent) -> bool:
        """Whether the rule is for this event."""
        return (
            event.event_type in self._event_types
            and self._tables.matches(event.schema, event.table_name)
            and self._tags.matches(event.tags)
            and all(self._is_met(condition, event) for condition in self._rule.when)
        )

    def _is_met(self, condition: Condition, event: DatabaseEvent) -> bool:
        try:
            return _judge(condition, event)
        except _Unjudged as error:
            key = (event.kind.table, condition.column, str(error))
            if key not in self._told:
                self._told.add(key)
                _log.warning(
                    "condition_not_judged",
                    rule=self._rule.name,
                    condition=f"{condition.column} {condition.op}",
                    event_type=str(event.event_type),
                    table=event.kind.table,
                    reason=str(error),
                )
            return False


def _judge(condition: Condition, event: DatabaseEvent) -> bool:
    column = condition.column
    if condition.op == "changed":
        return _has_changed(column, event)
    before = event.before or {}
    row = before if condition.old or column in event.unchanged else event.payload
    if column not in row:
        raise _Unjudged("there is no such column in what is known of the row")
    value = row[column]
    if condition.op == "is null":
        return value is None
    if condition.op == "is not null":
        return value is not None
    if value is None:
        return False  # as in SQL: NULL is neither equal nor unequal to anything
    return _compare(value, condition.op, condition.value)


def _has_changed(column: str, event: DatabaseEvent) -> bool:
    if event.event_type is not EventType.UPDATE:
        return event.event_type is EventType.CREATE and column in event.payload
    if column in event.unchanged:
        return False
    if column not in event.payload:
        raise _Unjudged("there is no such column in the row")
    if event.before is None or column not in event.before:
        raise _Unjudged("the old value is not known; it is with REPLICA IDENTITY FULL")
    return bool(event.before[column] != event.payload[column])


def _compare(value: Any, op: str, wanted: Any) -> bool:
    if op in ("in", "not in"):
        return any(_compare(value, "=", one) for one in wanted) is (op == "in")
    if op == "like":
        return fnmatch.fnmatchcase(value if isinstance(value, str) else str(value), wanted)
    left, right = _comparable(value, wanted)
    if op not in ("=", "!=") and isinstance(left, bool):
        raise _Unjudged("a boolean has no order")
    try:
        return bool(_COMPARISONS[op](left, right))
    except (TypeError, InvalidOperation):  # of two kinds, or a numeric NaN
        raise _Unjudged(f"a {type(value).__name__} cannot be compared so with a {type(wanted).__name__}") from None


def _comparable(value: Any, wanted: Any) -> tuple[Any, Any]:  # noqa: PLR0911 - a line per kind
    """Both as one kind; _Unjudged when they are not of one."""
    try:
        match value:
            case bool():
                return value, _boolean(wanted)
            case int() | Decimal() if not isinstance(wanted, bool):
                return value, Decimal(str(wanted))
            case float() if not isinstance(wanted, bool):
                return value, float(wanted)
            case datetime():
                return _moment(value, wanted)
            case date():
                return value, date.fromisoformat(wanted) if isinstance(wanted, str) else wanted
            case time():
                return value, time.fromisoformat(wanted) if isinstance(wanted, str) else wanted
            case str() if isinstance(wanted, str):
                return value, wanted
            case int() | Decimal() | float() | str() | bytes() | list() | dict():
                pass
            case _ if isinstance(wanted, str):  # UUIDs, addresses, ranges: by their text
                return str(value), wanted
    except (ValueError, TypeError, InvalidOperation):
        pass
    raise _Unjudged(f"the column is a {type(value).__name__}, which is not compared with a {type(wanted).__name__}")


def _boolean(wanted: Any) -> bool:
    if isinstance(wanted, bool):
        return wanted
    return {"true": True, "false": False}[wanted] if wanted in ("true", "false") else _no_boolean()


def _no_boolean() -> bool:
    raise ValueError


def _moment(value: datetime, wanted: Any) -> tuple[Any, Any]:
    """Two moments, or two dates when the configuration has only a date; what has no zone is taken for UTC."""
    if isinstance(wanted, str):
        wanted = datetime.fromisoformat(wanted)
    if not isinstance(wanted, datetime):
        return value.date(), wanted
    return _aware(value), _aware(wanted)


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
