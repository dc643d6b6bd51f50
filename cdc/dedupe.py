"""Exactly once in PostgreSQL: a handler's writes and the record that they are done are one transaction.

Owns the table of what is done and the transaction around the handler's own statements. It must not know what the
handler writes. Why a table of positions, and not one position per handler: a dead letter that is retried, and what was
parked, come long after later events, so that "up to here" does not tell what is done.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import datetime, timedelta
from functools import wraps
from typing import Any, TypeAlias, TypeVar, cast, overload

from psycopg import AsyncConnection, Connection, errors, sql

from cdc.codes import Code
from cdc.errors import CallbackError
from cdc.events import DatabaseEvent

__all__ = ["exactly_once"]

KEEP = timedelta(days=30)
"""An event that is settled and past the checkpoint never comes again, within seconds. Longer: a state that was restored
from a backup, a checkpoint that could not be written for days, a dead letter retried by a service that then crashed."""
PRUNE_EVERY = 100
"""Calls between two looks for what is too old: one more statement in a hundred."""

H = TypeVar("H")
E = TypeVar("E", DatabaseEvent, Sequence[DatabaseEvent])
AsyncMethod: TypeAlias = Callable[[H, E, AsyncConnection[Any]], Awaitable[None]]
Method: TypeAlias = Callable[[H, E, Connection[Any]], None]
_Identity: TypeAlias = tuple[str, datetime]


class _Decorator:
    """What `exactly_once` returns; both kinds of methods may be decorated."""

    def __init__(self, done: _Done) -> None:
        self._done = done

    @overload
    def __call__(self, method: AsyncMethod[H, E]) -> Callable[[H, E], Coroutine[Any, Any, None]]: ...
    @overload
    def __call__(self, method: Method[H, E]) -> Callable[[H, E], None]: ...

    def __call__(self, method: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any], Any]:
        if method.__name__ not in ("handle", "handle_batch"):
            raise TypeError(f"exactly_once is for `handle` and `handle_batch`, not {method.__name__}")
        is_batch = method.__name__ == "handle_batch"
        return (_async if inspect.iscoroutinefunction(method) else _plain)(method, self._done, is_batch=is_batch)


def exactly_once(name: str, *, table: str = "walsignal_done", keep: timedelta = KEEP) -> _Decorator:
    """Make ``handle(self, event, connection)`` or ``handle_batch(self, events, connection)`` exactly-once.

    The object gives connections: ``self.connection()`` returns a psycopg connection, or what ``async with`` (for a
    plain method ``with``) makes one of, such as ``pool.connection()``. The method writes through the `connection` it is
    given, and must not commit: its statements and the record that the events are done are committed together when
    it returns, and rolled back when it raises. Events that are done are left out; without any other it is not called.
    Any `concurrency`; with one, in commit order.

    `name` tells handlers apart that share the table: keep it for as long as the handler lives. `table` is made when it
    is missing, where the connection's `search_path` says, and forgets an event `keep` after it was done.
    `synchronous_commit` is raised to `on` for the transaction where it is `off`.
    """
    if not name:
        raise ValueError("exactly_once: a handler needs a name")
    return _Decorator(_Done(name, table, keep))


class _Done:
    """The statements on the table of what is done, for one handler."""

    def __init__(self, name: str, table: str, keep: timedelta) -> None:
        self.name = name
        self.keep = keep
        self.table = table
        self._calls = 0
        self._since = 0  # events since the last look; lanes in threads may miscount a few, which does no harm
        names = {"table": sql.Identifier(table)}
        # The key is wider than the position: on another cluster the same positions are other events. Where another
        # transaction has just written the same key, this waits for its end: only one of them has the event.
        self.claim = sql.SQL(
            "INSERT INTO {table} (handler, position, committed_at) SELECT %s, unnest(%s::text[]),"
            " unnest(%s::timestamptz[]) ON CONFLICT DO NOTHING RETURNING position, committed_at"
        ).format(**names)
        self.prune = sql.SQL(
            "DELETE FROM {table} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {table}"
            " WHERE handler = %s AND done_at < now() - %s LIMIT %s))"
        ).format(**names)
        self.create = sql.SQL(
            'CREATE TABLE IF NOT EXISTS {table} (handler text NOT NULL, position text COLLATE "C" NOT NULL,'
            " committed_at timestamptz NOT NULL, done_at timestamptz NOT NULL DEFAULT now(),"
            " PRIMARY KEY (handler, position, committed_at));"
            " CREATE INDEX IF NOT EXISTS {index} ON {table} (handler, done_at)"
        ).format(index=sql.Identifier(f"{table}_done_at"), **names)
        self.lock = "SELECT pg_advisory_xact_lock(hashtext(%s))"  # two services that start make the table once
        self.durable = (
            "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"
        )

    def arguments(self, events: Sequence[DatabaseEvent]) -> list[Any]:
        """Of `claim`."""
        return [self.name, [str(event.position) for event in events], [event.timestamp for event in events]]

    def pruning(self, events: Sequence[DatabaseEvent]) -> list[Any] | None:
        """Arguments of `prune` when it is time for it: at most twice as many as were done since the last time."""
        self._calls += 1
        self._since += len(events)
        if self._calls % PRUNE_EVERY:
            return None
        most, self._since = 2 * self._since, 0
        return [self.name, self.keep, most]


def _fresh(events: Sequence[DatabaseEvent], claimed: Sequence[_Identity]) -> list[DatabaseEvent]:
    new = set(claimed)
    return [event for event in events if (str(event.position), event.timestamp) in new]


def _checked(events: Any, *, is_batch: bool) -> Sequence[DatabaseEvent]:
    found: Sequence[DatabaseEvent] = events if is_batch else [events]
    if any(event.position.commit_lsn == 0 for event in found):
        raise CallbackError(
            "an event without a position cannot be told from others",
            hint="it was made by hand",
            code=Code.CALLBACK_WRONG,
        )
    return found


def _async(method: Callable[[Any, Any, Any], Any], done: _Done, *, is_batch: bool) -> Callable[[Any, Any], Any]:
    @wraps(method)
    async def handle(self: Any, given: Any) -> None:
        events = _checked(given, is_batch=is_batch)
        source = self.connection()
        async with await source if inspect.isawaitable(source) else source as connection:
            try:
                await once(self, events, connection)
            except _NoTable:
                async with connection.transaction():
                    await connection.execute(done.lock, [done.table])
                    await connection.execute(done.create)
                await once(self, events, connection)

    async def once(self: Any, events: Sequence[DatabaseEvent], connection: AsyncConnection[Any]) -> None:
        async with connection.transaction():
            await connection.execute(done.durable)
            try:
                cursor = await connection.execute(done.claim, done.arguments(events))
            except errors.UndefinedTable:
                raise _NoTable from None
            new = _fresh(events, cast(list[_Identity], await cursor.fetchall()))
            if new:
                await method(self, new if is_batch else new[0], connection)
            if (pruning := done.pruning(events)) is not None:
                await connection.execute(done.prune, pruning)

    return handle


def _plain(method: Callable[[Any, Any, Any], Any], done: _Done, *, is_batch: bool) -> Callable[[Any, Any], Any]:
    @wraps(method)
    def handle(self: Any, given: Any) -> None:
        events = _checked(given, is_batch=is_batch)
        with self.connection() as connection:
            try:
                once(self, events, connection)
            except _NoTable:
                with connection.transaction():
                    connection.execute(done.lock, [done.table])
                    connection.execute(done.create)
                once(self, events, connection)

    def once(self: Any, events: Sequence[DatabaseEvent], connection: Connection[Any]) -> None:
        with connection.transaction():
            connection.execute(done.durable)
            try:
                cursor = connection.execute(done.claim, done.arguments(events))
            except errors.UndefinedTable:
                raise _NoTable from None
            new = _fresh(events, cursor.fetchall())
            if new:
                method(self, new if is_batch else new[0], connection)
            if (pruning := done.pruning(events)) is not None:
                connection.execute(done.prune, pruning)

    return handle


class _NoTable(Exception):
    """The table of what is done is not there yet."""
