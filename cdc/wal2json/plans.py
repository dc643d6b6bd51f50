"""Plans: how the rows of a table are read that come again and again.

A table sends the same columns with the same types, row after row. A plan knows them: its parser compares names instead
of making strings of them, and its function puts the values into a dict of known keys, where the general way looks up
a loader for each value. Together 2.2 us for a row of 8 columns instead of 2.9. The parser refuses what does not fit,
another table's row or one that lacks a value: then it is read the general way. Must not know the stream.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import msgspec

from cdc.values import JsonValue, Loader, PostgresValue, as_is
from cdc.wal2json.change import SourceCatalog
from cdc.wal2json.shapes import Column, Columns, Convert, Head, Payload, Whole, read_generally

__all__ = ["ROWS_BEFORE", "Plans"]

ROWS_BEFORE = 256
"""Rows of one shape that are read the general way before they have a plan: making it takes as long as 1,000 save."""
MAX_PLANS = 64
MAX_SHAPES = 1000
"""Of which rows are counted, while they have no plan."""
MAX_COLUMNS = 50
"""Each takes 60 us when the plan is made, while the event loop waits."""
MESSAGES_JUDGED = 256
BURSTS_WITHOUT = 64
"""For so long plans are not tried after more than a quarter of so many messages did not fit: a miss costs 0.6 us."""
_OIDS = range(-(1 << 31), 1 << 32)  # wal2json prints the upper half as negative numbers

_Shape: TypeAlias = tuple[str, str, tuple[tuple[str, int], ...]]  # schema, table, and name and type of each column
_Reader: TypeAlias = Callable[[Payload], Head | Whole]


class Plans:
    """The plans of one decoder: those of the shapes of rows that were used last."""

    def __init__(self, catalog: SourceCatalog) -> None:
        self._catalog = catalog
        self._plans: dict[_Shape, _Reader] = {}
        self._rows: Counter[_Shape] = Counter()  # that had no plan
        self._fitting: _Reader | None = None  # of the row that was seen last of those that have a plan
        self._messages = self._missed = 0  # since plans were judged last
        self._without = 0  # bursts

    def begin(self, messages: int) -> _Reader:
        """The parser for a burst of so many messages; it raises ValidationError for what does not fit."""
        if self._messages >= MESSAGES_JUDGED:
            if 4 * self._missed > self._messages:
                self._without = BURSTS_WITHOUT
            self._messages = self._missed = 0
        if self._without:
            self._without -= 1
            return read_generally
        self._messages += messages
        return self._fitting or self._learn

    def read_other(self, payload: Payload) -> tuple[Head | Whole, _Reader]:
        """What did not fit, read the general way, and the parser for what follows."""
        self._missed += 1
        return self._learn(payload), self._fitting or self._learn

    def _learn(self, payload: Payload) -> Head | Whole:
        head = read_generally(payload)
        if isinstance(head, Whole) and head.columns and len(head.columns) <= MAX_COLUMNS:
            shape = head.schema, head.table, tuple([(column.name, column.typeoid) for column in head.columns])
            if (plan := self._plans.pop(shape, None)) is None:
                plan = self._wanted(shape, head.columns)
            if plan is not None:
                self._plans[shape] = self._fitting = plan  # the last in order is the one that goes last
        return head

    def _wanted(self, shape: _Shape, columns: Columns) -> _Reader | None:
        """A plan for rows of which one more had none, if there were enough."""
        self._rows[shape] += 1
        if self._rows[shape] % ROWS_BEFORE or not self._can_plan(columns):
            if len(self._rows) > MAX_SHAPES:
                self._rows.clear()
            return None
        del self._rows[shape]
        self._messages = self._missed = 0  # with one plan more they are judged anew
        if len(self._plans) >= MAX_PLANS:
            del self._plans[next(iter(self._plans))]
        return _plan(shape, self._catalog.loaders)

    def _can_plan(self, columns: Columns) -> bool:
        """Whether callbacks have read such rows: what has a value has a loader by then."""
        loaders = self._catalog.loaders
        return all(
            column.typeoid in _OIDS and (column.value is None or column.typeoid in loaders) for column in columns
        )


def _plan(shape: _Shape, loaders: Mapping[int, Loader]) -> _Reader:
    """The parser of messages that are of this table and have these columns, or none."""
    schema, table, columns = shape
    shapes: Any = tuple[tuple(_only(name, typeoid) for name, typeoid in columns)]  # type: ignore[misc]
    known = [_loader(loaders, typeoid) for _, typeoid in columns]
    convert = _maker(tuple(loader is as_is for loader in known))([name for name, _ in columns], known)
    whole = msgspec.defstruct(
        "PlannedWhole",
        [("schema", Literal[schema], ""), ("table", Literal[table], ""), ("columns", shapes | None, None)],
        bases=(Whole,),
        namespace={"convert": staticmethod(convert)},
        gc=False,
        eq=False,
    )
    reader: _Reader = msgspec.json.Decoder(whole, float_hook=str).decode  # type: ignore[assignment]
    return reader


def _only(name: str, typeoid: int) -> type[msgspec.Struct]:
    """The shape of columns of this name and type."""
    fields = [("name", Literal[name]), ("typeoid", Literal[typeoid]), ("value", Any)]
    return msgspec.defstruct("PlannedColumn", fields, bases=(Column,), gc=False, eq=False)


def _loader(loaders: Mapping[int, Loader], typeoid: int) -> Loader:
    """That of a type; where there is none yet, making it may take asking the database, for which callbacks wait."""
    if typeoid in loaders:
        return loaders[typeoid]

    def late(value: JsonValue) -> PostgresValue:
        return loaders[typeoid](value)

    return late


@lru_cache(maxsize=MAX_PLANS)
def _maker(as_they_are: tuple[bool, ...]) -> Callable[[Sequence[str], Sequence[Loader]], Convert]:
    """Makes functions for so many columns. Written out, column by column: as a loop it takes as long as without plan.

    No name and no value is in the source, only how many columns there are and which have a loader.
    """
    numbers = range(len(as_they_are))
    items = (
        f"k{n}: c{n}.value" if as_they_are[n] else f"k{n}: None if (v := c{n}.value) is None else l{n}(v)"
        for n in numbers
    )
    keys, loaders, columns = ("".join(f"{letter}{n}," for n in numbers) for letter in "klc")
    source = f"""
def make(keys, loaders):
    {keys} = keys
    {loaders} = loaders
    def convert(columns):
        {columns} = columns
        return {{{", ".join(items)}}}
    return convert
"""
    namespace: dict[str, Any] = {}
    exec(source, namespace)  # noqa: S102
    return namespace["make"]  # type: ignore[no-any-return]
