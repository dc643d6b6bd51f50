"""The state in a schema of a PostgreSQL database, durable when saved, held by one owner.

Owns sessions and transactions; must not know what the rows mean. Nothing is written but what is asked for:
opening for reading, pings and all questions leave no WAL.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from zlib import crc32

import psycopg

from cdc.codes import Code
from cdc.consumer import Consumer
from cdc.errors import StateBusy, StateError
from cdc.state import lock
from cdc.state.layout import only_row, require_layout
from cdc.state.rows import clean
from cdc.state.server import Server, Session
from cdc.state.store import RowStore

__all__ = ["PostgresState"]

_PING_SECONDS = 2.0  # a ping that needs longer has not kept the state anyway
_CLOSE_SECONDS = 2.0


class PostgresState(RowStore):
    """The :class:`~cdc.state.records.StateStore` on a server. For one thread at a time, any thread.

    The owner comes back after its connection was lost, if nobody else has owned the state meanwhile.
    """

    def __init__(self, server: Server, *, read_only: bool, owner: bool) -> None:
        self.where = str(server)
        self.schema = server.schema
        self.leased = owner
        self.taken_over = False
        self.consumer: Consumer | None = None
        self._server = server
        self._read_only = read_only
        self._session: Session | None = None
        self._is_ascii = False
        self._holder: lock.Holder | None = None
        self._term: int | None = None
        self._own_writes = 0
        self._refusal: StateError | None = None  # of everything, for ever

    @classmethod
    def open(cls, url: str, *, read_only: bool = False, owner: bool = False) -> PostgresState:
        """See :func:`cdc.state.open_state`."""
        state = cls(Server.parse(url), read_only=read_only, owner=owner)
        with state._server.explained():
            state._connect()
        return state

    def version(self) -> int:
        """See :class:`~cdc.state.records.StateStore`; so for all methods."""
        with self._used() as session:
            row = session.execute("SELECT version FROM service").fetchone()
            return int(row[0] if row else 0) - self._own_writes

    def ping(self) -> None:
        with self._used(_PING_SECONDS) as session:
            row = session.execute("SELECT term FROM service").fetchone()
            self._refuse_unless(row is not None and self._term in {None, row[0]})

    def shares_wal(self, system_identifier: str) -> bool:
        with self._used() as session:
            row = session.execute("SELECT system_identifier::text FROM pg_control_system()").fetchone()
            return row is not None and row[0] == system_identifier

    def close(self) -> None:
        session, self._session = self._session, None
        self._refusal = self._refusal or StateError(f"{self.where} is closed")
        if session is None:
            return
        with suppress(psycopg.Error), session:  # the connection may have ended: then so has the ownership
            session.seconds = _CLOSE_SECONDS
            if self._term is not None:
                session.execute("UPDATE service SET owner = '' WHERE term = %s", [self._term])
                # The server lets it go by itself when it notices the end of the connection: by then the next one,
                # who was told that we are done, may have been refused.
                session.execute("SELECT pg_advisory_unlock_all()")

    # Sessions ---------------------------------------------------------------------------------------

    def _connect(self) -> None:
        session = self._server.connect(read_only=self._read_only, owner=self.leased)
        try:
            require_layout(session, self._server, read_only=self._read_only)
            self._is_ascii = session.info.parameter_status("server_encoding") not in {"UTF8", "SQL_ASCII"}
            if self.leased:
                self._own(session)
        except BaseException:
            session.close()
            raise
        self._session = session

    def _own(self, session: Session) -> None:
        """Take the lock; after a loss, only go on in the same term: nobody has written as the owner since."""
        self._holder = lock.take(session, self._server, self._holder)
        if self._term is None:
            with session.transaction():
                term, before = only_row(session, "SELECT term, owner FROM service FOR UPDATE")
                session.execute("UPDATE service SET term = term + 1, owner = %s", [str(self._holder)])
            self._term, self.taken_over = term + 1, bool(before)
            (cluster,) = only_row(session, "SELECT system_identifier FROM pg_control_system()")
            place = crc32(f"{session.info.dbname}/{self.schema}".encode())
            self.consumer = Consumer(f"{cluster & 2**64 - 1:x}{place:08x}", term + 1)
        else:
            self._refuse_unless(only_row(session, "SELECT term FROM service") == (self._term,))

    def _refuse_unless(self, still_ours: bool) -> None:
        if still_ours:
            return
        session, self._session = self._session, None
        if session is not None:
            session.close()
        self._refusal = StateBusy(
            f"{self.where} was taken over by another cdc run: nothing more is written here",
            holder="another cdc run",
            hint="start cdc run again: it waits for that one",
            code=Code.STATE_TAKEN_OVER,
        )
        raise self._refusal

    @contextmanager
    def _used(self, seconds: float = Session.seconds) -> Iterator[Session]:
        """The session, made anew for an owner who lost it."""
        with self._server.explained():
            if self._refusal is not None:
                raise self._refusal
            if self._session is None:
                if not self.leased:
                    raise StateError(
                        f"{self.where}: the connection was lost", hint="try again", code=Code.STATE_UNREACHABLE
                    )
                self._connect()
            session = self._session
            assert session is not None  # noqa: S101 - connected
            session.seconds = seconds
            try:
                yield session
            except BaseException:
                if session.closed:
                    self._session = None
                raise
            finally:
                session.seconds = Session.seconds

    # Transactions -----------------------------------------------------------------------------------

    @contextmanager
    def _reading(self) -> Iterator[_Rows]:
        with self._transaction("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY") as rows:
            try:
                yield rows
            except (TypeError, ValueError) as error:  # values that no version of cdc writes
                raise StateError(
                    f"{self.where} is damaged: {error}", hint="restore it from a backup", code=Code.STATE_DAMAGED
                ) from error

    @contextmanager
    def _writing(self) -> Iterator[_Rows]:
        with self._transaction("BEGIN") as rows:
            # The lock of all writers, which sees what the writer before has committed.
            if self._term is None:
                rows.execute("UPDATE service SET version = version + 1")
            else:
                raised = rows.execute("UPDATE service SET version = version + 1 WHERE term = ?", [self._term])
                self._refuse_unless(raised.rowcount == 1)
            yield rows
        self._own_writes += 1

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[_Rows]:
        with self._used() as session:
            session.execute(begin.encode())
            try:
                yield _Rows(session, is_ascii=self._is_ascii)
                answer = session.execute("COMMIT").statusmessage
            except BaseException:
                with suppress(psycopg.Error):  # the first error tells more than that of the rollback
                    session.execute("ROLLBACK")
                raise
            if answer != "COMMIT":
                raise StateError(f"{self.where}: the server has rolled back", hint="see the server's log")


class _Rows:
    def __init__(self, session: Session, *, is_ascii: bool) -> None:
        self._session = session
        self._is_ascii = is_ascii

    def execute(self, statement: str, values: Sequence[Any] = ()) -> psycopg.Cursor[Any]:
        return self._session.execute(_numbered(statement), values)

    def executemany(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        with self._session.cursor() as cursor:
            cursor.executemany(_numbered(statement), rows)

    def has_table(self, name: str) -> bool:
        found = self._session.execute(
            "SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = current_schema() AND c.relname = %s",
            [name],
        )
        return found.fetchone() is not None

    def among(self, ids: Collection[int]) -> tuple[str, list[int]]:
        return "id = ANY (CAST(? AS bigint[]))", [number for number in ids if 0 < number < 2**63]

    def text(self, text: str) -> str:
        """A database of another encoding than UTF-8 cannot keep every letter."""
        return clean(text).encode("ascii", "backslashreplace").decode() if self._is_ascii else clean(text)


def _numbered(statement: str) -> bytes:
    return statement.replace("?", "%s").encode()
