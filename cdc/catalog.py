"""The catalog: types, and columns that can be TOASTed, of the source database.

Owns the queries on `pg_catalog` and the short-lived ordinary connections they run on; answers from memory
and asks the server only for what came into being since the last :meth:`Catalog.load`. It must not know the
stream: what the catalog says is how things are now, while the stream may still tell of yesterday.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from threading import Lock
from typing import Any, TypeAlias

import psycopg
from psycopg.conninfo import conninfo_to_dict

from cdc.codes import Code
from cdc.errors import CdcError, StreamLost
from cdc.values import Loaders, TypeInfo, TypeKind

__all__ = ["Catalog", "Table"]

Table: TypeAlias = tuple[str, str]

# Seconds. A worker thread, at worst the event loop, waits for a single look-up.
CONNECT_TIMEOUT = 5
# Against ALTER ROLE or DATABASE ... SET, as on the replication connection. The queries take milliseconds;
# only a lock on the catalog itself, of a VACUUM FULL, could hold them up.
SESSION = "-c search_path=pg_catalog -c statement_timeout=5s"
# Milliseconds: a server that vanished without a word is given up as soon as one that does not answer.
TCP_USER_TIMEOUT = 5000

# All types but the row types of tables and their arrays, which hardly any column has: of these only the one
# asked for. An array type is one that its element names in typarray; int2vector and point have elements, too.
TYPES = """
    SELECT t.oid, t.typname, CASE WHEN e.oid IS NULL THEN t.typtype ELSE 'a' END,
           coalesce(e.oid, 0), coalesce(e.typdelim, ','), t.typbasetype
    FROM pg_catalog.pg_type t
    LEFT JOIN pg_catalog.pg_type e ON e.typarray = t.oid
    LEFT JOIN pg_catalog.pg_class c ON c.oid = coalesce(nullif(e.typrelid, 0), t.typrelid)
    WHERE c.oid IS NULL OR c.relkind = 'c' OR t.oid = %s
"""
# The server leaves a value out of an UPDATE only if it is stored outside of the row: of variable length, whatever the
# column's storage. ALTER COLUMN ... SET STORAGE PLAIN leaves the values where they are.
TOASTABLE = """
    SELECT n.nspname, c.relname,
           array_agg(a.attname::text) FILTER (WHERE a.attlen = -1)
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE c.relkind IN ('r', 'p')
"""
ALL_TABLES = TOASTABLE + "AND n.nspname <> 'pg_catalog' AND c.relpersistence = 'p' GROUP BY 1, 2"
ONE_TABLE = TOASTABLE + "AND n.nspname = %s AND c.relname = %s GROUP BY 1, 2"

_KINDS = {kind.value: kind for kind in TypeKind}
_NO_TYPE = 0  # as an OID


class Catalog:
    """Types and TOAST columns of the database at `dsn`, a libpq URI or key=value string.

    :meth:`load` first. ``loaders[oid](value)`` makes payload values (see `cdc.values`). Any thread may ask.
    """

    def __init__(self, dsn: str, *, numbers_as_text: bool = False) -> None:
        self.loaders = Loaders(self.resolve, numbers_as_text=numbers_as_text)
        self._params = _session_params(dsn)
        self._asking = Lock()  # one look-up at a time: the others want the same answer, more often than not
        self._replacing = Lock()  # of the maps; never held while a database is waited for
        self._types: Mapping[int, TypeInfo] = {}
        self._toastable: Mapping[Table, frozenset[str]] = {}

    async def load(self) -> None:
        """Read all types and tables; StreamLost when the database cannot be asked."""
        try:
            async with await psycopg.AsyncConnection.connect(**self._params, autocommit=True) as connection:
                types = await (await connection.execute(TYPES, [_NO_TYPE])).fetchall()
                tables = await (await connection.execute(ALL_TABLES)).fetchall()
        except psycopg.OperationalError as error:
            raise StreamLost(
                f"the catalog of the source database cannot be read: {_first_line(error)}",
                reason="catalog_unreachable",
            ) from error
        self._remember(types, tables)

    async def refresh(self) -> None:
        """Read all again. Types and tables that are gone stay known: the stream may still carry them."""
        await self.load()

    @property
    def tables(self) -> Collection[Table]:
        """Schema and name of each that a look has found; right after :meth:`load`, of all whose changes are logged."""
        return self._toastable.keys()

    def resolve(self, oid: int) -> TypeInfo | None:
        """What type `oid` is; None when the database has no such type (any more)."""
        if (info := self._types.get(oid)) is not None:
            return info
        with self._asking:
            if oid not in self._types:
                self._remember(self._ask(TYPES, [oid], f"type OID {oid}"), [])
            return self._types.get(oid)

    def toastable(self, schema: str, table: str) -> frozenset[str]:
        """The columns that the server may leave out of an UPDATE; none of a table it does not have."""
        key = (schema, table)
        if (columns := self._toastable.get(key)) is not None:
            return columns
        with self._asking:
            if key not in self._toastable:
                rows = self._ask(ONE_TABLE, [schema, table], f"table {schema}.{table}")
                self._remember([], rows or [(schema, table, None)])
            return self._toastable[key]

    def known_toastable(self, schema: str, table: str) -> frozenset[str] | None:
        """The same without asking anybody; None of a table that came into being since the last look."""
        return self._toastable.get((schema, table))

    def _remember(self, types: list[tuple[Any, ...]], tables: list[tuple[Any, ...]]) -> None:
        """Replace the maps, never change one: readers take no lock."""
        infos = {row[0]: _type_info(*row) for row in types}
        toastable = {(schema, table): frozenset(columns or ()) for schema, table, columns in tables}
        with self._replacing:
            self._types = {**self._types, **infos}
            self._toastable = {**self._toastable, **toastable}

    def _ask(self, query: str, args: list[Any], subject: str) -> list[tuple[Any, ...]]:
        try:
            with psycopg.connect(**self._params, autocommit=True) as connection:
                return connection.execute(query.encode(), args).fetchall()
        except psycopg.OperationalError as error:
            raise CdcError(
                f"{subject} is not known and the database cannot be asked: {_first_line(error)}",
                hint="it is newer than the last look at the catalog; try again when the database is back",
                code=Code.CATALOG_UNREACHABLE,
            ) from error


def _session_params(dsn: str) -> dict[str, Any]:
    params: dict[str, Any] = {"application_name": "cdc", **conninfo_to_dict(dsn)}
    return {
        **params,
        "options": f"{params.get('options', '')} {SESSION}".strip(),
        "client_encoding": "UTF8",
        "connect_timeout": CONNECT_TIMEOUT,
        "tcp_user_timeout": TCP_USER_TIMEOUT,
    }


def _type_info(oid: int, name: str, kind: str, element: int, delimiter: str, base: int) -> TypeInfo:
    # Pseudo-types (p) are no column's, and of a kind that is yet to be invented the text is all we know.
    return TypeInfo(oid, name, _KINDS.get(kind, TypeKind.BASE), element, delimiter, base)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
