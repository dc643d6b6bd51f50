-- The role of one walsignal service: what it needs, and nothing else. Run by a superuser, in the database to be read:
--
--   psql -d DATABASE -v role=cdc -f role.sql            then, in psql: \password cdc
--
-- Any number of times; an existing role is made what it should be. What REPLICATION gives is a lot, and cannot be made
-- less: the role reads every row of this database through a slot, whatever it may SELECT and whatever the row security
-- says, makes and drops slots, and can copy the whole cluster. Treat its password as that of the data itself.

\set ON_ERROR_STOP on
\if :{?role}
\else
    \set role cdc
\endif

SELECT format('CREATE ROLE %I', :'role')
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = :'role') \gexec

-- Connections: the stream, the monitor, the state, and room for the commands beside the running service.
ALTER ROLE :"role" LOGIN REPLICATION NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS NOINHERIT CONNECTION LIMIT 10;

-- No name that it resolves can be one that somebody else has made.
ALTER ROLE :"role" SET search_path = pg_catalog;

SELECT format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), :'role') \gexec

-- Tables need no grant: the stream asks for none. Nobody but you gives it one.
