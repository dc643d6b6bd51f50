-- cdc.tag('audit', 'user:42'): every later change of the transaction carries these tags. For applications in any language:
--
--   psql -d DATABASE -f tag.sql
--
--   BEGIN;
--   SELECT cdc.tag('audit', 'user:42');
--   UPDATE ...;
--   COMMIT;
--
-- Any role may call it, as any role may call pg_logical_emit_message, which it stands for. Rolled back with the transaction,
-- and outside of one it tags nothing. A tag that is empty or holds a comma is an error: it would become none, or two.
-- The prefix is that of source.tag_message_prefix.

\set ON_ERROR_STOP on

CREATE SCHEMA IF NOT EXISTS cdc;

CREATE OR REPLACE FUNCTION cdc.tag(VARIADIC tags text[]) RETURNS void
    LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
    SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    one text;
BEGIN
    IF cardinality(tags) = 0 THEN
        RAISE EXCEPTION 'cdc.tag needs a tag' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    FOREACH one IN ARRAY tags LOOP
        IF one IS NULL OR one ~ '^\s*$' OR strpos(one, ',') > 0 THEN
            RAISE EXCEPTION '% is no tag: it is empty, or holds a comma', quote_nullable(one)
                USING ERRCODE = 'invalid_parameter_value';
        END IF;
    END LOOP;
    PERFORM pg_logical_emit_message(true, 'cdc.tags', array_to_string(tags, ','));
END
$function$;

COMMENT ON FUNCTION cdc.tag(text[]) IS 'walsignal: tag the later changes of this transaction';

GRANT USAGE ON SCHEMA cdc TO PUBLIC;
GRANT EXECUTE ON FUNCTION cdc.tag(text[]) TO PUBLIC;
