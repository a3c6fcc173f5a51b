# Starts the entrypoint of the image, which takes every PGDATA with a PG_VERSION for a database, also one whose making was cut
# short, as by a node that went, and which would lack its roles for ever. The mark says that a start found nothing and that the
# init script has not come to its end since. What was made then is put aside and made anew, unless it has served all the same,
# or was restored: the server that the entrypoint makes a database with listens nowhere, and a crash may leave its options empty.
mark="${PGDATA%/*}/first-start"
options="$PGDATA/postmaster.opts"
has_served() {
  [ -e "$PGDATA/backup_label" ] && return
  [ -s "$options" ] || return
  grep -q '"listen_addresses="' "$options"
  [ $? -eq 1 ]
}
# A folder that cannot be looked into is none that is empty.
is_empty() {
  [ ! -e "$PGDATA" ] || { found=$(ls -A "$PGDATA") && [ -z "$found" ]; }
}
if [ ! -e "$mark" ]; then
  if is_empty; then : >"$mark" || exit; fi
elif has_served; then
  rm -f "$mark"
elif ! is_empty; then
  echo "the first start of this database was cut short: what there is of it is moved to $PGDATA.cut-short" >&2
  rm -rf "$PGDATA.cut-short"
  mv "$PGDATA" "$PGDATA.cut-short" || exit
fi
exec docker-entrypoint.sh "$@"
