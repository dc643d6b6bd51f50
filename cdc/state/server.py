"""The PostgreSQL server of a state: its URL, a session on it that is pinned, every wait with an end, its refusals.

Must not know tables and owners. No message repeats the URL: it may hold a password.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeVar
from urllib.parse import unquote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cdc.codes import Code
from cdc.errors import StateError

__all__ = ["APPLICATION", "LEASE_SECONDS", "PRIMARY", "Server", "Session", "quoted"]

LEASE_SECONDS = 3.5
"""An owner who is silent for so long has lost the state: three pings, and another takes over within five seconds."""
_LEASE = str(round(LEASE_SECONDS * 1000))
ANSWER_SECONDS = 30.0
"""For one statement: a batch of letters through a slow line, a commit on a busy disk. Then the line counts as dead."""
APPLICATION = "walsignal state: "
"""What sessions are called; behind it, who has opened them."""
_DEFAULT_SCHEMA = "walsignal"
_LONGEST_NAME = 63  # bytes; the server cuts off what is longer
_URL = "write postgresql://USER:PASSWORD@HOST/DATABASE?schema=NAME; in USER and PASSWORD, %40 stands for @"

_CONNECTION = {
    "connect_timeout": "5",
    # A server whose host is gone is given up within about the time in which it would give up on us.
    "keepalives_idle": "1",
    "keepalives_interval": "1",
    "keepalives_count": "2",
    "tcp_user_timeout": _LEASE,
}
_SESSION = {
    "synchronous_commit": "on",  # durable when it returns
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "row_security": "off",  # an error rather than rows that are silently not there
    "bytea_output": "hex",
    "client_min_messages": "warning",
    "jit": "off",
    # A timeout would let a commit through that still waits for its synchronous standby: the end is ours to set.
    "statement_timeout": "0",
    "transaction_timeout": "0",
    "lock_timeout": "5s",  # another command's write takes milliseconds
    "idle_in_transaction_session_timeout": f"{_LEASE}ms",  # a command that was stopped holds up nobody
    "tcp_keepalives_idle": "1",
    "tcp_keepalives_interval": "1",
    "tcp_keepalives_count": "2",
    "tcp_user_timeout": f"{_LEASE}ms",
}
"""Pinned, because ALTER ROLE and ALTER DATABASE ... SET reach here; what a server does not know is left out."""

PRIMARY = "a standby and a read-only session cannot: name the primary in state.url"
"""What the operator does about a state that cannot be written."""
_CONNECT = "42501 CONNECT"  # the same SQLSTATE as for tables, another remedy
_REFUSALS = {  # SQLSTATE -> what it means here, its code, what to do
    "25006": (
        "cannot be written",
        Code.STATE_NOT_PERMITTED,
        PRIMARY,
    ),
    "28000": (
        "cannot be opened",
        Code.STATE_NOT_PERMITTED,
        "mend user and password in state.url, or the server's pg_hba.conf",
    ),
    "28P01": (
        "cannot be opened",
        Code.STATE_NOT_PERMITTED,
        "mend user and password in state.url, or use a PGPASSFILE",
    ),
    "3D000": ("cannot be opened", Code.STATE_MISSING, "create the database, or mend its name in state.url"),
    "42501": (
        "cannot be used",
        Code.STATE_NOT_PERMITTED,
        "give the role of state.url the schema and its tables: ALTER SCHEMA ... OWNER TO ...;",
    ),
    _CONNECT: (
        "cannot be opened",
        Code.STATE_NOT_PERMITTED,
        "let the role of state.url in: GRANT CONNECT ON DATABASE ... TO ...;",
    ),
    "42P01": (
        "is damaged",
        Code.STATE_DAMAGED,
        "restore the schema from a backup, or drop it: cdc run then makes a new one",
    ),
    "42703": ("is of another program", Code.STATE_FOREIGN, "name another schema in state.url: ?schema=NAME"),
    "53100": ("cannot be written, its server's disk is full", Code.STATE_DISK, "make room on the server"),
    "53300": ("cannot be opened", Code.STATE_UNREACHABLE, "free a connection, or raise max_connections"),
    "55P03": ("is locked by another command", Code.STATE_LOCKED, "wait until it has ended, or end it"),
    "57P05": (
        "was lost, it was silent for too long",
        Code.STATE_UNREACHABLE,
        "cdc run takes it again if nobody else has it",
    ),
}
_SENTENCES = (  # libpq gives no SQLSTATE of a refused connection; what is found in its words -> which it would be
    (r"authentication failed", "28P01"),
    (r"no password supplied", "28P01"),
    (r"pg_hba\.conf", "28000"),
    (r"is not permitted to log in", "28000"),
    (r'FATAL: role "', "28000"),
    (r'FATAL: database ".*" does not exist', "3D000"),
    (r"FATAL: permission denied for database", _CONNECT),
    (r"too many", "53300"),
    (r"remaining connection slots", "53300"),
)
_NO_ANSWER = "is the server up, and state.url right? try: pg_isready"

T = TypeVar("T")


def quoted(name: str) -> str:
    """An identifier as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


