-- A schema for the service's state, when it lies in PostgreSQL: checkpoint, dead letters, records. After role.sql:
--
--   psql -d DATABASE -v role=cdc -v schema=walsignal -f state.sql
--
-- and in cdc.toml: state.url = "postgresql://cdc@HOST/DATABASE?schema=walsignal". The service makes the tables. It need
-- not be the database that is read. Dead letters hold rows: nobody else may look.

\set ON_ERROR_STOP on
\if :{?role}
\else
    \set role cdc
\endif
\if :{?schema}
\else
    \set schema walsignal
\endif

SELECT format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), :'role') \gexec
CREATE SCHEMA IF NOT EXISTS :"schema" AUTHORIZATION :"role";
REVOKE ALL ON SCHEMA :"schema" FROM PUBLIC;
