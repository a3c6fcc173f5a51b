#!/bin/sh
# Keeps the contract of the official PostgreSQL image, as far as an operator relies on it: an empty PGDATA becomes a
# database by the POSTGRES_ variables and the files of /docker-entrypoint-initdb.d, then the server takes this
# process's place.
set -e

[ "${1#-}" = "${1-}" ] || set -- postgres "$@"
[ "${1:-postgres}" = postgres ] || exec "$@"
[ $# -gt 0 ] || set -- postgres

if [ "$(id -u)" = 0 ]; then
  echo "PostgreSQL does not run as root: start the container as user 999" >&2
  exit 1
fi

mkdir -p "$PGDATA"
# The kubelet adds rights of the group, which the server refuses.
chmod 0700 "$PGDATA"

if [ ! -s "$PGDATA/PG_VERSION" ]; then
  if [ -n "${POSTGRES_PASSWORD_FILE:-}" ]; then
    POSTGRES_PASSWORD=$(cat "$POSTGRES_PASSWORD_FILE")
  fi
  : "${POSTGRES_PASSWORD:?an empty volume needs POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE}"
  : "${POSTGRES_USER:=postgres}" "${POSTGRES_DB:=$POSTGRES_USER}"
  export POSTGRES_USER POSTGRES_DB PGPASSWORD="$POSTGRES_PASSWORD"

  password_file=$(mktemp)
  printf '%s\n' "$POSTGRES_PASSWORD" >"$password_file"
  # The arguments are words for initdb.
  # shellcheck disable=SC2086
  initdb --username="$POSTGRES_USER" --pwfile="$password_file" ${POSTGRES_INITDB_ARGS:-}
  rm "$password_file"

  # On the socket only, so that nobody takes the half-made database for a ready one.
  options=$(printf "'%s' " "$@" -c "listen_addresses=")
  pg_ctl --pgdata="$PGDATA" --options="${options#"'postgres' "}" --wait start
  if [ "$POSTGRES_DB" != postgres ]; then
    psql -v ON_ERROR_STOP=1 --no-psqlrc --username "$POSTGRES_USER" --dbname postgres -v name="$POSTGRES_DB" <<'SQL'
CREATE DATABASE :"name";
SQL
  fi
  for file in /docker-entrypoint-initdb.d/*; do
    case $file in
      *.sh) if [ -x "$file" ]; then "$file"; else . "$file"; fi ;;
      *.sql) psql -v ON_ERROR_STOP=1 --no-psqlrc --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" --file "$file" ;;
    esac
  done
  pg_ctl --pgdata="$PGDATA" --mode=fast --wait stop
  unset PGPASSWORD POSTGRES_PASSWORD
fi

exec "$@"
