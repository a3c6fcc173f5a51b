psql -v ON_ERROR_STOP=1 -v VERBOSITY=terse --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
\set owner_password `cat /run/secrets/torpor/database-password`
\set monitoring_password `cat /run/secrets/torpor/monitoring-password`
SET log_statement = none;
SET log_min_duration_statement = -1;
SET log_min_error_statement = panic;
SET track_activities = off;
CREATE ROLE hummingbot LOGIN PASSWORD :'owner_password';
ALTER DATABASE hummingbot OWNER TO hummingbot;
ALTER SCHEMA public OWNER TO hummingbot;
CREATE ROLE monitoring LOGIN PASSWORD :'monitoring_password' IN ROLE pg_monitor;
SQL
rm -f "${PGDATA%/*}/first-start"
