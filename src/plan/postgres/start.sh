# What the entrypoint of the image is started by. It takes every PGDATA with a PG_VERSION for a database, also one whose making
# was cut short, as by a node that went, and which would lack its roles for ever. Such a one has never served anybody: it is
# put aside, and the entrypoint makes another. A database that was brought here otherwise has no such mark.
first="${PGDATA%/*}/first-start"
if [ -e "$first" ] && [ -e "$PGDATA" ]; then
  echo "the first start of this database was cut short: what there is of it is moved to $PGDATA.cut-short" >&2
  rm -rf "$PGDATA.cut-short"
  mv "$PGDATA" "$PGDATA.cut-short" || exit
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  : >"$first" || exit
fi
exec docker-entrypoint.sh "$@"
