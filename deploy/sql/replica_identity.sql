-- The tables whose updates and deletes do not reach the service, and what mends each:
--
--   psql -d DATABASE -f replica_identity.sql
--
-- One query that writes nothing: any role may run it, also on a standby. Read the statements before you run them.
-- Without a usable replica identity the server sends a warning in place of such a change. A primary key is one, if it is not
-- deferrable; so is a unique index that is whole, not deferrable, and over columns that are NOT NULL. FULL works for every
-- table, and writes the whole old row to the WAL with each update and delete.

WITH usable AS (  -- the indexes that may identify a row, the best of each table first
    SELECT i.indrelid, c.relname AS name, i.indisprimary,
           row_number() OVER (PARTITION BY i.indrelid ORDER BY i.indisprimary DESC, i.indnkeyatts, c.relname) AS rank
    FROM pg_catalog.pg_index i
    JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
    WHERE i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
      AND NOT EXISTS (
          SELECT FROM pg_catalog.pg_attribute a
          WHERE a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]) AND NOT a.attnotnull)
)
SELECT format('%I.%I', n.nspname, c.relname) AS "table",
       CASE c.relreplident
           WHEN 'n' THEN 'its replica identity is NOTHING'
           WHEN 'i' THEN 'the index of its replica identity is gone or not valid'
           ELSE 'it has no primary key, or a deferrable one'
       END AS problem,
       format('ALTER TABLE %I.%I REPLICA IDENTITY ', n.nspname, c.relname)
       || CASE WHEN u.indisprimary THEN 'DEFAULT' WHEN u.name IS NOT NULL THEN format('USING INDEX %I', u.name) ELSE 'FULL' END
       || ';' AS mend
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN usable u ON u.indrelid = c.oid AND u.rank = 1
WHERE c.relkind = 'r' AND c.relpersistence = 'p'
  AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\_toast%'
  AND CASE c.relreplident
          WHEN 'f' THEN false
          WHEN 'd' THEN NOT EXISTS (
              SELECT FROM pg_catalog.pg_index i
              WHERE i.indrelid = c.oid AND i.indisprimary AND i.indisvalid AND i.indimmediate)
          WHEN 'i' THEN NOT EXISTS (
              SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisreplident AND i.indisvalid)
          ELSE true
      END
ORDER BY 1;
