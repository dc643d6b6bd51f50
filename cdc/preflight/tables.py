"""The tables that the patterns choose: is there one, do updates and deletes reach us, are values left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from cdc.patterns import TablePatterns
from cdc.preflight.findings import Finding, ok, quoted, warning

__all__ = ["TableRow", "judge", "read"]

MAX_NAMED = 5  # tables in one sentence; the fix names all of them

# Ordinary tables and leaf partitions: what changes are reported of. A deferrable key, and an index that is
# not valid, identify nothing (RelationGetIndexList in the server's relcache.c).
_QUERY = """
SELECT n.nspname, c.relname, c.relreplident = 'f',
       CASE c.relreplident
           WHEN 'f' THEN true
           WHEN 'd' THEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid
                                 AND i.indisprimary AND i.indisvalid AND i.indimmediate)
           WHEN 'i' THEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid
                                 AND i.indisreplident AND i.indisvalid)
           ELSE false
       END,
       EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary),
       EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid
               AND i.indisprimary AND i.indisvalid AND i.indimmediate),
       CASE WHEN c.reltoastrelid = 0 THEN ARRAY[]::text[] ELSE ARRAY(
           SELECT a.attname::text FROM pg_attribute a
           WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attstorage IN ('x', 'e')
           ORDER BY a.attnum)
       END
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence = 'p'
  AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_toast%'
ORDER BY 1, 2
"""


@dataclass(frozen=True, slots=True)
class TableRow:
    """What the catalog says of one table."""

    schema: str
    name: str
    has_full_identity: bool
    has_identity: bool
    has_primary_key: bool
    has_usable_key: bool
    toastable: Sequence[str]

    @property
    def quoted(self) -> str:
        """For SQL."""
        return quoted(self.schema, self.name)

    @property
    def full_identity(self) -> str:
        """The statement that makes old rows come whole."""
        return f"ALTER TABLE {self.quoted} REPLICA IDENTITY FULL;"


async def read(connection: AsyncConnection[TupleRow], patterns: TablePatterns) -> list[TableRow]:
    """All tables of the database that are chosen."""
    cursor = await connection.execute(_QUERY.encode())
    return [TableRow(*row) async for row in cursor if patterns.matches(row[0], row[1])]


def judge(tables: Sequence[TableRow]) -> Iterator[Finding]:
    """What is told of them."""
    if not tables:
        yield warning(
            "tables",
            "source.tables and exclude_tables leave no table of this database",
            'set source.tables, e.g. ["public.*"]; list the tables: SELECT schemaname, tablename FROM pg_tables;',
        )
        return
    yield ok("tables", f"{len(tables)} {'table is' if len(tables) == 1 else 'tables are'} chosen")
    yield from (_without_identity(table) for table in tables if not table.has_identity)
    toastable = [table for table in tables if table.toastable and not table.has_full_identity]
    if toastable:
        yield warning(
            "toast",
            "updates leave out large values that did not change (`unchanged` names them) of "
            + _listed([f"{table.schema}.{table.name} ({', '.join(table.toastable)})" for table in toastable]),
            " ".join(table.full_identity for table in toastable) + "  -- where they are needed; costs WAL",
        )


def _without_identity(table: TableRow) -> Finding:
    fix = table.full_identity
    if table.has_usable_key:
        fix = f"ALTER TABLE {table.quoted} REPLICA IDENTITY DEFAULT;"
    elif not table.has_primary_key:
        fix += f"  -- or, better: ALTER TABLE {table.quoted} ADD PRIMARY KEY (...);"
    return warning(
        "replica_identity",
        f"table {table.schema}.{table.name} has no replica identity: its updates and deletes do not arrive",
        fix,
    )


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")
