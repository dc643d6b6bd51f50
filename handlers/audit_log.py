"""The `audit_log` handler: a row per event in a table of PostgreSQL, written once however often it is delivered.

Owns the table, what of an event goes into it, and which errors are for good. Which columns changed is `_changes`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import psycopg
import structlog
from psycopg import AsyncConnection, errors, sql
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from pydantic import Field, SecretStr, field_validator

from cdc import DatabaseEvent, EventType, HandlerOptions, PermanentError

__all__ = ["AuditLog", "AuditLogOptions"]

_log = structlog.get_logger(__name__)

MAX_NAME_BYTES = 63  # PostgreSQL cuts longer identifiers off, and would find another table
_PART = r'(?:[A-Za-z_][A-Za-z0-9_$]*|"(?:[^"\x00]|"")+")'
_TABLE = re.compile(rf"(?:({_PART})\.)?({_PART})")
# A NUL in a JSON string, as only the type json can hold it; an even number of backslashes before it is not part of it.
_NUL = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")
_NUL_SHOWN = "␀".encode()

# Column → its type and condition. The key is wider than the position: on another cluster, after a restore or a
# migration, the same positions are other events, and none of them may be taken for known.
COLUMNS = {
    "position": 'text COLLATE "C" NOT NULL',
    "event_id": "bigint NOT NULL",
    "schema_name": "text NOT NULL",
    "table_name": "text NOT NULL",
    "operation": "text NOT NULL",
    "record_id": "text",
    "user_name": "text",
    "changes": "jsonb NOT NULL",
    "tags": "text[] NOT NULL",
    "committed_at": "timestamptz NOT NULL",
    "transaction_id": "bigint NOT NULL",
}
KEY = ("position", "committed_at")
REASON_SECONDS = 2  # the least that libpq takes; a refusal comes at once, and silence was waited for already

# Errors of the class → for good. Others pass, or pass once an operator has mended the table or its rights.
PERMANENT: tuple[type[psycopg.Error], ...] = (
    errors.DataError,  # a value that the column does not take
    errors.IntegrityError,  # a constraint that somebody has added
    errors.ProgramLimitExceeded,  # a row or a JSON document larger than PostgreSQL's bounds
)


class AuditLogOptions(HandlerOptions):
    """Options of the `audit_log` handler."""

    dsn: SecretStr = Field(description="Where the table lies: a libpq URI or `key=value` string.")
    table: str = Field(
        default="public.audit_log", description="The table, as in SQL: `schema.table`, quoted where need be."
    )
    create_table: bool = Field(default=False, description="Make the table (not its schema) when it is missing.")
    user_tag: str = Field(
        default="user:", min_length=1, description="The first tag that begins with this names the user."
    )
    max_connections: int = Field(
        default=4, ge=1, le=64, description="Connections at most; more than `concurrency` are never used."
    )
    connect_seconds: float = Field(
        default=10.0, gt=0, description="How long an attempt waits for a connection before it fails."
    )

    @field_validator("dsn")
    @classmethod
    def _is_conninfo(cls, value: SecretStr) -> SecretStr:
        try:
            psycopg.conninfo.conninfo_to_dict(value.get_secret_value())
        except psycopg.Error:  # whose text quotes the string
            raise ValueError("is no libpq connection string such as postgresql://user@host/database") from None
        return value

    @field_validator("table")
    @classmethod
    def _is_table(cls, value: str) -> str:
        if not (match := _TABLE.fullmatch(value)) or any(
            len(_name(part).encode()) > MAX_NAME_BYTES for part in match.groups("x")
        ):
            raise ValueError('is no name of a table such as public.audit_log or "My Schema"."Audit"')
        return value

    @property
    def table_parts(self) -> tuple[str, str]:
        """Schema and name as the catalog has them; without a schema it is `public`."""
        match = _TABLE.fullmatch(self.table)
        assert match is not None  # noqa: S101 - the validator has seen it
        return _name(match[1] or "public"), _name(match[2])


def _name(part: str) -> str:
    """An identifier as SQL reads it."""
    return part[1:-1].replace('""', '"') if part.startswith('"') else part.lower()


class AuditLog:
    """Write each event as one row; see `docs/handlers/audit_log.md`.

    Guarantee: exactly once within PostgreSQL. A batch is one statement; a row that is there already, known by
    position and commit time, is left as it is. With `concurrency` > 1 rows are written out of order, and sort by
    `event_id`. Errors: PermanentError for what PostgreSQL refuses for good (see `PERMANENT`), else psycopg's own.
    """

    def __init__(self, options: AuditLogOptions) -> None:
        self.skipped = 0  # rows of this very table, which would otherwise cause rows for ever
        self._options = options
        self._schema, self._table = options.table_parts
        self._pool: AsyncConnectionPool[AsyncConnection[Any]] | None = None
        names = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
        shapes = [sql.SQL(f"{{}} {kind.split()[0]}").format(sql.Identifier(name)) for name, kind in COLUMNS.items()]
        self._insert = sql.SQL(
            "INSERT INTO {table} ({names}) SELECT {names} FROM jsonb_to_recordset(%s::jsonb) AS row ({shapes})"
            " ON CONFLICT ({key}) DO NOTHING"
        ).format(
            table=sql.Identifier(self._schema, self._table),
            names=names,
            shapes=sql.SQL(", ").join(shapes),
            key=sql.SQL(", ").join(map(sql.Identifier, KEY)),
        )

    async def open(self) -> None:
        """Connect, and make the table or see that it fits."""
        if self._pool is not None:
            return
        pool: AsyncConnectionPool[AsyncConnection[Any]] = AsyncConnectionPool(
            self._options.dsn.get_secret_value(),
            kwargs={"autocommit": True},
            min_size=1,
            max_size=self._options.max_connections,
            timeout=self._options.connect_seconds,
            configure=_configure,
            check=AsyncConnectionPool.check_connection,  # after a restart of the server none of the old ones lives
            open=False,
            name="audit_log",
        )
        try:
            await pool.open(wait=True, timeout=self._options.connect_seconds)
            async with pool.connection() as connection:
                await self._prepare(connection)
        except PoolTimeout as timeout:
            await pool.close()
            raise await self._reason(timeout) from None
        except BaseException:
            await pool.close()
            raise
        self._pool = pool

    async def handle_batch(self, events: Sequence[DatabaseEvent]) -> None:
        """Write the rows that are not there yet; they are committed when it returns."""
        if self._pool is None:
            raise RuntimeError("the audit log is not open")
        rows = [self._row(event) for event in events if not self._is_own(event)]
        if not rows:
            return
        document = _NUL.sub(rb"\1" + _NUL_SHOWN, orjson.dumps(rows))
        async with self._pool.connection() as connection:
            try:
                await connection.execute(self._insert, [document.decode()])
            except PERMANENT as error:  # whose text may hold values of the row
                what = f"PostgreSQL refuses the row: SQLSTATE {error.sqlstate} ({type(error).__name__})"
                raise PermanentError(what) from None

    async def close(self) -> None:
        """Close the connections; a second call does nothing."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    async def _reason(self, timeout: PoolTimeout) -> psycopg.Error:
        """Why there is no connection, in the words of server or libpq: the pool says only that it has waited."""
        try:
            connection = await AsyncConnection.connect(
                self._options.dsn.get_secret_value(), connect_timeout=REASON_SECONDS
            )
        except psycopg.Error as error:
            return error
        await connection.close()
        return timeout

    async def _prepare(self, connection: AsyncConnection[Any]) -> None:
        table = sql.Identifier(self._schema, self._table)
        if self._options.create_table:
            await connection.execute(self._create_statement())
        try:
            columns = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
            await connection.execute(sql.SQL("SELECT {} FROM {} LIMIT 0").format(columns, table))
        except (errors.UndefinedTable, errors.UndefinedColumn, errors.InvalidSchemaName) as error:
            statement = self._create_statement().as_string(connection)
            raise RuntimeError(
                f"{error.diag.message_primary}; set create_table = true, or make it: {statement}"
            ) from None

    def _create_statement(self) -> sql.Composed:
        columns = [sql.SQL(f"{{}} {kind}").format(sql.Identifier(name)) for name, kind in COLUMNS.items()]
        return sql.SQL("CREATE TABLE IF NOT EXISTS {} ({}, PRIMARY KEY ({}))").format(
            sql.Identifier(self._schema, self._table),
            sql.SQL(", ").join(columns),
            sql.SQL(", ").join(map(sql.Identifier, KEY)),
        )

    def _is_own(self, event: DatabaseEvent) -> bool:
        """Whether the event tells of a row that this handler wrote; what others do to the table is recorded."""
        if event.table_name != self._table or event.schema != self._schema:
            return False
        if event.event_type is not EventType.CREATE or not COLUMNS.keys() <= event.payload.keys():
            return False
        if not self.skipped:
            _log.warning("own_rows_skipped", table=f"{self._schema}.{self._table}")
        self.skipped += 1
        return True

    def _row(self, event: DatabaseEvent) -> dict[str, Any]:
        values = orjson.loads(event.to_json())  # values in the form that JSON has them, exact
        prefix = self._options.user_tag
        return {
            "position": values["position"],
            "event_id": event.id,
            "schema_name": event.schema,
            "table_name": event.table_name,
            "operation": values["event_type"],
            "record_id": values["record_id"],
            "user_name": next((tag[len(prefix) :] for tag in event.tags if tag.startswith(prefix)), None),
            "changes": _changes(event.event_type, values["payload"], values["before"]),
            "tags": values["tags"],
            "committed_at": values["timestamp"],
            "transaction_id": event.transaction_id,
        }


def _changes(kind: EventType, payload: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    """Column → ``{"old": ..., "new": ...}``, each where it is known; of an update, what did not change is left out."""
    if kind is EventType.DELETE:
        return {name: {"old": value} for name, value in payload.items()}
    if kind is not EventType.UPDATE or before is None:
        return {name: {"new": value} for name, value in payload.items()}
    return {
        name: {"old": before[name], "new": value} if name in before else {"new": value}
        for name, value in payload.items()
        if name not in before or before[name] != value
    }


async def _configure(connection: AsyncConnection[Any]) -> None:
    """Settled means durable: a server whose commits do not wait for its disk is asked to wait for ours."""
    await connection.execute(
        "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
    )
