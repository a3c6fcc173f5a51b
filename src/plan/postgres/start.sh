# Starts the entrypoint of the image, which takes every PGDATA with a PG_VERSION for a database, also one whose making was cut
# short, as by a node that went, and which would lack its roles for ever. The mark says that a start found nothing and that the
# init script has not come to its end since. What was made then is put aside and made anew, unless it has served all the same,
# or was restored: the server that the entrypoint makes a database with listens nowhere.
mark="${PGDATA%/*}/first-start"
options="$PGDATA/postmaster.opts"
if [ -e "$mark" ]; then
  if [ -e "$PGDATA/backup_label" ] || { [ -e "$options" ] && ! grep -q 'listen_addresses=' "$options"; }; then
    rm -f "$mark"
  elif [ -n "$(ls -A "$PGDATA" 2>/dev/null)" ]; then
    echo "the first start of this database was cut short: what there is of it is moved to $PGDATA.cut-short" >&2
    rm -rf "$PGDATA.cut-short"
    mv "$PGDATA" "$PGDATA.cut-short" || exit
  fi
elif [ -z "$(ls -A "$PGDATA" 2>/dev/null)" ]; then
  : >"$mark" || exit
fi
exec docker-entrypoint.sh "$@"