class Session(psycopg.Connection[Any]):
    """A connection that gives up when an answer does not come, although the line seems to live."""

    seconds = ANSWER_SECONDS

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:
        """Wait for an answer, not longer than `seconds`; then the connection is of no more use."""
        return super().wait(self._until(gen, monotonic() + self.seconds), *args, **kwargs)

    def _until(self, gen: Generator[Any, Any, T], deadline: float) -> Generator[Any, Any, T]:
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if monotonic() > deadline:
                    self.close()
                    raise psycopg.OperationalError(f"no answer within {self.seconds:g} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            answer: T = end.value
            return answer


@dataclass(frozen=True, slots=True)
class Server:
    """Where a state lies: `parameters` of libpq, and its schema there."""

    parameters: Mapping[str, str]
    schema: str

    @classmethod
    def parse(cls, url: str) -> Server:
        """Read ``postgresql://...?schema=NAME``; StateError names no part of it that may be secret."""
        base, _, query = url.partition("?")
        words = [word for word in query.split("&") if word]
        names = [unquote(word.removeprefix("schema=")) for word in words if word.startswith("schema=")]
        rest = "&".join(word for word in words if not word.startswith("schema="))
        try:
            given = conninfo_to_dict(f"{base}?{rest}" if rest else base)
        except (psycopg.Error, ValueError):
            raise StateError("state.url: libpq cannot read it", hint=_URL, code=Code.STATE_URL_WRONG) from None
        schema = names[-1] if names else _DEFAULT_SCHEMA
        if not 0 < len(schema.encode()) <= _LONGEST_NAME or "\0" in schema:
            raise StateError("state.url: schema= needs a name of 1 to 63 bytes", hint=_URL, code=Code.STATE_URL_WRONG)
        if schema in {"public", "information_schema"} or schema.startswith("pg_"):
            raise StateError(
                f"state.url: the state needs a schema of its own, {schema} is not",
                hint="leave schema= out: walsignal",
                code=Code.STATE_URL_WRONG,
            )
        return cls({key: str(value) for key, value in given.items() if value is not None}, schema)

    def __str__(self) -> str:
        place = self.parameters.get("host") or self.parameters.get("hostaddr") or "localhost"
        port = self.parameters.get("port", "5432")
        return f"state in {place}:{port}/{self.parameters.get('dbname', '')}, schema {self.schema}"

    def connect(self, *, read_only: bool, owner: bool) -> Session:
        """A new session, in autocommit. psycopg.Error: see `explained`."""
        who = f"{APPLICATION}process {os.getpid()} on {socket.gethostname()}"
        pinned = {"client_encoding": "UTF8", "application_name": who[:_LONGEST_NAME]}
        session = Session.connect(make_conninfo("", **{**_CONNECTION, **self.parameters, **pinned}), autocommit=True)
        settings = _SESSION | {
            "search_path": quoted(self.schema),  # what lies before it, pg_catalog, has none of our names
            "default_transaction_read_only": "on" if read_only else "off",
            "idle_session_timeout": f"{_LEASE}ms" if owner else "0",  # since PostgreSQL 14
        }
        try:
            session.execute(
                "SELECT set_config(s.name, w.value, false) FROM unnest(%s::text[], %s::text[]) AS w (name, value) "
                "JOIN pg_catalog.pg_settings s USING (name)",
                [list(settings), list(settings.values())],
            )
        except BaseException:
            session.close()
            raise
        return session

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn what server and libpq say into what the operator does about it."""
        try:
            yield
        except psycopg.Error as error:
            raise self._explanation(error) from None  # libpq's own words may be long, and hold what ours do not

    def _explanation(self, error: psycopg.Error) -> StateError:
        words = " ".join((error.diag.message_primary or str(error)).split())[:300]
        if password := self.parameters.get("password"):
            words = words.replace(password, "***")
        state = error.sqlstate or next((state for pattern, state in _SENTENCES if re.search(pattern, words)), "")
        known = _REFUSALS.get(state)
        if known is None:
            is_line = isinstance(error, psycopg.OperationalError)
            known = (
                ("cannot be reached", Code.STATE_UNREACHABLE, _NO_ANSWER)
                if is_line
                else ("cannot be used", Code.STATE_UNUSABLE, "see the server's log")
            )
        what, code, hint = known
        return StateError(f"{self} {what}: {words}", hint=hint, code=code)
