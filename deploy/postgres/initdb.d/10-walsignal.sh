#!/usr/bin/env bash
# Run by the official image's entry point when it has made a new cluster: role, state schema and cdc.tag() in $POSTGRES_DB.
# $CDC_PASSWORD_FILE holds the role's password; it stands on no command line and in no log.
set -euo pipefail

: "${CDC_PASSWORD_FILE:?names the file with the password of the role}"
export CDC_PASSWORD_FILE
sql=${CDC_SQL:-/usr/share/walsignal/sql}
run=(psql --no-psqlrc --quiet --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" --set ON_ERROR_STOP=1 --set "role=${CDC_ROLE:-cdc}")

for file in role state tag; do
    "${run[@]}" --file "$sql/$file.sql"
done

"${run[@]}" <<'SQL'
SET log_statement = 'none';
SET log_min_duration_statement = -1;
SET log_min_error_statement = 'panic';
\set password `cat "$CDC_PASSWORD_FILE"`
ALTER ROLE :"role" PASSWORD :'password';
SQL
