CREATE EXTENSION hstore;
CREATE TYPE mood AS ENUM ('ok', 'so "so"');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN amount AS numeric CHECK (value > 0);
CREATE TABLE wide (
    id bigint, at timestamptz, b bool, by bytea, i2 int2, i4 int4, f4 float4, f8 float8, n numeric, t text,
    c char(3), j json, jb jsonb, d date, ts timestamp, ti time, tz timetz, iv interval, u uuid, ip inet,
    net cidr, mac macaddr, bits varbit, m money, x xml, p point, r int4range, tr tstzrange, mr int4multirange,
    ia int[], ta text[], na numeric[], jba jsonb[], o oid, e mood, ea mood[], pr pair, am amount, h hstore,
    v tsvector, PRIMARY KEY (id, u)
);
CREATE TABLE "odd ""name""" ("k.1" text PRIMARY KEY, "ü\" int, __tags__ text[], __is_active__ bool, big text);
ALTER TABLE "odd ""name""" REPLICA IDENTITY FULL;
ALTER TABLE "odd ""name""" ALTER big SET STORAGE EXTERNAL;
CREATE TABLE nothing ();
CREATE TABLE keyless (n int);
ALTER TABLE keyless REPLICA IDENTITY NOTHING
-- next
INSERT INTO wide VALUES (
    9223372036854775807, '2024-02-29 12:00:00.5+05:30', true, '\x00ff', -32768, 2147483647, 1e-30, '-0', 1.500,
    E'line\nquote" back\\slash \u2028 \U0001F600', 'a', '{"a" :  [1e400, "\ud800"]}', '{"k": null}', '0044-03-15 BC',
    'infinity', '24:00:00', '12:00:00+15:59:59', '1 year 2 mons -3 days 04:05:06.7',
    'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '::1/64', '10.0.0.0/8', '08:00:2b:01:02:03', B'0101', 1.5, '<a>&amp;</a>',
    '(1,2)', '[1,5)', '["2024-01-01 00:00:00+00",)', '{[1,2),[5,6)}', '{1,NULL,3}', '[0:1]={"a,\"b",NULL}',
    '{1.10,NaN}', ARRAY['{"x":1}'::jsonb], 4294967295, 'so "so"', '{ok,NULL}', '(1,"a,b")', 2.50,
    'a=>NULL, b=>"c"', 'a fat cat'
);
INSERT INTO wide (id, u) VALUES (1, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a12');
UPDATE wide SET n = 'NaN', f8 = 'Infinity' WHERE id = 1;
UPDATE wide SET id = 2 WHERE id = 1;
DELETE FROM wide WHERE id = 2
-- next
SELECT pg_logical_emit_message(true, 'cdc.tags', 'audit:required, user:42');
INSERT INTO "odd ""name""" VALUES ('a.b', 1, '{x,"y,z"}', true, repeat('long ', 500));
UPDATE "odd ""name""" SET "ü\" = 2;
UPDATE "odd ""name""" SET __is_active__ = false;
DELETE FROM "odd ""name"""
-- next
INSERT INTO nothing DEFAULT VALUES;
INSERT INTO keyless VALUES (1);
TRUNCATE keyless, wide
-- next
SELECT pg_logical_emit_message(false, 'cdc.tags', 'outside')
-- next
SELECT pg_logical_emit_message(true, 'bytes', '\xfffe'::bytea)
